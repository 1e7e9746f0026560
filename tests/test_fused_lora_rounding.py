"""bfloat16 in the fused operation is rounded to nearest, ties to even, wherever it is narrowed; bit for bit.

Each layer here has one input and one output and factors of one, so that every product is exact and the
operation's own rounding is all that is left.
"""

import shutil

import numpy as np
import pytest
import torch

from crab_mini.fused_lora import build, dispatch, fused_lora

SCALING = 1.2373046875                 # 1 + 30.375 / 128: rounded to nearest 30 / 128, as truncation would
TIE = 1.24609375                       # 1 + 31.5 / 128: rounded to nearest 32 / 128, the even neighbour


def nearest(values):
    """float32 -> the nearest bfloat16, ties to even, as float32; by comparing both neighbours in float64."""
    values = np.asarray(values, np.float32)
    finite, infinite = np.isfinite(values), values
    values = np.where(finite, values, np.float32(0))
    below = (values.view(np.uint32) & 0xffff0000).view(np.float32)
    above = ((values.view(np.uint32) & 0xffff0000).astype(np.uint64) + 0x10000).astype(np.uint32).view(np.float32)
    exact = values.astype(np.float64)
    # Beyond the largest finite number lies 2^128, which float64 still knows; it stands for infinity.
    far = np.where(np.isinf(above), np.copysign(2.0**128, exact), above.astype(np.float64))
    down, up = np.abs(exact - below), np.abs(far - exact)
    even = (below.view(np.uint32) >> 16) % 2 == 0
    result = np.where((down < up) | ((down == up) & even), below, above)
    return np.where(finite, result, infinite)


@pytest.fixture(params=["torch", pytest.param("cpp", marks=pytest.mark.slow)])
def kernel(request):
    """Each CPU kernel."""
    if request.param == "cpp" and build.load("cpp", compile_it=True)[0] is None:
        pytest.fail("not built") if shutil.which("g++") else pytest.skip("no g++")
    return request.param


def every_bfloat16():
    """(N, 1): all normal bfloat16 numbers and zero. The products of a CPU may take subnormal ones for zero."""
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    values = bits.view(np.float32)
    keep = np.isfinite(values) & ((np.abs(values) >= 2.0**-126) | (values == 0))
    return torch.from_numpy(values[keep].copy()).to(torch.bfloat16).unsqueeze(1)


def layer(x, heads=1):
    """The arguments of a layer of one input and one output; the first head's B is one, the others' zero."""
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    B = torch.zeros(heads, 1, 1, dtype=torch.bfloat16)
    B[0] = 1
    return [x.clone().requires_grad_(), 0 * one, None, one.clone().requires_grad_(),
            torch.zeros(heads, 1, dtype=torch.bfloat16).requires_grad_(), B.requires_grad_()]


def visible(wanted):
    """Where the result of a product is neither subnormal nor, on the way, infinite."""
    return np.isfinite(wanted) & ((np.abs(wanted) >= 2.0**-126) | (wanted == 0))


def test_the_reference_rounds_as_ieee_says():
    cases = {0x3f808000: 0x3f80, 0x3f818000: 0x3f82, 0x3f808001: 0x3f81, 0x3f807fff: 0x3f80,       # ties and beside
             0x7f7f7fff: 0x7f7f, 0x7f7f8000: 0x7f80, 0xff7f8000: 0xff80,    # the largest finite and beyond
             0x00008000: 0x0000, 0x00008001: 0x0001, 0x80018000: 0x8002, 0x007f8000: 0x0080}       # subnormal
    for given, wanted in cases.items():
        got = nearest(np.array([given], np.uint32).view(np.float32)).astype(np.float32).view(np.uint32)[0] >> 16
        assert got == wanted, hex(given)


@pytest.mark.parametrize("scaling", [SCALING, TIE])
def test_u_is_rounded_to_nearest(kernel, scaling):
    x = every_bfloat16()
    with torch.no_grad(), np.errstate(over="ignore"):
        y = fused_lora(*layer(x), scaling, kernel=kernel).float().numpy()[:, 0]
        wanted = nearest(nearest(scaling) * x.float().numpy()[:, 0])
    seen = visible(wanted)
    assert seen.sum() > 60000 and np.array_equal(y[seen], wanted[seen])


@pytest.mark.parametrize("scaling", [SCALING, TIE])
def test_the_gradient_of_z_is_rounded_to_nearest(kernel, scaling):
    gy = every_bfloat16()
    args = layer(torch.ones_like(gy))
    gx, = torch.autograd.grad(fused_lora(*args, scaling, kernel=kernel), args[0], gy)
    with np.errstate(over="ignore"):
        wanted = nearest(np.float32(scaling) * gy.float().numpy()[:, 0])
    seen = visible(wanted)
    assert seen.sum() > 60000 and np.array_equal(gx.float().numpy()[seen, 0], wanted[seen])


def test_the_gradient_of_the_logits_is_rounded_to_nearest(kernel):
    for value in every_bfloat16()[1000:31000:599]:
        args = layer(torch.ones(1, 1, dtype=torch.bfloat16), heads=2)
        gW_r, = torch.autograd.grad(fused_lora(*args, SCALING, kernel=kernel), args[4], value.unsqueeze(0))
        wanted = nearest(np.float32(0.25 * SCALING) * value.float().numpy())        # g (1 - g) · scaling · gy
        assert gW_r.float().numpy()[0] == wanted and gW_r.float().numpy()[1] == -wanted, value


def test_the_router_s_weights_are_float32_and_not_rounded(kernel):
    x = every_bfloat16()
    x = x[(x.abs() < 8).squeeze(1)][::7]
    args = [t if t is None else t.detach() for t in layer(x, heads=2)]
    args[4] = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16)
    _, _, g = dispatch.pick(kernel, x, args[5]).forward(*args, SCALING, None, 1.0)
    assert g.dtype == torch.float32
    assert (g[0].double() - torch.sigmoid(2 * x.double()[:, 0])).abs().max() <= 1e-6
    assert (g.double().sum(0) - 1).abs().max() <= 1e-6


def test_the_sum_over_the_rank_is_rounded_once(kernel):
    # gg = (1 + 1/256) · scaling. As a bfloat16 the sum would be 1, and the product would round to 1 as well.
    two = torch.eye(2, dtype=torch.bfloat16)
    B = torch.tensor([[[1.0], [1 / 256]], [[0.0], [0.0]]], dtype=torch.bfloat16)
    W_r = torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True)
    y = fused_lora(two.sum(0, keepdim=True), two[:1] * 0, None, two, W_r, B, 1 + 1 / 256, kernel=kernel)
    gW_r, = torch.autograd.grad(y, W_r, torch.ones_like(y))
    assert gW_r.tolist() == [[(1 + 1 / 128) / 4] * 2, [-(1 + 1 / 128) / 4] * 2]
