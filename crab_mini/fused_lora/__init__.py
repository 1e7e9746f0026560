"""A frozen linear layer with the routed multi-head LoRA branch, as one operation.

    y = W x + b + scaling · Σ_i softmax(W_r x)_i · B_i A x          (paper, section 3.2)

`fused_lora(...)` computes it. `KERNELS` lists the kernels that its argument `kernel` may name.

- The operation has a hand-written backward pass. Autograd, autocast and torch.compile see one node.
- The backward pass keeps x, z = A x and g = softmax(W_r x). It keeps no tensor of the size of the
  output.
- Official Crab computes A x once per head, keeps one output per head and draws one dropout mask per
  head. Here the heads share one A x and one dropout mask.

Letters: N rows of the flattened batch, r LoRA rank, E LoRA heads, W_r the router's matrix. The
formula is in reference.py, the torch version in torch_path.py. README.md says how to build the
kernels and how to measure them.
"""

import torch

from .dispatch import KERNELS
from .op import apply

__all__ = ["KERNELS", "fused_lora"]


def fused_lora(x, weight, bias, A, W_r, B, scaling, dropout=0.0, dropout_mask=None, kernel=None):
    """y (..., out): the frozen linear layer plus the LoRA branch.

    x (..., in): the input.
    weight (out, in), bias (out) or None: the frozen layer. weight gets no gradient.
    A (r, in): shared by the heads. W_r (E, in): the router.
    B (E, r, out): B[i] is B_i transposed, so that all heads together are one (E·r, out) matrix.
    scaling: alpha / r.
    dropout: the probability that an entry of x is zero in A x. W and W_r see the whole x.
    dropout_mask (..., in), bool: the entries to keep, given instead of drawn.
    kernel: one of KERNELS, or None: then the environment variable CRAB_KERNEL decides.

    Gradients go to x, bias, A, W_r and B. Under autocast the operation computes in the autocast
    dtype. Raises ValueError or TypeError in one line for a shape, dtype or device that does not
    fit.
    """
    # A meta tensor has no autocast state to ask for.
    known = x.device.type != "meta"
    autocast = known and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    if not _fits(x, weight, bias, A, W_r, B, dropout_mask, dropout, autocast):
        _complain(x, weight, bias, A, W_r, B, dropout_mask, dropout, autocast)

    # The kernels take a matrix of N rows. The parameters are cast inside the operator.
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])          # (N, in)
    if autocast:
        rows = rows.to(torch.get_autocast_dtype(x.device.type))

    # The mask is drawn here, so that every kernel gets the same one from the same seed.
    if dropout_mask is not None:
        dropout_mask = dropout_mask.reshape(rows.shape).contiguous()
    elif dropout > 0.0:
        dropout_mask = torch.empty(rows.shape, dtype=torch.bool, device=x.device)
        dropout_mask.bernoulli_(1.0 - dropout)
    y = apply(rows.contiguous(), weight, bias, A, W_r, B, float(scaling), dropout_mask,
              1.0 / (1.0 - dropout), kernel or "")
    return y if x.dim() == 2 else y.view(*x.shape[:-1], len(weight))


def _fits(x, weight, bias, A, W_r, B, dropout_mask, dropout, autocast):
    """Whether all arguments fit. One expression, because every layer calls it at every step."""
    if not (x.dim() >= 1 and weight.dim() == 2 and B.dim() == 3 and x.is_floating_point()
            and 0.0 <= dropout < 1.0):
        return False
    (out, width), (heads, rank, last), device, dtype = weight.shape, B.shape, x.device, x.dtype
    return (x.shape[-1] == width and last == out and A.shape == (rank, width)
            and W_r.shape == (heads, width) and not weight.requires_grad
            and weight.device == A.device == W_r.device == B.device == device
            and (weight.dtype == A.dtype == W_r.dtype == B.dtype == dtype or autocast
                 and weight.is_floating_point() and A.is_floating_point()
                 and W_r.is_floating_point() and B.is_floating_point())
            and (bias is None or bias.shape == (out,) and bias.device == device
                 and (bias.dtype == dtype or autocast and bias.is_floating_point()))
            and (dropout_mask is None or dropout_mask.shape == x.shape
                 and dropout_mask.device == device and dropout_mask.dtype == torch.bool))


def _complain(x, weight, bias, A, W_r, B, dropout_mask, dropout, autocast):
    """Raises ValueError or TypeError, in one line, for the first argument that does not fit."""
    # These come first: the shapes below are read from weight and B.
    if not x.is_floating_point():
        raise TypeError(f"fused_lora: x must be floating point, found {x.dtype}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"fused_lora: dropout must be in [0, 1), found {dropout}")
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"fused_lora: x {tuple(x.shape)} does not fit weight "
                         f"{tuple(weight.shape)} (out, in)")
    if B.dim() != 3:
        raise ValueError(f"fused_lora: B must be (E, r, out), found {tuple(B.shape)}")
    if weight.requires_grad:
        raise ValueError("fused_lora: weight is frozen and gets no gradient; "
                         "call weight.requires_grad_(False)")

    # Then each tensor by its name: shape, device, dtype.
    (out, width), (heads, rank, _) = weight.shape, B.shape
    wanted = {"A": (A, (rank, width)), "W_r": (W_r, (heads, width)), "B": (B, (heads, rank, out)),
              "bias": (bias, (out,)), "dropout_mask": (dropout_mask, x.shape),
              "weight": (weight, (out, width))}
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"fused_lora: {name} must be {tuple(shape)}, "
                             f"found {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"fused_lora: {name} is on {tensor.device}, x on {x.device}")
        if name != "dropout_mask" and autocast:
            if not tensor.is_floating_point():
                raise TypeError(f"fused_lora: {name} must be floating point, found {tensor.dtype}")
            continue
        expected = torch.bool if name == "dropout_mask" else x.dtype
        if tensor.dtype != expected:
            raise TypeError(f"fused_lora: {name} must be {expected}, found {tensor.dtype}")
