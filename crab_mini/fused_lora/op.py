"""The operation as torch sees it: one autograd node, eager or compiled, around whichever kernel was chosen.

Eagerly it is a torch.autograd.Function. Under torch.compile it is the operator crab_mini::fused_lora with a fake that
gives the shapes, and its backward is an operator too; the compiler plans around them. The operators could serve both,
but their way through the dispatcher costs half a millisecond beside a 10 ms layer (cold code), hence two doors to
the same two functions. Parameters are cast to the dtype of x in here: under autocast they stay float32 outside.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crab_mini.fused_lora import dispatch, torch_path


def apply(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel):
    """y (N, out), differentiable. Arguments as `reference.fused`; kernel: of dispatch.KERNELS, or "" (CRAB_KERNEL)."""
    if torch.compiler.is_compiling():
        return operator(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel)[0]
    return Eager.apply(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel)


def forward(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel):
    """y (N, out) and z (R, N) in the dtype of x, g (E, N) in float32 (float64 for float64)."""
    weight, A, R, B = _cast(x, weight, A, R, B)
    bias = None if bias is None else bias.to(x.dtype)
    run = dispatch.pick(kernel, x, B)
    return tuple(run.forward(x, weight, bias, A, R, B, scaling, keep, keep_scale))


def backward(gy, x, weight, A, R, B, z, g, scaling, keep, keep_scale, need_x, kernel):
    """gx (N, in) in the dtype of x, empty unless need_x; gA (R, in), gR (E, in), gB (E, R, out) in their parameter's.

    gy (N, out) is the gradient of y; z and g as `forward` returned them.
    """
    run = dispatch.pick(kernel, x, B)
    gx, *gradients = run.backward(gy.to(x.dtype).contiguous(), x, *_cast(x, weight, A, R, B), z, g, scaling, keep,
                                  keep_scale, need_x)
    return gx, *[grad if grad.dtype is p.dtype else grad.to(p.dtype) for grad, p in zip(gradients, (A, R, B))]


def _cast(x, *parameters):
    """The parameters in the dtype of x, contiguous, as every kernel wants them."""
    dtype = x.dtype                                         # asked first: nothing to do is the usual case, and quick
    return [p if p.dtype is dtype and p.is_contiguous() else p.to(dtype).contiguous() for p in parameters]


def _save(ctx, inputs, output):
    """What backward needs: x, the small z and g, the parameters themselves."""
    x, weight, bias, A, R, B, ctx.scaling, keep, ctx.keep_scale, ctx.kernel = inputs
    ctx.save_for_backward(x, weight, bias, A, R, B, *output[1:], keep)


def _gradients(ctx, gy, how):
    """One gradient for each argument of `apply`; how: `backward` or the operator of it."""
    x, weight, bias, A, R, B, z, g, keep = ctx.saved_tensors
    need_x, need_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    gx, gA, gR, gB = how(gy, x, weight, A, R, B, z, g, ctx.scaling, keep, ctx.keep_scale, need_x, ctx.kernel)
    gbias = gy.sum(0).to(bias.dtype) if need_bias else None
    return gx if need_x else None, None, gbias, gA, gR, gB, None, None, None, None


class Eager(torch.autograd.Function):
    """The autograd node outside torch.compile."""

    @staticmethod
    def forward(ctx, *inputs):
        """Runs the kernel and keeps what backward needs."""
        output = forward(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        """Gradients of every input."""
        return _gradients(ctx, gy, backward)


@torch.library.custom_op("crab_mini::fused_lora", mutates_args=())
def operator(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, R: Tensor, B: Tensor, scaling: float,
             keep: Tensor | None, keep_scale: float, kernel: str) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` for the compiler."""
    return forward(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel)


@operator.register_fake
def _(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel):
    N = x.shape[0]
    return (x.new_empty(N, weight.shape[0]), x.new_empty(A.shape[0], N),
            x.new_empty(R.shape[0], N, dtype=torch_path.wide(x)))


@torch.library.custom_op("crab_mini::fused_lora_backward", mutates_args=())
def operator_backward(gy: Tensor, x: Tensor, weight: Tensor, A: Tensor, R: Tensor, B: Tensor, z: Tensor, g: Tensor,
                      scaling: float, keep: Tensor | None, keep_scale: float, need_x: bool,
                      kernel: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward` for the compiler."""
    return backward(gy, x, weight, A, R, B, z, g, scaling, keep, keep_scale, need_x, kernel)


@operator_backward.register_fake
def _(gy, x, weight, A, R, B, z, g, scaling, keep, keep_scale, need_x, kernel):
    gx = torch.empty_like(x) if need_x else x.new_empty(0)
    return gx, torch.empty_like(A), torch.empty_like(R), torch.empty_like(B)


operator.register_autograd(lambda ctx, gy, _gz, _gg: _gradients(ctx, gy, operator_backward), setup_context=_save)
