"""The fused LoRA operation against the formula: values, gradients, dtypes, dropout, autocast, bad input."""

from pathlib import Path

import pytest
import torch

from crab_mini.fused_lora import bench, build, dispatch, fused_lora, op
from crab_mini.fused_lora.reference import fused, loop

SHAPES = [(1, 20, 28, 3, 3), (37, 70, 45, 3, 2), (64, 64, 96, 8, 3), (300, 33, 17, 5, 4), (9, 16, 16, 1, 1)]


def inputs(N, width, out, rank, heads, dtype=torch.float64, seed=0):
    """x, weight, bias, A, W_r, B with everything but the frozen weight asking for a gradient."""
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=g, dtype=torch.float64) * scale for shape, scale in (
        ((N, width), 1), ((out, width), width**-0.5), ((out,), 1), ((rank, width), width**-0.5),
        ((heads, width), width**-0.5), ((heads, rank, out), 0.5))]
    made = [t.to(dtype) for t in made]
    return [t.requires_grad_(i != 1) for i, t in enumerate(made)]


def compare(kernel, shape, dtype, tolerance, device="cpu"):
    """Output and every gradient of `kernel` against the loop in float64, relative to the largest entry."""
    args = [t.detach().to(device).requires_grad_(i != 1) for i, t in enumerate(inputs(*shape, dtype=dtype))]
    exact = [t.detach().double().requires_grad_(i != 1) for i, t in enumerate(args)]
    y, want = fused_lora(*args, 2.0, kernel=kernel), loop(*exact, 2.0)
    gy = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)
    y.backward(gy)
    want.backward(gy.double())
    pairs = [("y", y, want)] + [(n, a.grad, b.grad) for n, a, b in zip(("x", "W", "bias", "A", "W_r", "B"), args, exact)]
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


def hold_large_logits(kernel):
    """The softmax of logits of several hundred, whose exponentials alone would overflow."""
    args = inputs(40, 12, 9, 2, 3, torch.float32)
    args[4] = (300 * args[4].detach()).requires_grad_()
    y, want = fused_lora(*args, 1.0, kernel=kernel), loop(*[t.double() for t in args], 1.0)
    assert (args[0] @ args[4].T).abs().max() > 400
    assert (y.double() - want).abs().max() <= 1e-3 * want.abs().max()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), [args[0], args[3], args[4]]))


def test_large_logits_do_not_overflow():
    hold_large_logits("torch")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(dropout):
    args = inputs(5, 7, 6, 2, 3)
    mask = torch.rand(5, 7) > dropout if dropout else None
    assert torch.autograd.gradcheck(lambda *a: fused_lora(*a, 2.0, dropout, mask, "torch"), args)


def test_given_mask_is_the_references_mask():
    args = inputs(11, 9, 8, 2, 3)
    mask = torch.rand(11, 9) > 0.4
    assert torch.allclose(fused_lora(*args, 2.0, 0.4, mask, "torch"), fused(*args, 2.0, mask, 1 / 0.6), atol=1e-12)


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
    (4, "W_r", lambda t: t[:, :-1]), (5, "B", lambda t: t[0]), (3, "A", lambda t: t.float()),
    (4, "W_r", lambda t: t.to("meta")), (1, "weight", lambda t: t.clone().requires_grad_(True))])
def test_bad_input_is_one_line_naming_the_argument(index, name, change):
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]
    args[index] = change(args[index])
    with pytest.raises((ValueError, TypeError), match=rf"fused_lora: .*\b{name}\b") as caught:
        fused_lora(*args, 1.0)
    assert "\n" not in str(caught.value)


def test_other_bad_arguments():
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]
    with pytest.raises(ValueError, match="kernel: expected one of auto, torch, cpp, cuda, found 'fast'"):
        fused_lora(*args, 1.0, kernel="fast")
    with pytest.raises(TypeError, match="x must be floating point"):
        fused_lora(args[0].long(), *args[1:], 1.0)
    with pytest.raises(ValueError, match="dropout"):
        fused_lora(*args, 1.0, dropout=1.0)


def test_autocast_computes_in_bfloat16_and_keeps_parameters_gradients_wide():
    args = [t.detach().requires_grad_(t.requires_grad) for t in inputs(40, 64, 48, 8, 3, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        y = fused_lora(*args, 2.0, kernel="torch")
    y.backward(torch.ones_like(y))
    assert y.dtype == torch.bfloat16 and all(args[i].grad.dtype == torch.float32 for i in (0, 2, 3, 4, 5))
    want = loop(*args, 2.0)
    assert (y - want).abs().max() <= 0.03 * want.abs().max()


def test_saved_for_backward_is_x_z_and_g_alone():
    args = inputs(512, 64, 256, 8, 3, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fused_lora(*args, 2.0, kernel="torch")
    given = {t.data_ptr() for t in args}
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.data_ptr() not in given}
    assert sum(extra.values()) <= 512 * 4 * (8 + 3 + 3)     # z with the logits beside it, and g


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_compiled_equals_eager(dropout):
    args = inputs(12, 10, 9, 3, 2, torch.float32)
    mask = torch.rand(12, 10) > 0.5 if dropout else None

    def step(*a):
        return (fused_lora(*a, 2.0, dropout, mask, "torch") * 3).square().sum()

    want = torch.autograd.grad(step(*args), [a for a in args if a.requires_grad])
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(*args), [a for a in args if a.requires_grad])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(got, want))


def test_the_operator_is_registered_faithfully():
    args = inputs(4, 6, 5, 2, 3)
    torch.library.opcheck(op.operator, (*args, 2.0, None, 1.0, "torch"))


def forget(monkeypatch):
    """As in a new process: nothing decided yet, nothing said."""
    monkeypatch.setattr(dispatch, "_said", set())
    monkeypatch.setattr(dispatch, "_decided", {})
    build.load.cache_clear()


def test_auto_never_compiles_and_says_once_what_runs(monkeypatch, capsys):
    forget(monkeypatch)
    monkeypatch.setattr(build, "folder", lambda name: Path("/nowhere"))
    monkeypatch.setattr(build, "compile_kernel", lambda name: pytest.fail("auto compiled"))
    monkeypatch.delenv("CRAB_KERNEL", raising=False)
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3, torch.float32)]
    y = fused_lora(*args, 1.0)
    fused_lora(*args, 1.0)
    build.load.cache_clear()
    assert torch.equal(y, fused_lora(*args, 1.0, kernel="torch"))
    said = capsys.readouterr().err.splitlines()
    assert said == ["fused_lora: torch for torch.float32 on cpu: the cpp kernel is not built "
                    "(python -m crab_mini.fused_lora build)"]


def test_a_failed_build_falls_back_with_the_reason(monkeypatch, capsys, tmp_path):
    forget(monkeypatch)
    monkeypatch.setattr(build, "folder", lambda name: tmp_path)
    monkeypatch.setattr(build, "compile_kernel", lambda name: "g++: not found\nand a long story")
    monkeypatch.setenv("CRAB_KERNEL", "cpp")
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3, torch.float32)]
    y = fused_lora(*args, 1.0)
    build.load.cache_clear()
    assert torch.equal(y, fused_lora(*args, 1.0, kernel="torch"))
    said = capsys.readouterr().err
    assert "torch for torch.float32" in said and "g++: not found" in said and said.count("\n") == 1


def test_a_kernel_that_does_not_fit_says_why(monkeypatch, capsys):
    forget(monkeypatch)
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3, torch.float32)]
    assert torch.equal(fused_lora(*args, 1.0, kernel="cuda"), fused_lora(*args, 1.0, kernel="torch"))
    assert "the cuda kernel does not run on cpu" in capsys.readouterr().err
    half = [t.half() for t in args]
    fused_lora(*half, 1.0, kernel="cpp")
    assert "the cpp kernel does not know torch.float16" in capsys.readouterr().err
    elsewhere = torch.empty(1, 1, device="meta")
    assert dispatch.refusal("cpp", elsewhere, args[5]) == "the cpp kernel does not run on meta"
    assert dispatch.refusal("cpp", args[0], torch.empty(9, 9, 5)) is None


def test_benchmark_floors_are_the_operation_counts():
    assert round(bench.flop_floor(256, 256), 3) == 1.205 and round(bench.flop_floor(1024, 1024), 3) == 1.051


def test_benchmark_counts_what_autograd_saves():
    tensors = bench.make(64, 32, 32, "cpu", torch.float32, torch.float32)
    steps = {name: step for name, step in bench.candidates(tensors).items() if "cpp" not in name}
    kept = {name: bench.saved(step, tensors) for name, step in steps.items()}
    assert kept["frozen linear"] == 0
    assert kept["official's loop"] >= 3 * 64 * 32 * 4 > 64 * (8 + 3 + 3) * 4 >= kept["fused torch"] > 0
