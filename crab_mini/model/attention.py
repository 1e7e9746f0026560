"""softmax(q k^T / sqrt(d) + mask) v: the formula that LLM, ViT, BEATs and Q-Former share.

In bfloat16 on a CPU the formula itself trains two to four times as fast as torch's built-in kernel,
whose backward is slow there. Everywhere else the built-in kernel is faster. Neither returns the
weights, so recorder.py asks for them through `recording`, which is empty otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

recording: list[list[Tensor]] = []      # each of these lists receives the weights of every call


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None,
                      causal: bool = False) -> Tensor:
    """How much of each key every query takes: softmax(q k^T / sqrt(d) + mask), (B,n,L,L_kv).

    Arguments as in `attend`.
    """
    # With fewer key heads, each is compared with a whole group of query heads.
    if k.shape[1] < q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)                      # (B,n,L_kv,d)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)                      # (B,n,L,L_kv)
    # What may not be seen gets the score -inf, which the softmax turns into the weight 0.
    if causal:
        scores = scores + scores.new_full(scores.shape[-2:], float("-inf")).triu(1)
    elif mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask.to(q.dtype)
    return scores.softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None,
           causal: bool = False) -> Tensor:
    """q (B,n,L,d), k and v (B,n_kv,L_kv,d) -> (B,n,L,d).

    With fewer heads of keys than of queries, key head j serves the n / n_kv query heads that begin
    at j * n / n_kv. mask: broadcastable to (B,n,L,L_kv); bool, True = may look, or float, added to
    the scores. causal: query l sees the keys 0 .. l (only without a mask, and where L = L_kv).
    """
    if recording:
        weights = attention_weights(q, k, mask, causal).detach()
        for calls in recording:
            calls.append(weights)

    # The formula where it is faster. It never is for grouped heads, whose keys it would copy.
    grouped = k.shape[1] < q.shape[1]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not grouped:
        return attention_weights(q, k, mask, causal) @ v

    # The built-in kernel wants a float mask in the dtype of the queries.
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
