"""The language model against its formulas, and generation against the plain forward pass."""

import math
from dataclasses import replace

import pytest
import torch

from crab_mini.config import LLMConfig
from crab_mini.model.llm import LLM, KVCache, RMSNorm, apply_rotary_emb, rotary_table

CONFIG = LLMConfig(vocab_size=37, dim=24, layers=3, heads=4, kv_heads=4, ffn_dim=40)
SHAPES = [CONFIG, replace(CONFIG, kv_heads=2), replace(CONFIG, dim=30, heads=5, kv_heads=1, ffn_dim=17, layers=1)]


def model(cfg: LLMConfig = CONFIG, seed: int = 0) -> LLM:
    """Weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    llm = LLM(cfg).eval()
    with torch.no_grad():
        for p in llm.parameters():
            p.normal_(0.0, 0.3) if p.ndim == 2 else p.uniform_(0.5, 1.5)
    return llm


def ids_of(*shape: int) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def plain_forward(llm: LLM, ids: torch.Tensor) -> torch.Tensor:
    """The equations token by token and head by head, in float64 with Python loops: ids (L,) -> logits (L,V)."""
    cfg, size = llm.cfg, llm.cfg.dim // llm.cfg.heads
    w = {name: p.detach().double() for name, p in llm.named_parameters()}
    half = size // 2

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + cfg.norm_eps).sqrt() * w[name]

    def turn(x, position):
        out = x.clone()
        for i in range(half):
            angle = position * cfg.rope_theta ** (-2 * i / size)
            c, s = math.cos(angle), math.sin(angle)
            out[i], out[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s
        return out

    x = w["embed.weight"][ids]
    for n in range(cfg.layers):
        name = f"blocks.{n}."
        h = norm(x, name + "attention_norm.weight")
        q, k, v = (h @ w[f"{name}attention.{p}_proj.weight"].T for p in "qkv")
        rows = []
        for at in range(len(ids)):
            heads = []
            for j in range(cfg.heads):
                kv = j // (cfg.heads // cfg.kv_heads)
                query = turn(q[at, j * size:(j + 1) * size], at)
                keys = torch.stack([turn(k[t, kv * size:(kv + 1) * size], t) for t in range(at + 1)])
                share = (keys @ query / math.sqrt(size)).softmax(0)
                heads.append(share @ v[:at + 1, kv * size:(kv + 1) * size])
            rows.append(torch.cat(heads))
        x = x + torch.stack(rows) @ w[name + "attention.o_proj.weight"].T
        h = norm(x, name + "mlp_norm.weight")
        gate = h @ w[name + "mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (h @ w[name + "mlp.up_proj.weight"].T)) @ w[name + "mlp.down_proj.weight"].T
    return norm(x, "norm.weight") @ w["head.weight"].T


@pytest.mark.parametrize("cfg", SHAPES)
def test_forward_equals_the_equations(cfg):
    llm, ids = model(cfg), ids_of(2, 7)
    for row, logits in zip(ids, llm(ids)):
        torch.testing.assert_close(logits.double(), plain_forward(llm, row), atol=1e-4, rtol=1e-4)


def test_rotary_positions_are_relative():
    q, k = torch.randn(2, 1, 1, 1, 12).double()
    def score(i, j):
        tables = [rotary_table(torch.tensor([[p]]), 12, 10000.0) for p in (i, j)]
        return (apply_rotary_emb(q, *tables[0]) * apply_rotary_emb(k, *tables[1])).sum()
    torch.testing.assert_close(score(9, 5), score(14, 10), atol=1e-4, rtol=0)
    assert (score(9, 5) - score(9, 6)).abs() > 1e-3


def test_norm_computes_in_fp32():
    norm = RMSNorm(8, 1e-5)
    x = torch.full((1, 8), 300.0).half()                     # 300 squared overflows fp16
    torch.testing.assert_close(norm(x).float(), torch.ones(1, 8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("cfg", SHAPES)
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [8, 1], [9]])
def test_cached_equals_uncached(cfg, pieces):
    llm, embeds = model(cfg), None
    with torch.no_grad():
        embeds = llm.embed(ids_of(2, 9))
        cache = KVCache(cfg.layers, 9)
        parts = [llm.encode(part, cache=cache) for part in embeds.split(pieces, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), llm.encode(embeds), atol=1e-5, rtol=1e-5)


def left_padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((torch.full((width - len(row),), 3), row)) for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("cfg", SHAPES)
def test_padding_on_either_side_changes_nothing(cfg):
    llm = model(cfg)
    rows = [ids_of(n) for n in (8, 3, 1)]
    ids, mask = left_padded(rows)
    left, right = llm(ids, mask), llm(ids.flip(1), mask.flip(1))
    assert left.isfinite().all()
    for row, one in zip(rows, left):
        torch.testing.assert_close(one[-len(row):], llm(row[None])[0], atol=1e-4, rtol=1e-4)
    for row, one in zip(rows, right):
        torch.testing.assert_close(one[:len(row)], llm(row.flip(0)[None])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cfg", SHAPES)
def test_generation_in_a_padded_batch_equals_one_row_at_a_time_without_cache(cfg):
    llm, rows = model(cfg), [ids_of(n) for n in (8, 3, 1)]
    got = llm.generate(*left_padded(rows)[:1], 10, attention_mask=left_padded(rows)[1])
    for row, new in zip(rows, got):
        text = row
        for _ in range(10):
            text = torch.cat((text, llm(text[None])[0, -1].argmax(-1, keepdim=True)))
        assert text[len(row):].tolist() == new.tolist()


def test_states_are_those_that_predicted_the_ids():
    llm, rows = model(), [ids_of(n) for n in (6, 2)]
    ids, mask = left_padded(rows)
    new, states = llm.generate_states(llm.embed(ids), mask.bool(), 5, None)
    assert (llm.head(states).argmax(-1) == new).all()
    for row, made, state in zip(rows, new, states):
        whole = torch.cat((row, made))[None]
        with torch.no_grad():
            torch.testing.assert_close(llm.encode(llm.embed(whole))[0, len(row) - 1:-1], state, atol=1e-4, rtol=1e-4)


def test_generation_stops_at_eos_and_fills_up_with_it():
    llm, ids = model(), ids_of(3, 4)
    free = llm.generate(ids, 12)
    eos = int(free[0, 2])
    got = llm.generate(ids, 12, eos=eos)
    ends = [row.tolist().index(eos) if eos in row else 11 for row in free]
    assert got.shape[1] == max(ends) + 1
    for row, plain, end in zip(got, free, ends):
        assert row[:end + 1].tolist() == plain[:end + 1].tolist()
        assert set(row[end + 1:].tolist()) <= {eos}


def test_bf16_autocast_stays_near_fp32_and_gradients_reach_everything():
    llm, ids = model(), ids_of(2, 9)
    exact = llm(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rough = llm(ids)
        cached = llm.generate(ids, 4)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert cached.shape == (2, 4)
    rough.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in llm.parameters())


def test_residual_projections_start_smaller():
    llm = LLM(replace(CONFIG, dim=96, ffn_dim=96, layers=8))
    assert float(llm.head.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(llm.blocks[3].mlp.down_proj.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.1)


def test_added_tokens_change_nothing_for_the_old_ones():
    llm, ids = model(), ids_of(2, 5)
    before = llm(ids)
    llm.requires_grad_(False)
    assert llm.added() == [] and llm.resize_token_embeddings(37) is llm and llm.added() == []
    assert llm.resize_token_embeddings(40) is llm and llm.cfg.vocab_size == 40
    after = llm(ids)
    torch.testing.assert_close(after[..., :37], before)
    torch.testing.assert_close(after[..., 37:], before.mean(-1, keepdim=True).expand(-1, -1, 3), atol=1e-4, rtol=0)
    assert llm(torch.tensor([[39]])).isfinite().all()
    assert [tuple(rows.shape) for rows in llm.added()] == [(3, CONFIG.dim)] * 2
    assert all(rows.requires_grad for rows in llm.added()) and not llm.head.base.weight.requires_grad
    LLM(CONFIG).resize_token_embeddings(40).load_state_dict(llm.state_dict())
    with pytest.raises(ValueError, match="grown to 40 rows already"):
        llm.resize_token_embeddings(41)
    with pytest.raises(ValueError, match="expected at least the 40 rows there are, found 39"):
        llm.resize_token_embeddings(39)


def test_added_rows_learn_and_are_looked_up_in_their_places():
    llm = model().requires_grad_(False).resize_token_embeddings(40)
    with torch.no_grad():
        for k, rows in enumerate(llm.added()):
            rows.copy_(torch.arange(3.0)[:, None] + 10 * k)
    ids = torch.tensor([[0, 37, 36, 39]])
    assert llm.embed(ids)[0, 1].eq(0).all() and llm.embed(ids)[0, 3].eq(2).all()
    assert torch.equal(llm.embed(ids)[0, [0, 2]], llm.embed.base.weight[[0, 36]])
    llm(ids).square().sum().backward()
    assert llm.embed.added.grad[[0, 2]].abs().sum(1).gt(0).all() and llm.embed.added.grad[1].eq(0).all()
    assert llm.head.added.grad.abs().sum(1).gt(0).all()


def test_errors_are_one_clear_line():
    with pytest.raises(ValueError, match="found dim 24, heads 5"):
        LLM(replace(CONFIG, heads=5, kv_heads=5))
    with pytest.raises(ValueError, match="kv_heads 3"):
        LLM(replace(CONFIG, kv_heads=3))
    llm, ids = model(), ids_of(2, 4)
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 4\), found \(2, 3\)"):
        llm(ids, torch.ones(2, 3))
    with pytest.raises(ValueError, match="padded on the left"):
        llm.generate(ids, 3, attention_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="at least 1, found 0"):
        llm.generate(ids, 0)
    with pytest.raises(ValueError, match="allocated for 2 tokens, found 4"):
        llm.encode(llm.embed(ids), cache=KVCache(3, 2))
