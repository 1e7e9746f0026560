"""Compiles the kernels and loads those that are compiled already. Importing this compiles nothing.

- The cache is TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions. The folder's name holds a hash of
  the sources and of the torch and Python versions, so an old build is never loaded.
- A build happens in a temporary folder. The finished library is then moved into the cache.
- Beside the library lies its SHA-256. It is checked before loading: a damaged library would end the
  process, and no Python code could prevent that.
- Nothing here raises for a failed build or a broken cache. The caller gets the reason in words.

    python -m crab_mini.fused_lora build
"""

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = {"cpp": ("cpu.cpp",),
           "cuda": ("binding.cpp", "launch.cu", "launch.h", "kernels.cuh", "access.cuh")}
FLAGS = ["-O3"]


@functools.cache
def load(name, compile_it=False):
    """(module, None), or (None, why not in one line), for the kernel `name`: "cpp" or "cuda".

    With compile_it, a library that is missing or damaged is compiled now.
    """
    # What is wrong with the library in the cache, if anything.
    command = f"python -m {__package__} build"
    try:
        library = folder(name) / f"crab_fused_lora_{name}.so"
        fault = _fault(library)
    except (OSError, RuntimeError) as error:                # RuntimeError: there is no home folder
        return None, f"the {name} kernel's cache cannot be read ({error})"

    # Compiling repairs both faults.
    if fault and not compile_it:
        return None, f"the {name} kernel {fault} ({command})"
    if fault:
        message = compile_kernel(name)
        if message is not None:
            return None, (f"building the {name} kernel failed ({_gist(message)}; all of it: "
                          f"{command})")

    # The file is complete, but it may still not fit this system.
    spec = importlib.util.spec_from_file_location(library.stem, library)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        return None, f"the {name} kernel does not load ({error}; {library})"
    return module, None


def folder(name):
    """The cache folder of the kernel `name`, for these sources and versions."""
    digest = hashlib.sha256(repr((torch.__version__, sys.version_info[:2], FLAGS)).encode())
    for source in SOURCES[name]:
        digest.update((HERE / source).read_bytes())
    cache = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(cache) if cache else Path.home() / ".cache" / "torch_extensions"
    return root / f"crab_fused_lora_{name}_{digest.hexdigest()[:16]}"


def compile_kernel(name):
    """Compiles the kernel `name` into the cache; 20 s for cpp. Returns None, or the whole error."""
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    try:
        _compile(name)
    except Exception as error:          # compilers and file systems fail in many ways
        return str(error).strip() or type(error).__name__
    return None


def _compile(name):
    """The work of `compile_kernel`. Raises what goes wrong."""
    from torch.utils import cpp_extension  # here, because its import is slow

    # The folder comes first: where it cannot be made, nobody waits for a compiler.
    target, stem = folder(name), f"crab_fused_lora_{name}"
    target.mkdir(parents=True, exist_ok=True)
    sources = [str(HERE / source) for source in SOURCES[name] if source.endswith((".cpp", ".cu"))]
    openmp = ["-fopenmp"] if sys.platform == "linux" else []

    # torch warns about compilers that it does not know; if one fails, its error says more.
    with tempfile.TemporaryDirectory() as work, _scripts_on_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpp_extension.load(stem, sources, extra_cflags=FLAGS + openmp, extra_cuda_cflags=FLAGS,
                           extra_ldflags=openmp, build_directory=work,
                           with_cuda=name == "cuda", is_python_module=False)
        # A second build of one process is called `..._v1`, so the file is found by its ending.
        built = next(Path(work).glob("*.so")).read_bytes()

    # The hash first: at no time does a new library stand beside an older hash for long.
    _place(target / f"{stem}.so.sha256", hashlib.sha256(built).hexdigest().encode())
    _place(target / f"{stem}.so", built)


def _fault(library):
    """What is wrong with `library`: it is missing, or not what was built. None if it is well."""
    if not library.exists():
        return "is not built"
    recorded = library.with_name(f"{library.name}.sha256")
    found = hashlib.sha256(library.read_bytes()).hexdigest()
    if not recorded.exists() or recorded.read_text(errors="replace").strip() != found:
        return f"is damaged: {library} does not match its hash"
    return None


def _place(path, content):
    """Writes `content` to `path` in one step: nobody sees half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _gist(message):
    """The line of a compiler's message that names the error, cut to 80 characters."""
    lines = message.splitlines()
    named = (line for line in lines[1:] if "error" in line.lower())
    return next(named, lines[0])[:80]


class _scripts_on_path:
    """Puts the interpreter's own folder on PATH while compiling: pip installs ninja there."""

    def __enter__(self):
        self.path = os.environ.get("PATH", "")
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.path}"

    def __exit__(self, *_):
        os.environ["PATH"] = self.path
