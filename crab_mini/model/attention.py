"""softmax(q k^T / sqrt(d) + mask) v: the one line that LLM, ViT, BEATs and Q-Former share.

In bfloat16 on a CPU the formula itself trains two to four times as fast as torch's built-in kernel, whose backward is
slow there; everywhere else the built-in one wins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """q (B,H,L,d), k and v (B,Hkv,K,d) -> (B,H,L,d); kv head j serves the query heads j*n .. j*n+n-1, n = H / Hkv.

    mask: broadcastable to (B,H,L,K); bool, True = may look, or float, added to the scores. causal: query l sees keys
    0 .. l (only without a mask, and L = K).
    """
    grouped = k.shape[1] < q.shape[1]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or grouped:
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)                     # (B,H,L,K)
    if causal:
        scores = scores + scores.new_full(scores.shape[-2:], float("-inf")).triu(1)
    elif mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(q.dtype)
    return scores.softmax(-1) @ v
