"""The interaction-aware LoRA twice: as the paper writes it, and as two skinny products. Oracle of every test.

Paper section 3.2: y = W x + (alpha / r) · sum_i softmax(R x)_i · B_i A x. Both functions are plain torch, and
autograd differentiates them. The loop is how official Crab computes it (A x once per head, a full-size output per
head); the fusion gathers all heads into one product, which the C++ and CUDA kernels then do in cache.
"""

import torch
import torch.nn.functional as F


def loop(x, weight, bias, A, R, B, scaling):
    """The formula, head by head.

    x (N, in); weight (out, in); bias (out) or None; A (R, in) shared; R (E, in) router; B (E, R, out), head i's B_i
    transposed; scaling alpha / r. Returns y (N, out).
    """
    g = softmax(F.linear(x, R))                             # (N, E): the router sees the raw x
    y = F.linear(x, weight, bias)                           # (N, out)
    for i in range(len(B)):
        y = y + g[:, i:i + 1] * F.linear(F.linear(x, A), B[i].t()) * scaling
    return y


def fused(x, weight, bias, A, R, B, scaling, keep=None, keep_scale=1.0):
    """The same sum as two skinny products: z = x Aᵀ, u = g ⊗ z, y += scaling · u B.

    Arguments and result as in `loop`; keep (N, in) bool is the dropout mask before A, keep_scale 1 / (1 - p).
    """
    E, rank, out = B.shape
    g = softmax(F.linear(x, R))                             # (N, E)
    z = F.linear(x if keep is None else x * keep * keep_scale, A)     # (N, R)
    u = g.unsqueeze(2) * z.unsqueeze(1)                     # (N, E, R)
    return F.linear(x, weight, bias) + scaling * (u.reshape(len(x), E * rank) @ B.reshape(E * rank, out))


def softmax(logits):
    """Router weights (N, E): softmax in float32 (float64 stays), given back in the dtype of the logits."""
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    return F.softmax(logits, dim=-1, dtype=wide).to(logits.dtype)
