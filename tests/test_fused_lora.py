"""The fused LoRA operation against the formula: values, gradients, dtypes, dropout, autocast, bad input."""

import pytest
import torch

from crab_mini.fused_lora import fused_lora
from crab_mini.fused_lora.reference import fused, loop

SHAPES = [(1, 20, 28, 3, 3), (37, 70, 45, 3, 2), (64, 64, 96, 8, 3), (300, 33, 17, 5, 4), (9, 16, 16, 1, 1)]


def inputs(N, width, out, rank, heads, dtype=torch.float64, seed=0):
    """x, weight, bias, A, R, B with everything but the frozen weight asking for a gradient."""
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=g, dtype=torch.float64) * scale for shape, scale in (
        ((N, width), 1), ((out, width), width**-0.5), ((out,), 1), ((rank, width), width**-0.5),
        ((heads, width), width**-0.5), ((heads, rank, out), 0.5))]
    made = [t.to(dtype) for t in made]
    return [t.requires_grad_(i != 1) for i, t in enumerate(made)]


def compare(kernel, shape, dtype, tolerance):
    """Output and every gradient of `kernel` against the loop in float64, relative to the largest entry."""
    args = inputs(*shape, dtype=dtype)
    exact = [t.detach().double().requires_grad_(i != 1) for i, t in enumerate(args)]
    y, want = fused_lora(*args, 2.0, kernel=kernel), loop(*exact, 2.0)
    gy = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    y.backward(gy)
    want.backward(gy.double())
    pairs = [("y", y, want)] + [(n, a.grad, b.grad) for n, a, b in zip(("x", "W", "bias", "A", "R", "B"), args, exact)]
    for name, got, exact_one in pairs:
        if name == "W":
            assert got is None
            continue
        assert got.dtype == dtype and got.shape == exact_one.shape, name
        error = (got.double() - exact_one).abs().max() / exact_one.abs().max().clamp_min(1e-9)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fusion_is_the_loop(shape):
    args = inputs(*shape)
    assert torch.allclose(fused(*args, 1.5), loop(*args, 1.5), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 0.03)])
def test_torch_kernel_against_the_loop(shape, dtype, tolerance):
    compare("torch", shape, dtype, tolerance)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(dropout):
    args = inputs(5, 7, 6, 2, 3)
    keep = torch.rand(5, 7) > dropout if dropout else None
    assert torch.autograd.gradcheck(lambda *a: fused_lora(*a, 2.0, dropout, keep, "torch"), args)


def test_given_mask_is_the_references_mask():
    args = inputs(11, 9, 8, 2, 3)
    keep = torch.rand(11, 9) > 0.4
    assert torch.allclose(fused_lora(*args, 2.0, 0.4, keep, "torch"), fused(*args, 2.0, keep, 1 / 0.6), atol=1e-12)


def test_zero_rows_give_zero_gradients():
    args = inputs(0, 6, 5, 2, 3, torch.float32)
    y = fused_lora(*args, 1.0, kernel="torch")
    y.sum().backward()
    assert y.shape == (0, 5) and args[0].grad.shape == (0, 6)
    assert all(float(args[i].grad.abs().sum()) == 0.0 for i in (2, 3, 4, 5))


def test_nan_stays_in_its_row():
    args = [t.detach() for t in inputs(8, 6, 5, 2, 3, torch.float32)]
    clean = fused_lora(*args, 1.0, kernel="torch")
    args[0][3, 2] = float("nan")
    y = fused_lora(*args, 1.0, kernel="torch")
    assert y[3].isnan().all() and torch.allclose(y[[0, 1, 2, 4, 5, 6, 7]], clean[[0, 1, 2, 4, 5, 6, 7]])


def test_strided_input_is_right():
    args = inputs(8, 6, 5, 2, 3)
    wide = torch.randn(8, 12, dtype=torch.float64)
    assert torch.allclose(fused_lora(wide[:, ::2], *args[1:], 1.0, kernel="torch"),
                          loop(wide[:, ::2], *args[1:], 1.0), atol=1e-12)


@pytest.mark.parametrize("index, name, change", [
    (1, "weight", lambda t: t[:, :-1]), (2, "bias", lambda t: t[:-1]), (3, "A", lambda t: t[:-1]),
    (4, "R", lambda t: t[:, :-1]), (5, "B", lambda t: t[0]), (3, "A", lambda t: t.float()),
    (4, "R", lambda t: t.to("meta")), (1, "weight", lambda t: t.clone().requires_grad_(True))])
def test_bad_input_is_one_line_naming_the_argument(index, name, change):
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]
    args[index] = change(args[index])
    with pytest.raises((ValueError, TypeError), match=rf"fused_lora: .*\b{name}\b") as caught:
        fused_lora(*args, 1.0)
    assert "\n" not in str(caught.value)


def test_other_bad_arguments():
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]
    with pytest.raises(ValueError, match="CRAB_KERNEL: expected one of auto, torch, cpp, cuda, found 'fast'"):
        fused_lora(*args, 1.0, kernel="fast")
    with pytest.raises(TypeError, match="x must be floating point"):
        fused_lora(args[0].long(), *args[1:], 1.0)
    with pytest.raises(ValueError, match="dropout"):
        fused_lora(*args, 1.0, dropout=1.0)
