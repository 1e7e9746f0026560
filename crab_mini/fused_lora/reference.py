"""The formula of the interaction-aware LoRA layer, written twice in plain torch.

    y = W x + b + scaling · Σ_i softmax(W_r x)_i · B_i A x          (paper, section 3.2)

- `loop` follows the formula head by head, as official Crab does: it computes A x once per head and
  holds one output of full size per head.
- `fused` computes the same sum as two products with thin matrices. The C++ and CUDA kernels do what
  it does.

Autograd differentiates both. The tests compare every kernel with them.
"""

import torch
import torch.nn.functional as F


def loop(x, weight, bias, A, W_r, B, scaling):
    """The formula, head by head: y (N, out).

    x (N, in). weight (out, in), bias (out) or None. A (r, in). W_r (E, in): the router.
    B (E, r, out): B[i] is B_i transposed. scaling: alpha / r.
    """
    g = softmax(F.linear(x, W_r))                           # (N, E): the router sees the whole x
    y = F.linear(x, weight, bias)                           # (N, out)
    for i in range(len(B)):
        y = y + g[:, i:i + 1] * F.linear(F.linear(x, A), B[i].t()) * scaling
    return y


def fused(x, weight, bias, A, W_r, B, scaling, dropout_mask=None, mask_scale=1.0):
    """The same sum as two products with thin matrices: z = A x, u = g ⊗ z, y += scaling · u B.

    Arguments and result as in `loop`. dropout_mask (N, in), bool: the entries of x that A sees.
    mask_scale: 1 / (1 - dropout).
    """
    E, rank, out = B.shape
    g = softmax(F.linear(x, W_r))                           # (N, E)
    z = F.linear(x if dropout_mask is None else x * dropout_mask * mask_scale, A)     # (N, r)
    u = g.unsqueeze(2) * z.unsqueeze(1)                     # (N, E, r)
    branch = u.reshape(len(x), E * rank) @ B.reshape(E * rank, out)
    return F.linear(x, weight, bias) + scaling * branch


def softmax(logits):
    """The router's weights (N, E): computed in float32 or float64, in the dtype of the logits."""
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    return F.softmax(logits, dim=-1, dtype=wide).to(logits.dtype)
