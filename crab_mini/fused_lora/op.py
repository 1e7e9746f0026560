"""The operation as torch sees it: one autograd node around the kernel that was chosen.

There are two ways into the same `forward` and `backward`:

- Eager mode uses a torch.autograd.Function.
- torch.compile uses the operator crab_mini::fused_lora. Its backward pass is an operator, too. A
  fake version of each tells the compiler the shapes.

The operators would serve eager mode as well, but calling them costs half a millisecond more per
layer, where a small layer takes 10 ms. The parameters are cast to the dtype of x in here: under
autocast the caller's parameters stay float32.
"""

import torch
from torch import Tensor

from . import dispatch, torch_path

ONCE = "fused_lora: there is no second derivative (create_graph); reference.fused has one"
TRANSFORMS = ("fused_lora: torch.func transforms (vmap, grad, jvp) and forward derivatives are "
              "not supported; reference.fused has them")


def apply(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale, kernel):
    """y (N, out), differentiable. Arguments as `reference.fused`; kernel: of KERNELS, or ""."""
    if torch.compiler.is_compiling():
        return operator(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale, kernel)[0]
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(TRANSFORMS)
    return Eager.apply(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale, kernel)


def forward(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale, kernel):
    """y (N, out), z (r, N) in the dtype of x, g (E, N) in float32 (float64 for float64)."""
    weight, A, W_r, B = _cast(x, weight, A, W_r, B)
    bias = None if bias is None else bias.to(x.dtype)
    run = dispatch.pick(kernel, x, B)
    return tuple(run.forward(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale))


def backward(gy, x, weight, A, W_r, B, z, g, scaling, dropout_mask, mask_scale, need_x, kernel):
    """gx (N, in), empty unless need_x; gA (r, in), gW_r (E, in), gB (E, r, out).

    gx has the dtype of x, each other gradient that of its parameter. gy (N, out): the gradient of
    y.
    z and g: as `forward` returned them.
    """
    run = dispatch.pick(kernel, x, B)
    gy, parameters = gy.to(x.dtype).contiguous(), _cast(x, weight, A, W_r, B)
    gx, *gradients = run.backward(gy, x, *parameters, z, g, scaling, dropout_mask, mask_scale,
                                  need_x)
    return gx, *[gradient if gradient.dtype is parameter.dtype else gradient.to(parameter.dtype)
                 for gradient, parameter in zip(gradients, (A, W_r, B))]


def _cast(x, *parameters):
    """The parameters in the dtype of x, contiguous, as every kernel wants them."""
    dtype = x.dtype                     # usually there is nothing to do, and the question is cheap
    return [p if p.dtype is dtype and p.is_contiguous() else p.to(dtype).contiguous()
            for p in parameters]


def _save(ctx, inputs, output):
    """Keeps what the backward pass needs: x, the small z and g, the parameters themselves."""
    x, weight, bias, A, W_r, B, ctx.scaling, dropout_mask, ctx.mask_scale, ctx.kernel = inputs
    ctx.save_for_backward(x, weight, bias, A, W_r, B, *output[1:], dropout_mask)


def _gradients(ctx, gy, how):
    """One gradient for each argument of `apply`. how: `backward`, or the operator of it."""
    x, weight, bias, A, W_r, B, z, g, dropout_mask = ctx.saved_tensors
    need_x, need_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    gx, gA, gW_r, gB = how(gy, x, weight, A, W_r, B, z, g, ctx.scaling, dropout_mask,
                           ctx.mask_scale, need_x, ctx.kernel)
    gbias = gy.sum(0).to(bias.dtype) if need_bias else None
    return gx if need_x else None, None, gbias, gA, gW_r, gB, None, None, None, None


class Eager(torch.autograd.Function):
    """The autograd node outside torch.compile."""

    @staticmethod
    def forward(ctx, *inputs):
        """Runs the kernel and keeps what the backward pass needs."""
        output = forward(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, gy):
        """The gradients of every input. Their own derivative is refused, and not silently zero."""
        create_graph = torch.is_grad_enabled()
        with torch.no_grad():
            gradients = _gradients(ctx, gy, backward)
        if not create_graph:
            return gradients
        # They ask for a gradient, so that whoever differentiates them reaches Once.
        return Once.apply(*[g if g is None else g.requires_grad_() for g in gradients])

    @staticmethod
    def jvp(ctx, *tangents):
        """Refuses forward-mode derivatives."""
        raise RuntimeError(TRANSFORMS)


class Once(torch.autograd.Function):
    """Hands gradients through and refuses to differentiate them."""

    @staticmethod
    def forward(ctx, *gradients):
        """The gradients, unchanged."""
        return gradients

    @staticmethod
    def backward(ctx, *_):
        """Refuses."""
        raise RuntimeError(ONCE)


@torch.library.custom_op("crab_mini::fused_lora", mutates_args=())
def operator(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, W_r: Tensor, B: Tensor,
             scaling: float, dropout_mask: Tensor | None, mask_scale: float,
             kernel: str) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` for the compiler."""
    return forward(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale, kernel)


@operator.register_fake
def _(x, weight, bias, A, W_r, B, scaling, dropout_mask, mask_scale, kernel):
    N = x.shape[0]
    return (x.new_empty(N, weight.shape[0]), x.new_empty(A.shape[0], N),
            x.new_empty(W_r.shape[0], N, dtype=torch_path.wide(x)))


@torch.library.custom_op("crab_mini::fused_lora_backward", mutates_args=())
def operator_backward(gy: Tensor, x: Tensor, weight: Tensor, A: Tensor, W_r: Tensor, B: Tensor,
                      z: Tensor, g: Tensor, scaling: float, dropout_mask: Tensor | None,
                      mask_scale: float, need_x: bool,
                      kernel: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward` for the compiler."""
    return backward(gy, x, weight, A, W_r, B, z, g, scaling, dropout_mask, mask_scale, need_x,
                    kernel)


@operator_backward.register_fake
def _(gy, x, weight, A, W_r, B, z, g, scaling, dropout_mask, mask_scale, need_x, kernel):
    gx = torch.empty_like(x) if need_x else x.new_empty(0)
    return gx, torch.empty_like(A), torch.empty_like(W_r), torch.empty_like(B)


operator.register_autograd(lambda ctx, gy, _gz, _gg: _gradients(ctx, gy, operator_backward),
                           setup_context=_save)
