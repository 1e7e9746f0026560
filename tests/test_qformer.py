"""The Q-Former: anchored queries look at their cell, free ones are the published form, and it is BERT's arithmetic."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from crab_mini.config import QFormerConfig
from crab_mini.model.qformer import QFormer, cells, place_code

SMALL = QFormerConfig(dim=32, layers=2, heads=4, ffn_dim=48, queries=4, grid=(2, 2))
FREE = dataclasses.replace(SMALL, grid=None)


def made(cfg: QFormerConfig, features: int = 24, out: int = 20) -> QFormer:
    """Random weights, norms included, so that no factor of one or summand of zero hides a mistake."""
    torch.manual_seed(0)
    model = QFormer(cfg, features, out)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.double()


@pytest.mark.parametrize("cfg", (SMALL, FREE, dataclasses.replace(SMALL, grid=(1, 1), queries=3)))
def test_shapes_and_gradients(cfg):
    model = QFormer(cfg, 24, 20)
    features = torch.randn(3, 30, 24, requires_grad=True)
    tokens = model(features, 5, 6)
    assert tokens.shape == (3, cfg.queries, 20)
    tokens.square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert {n for n, p in model.named_parameters() if p.grad.abs().sum() == 0} <= {
        f"layers.{k}.{part}.k.bias" for k in range(cfg.layers) for part in ("self_attention", "cross_attention")}


def bert(model: QFormer, x, keys, values, bias):
    """The layers written out: attention as a formula, residual before each norm."""
    def attention(part, x, keys, values, bias=0.0):
        heads = []
        for head in range(part.heads):
            size = x.shape[-1] // part.heads
            at = slice(head * size, (head + 1) * size)
            q, k, v = part.q_proj(x)[..., at], part.k_proj(keys)[..., at], part.v_proj(values)[..., at]
            own = bias[head] if torch.is_tensor(bias) else 0.0
            heads.append((q @ k.transpose(-1, -2) / size ** 0.5 + own).softmax(-1) @ v)
        return part.o_proj(torch.cat(heads, -1))

    for layer in model.layers:
        x = layer.norms[0](x + attention(layer.self_attention, x, x, x))
        x = layer.norms[1](x + attention(layer.cross_attention, x, keys, values, bias))
        x = layer.norms[2](x + layer.mlp[2](F.gelu(layer.mlp[0](x))))
    return model.out(x)


def test_free_queries_against_the_formula():
    model, features = made(FREE), torch.randn(2, 12, 24, dtype=torch.float64)
    values = model.normalise(features)
    keys = values + place_code(3, 4, 24).double()
    want = bert(model, model.norm(model.queries.expand(2, -1, -1)), keys, values, 0.0)
    assert torch.allclose(model(features, 3, 4), want, atol=1e-12)


def test_anchored_queries_against_the_formula():
    model, features = made(SMALL), torch.randn(2, 24, 24, dtype=torch.float64)
    values = model.normalise(features)
    keys = values + place_code(4, 6, 24).double()
    grid = keys.unflatten(1, (4, 6))
    means = torch.stack([grid[:, r:r + 2, c:c + 3].mean((1, 2)) for r in (0, 2) for c in (0, 3)], 1)    # (2,4,24)
    bias = torch.zeros(4, 4, 4, 6, dtype=torch.float64)                                             # (H,Q,h,w)
    for query, (r, c) in enumerate(((0, 0), (0, 3), (2, 0), (2, 3))):
        bias[:, query, r:r + 2, c:c + 3] = model.pull[:, None, None]
    want = bert(model, model.norm(model.queries + model.start(means)), keys, values, bias.flatten(2))
    assert torch.allclose(model(features, 4, 6), want, atol=1e-12)


@pytest.mark.parametrize("h, w, grid, queries", [(8, 8, (2, 2), 4), (5, 7, (2, 3), 6), (6, 8, (1, 1), 2),
                                                (8, 8, (2, 2), 8)])
def test_cells_cut_the_frame_into_parts(h, w, grid, queries):
    own = cells(h, w, grid, queries)
    count = grid[0] * grid[1]
    assert own.shape == (queries, h * w) and own.any(1).all()
    assert (own[:count].sum(0) == 1).all()                                  # every place belongs to one cell
    assert all(torch.equal(own[q], own[q % count]) for q in range(queries))
    first = own[0].view(h, w)
    assert first[0, 0] and (count == 1 or not first[-1, -1])


def test_places_differ_and_their_code_is_bounded():
    code = place_code(8, 8, 32)
    assert code.shape == (64, 32) and code.abs().max() <= 1
    assert torch.cdist(code, code).add(torch.eye(64)).min() > 0.1


def test_where_a_thing_is_can_be_read_from_anchored_queries():
    """The same patch in another quarter changes that quarter's token most."""
    model = QFormer(dataclasses.replace(SMALL, layers=1), 24, 20)
    with torch.no_grad():
        model.pull.fill_(8.0)
    empty = 0.1 * torch.randn(1, 64, 24)
    before = model(empty, 8, 8)[0]
    for query, (r, c) in enumerate(((1, 1), (1, 6), (6, 1), (6, 6))):
        changed = empty.clone()
        changed[0, r * 8 + c] += 3 * torch.randn(24)
        assert (model(changed, 8, 8)[0] - before).norm(dim=1).argmax() == query


def test_under_autocast_it_stays_close():
    model, features = QFormer(SMALL, 24, 20), torch.randn(2, 16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(features, 4, 4)
    assert (rough.float() - model(features, 4, 4)).abs().max() < 0.1
