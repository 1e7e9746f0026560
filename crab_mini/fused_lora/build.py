"""Compiling the kernels, and finding what is compiled already: lazily, cached, never at import.

The cache is TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions; the folder's name carries a hash of the sources and
of the torch and Python versions, so that a stale build is never loaded. A build happens in a temporary folder and is
moved into place when complete: an interrupted one leaves nothing that a later one could wait for.
    python -m crab_mini.fused_lora build          compiles what this machine can, prints the compiler's message if not
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = {"cpp": ("cpu.cpp",), "cuda": ("binding.cpp", "launch.cu", "kernels.cuh", "launch.h")}
FLAGS = ["-O3"]


@functools.cache
def load(name, compile_it=False):
    """(module, None) or (None, why not) for "cpp" or "cuda"; compiled now if compile_it and it is not there yet."""
    library = folder(name) / f"crab_fused_lora_{name}.so"
    if not library.exists():
        if not compile_it:
            return None, f"the {name} kernel is not built (python -m crab_mini.fused_lora build)"
        message = compile_kernel(name)
        if message is not None:
            return None, f"building the {name} kernel failed ({message.splitlines()[0][:80]}; all of it: " \
                         "python -m crab_mini.fused_lora build)"
    spec = importlib.util.spec_from_file_location(library.stem, library)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, f"the {name} kernel does not load ({error}; {library})"
    return module, None


def folder(name):
    """Where the compiled kernel `name` lies for these sources and versions."""
    digest = hashlib.sha256(repr((torch.__version__, sys.version_info[:2], FLAGS)).encode())
    for source in SOURCES[name]:
        digest.update((HERE / source).read_bytes())
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    return root / f"crab_fused_lora_{name}_{digest.hexdigest()[:16]}"


def compile_kernel(name):
    """Compiles kernel `name` into its folder (some 20 s for cpp). Returns None, or what went wrong, in full."""
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    from torch.utils import cpp_extension  # slow to import, and only needed here
    target, stem = folder(name), f"crab_fused_lora_{name}"
    sources = [str(HERE / s) for s in SOURCES[name] if s.endswith((".cpp", ".cu"))]
    flags = FLAGS + (["-fopenmp"] if sys.platform == "linux" else [])
    with tempfile.TemporaryDirectory() as work, _scripts_on_path():
        try:
            cpp_extension.load(stem, sources, extra_cflags=flags, extra_cuda_cflags=FLAGS, build_directory=work,
                               extra_ldflags=flags[1:], with_cuda=name == "cuda")
        except (RuntimeError, OSError, ImportError) as error:
            return str(error)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(work) / f"{stem}.so", target / f"{stem}.{os.getpid()}")
    os.replace(target / f"{stem}.{os.getpid()}", target / f"{stem}.so")
    return None


class _scripts_on_path:
    """While compiling, the interpreter's own folder is on PATH: that is where pip put ninja, activated or not."""

    def __enter__(self):
        self.path = os.environ.get("PATH", "")
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.path}"

    def __exit__(self, *_):
        os.environ["PATH"] = self.path
