"""What goes wrong around the fused operation: caches, compilers, damaged libraries, refused derivatives.

Each fault of a kernel must end in the torch path and one line on stderr, never in a traceback.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from crab_mini.fused_lora import build, dispatch, fused_lora, op

from .test_fused_lora import forget, inputs

FOLDER = Path(build.__file__).parent


@pytest.fixture
def falls_back(monkeypatch, capfd):
    """A function: runs the operation with a kernel, checks for torch and one line, returns the line."""
    forget(monkeypatch)
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3, torch.float32)]

    def run(kernel="cpp"):
        y = fused_lora(*args, 1.0, kernel=kernel)
        build.load.cache_clear()
        lines = capfd.readouterr().err.splitlines()
        assert torch.equal(y, fused_lora(*args, 1.0, kernel="torch"))
        assert len(lines) == 1 and lines[0].startswith("fused_lora: torch for torch.float32 on cpu: "), lines
        return lines[0]

    return run


def pretend_to_compile(monkeypatch, content=b"a library"):
    """The compiler succeeds at once and writes `content`."""
    monkeypatch.setattr(cpp_extension, "load", lambda name, *_, build_directory, **__:
                        Path(build_directory, f"{name}.so").write_bytes(content))


def test_a_cache_that_cannot_be_made_ends_in_torch(monkeypatch, tmp_path, falls_back):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(cpp_extension, "load", lambda *_, **__: pytest.fail("compiled before looking"))
    assert "Not a directory" in falls_back()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_cache_ends_in_torch(monkeypatch, tmp_path, falls_back, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert os.strerror(code) in falls_back()


@pytest.mark.parametrize("kernel", ["auto", "cpp"])
def test_a_cache_that_cannot_be_read_ends_in_torch(monkeypatch, tmp_path, falls_back, kernel):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "exists", refuse)
    assert "cache cannot be read" in falls_back(kernel)


def test_no_home_folder_ends_in_torch(monkeypatch, falls_back):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert "Could not determine home directory" in falls_back()
    assert "Could not determine home directory" in build.compile_kernel("cpp")


def test_a_full_cache_ends_in_torch_and_leaves_no_half_file(monkeypatch, tmp_path, falls_back):
    def write(path, content):
        with path.open("wb") as file:
            file.write(content[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pretend_to_compile(monkeypatch)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with monkeypatch.context() as full:
        full.setattr(build.Path, "write_bytes", write)
        full.setattr(cpp_extension, "load", lambda name, *_, build_directory, **__:
                     Path(build_directory, f"{name}.so").touch())
        assert "No space left on device" in falls_back()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_a_failing_compiler_ends_in_torch(monkeypatch, tmp_path, falls_back, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    line = falls_back()
    assert "building the cpp kernel failed" in line and "-m crab_mini.fused_lora build)" in line


def test_an_error_without_words_still_has_a_name(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpp_extension, "load", fail)
    assert build.compile_kernel("cpp") == "RuntimeError"


def test_the_reason_names_the_error_and_not_the_command():
    message = "Error building extension 'x': [1/2] g++ -MMD\nFAILED: cpu.o\ncpu.cpp:1:2: error: no such thing\n"
    assert build._gist(message) == "cpu.cpp:1:2: error: no such thing"
    assert build._gist("Ninja is required") == "Ninja is required" and len(build._gist("x" * 200)) == 80


@pytest.mark.parametrize("damage", ["cut", "changed", "no hash"])
def test_a_damaged_library_is_never_loaded(monkeypatch, tmp_path, falls_back, damage):
    pretend_to_compile(monkeypatch)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert build.compile_kernel("cpp") is None
    library = build.folder("cpp") / "crab_fused_lora_cpp.so"
    assert build._fault(library) is None
    if damage == "no hash":
        library.with_name("crab_fused_lora_cpp.so.sha256").unlink()
    else:
        library.write_bytes(b"a lib" if damage == "cut" else b"A library")
    monkeypatch.setattr("importlib.util.spec_from_file_location", lambda *_: pytest.fail("loaded"))
    assert "is damaged" in falls_back("auto")
    monkeypatch.setattr(cpp_extension, "load", lambda *_, **__: (_ for _ in ()).throw(OSError("no compiler")))
    assert "building the cpp kernel failed (no compiler" in falls_back("cpp")


def test_integers_under_autocast_are_one_line_naming_the_argument():
    names = {1: "weight", 2: "bias", 3: "A", 4: "W_r", 5: "B"}
    for index, name in names.items():
        args = [t.detach() for t in inputs(4, 6, 5, 2, 3, torch.float32)]
        args[index] = args[index].long()
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError) as caught:
            fused_lora(*args, 1.0)
        assert str(caught.value) == f"fused_lora: {name} must be floating point, found torch.int64"


def test_a_second_derivative_is_refused_in_one_line():
    args = inputs(4, 6, 5, 2, 3)
    y = fused_lora(*args, 1.0, kernel="torch")
    gradients = torch.autograd.grad(y.square().sum(), [args[0], args[3]], create_graph=True)
    want = torch.autograd.grad(fused_lora(*args, 1.0, kernel="torch").square().sum(), [args[0], args[3]])
    assert all(torch.equal(a, b) for a, b in zip(gradients, want))
    for gradient in gradients:
        with pytest.raises(RuntimeError) as caught:
            gradient.sum().backward(retain_graph=True)
        assert str(caught.value) == op.ONCE and "\n" not in op.ONCE


def test_transforms_and_forward_derivatives_are_refused_in_one_line():
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]

    def run(x):
        return fused_lora(x, *args[1:], 1.0, kernel="torch")

    def dual():
        with torch.autograd.forward_ad.dual_level():
            run(torch.autograd.forward_ad.make_dual(args[0], args[0]))

    for refused in (lambda: torch.vmap(run)(args[0].unsqueeze(0)),
                    lambda: torch.func.grad(lambda x: run(x).sum())(args[0]), dual):
        with pytest.raises(RuntimeError) as caught:
            refused()
        assert str(caught.value) == op.TRANSFORMS and "\n" not in op.TRANSFORMS


def test_the_argument_decides_before_the_variable(monkeypatch):
    forget(monkeypatch)
    asked = []
    monkeypatch.setattr(dispatch, "_decide", lambda name, *_: asked.append(name) or dispatch.torch_path)
    args = [t.detach() for t in inputs(4, 6, 5, 2, 3)]
    monkeypatch.delenv("CRAB_KERNEL", raising=False)
    fused_lora(*args, 1.0)
    monkeypatch.setenv("CRAB_KERNEL", "cpp")
    fused_lora(*args, 1.0)
    fused_lora(*args, 1.0, kernel="cuda")
    assert asked == ["auto", "cpp", "cuda"]
    with pytest.raises(ValueError, match="kernel: expected one of auto, torch, cpp, cuda, found 'fast'"):
        fused_lora(*args, 1.0, kernel="fast")
    monkeypatch.setenv("CRAB_KERNEL", "fast")
    with pytest.raises(ValueError, match="CRAB_KERNEL: expected one of auto, torch, cpp, cuda, found 'fast'"):
        fused_lora(*args, 1.0)


def test_the_folder_works_inside_another_project(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "theirs" / "lora_op", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "use.py").write_text("import sys, torch\nfrom theirs.lora_op import fused_lora\n"
                                     "from theirs.lora_op.bench import make\n"
                                     "t = make(4, 6, 5, 'cpu', torch.float32, torch.float32)\n"
                                     "print(fused_lora(*t[:6], 1.0, kernel='torch').shape)\n"
                                     "assert not [m for m in sys.modules if m.startswith('crab')]\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments, words in ((["use.py"], "torch.Size([4, 5])"),
                             (["-m", "theirs.lora_op", "bench", "--help"], "python -m theirs.lora_op bench")):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and words in done.stdout, done.stderr
