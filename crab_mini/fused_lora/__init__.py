"""The interaction-aware LoRA linear as one operation: y = W x + b + scaling · sum_i softmax(R x)_i · B_i A x.

`fused_lora(...)` is the whole interface: it checks its arguments, takes the kernel that CRAB_KERNEL or `kernel` asks
for (auto, torch, cpp, cuda) and calls one operator registered with torch, so that autograd, autocast and
torch.compile see a single node with a hand-written backward. Saved for backward: x, z = A x, g = softmax(R x),
nothing of the output's size. Paper section 3.2. Official Crab computes A x once per head, keeps one output per head
and draws one dropout mask per head; here one mask is shared by the heads.
The formula is in reference.py, the torch version in torch_path.py, how to build and to measure in README.md.
"""

import torch

from crab_mini.fused_lora.dispatch import KERNELS
from crab_mini.fused_lora.op import apply

__all__ = ["KERNELS", "fused_lora"]


def fused_lora(x, weight, bias, A, R, B, scaling, dropout=0.0, keep=None, kernel=None):
    """Frozen linear layer plus the routed multi-head branch, in one operation.

    x (..., in); weight (out, in) and bias (out) or None: the frozen layer; A (R, in): shared by the heads;
    R (E, in): the router; B (E, R, out): head i's B_i transposed, so that all heads are one (E·R, out) matrix;
    scaling = alpha / r; dropout: probability of zeroing an entry of x on its way to A (not to W, not to R), one mask
    for all heads (official Crab draws one per head); keep (..., in) bool: that mask, given instead of drawn;
    kernel: None for CRAB_KERNEL, or one of KERNELS. Under autocast everything is computed in the autocast dtype.
    Returns y (..., out). Gradients go to x, bias, A, R, B and never to weight.
    Raises ValueError or TypeError in one line for a shape, dtype or device that does not fit.
    """
    known = x.device.type != "meta"                # where shapes are only counted there is no autocast to ask for
    autocast = known and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    if not _fits(x, weight, bias, A, R, B, keep, dropout, autocast):
        _complain(x, weight, bias, A, R, B, keep, dropout, autocast)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])          # (N, in)
    if autocast:
        rows = rows.to(torch.get_autocast_dtype(x.device.type))       # the parameters are cast inside the operator
    if keep is not None:
        keep = keep.reshape(rows.shape).contiguous()
    elif dropout > 0.0:
        keep = torch.empty(rows.shape, dtype=torch.bool, device=x.device).bernoulli_(1.0 - dropout)
    y = apply(rows.contiguous(), weight, bias, A, R, B, float(scaling), keep, 1.0 / (1.0 - dropout), kernel or "")
    return y if x.dim() == 2 else y.view(*x.shape[:-1], len(weight))


def _fits(x, weight, bias, A, R, B, keep, dropout, autocast):
    """Whether all is well, in one expression: it runs once a layer and a step."""
    if not (x.dim() >= 1 and weight.dim() == 2 and B.dim() == 3 and x.is_floating_point() and 0.0 <= dropout < 1.0):
        return False
    (out, width), (heads, rank, last), device, dtype = weight.shape, B.shape, x.device, x.dtype
    return (x.shape[-1] == width and last == out and A.shape == (rank, width) and R.shape == (heads, width)
            and not weight.requires_grad and weight.device == A.device == R.device == B.device == device
            and (autocast or weight.dtype == A.dtype == R.dtype == B.dtype == dtype)
            and (bias is None or (bias.shape == (out,) and bias.device == device and (autocast or bias.dtype == dtype)))
            and (keep is None or (keep.shape == x.shape and keep.device == device and keep.dtype == torch.bool)))


def _complain(x, weight, bias, A, R, B, keep, dropout, autocast):
    """Raises for the first thing that does not fit, in one clear line."""
    if not x.is_floating_point():
        raise TypeError(f"fused_lora: x must be floating point, found {x.dtype}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"fused_lora: dropout must be in [0, 1), found {dropout}")
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"fused_lora: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)} (out, in)")
    if B.dim() != 3:
        raise ValueError(f"fused_lora: B must be (E, R, out), found {tuple(B.shape)}")
    if weight.requires_grad:
        raise ValueError("fused_lora: weight is the frozen base and gets no gradient; requires_grad_(False) is missing")
    (out, width), (heads, rank, _) = weight.shape, B.shape
    wanted = {"A": (A, (rank, width)), "R": (R, (heads, width)), "B": (B, (heads, rank, out)), "bias": (bias, (out,)),
              "keep": (keep, x.shape), "weight": (weight, (out, width))}
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"fused_lora: {name} must be {tuple(shape)}, found {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"fused_lora: {name} is on {tensor.device}, x on {x.device}")
        expected = torch.bool if name == "keep" else tensor.dtype if autocast else x.dtype
        if tensor.dtype != expected:
            raise TypeError(f"fused_lora: {name} must be {expected}, found {tensor.dtype}")
