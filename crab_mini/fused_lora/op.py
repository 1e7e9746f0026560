"""The operation as torch sees it: crab_mini::fused_lora and its backward, each with a fake for torch.compile.

Both are opaque to the compiler: it plans around them with the shapes that the fakes give and calls the kernel that
was chosen. The backward is an operator of its own so that compiled training calls it too.
"""

import torch
from torch import Tensor

from crab_mini.fused_lora import torch_path


@torch.library.custom_op("crab_mini::fused_lora", mutates_args=())
def operator(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, R: Tensor, B: Tensor, scaling: float,
             keep: Tensor | None, keep_scale: float, kernel: str) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, out), z (R, N), g (E, N); arguments as `reference.fused`, kernel as `dispatch.choose` returned it."""
    y, z, g = torch_path.forward(x, weight, bias, A, R, B, scaling, keep, keep_scale)
    return y, z, g


@operator.register_fake
def _(x, weight, bias, A, R, B, scaling, keep, keep_scale, kernel):
    N = x.shape[0]
    return (x.new_empty(N, weight.shape[0]), x.new_empty(A.shape[0], N),
            x.new_empty(R.shape[0], N, dtype=torch_path.wide(x)))


@torch.library.custom_op("crab_mini::fused_lora_backward", mutates_args=())
def operator_backward(gy: Tensor, x: Tensor, weight: Tensor, A: Tensor, R: Tensor, B: Tensor, z: Tensor, g: Tensor,
                      scaling: float, keep: Tensor | None, keep_scale: float, need_x: bool,
                      kernel: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gx (N, in) or empty, gA (R, in), gR (E, in), gB (E, R, out)."""
    return torch_path.backward(gy, x, weight, A, R, B, z, g, scaling, keep, keep_scale, need_x)


@operator_backward.register_fake
def _(gy, x, weight, A, R, B, z, g, scaling, keep, keep_scale, need_x, kernel):
    gx = torch.empty_like(x) if need_x else x.new_empty(0)
    return gx, torch.empty_like(A), torch.empty_like(R), torch.empty_like(B)


def _save(ctx, inputs, output):
    x, weight, bias, A, R, B, ctx.scaling, keep, ctx.keep_scale, ctx.kernel = inputs
    _, z, g = output
    ctx.mark_non_differentiable(z, g)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, A, R, B, z, g, keep)


def _backward(ctx, gy, _gz, _gg):
    if gy is None:                                          # nothing above depends on y
        return (None,) * 10
    x, weight, A, R, B, z, g, keep = ctx.saved_tensors
    need_x, need_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    gx, gA, gR, gB = operator_backward(gy, x, weight, A, R, B, z, g, ctx.scaling, keep, ctx.keep_scale, need_x,
                                       ctx.kernel)
    return gx if need_x else None, None, gy.sum(0) if need_bias else None, gA, gR, gB, None, None, None, None


operator.register_autograd(_backward, setup_context=_save)
