"""The shared attention against its formula, in every form it takes."""

import pytest
import torch

from crab_mini.model.attention import attend


def formula(q, k, v, look):
    """Query by query in float64; look (B,H,L,K): 0 or -inf or a bias, added to the scores."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    q, k, v, each = q.double(), k.double(), v.double(), q.shape[1] // k.shape[1]
    for b, h, l in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        scores = k[b, h // each] @ q[b, h, l] / q.shape[-1] ** 0.5 + look[b, h, l]
        out[b, h, l] = scores.softmax(0) @ v[b, h // each]
    return out


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("form", ["none", "causal", "bool", "rows", "float"])
def test_attention_equals_the_formula(dtype, atol, kv_heads, form):
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 6, generator=rng).to(dtype)
    k, v = (torch.randn(2, kv_heads, 5, 6, generator=rng).to(dtype) for _ in range(2))
    look, mask = torch.zeros(2, 4, 5, 5, dtype=torch.float64), None
    if form == "causal":
        look = look.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    if form in ("bool", "rows"):
        mask = torch.rand(2, 1, 5 if form == "bool" else 1, 5, generator=rng) < 0.6
        mask[..., 2] = True
        look = look.masked_fill(~mask, -torch.inf)
    if form == "float":
        mask = torch.randn(2, 4, 5, 5, generator=rng)
        look = look + mask
    got = attend(q, k, v, mask, causal=form == "causal")
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), formula(q, k, v, look), atol=atol, rtol=0)


def test_gradients_of_both_forms_agree():
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 4, generator=rng).requires_grad_() for _ in range(3)]
    exact = torch.autograd.grad(attend(*inputs, causal=True).square().sum(), inputs)
    rough = torch.autograd.grad(attend(*(x.bfloat16() for x in inputs), causal=True).float().square().sum(), inputs)
    for a, b in zip(exact, rough):
        assert (a - b).abs().max() < 0.05 * a.abs().max()
