"""The CUDA kernels on a device, complete: `pytest -m gpu` on a machine with one. Builds them first (about a minute)."""

import pytest
import torch

from crab_mini.fused_lora import build, fused_lora
from crab_mini.fused_lora.reference import fused

from .test_fused_lora import SHAPES, compare, inputs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
# Beyond the CPU's: the tiles of 16, 32 and 64 sums a row; rows over several splits; the paper's width.
GPU_SHAPES = [*SHAPES, (64, 256, 256, 8, 3), (5, 40, 24, 16, 4), (9000, 64, 96, 8, 3), (33, 4096, 11008, 8, 3)]


@pytest.fixture(scope="module", autouse=True)
def kernel():
    """The compiled module; a failed build fails the tests with the compiler's message."""
    module, reason = build.load("cuda", compile_it=True)
    assert module is not None, f"{reason}\n{build.compile_kernel('cuda')}"
    return module


@pytest.fixture(autouse=True)
def full_precision():
    """Base products without TF32, which would hide the kernels' own error."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_device(shape, dtype, seed=0):
    """`inputs` on the device, with everything but the weight asking for a gradient."""
    args = inputs(*shape, dtype=dtype, seed=seed)
    return [t.detach().cuda().requires_grad_(i != 1) for i, t in enumerate(args)]


def results(args, **how):
    """y and the gradients of everything that asks for one."""
    y = fused_lora(*args, 2.0, **how)
    gy = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [a for a in args if a.requires_grad], gy)]


@pytest.mark.parametrize("shape", GPU_SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_against_the_loop(shape, dtype, tolerance):
    compare("cuda", shape, dtype, tolerance, device="cuda")


@pytest.mark.parametrize("shape", [(37, 70, 45, 3, 2), (64, 256, 256, 8, 3)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_the_mask_is_the_references_mask(shape, dtype, tolerance):
    args = on_device(shape, dtype)
    exact = [a.detach().double().requires_grad_(a.requires_grad) for a in args]
    mask = torch.rand(args[0].shape, device="cuda") > 0.3
    y, want = fused_lora(*args, 2.0, 0.3, mask, "cuda"), fused(*exact, 2.0, mask, 1 / 0.7)
    gy = torch.randn_like(want).to(dtype)
    got = [y, *torch.autograd.grad(y, [a for a in args if a.requires_grad], gy)]
    right = [want, *torch.autograd.grad(want, [a for a in exact if a.requires_grad], gy.double())]
    for a, b in zip(got, right):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_same_bits(dtype):
    args = on_device((9001, 96, 80, 8, 3), dtype)
    one, two = results(args, kernel="cuda"), results(args, kernel="cuda")
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_a_side_stream_gives_the_same():
    args = on_device((500, 96, 80, 8, 3), torch.float32)
    want = results(args, kernel="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = results(args, kernel="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_finite_differences_agree_with_the_gradient():
    """gradcheck's idea in float32, where its own tolerances do not reach: a step along a random direction."""
    args = on_device((16, 24, 20, 4, 3), torch.float32)
    y = fused_lora(*args, 2.0, kernel="cuda")
    weights = torch.randn_like(y)
    wanted = [a for a in args if a.requires_grad]
    gradients = torch.autograd.grad((y * weights).sum(), wanted)
    for tensor, gradient in zip(wanted, gradients):
        direction = torch.randn_like(tensor)
        values = []
        for step in (1e-2, -1e-2):
            moved = [(a + step * direction if a is tensor else a).detach() for a in args]
            values.append(float((fused_lora(*moved, 2.0, kernel="cuda") * weights).double().sum()))
        slope, expected = (values[0] - values[1]) / 2e-2, float((gradient * direction).double().sum())
        assert abs(slope - expected) <= 2e-2 * max(1.0, abs(expected))


def test_autocast_unaligned_strides_nan_and_zero_rows():
    args = on_device((40, 64, 48, 8, 3), torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = fused_lora(*args, 2.0, kernel="cuda")
    assert y.dtype == torch.bfloat16 and torch.autograd.grad(y.sum(), args[3])[0].dtype == torch.float32
    detached = [a.detach() for a in args]
    wide = torch.randn(40, 65, device="cuda")[:, 1:]         # rows that do not start on 16 bytes until copied
    want = fused(wide, *detached[1:], 2.0)
    assert torch.allclose(fused_lora(wide, *detached[1:], 2.0, kernel="cuda"), want, atol=1e-3)
    wide[7, 3] = float("nan")
    assert fused_lora(wide, *detached[1:], 2.0, kernel="cuda").isnan().any(1).nonzero().tolist() == [[7]]
    assert fused_lora(wide[:0], *detached[1:], 2.0, kernel="cuda").shape == (0, 48)


def test_memory_stays_far_below_the_loops():
    args = on_device((4096, 1024, 1024, 8, 3), torch.float32)
    peaks = {}
    for kernel in ("cuda", "torch"):
        results(args, kernel=kernel)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results(args, kernel=kernel)
        peaks[kernel] = torch.cuda.max_memory_allocated() - before
    outputs = 3 * 4096 * 1024 * 4                            # y, gy, gx
    assert peaks["cuda"] <= outputs + 24 * 2**20 and peaks["cuda"] <= peaks["torch"] + 8 * 2**20


def test_too_many_columns_fall_back_and_the_border_names_the_argument(kernel, capsys):
    args = [a.detach() for a in on_device((8, 32, 24, 32, 3), torch.float32)]
    assert torch.equal(fused_lora(*args, 2.0, kernel="cuda"), fused_lora(*args, 2.0, kernel="torch"))
    assert "96 sums a row" in capsys.readouterr().err
    args = [a.detach() for a in on_device((8, 32, 24, 4, 3), torch.float32)]
    for i, name in ((1, "weight"), (3, "A"), (4, "W_r"), (5, "B")):
        bad = list(args)
        bad[i] = bad[i].double()
        with pytest.raises(RuntimeError, match=f"fused_lora cuda: {name} must be Float, found Double"):
            kernel.forward(*bad, 2.0, None, 1.0)
