"""The compiled CPU kernel against the formula (slow: the first test compiles it, some 20 s)."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from crab_mini.config import LoRAConfig
from crab_mini.fused_lora import build, fused_lora
from crab_mini.fused_lora.reference import fused
from crab_mini.model.lora import InteractionLoRALinear

from .test_fused_lora import SHAPES, compare, hold_large_logits, inputs

CPP_SHAPES = [*SHAPES, (2500, 40, 24, 4, 3), (40, 600, 24, 4, 3)]       # several blocks; rows longer than 512
TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 0.03)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def kernel():
    """The compiled module; without a compiler these tests are skipped, with one a failed build fails them."""
    module, reason = build.load("cpp", compile_it=True)
    if module is None:
        pytest.fail(reason) if shutil.which("g++") else pytest.skip("no g++")
    return module


@pytest.fixture(params=[1, 2])
def threads(request):
    """Runs with one and with two CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", CPP_SHAPES)
@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
def test_cpp_kernel_against_the_loop(shape, dtype, tolerance, threads):
    compare("cpp", shape, dtype, tolerance)


def test_large_logits_do_not_overflow():
    hold_large_logits("cpp")


def test_gradcheck_with_the_cpp_kernel(threads):
    args = inputs(5, 7, 6, 2, 3)
    mask = torch.rand(5, 7) > 0.3
    assert torch.autograd.gradcheck(lambda *a: fused_lora(*a, 2.0, kernel="cpp"), args)
    assert torch.autograd.gradcheck(lambda *a: fused_lora(*a, 2.0, 0.3, mask, "cpp"), args)


def test_mask_strides_nan_and_no_gradient_for_x():
    args = inputs(2100, 12, 8, 2, 3)
    mask = torch.rand(2100, 24)[:, ::2] > 0.4
    wide = torch.randn(2100, 24, dtype=torch.float64)[:, ::2]
    want = fused(wide, *args[1:], 2.0, mask, 1 / 0.6)
    got = fused_lora(wide, *args[1:], 2.0, 0.4, mask, "cpp")
    assert torch.allclose(got, want, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(y.square().sum(), args[2:]) for y in (got, want)))
    for a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-9)
    poisoned = wide.clone()
    poisoned[1500, 3] = float("nan")
    y = fused_lora(poisoned, *args[1:], 2.0, kernel="cpp")
    assert y.isnan().any(1).nonzero().tolist() == [[1500]]


def test_twice_the_same_bits(threads):
    args = inputs(3000, 33, 17, 5, 3, torch.float32)
    runs = []
    for _ in range(2):
        y = fused_lora(*args, 2.0, kernel="cpp")
        runs.append([y, *torch.autograd.grad(y.sum(), [a for a in args if a.requires_grad])])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_twenty_steps_of_training_give_the_same_losses(monkeypatch):
    torch.manual_seed(0)
    x, target = torch.randn(64, 24), torch.randn(64, 10)
    net = nn.Sequential(InteractionLoRALinear(nn.Linear(24, 32), LoRAConfig(rank=4)), nn.Tanh(),
                        InteractionLoRALinear(nn.Linear(32, 10), LoRAConfig(rank=4)))
    losses = {}
    for name in ("torch", "cpp"):
        monkeypatch.setenv("CRAB_KERNEL", name)
        model = copy.deepcopy(net)
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses[name] = []
        for _ in range(20):
            loss = (model(x) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[name].append(loss.item())
    assert losses["torch"][-1] < 0.9 * losses["torch"][0]
    assert max(abs(a - b) for a, b in zip(losses["torch"], losses["cpp"])) <= 1e-5


def test_the_border_of_the_extension_names_the_argument(kernel):
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]
    args[3] = torch.randn(6, 2, dtype=torch.float64).t()
    with pytest.raises(RuntimeError, match="fused_lora cpp: A must be a contiguous CPU tensor"):
        kernel.forward(*args, 2.0, None, 1.0)


def test_a_broken_source_reports_the_compilers_message(monkeypatch, tmp_path):
    (tmp_path / "broken.cpp").write_text("int main( { return nothing; }\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setitem(build.SOURCES, "cpp", ("broken.cpp",))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    message = build.compile_kernel("cpp")
    assert "broken.cpp" in message and "error" in message


def test_a_damaged_library_is_refused_then_built_again(kernel, tmp_path):
    """In a process of its own, which a cut library would end; the second build has another name for torch."""
    script = tmp_path / "damage.py"
    script.write_text("""
import torch
from crab_mini.fused_lora import build, dispatch, fused_lora
from crab_mini.fused_lora.bench import make
tensors = make(4, 6, 5, "cpu", torch.float32, torch.float32)[:6]
library = build.folder("cpp") / "crab_fused_lora_cpp.so"
for kernel in ("auto", "cpp", "cpp"):
    content = library.read_bytes()[:50000]
    library.unlink()                # a new file: the old one is mapped into this process
    library.write_bytes(content)
    build.load.cache_clear(), dispatch._decided.clear(), dispatch._said.clear()
    fused_lora(*tensors, 1.0, kernel=kernel)
""")
    shutil.copytree(build.folder("cpp"), tmp_path / "cache" / build.folder("cpp").name)
    home = str(build.HERE.parent.parent)
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "PYTHONPATH": home}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and "fused_lora: torch for torch.float32 on cpu: the cpp kernel is damaged" in lines[0]
    assert lines[1] == lines[2] == "fused_lora: cpp for torch.float32 on cpu: as asked"
