"""The language model: LLaMA's decoder-only transformer (arXiv 2302.13971 and 2307.09288), with a KV cache.

    ids (B,L) -> embed -> blocks of [x + attention(norm x), x + SwiGLU(norm x)] -> norm -> head -> logits (B,L,V)

Unusual: a mask token's *state* matters as much as its id, so `generate_states` returns with every id the final-norm
state that predicted it, the one training reads (Crab, section 3.1). Batches to generate from are padded on the LEFT:
all rows then grow at the same column. Positions count real tokens only, so padding never changes a row's answer.
    LLM(LLMConfig()).generate(torch.randint(640, (1, 5)), 20)
Every projection is a plain nn.Linear without bias, for lora.attach to replace. Departs from official Crab: nothing is
read at hard-coded index offsets; the cache belongs to this file and not to a library version.
"""

import math
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .attention import attend
from .config import LLMConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the square and the mean in fp32 whatever x is."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(...,D) -> (...,D) in x's dtype."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def rotary_table(positions: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta^(-2i/size): positions (B,L) -> two (B,1,L,size/2), fp32.

    size: width of one attention head, even. theta: base of the wavelengths.
    """
    frequency = 1.0 / theta ** (torch.arange(0, size, 2, device=positions.device).float() / size)
    angle = positions[:, None, :, None].float() * frequency                      # (B,1,L,size/2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns dimension i together with i + size/2 (LLaMA's halves, not neighbouring pairs): (B,H,L,size) -> same."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class KVCache:
    """Keys and values of all past tokens, allocated once for `capacity` tokens a row.

    length: columns written so far. valid (B,capacity): which of them are real; None while no padding was seen.
    seen (B,): real tokens a row so far, which is the next token's position.
    """

    def __init__(self, layers: int, capacity: int):
        self.capacity, self.length = capacity, 0
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.valid: Tensor | None = None
        self.seen: Tensor | int = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k, v (B,H,L,d) of one layer; returns everything written for that layer, (B,H,length+L,d) each."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"KVCache: allocated for {self.capacity} tokens, found {end}")
        if self.kept[layer] is None:
            self.kept[layer] = tuple(t.new_empty(*t.shape[:2], self.capacity, t.shape[3]) for t in (k, v))
        keys, values = self.kept[layer]
        keys[:, :, self.length:end], values[:, :, self.length:end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def extend(self, mask: Tensor | None, length: int) -> Tensor | None:
        """Notes which of `length` new columns are real; mask (B,length) or None. Returns (B,self.length+length)."""
        if mask is not None and self.valid is None:
            self.valid = mask.new_ones(len(mask), self.capacity)
        if mask is not None:
            self.valid[:, self.length:self.length + length] = mask
        return None if self.valid is None else self.valid[:, :self.length + length]


class Attention(nn.Module):
    """Causal attention with rotary positions; kv head j serves the query heads j*n .. j*n+n-1, n = heads / kv_heads."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        self.heads, self.kv_heads, self.size = cfg.heads, cfg.kv_heads, cfg.width // cfg.heads
        self.q_proj = nn.Linear(cfg.width, cfg.width, bias=False)
        self.k_proj = nn.Linear(cfg.width, cfg.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(cfg.width, cfg.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(cfg.width, cfg.width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None,
                layer: int) -> Tensor:
        """(B,L,D) -> (B,L,D). mask (B,1,L,keys) bool, True = may look; None: causal, or one query that sees all."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.size)).transpose(1, 2)        # (B,H,L,d)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = (t.to(q.dtype) for t in rotary)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        y = attend(q, k, v, mask, causal=mask is None and q.shape[2] > 1)        # (B,H,L,d)
        return self.o_proj(y.transpose(1, 2).flatten(2))                         # (B,L,D)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.width, cfg.hidden, bias=False)
        self.up_proj = nn.Linear(cfg.width, cfg.hidden, bias=False)
        self.down_proj = nn.Linear(cfg.hidden, cfg.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(cfg.width, cfg.norm_eps), Attention(cfg)
        self.mlp_norm, self.mlp = RMSNorm(cfg.width, cfg.norm_eps), SwiGLU(cfg)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None,
                layer: int) -> Tensor:
        """(B,L,D) -> (B,L,D)."""
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


def _look_mask(valid: Tensor, queries: int) -> Tensor:
    """valid (B,K) over all keys, of which the last `queries` also ask -> (B,1,queries,K): causal and real.

    Every query sees itself, a padded one nothing else: a row of nothing but -inf would be NaN after the softmax.
    """
    keys = valid.shape[1]
    column = torch.arange(keys, device=valid.device)
    row = column[keys - queries:, None]                                          # (queries,1)
    return ((column < row) & valid[:, None, None, :]) | (column == row)


def _mean_rows(weight: Tensor, rows: int) -> nn.Parameter:
    """(rows,D), each the mean of the rows of `weight`: as likely as the average token, no more."""
    return nn.Parameter(weight.detach().mean(0).repeat(rows, 1))


class GrownEmbedding(nn.Module):
    """An embedding with rows for added tokens: `base` (V,D) and, for ids from V on, `added` (rows,D)."""

    def __init__(self, base: nn.Embedding, rows: int):
        super().__init__()
        self.base, self.added = base, _mean_rows(base.weight, rows)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B,L) -> (B,L,D)."""
        known = len(self.base.weight)
        new = F.embedding((ids - known).clamp(min=0), self.added)                              # (B,L,D)
        return torch.where((ids < known)[..., None], self.base(ids.clamp(max=known - 1)), new)


class GrownHead(nn.Module):
    """An output head with rows for added tokens, `added` (rows,D), behind those of `base` (V,D)."""

    def __init__(self, base: nn.Linear, rows: int):
        super().__init__()
        self.base, self.added = base, _mean_rows(base.weight, rows)

    def forward(self, states: Tensor) -> Tensor:
        """(...,D) -> logits (...,V + rows)."""
        return torch.cat((self.base(states), F.linear(states, self.added)), -1)


class LLM(nn.Module):
    """The whole decoder: `embed`, `blocks`, `norm`, `head`. Raises ValueError where head counts do not divide."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        if cfg.width % (2 * cfg.heads) or cfg.heads % cfg.kv_heads:
            raise ValueError("LLMConfig: width must be a multiple of 2 * heads and heads of kv_heads, "
                             f"found width {cfg.width}, heads {cfg.heads}, kv_heads {cfg.kv_heads}")
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = RMSNorm(cfg.width, cfg.norm_eps)
        self.head = nn.Linear(cfg.width, cfg.vocab, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:        # what each block adds to the residual starts smaller the more blocks there are
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.layers) if residual else 0.02)

    def grow(self, vocab: int) -> "LLM":
        """Rows for added tokens in the embedding and the head, once; nothing to do where there are as many already.

        Published weights do not know the special tokens. The new rows stand beside the old ones, so that they can be
        trained while those are frozen. ValueError for fewer rows than there are, or a second time.
        """
        if vocab < self.cfg.vocab:
            raise ValueError(f"grow: expected at least the {self.cfg.vocab} rows there are, found {vocab}")
        if vocab > self.cfg.vocab:
            if self.added():
                raise ValueError(f"grow: the LLM has grown to {self.cfg.vocab} rows already")
            rows = vocab - self.cfg.vocab
            self.embed, self.head = GrownEmbedding(self.embed, rows), GrownHead(self.head, rows)
            self.cfg = replace(self.cfg, vocab=vocab)
        return self

    def added(self) -> list[nn.Parameter]:
        """The rows of added tokens, (rows,D) each: none before `grow`."""
        return [part.added for part in (self.embed, self.head) if isinstance(part, (GrownEmbedding, GrownHead))]

    @torch.no_grad()
    def renew(self) -> None:
        """Sets the rows of added tokens to the mean of the others once more, before they begin to learn."""
        for part in (self.embed, self.head):
            part.added.copy_(_mean_rows(part.base.weight, len(part.added)))

    def encode(self, embeds: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Token embeddings (B,L,D) -> states after the final norm (B,L,D); the state at l predicts token l + 1.

        mask (B,L) bool: which of these tokens are real; None: all. Needed for padding on the left, not for padding on
        the right, which causality hides anyway. cache: holds earlier tokens and receives these.
        """
        batch, length = embeds.shape[:2]
        if mask is not None and mask.shape != (batch, length):
            raise ValueError(f"mask: expected shape {(batch, length)}, found {tuple(mask.shape)}")
        past = 0 if cache is None else cache.length
        positions = torch.arange(length, device=embeds.device).expand(batch, -1)               # (B,L)
        if mask is not None:
            positions = mask.long().cumsum(1) - 1                    # -1 at padding: nobody reads what is there
        valid = mask
        if cache is not None:
            start, valid = cache.seen, cache.extend(mask, length)
            positions = positions + start
            cache.seen = positions[:, -1:] + 1
        rotary = rotary_table(positions, self.cfg.width // self.cfg.heads, self.cfg.rope_theta)
        if valid is None and past and length > 1:
            valid = torch.ones(batch, past + length, dtype=torch.bool, device=embeds.device)
        look = None if valid is None else _look_mask(valid, length)
        x = embeds
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, look, cache, layer)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """ids (B,L) -> logits (B,L,V). attention_mask (B,L): nonzero where a token is real; None: everywhere."""
        return self.head(self.encode(self.embed(ids), None if attention_mask is None else attention_mask.bool()))

    @torch.no_grad()
    def generate_states(self, embeds: Tensor, valid: Tensor, max_new_tokens: int,
                        eos: int | None) -> tuple[Tensor, Tensor]:
        """Greedy continuation of left-padded prompts: ids (B,N) and the states (B,N,D) that predicted them.

        embeds (B,L,D), valid (B,L) bool. Ends after max_new_tokens or once every row has emitted `eos` (None: never);
        a row that ended earlier is filled with `eos`. ValueError for no new tokens or padding on the right.
        """
        if max_new_tokens < 1:
            raise ValueError(f"generate: expected max_new_tokens of at least 1, found {max_new_tokens}")
        if not bool(valid[:, -1].all()):
            raise ValueError("generate: expected prompts padded on the left, found a row that ends with padding")
        cache = KVCache(len(self.blocks), embeds.shape[1] + max_new_tokens)
        mask = None if bool(valid.all()) else valid
        ended = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
        ids, states = [], []
        while len(ids) < max_new_tokens and not bool(ended.all()):
            states.append(self.encode(embeds, mask, cache)[:, -1])                             # (B,D)
            new = self.head(states[-1]).argmax(-1)                                             # (B,)
            if eos is not None:
                new = torch.where(ended, eos, new)
                ended = new == eos
            ids.append(new)
            embeds, mask = self.embed(new)[:, None], None                                      # (B,1,D)
        return torch.stack(ids, 1), torch.stack(states, 1)

    def generate(self, ids: Tensor, max_new_tokens: int, attention_mask: Tensor | None = None,
                 eos: int | None = None) -> Tensor:
        """ids (B,L), padded on the left where attention_mask (B,L) is zero -> the new ids alone (B,N)."""
        valid = torch.ones_like(ids) if attention_mask is None else attention_mask
        return self.generate_states(self.embed(ids), valid.bool(), max_new_tokens, eos)[0]
