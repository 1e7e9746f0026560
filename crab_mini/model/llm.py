"""The language model: LLaMA's decoder-only transformer (arXiv 2302.13971, 2307.09288).

    ids (B,L) -> embed -> blocks -> norm -> head -> logits (B,L,V)
    a block: x + attention(norm x), then x + SwiGLU(norm x)

Unusual: a mask token's *state* matters as much as its id. So `generate_states` returns with every
id the final-norm state that predicted it, the one that training reads (Crab, section 3.1). Batches
to generate from are padded on the LEFT: all rows then grow at the same column. Positions count real
tokens only, so padding never changes a row's answer.
    LLM(LLMConfig()).generate(torch.randint(640, (1, 5)), 20)
Every projection is a plain nn.Linear without bias, for lora.attach to replace. What Crab needs of a
language model, this one or another, is `LanguageModel`. Departs from official Crab: nothing is read
at hard-coded index offsets; the cache belongs to this file and not to a library version.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import LLMConfig
from .added_tokens import GrownEmbedding, GrownHead
from .attention import attend
from .kv_cache import KVCache


@runtime_checkable
class LanguageModel(Protocol):
    """All that Crab needs of a language model, an nn.Module with these members.

    `LLM` is one. tests/test_crab.py trains another, a small GRU: `Crab(cfg, ids, {"llm": gru})`.
    """
    embed: Callable[[Tensor], Tensor]     # ids (B,L) -> embeddings (B,L,D)
    head: Callable[[Tensor], Tensor]      # states (...,D) -> logits (...,V)
    blocks: nn.ModuleList                 # the layers; `with_lora` gives LoRA to their nn.Linear

    def encode(self, embeds: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Embeddings (B,L,D) -> states (B,L,D), causal; the state at l predicts the token at l + 1.

        mask (B,L) bool: which tokens are real. cache: the model's own memory of earlier tokens,
        which its `generate_states` hands on; Crab gives neither.
        """

    def generate_states(self, embeds: Tensor, attention_mask: Tensor, max_new_tokens: int,
                        eos: int | None) -> tuple[Tensor, Tensor]:
        """Left-padded prompts (B,L,D) -> new ids (B,new), states (B,new,D) that chose them."""

    def resize_token_embeddings(self, vocab: int) -> "LanguageModel":
        """Makes room for added tokens in `embed` and `head`, and returns the model."""

    def added(self) -> list[nn.Parameter]:
        """What was added so, which learns while the rest is frozen."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    The square and the mean are taken in fp32 whatever the dtype of x.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(...,D) -> (...,D) in x's dtype."""
        # bfloat16 squares would lose the digits that the mean needs.
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)            # (...,1)
        return (wide * scale).to(x.dtype) * self.weight


def rotary_table(positions: Tensor, d: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta^(-2i/d): positions (B,L) -> two (B,1,L,d/2), fp32.

    d: width of one attention head, even. theta: base of the wavelengths.
    """
    frequency = 1.0 / theta ** (torch.arange(0, d, 2, device=positions.device).float() / d)
    angle = positions[:, None, :, None].float() * frequency                       # (B,1,L,d/2)
    return angle.cos(), angle.sin()


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns dimension i together with i + d/2: (B,n,L,d) -> same.

    These are LLaMA's halves, not neighbouring pairs as in the paper on rotary embeddings.
    """
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Attention(nn.Module):
    """Causal attention with rotary positions; fewer heads of keys than of queries: see `attend`."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        # Without biases, as LLaMA's.
        self.d = cfg.dim // cfg.heads
        self.q_proj = nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.k_proj = nn.Linear(cfg.dim, cfg.kv_heads * self.d, bias=False)
        self.v_proj = nn.Linear(cfg.dim, cfg.kv_heads * self.d, bias=False)
        self.o_proj = nn.Linear(cfg.dim, cfg.dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None,
                cache: KVCache | None, layer: int) -> Tensor:
        """(B,L,D) -> (B,L,D).

        mask (B,1,L,L_kv) bool, True = may look; None: causal, or one query that sees all. layer:
        this one's number, which is its place in the cache.
        """
        q, k, v = (proj(x).unflatten(-1, (-1, self.d)).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))               # (B,n,L,d)

        # Positions turn queries and keys, so that their product depends on the distance alone.
        cos, sin = (t.to(q.dtype) for t in rotary)
        q, k = apply_rotary_emb(q, cos, sin), apply_rotary_emb(k, cos, sin)
        if cache is not None:
            k, v = cache.write(layer, k, v)                                        # (B,n_kv,L_kv,d)

        y = attend(q, k, v, mask, causal=mask is None and q.shape[2] > 1)             # (B,n,L,d)
        return self.o_proj(y.transpose(1, 2).flatten(2))                              # (B,L,D)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.up_proj = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.down_proj = nn.Linear(cfg.ffn_dim, cfg.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(cfg.dim, cfg.norm_eps), Attention(cfg)
        self.mlp_norm, self.mlp = RMSNorm(cfg.dim, cfg.norm_eps), SwiGLU(cfg)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None,
                cache: KVCache | None, layer: int) -> Tensor:
        """(B,L,D) -> (B,L,D); arguments as in `Attention.forward`."""
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


def causal_mask(attention_mask: Tensor, queries: int) -> Tensor:
    """What the last `queries` of all tokens may look at: (B,L_kv) bool -> (B,1,queries,L_kv) bool.

    attention_mask: which tokens are real. A query sees real tokens before it, and itself. A padded
    query sees only itself: a row of nothing but -inf would be NaN after the softmax.
    """
    # The queries are the last columns, so query i stands at column keys - queries + i.
    keys = attention_mask.shape[1]
    column = torch.arange(keys, device=attention_mask.device)                         # (L_kv,)
    row = column[keys - queries:, None]                                               # (queries,1)
    return ((column < row) & attention_mask[:, None, None, :]) | (column == row)


class LLM(nn.Module):
    """The whole decoder: `embed`, `blocks`, `norm`, `head`.

    Raises ValueError where the heads do not divide the width, or kv_heads the heads.
    """

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        if cfg.dim % (2 * cfg.heads) or cfg.heads % cfg.kv_heads:
            raise ValueError("LLMConfig: dim must be a multiple of 2 * heads and heads of "
                             f"kv_heads, found dim {cfg.dim}, heads {cfg.heads}, "
                             f"kv_heads {cfg.kv_heads}")
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        # Each block adds to the residual twice: the more blocks, the smaller each addition starts.
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.layers) if residual else 0.02)

    def resize_token_embeddings(self, vocab: int) -> "LLM":
        """Rows for added tokens in the embedding and the head (see added_tokens.py), once.

        Nothing changes where there are `vocab` rows already. ValueError for fewer rows than there
        are, or a second time.
        """
        present = self.cfg.vocab_size
        if vocab < present:
            raise ValueError("resize_token_embeddings: expected at least the "
                             f"{present} rows there are, found {vocab}")
        if vocab > present:
            if self.added():
                raise ValueError("resize_token_embeddings: the LLM has grown to "
                                 f"{present} rows already")
            self.embed = GrownEmbedding(self.embed, vocab - present)
            self.head = GrownHead(self.head, vocab - present)
            self.cfg = replace(self.cfg, vocab_size=vocab)
        return self

    def added(self) -> list[nn.Parameter]:
        """The rows of added tokens, (rows,D) each: none before `resize_token_embeddings`."""
        return [part.added for part in (self.embed, self.head)
                if isinstance(part, (GrownEmbedding, GrownHead))]

    def encode(self, embeds: Tensor, mask: Tensor | None = None,
               cache: KVCache | None = None) -> Tensor:
        """Token embeddings (B,L,D) -> states after the final norm (B,L,D).

        The state at l predicts token l + 1. mask (B,L) bool: which of these tokens are real; None:
        all. It is needed for padding on the left, not on the right, where causality hides it.
        cache: holds earlier tokens and receives these.
        """
        batch, length = embeds.shape[:2]
        if mask is not None and mask.shape != (batch, length):
            raise ValueError(f"mask: expected shape {(batch, length)}, found {tuple(mask.shape)}")
        past = 0 if cache is None else cache.length

        # Positions count real tokens. Padding gets one that no real token will look at.
        positions = torch.arange(length, device=embeds.device).expand(batch, -1)      # (B,L)
        if mask is not None:
            positions = mask.long().cumsum(1) - 1
        attention_mask = mask
        # A new token's position follows its row's last one, however much padding the row has.
        if cache is not None:
            start, attention_mask = cache.seen, cache.extend(mask, length)
            positions = positions + start
            cache.seen = positions[:, -1:] + 1
        rotary = rotary_table(positions, self.cfg.dim // self.cfg.heads, self.cfg.rope_theta)

        # Several tokens behind a cache need a mask of their own: the built-in one is square.
        if attention_mask is None and past and length > 1:
            attention_mask = torch.ones(batch, past + length, dtype=torch.bool,
                                        device=embeds.device)                         # (B,L_kv)
        look = None if attention_mask is None else causal_mask(attention_mask, length)

        x = embeds
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, look, cache, layer)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """ids (B,L) -> logits (B,L,V). attention_mask (B,L): nonzero where real; None: all."""
        mask = None if attention_mask is None else attention_mask.bool()
        return self.head(self.encode(self.embed(ids), mask))

    @torch.no_grad()
    def generate_states(self, embeds: Tensor, attention_mask: Tensor, max_new_tokens: int,
                        eos: int | None) -> tuple[Tensor, Tensor]:
        """Greedy continuation of left-padded prompts: ids (B,new), states (B,new,D) behind them.

        embeds (B,L,D), attention_mask (B,L) bool. Ends after max_new_tokens, or once every row has
        emitted `eos` (None: never). A row that ended earlier is filled with `eos`. ValueError for
        no new tokens or padding on the right.
        """
        if max_new_tokens < 1:
            raise ValueError("generate: expected max_new_tokens of at least 1, "
                             f"found {max_new_tokens}")
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("generate: expected prompts padded on the left, "
                             "found a row that ends with padding")
        # Without padding there is no mask, which is faster. The prompt goes in whole, at the first
        # turn of the loop.
        cache = KVCache(len(self.blocks), embeds.shape[1] + max_new_tokens)
        mask = None if bool(attention_mask.all()) else attention_mask
        ended = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
        ids, states = [], []
        while len(ids) < max_new_tokens and not bool(ended.all()):
            states.append(self.encode(embeds, mask, cache)[:, -1])                    # (B,D)
            new = self.head(states[-1]).argmax(-1)                                    # (B,)
            if eos is not None:
                new = torch.where(ended, eos, new)
                ended = new == eos
            ids.append(new)
            # The prompt is in the cache. From now on each row's newest token alone goes in.
            embeds, mask = self.embed(new)[:, None], None                             # (B,1,D)
        return torch.stack(ids, 1), torch.stack(states, 1)

    def generate(self, ids: Tensor, max_new_tokens: int, attention_mask: Tensor | None = None,
                 eos: int | None = None) -> Tensor:
        """ids (B,L), padded on the left where attention_mask (B,L) is zero -> new ids (B,new)."""
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        return self.generate_states(self.embed(ids), mask.bool(), max_new_tokens, eos)[0]
