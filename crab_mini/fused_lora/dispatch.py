"""Which kernel runs for a tensor, and who may choose it.

The argument `kernel` decides. Without it the environment variable CRAB_KERNEL decides. Without both
it is `auto`.

- `auto` takes the compiled kernel of the tensor's device if it is built and fits, else torch. It
  never compiles.
- `cpp` and `cuda` are compiled on first use.
- torch runs where a kernel cannot be compiled or does not fit the tensor.

The choice is made once per device, dtype and shape. One line on stderr says what runs and why.
"""

import os
import sys

import torch

from . import build, torch_path

KERNELS = ("auto", "torch", "cpp", "cuda")
MOST_COLUMNS = 64       # of E · r and E + r: what CUDA registers hold, see kernels.cuh
_DTYPES = {"cpp": (torch.float32, torch.bfloat16, torch.float64),
           "cuda": (torch.float32, torch.bfloat16)}
_decided = {}           # (name, device, dtype, heads, rank) -> the module that runs
_said = set()           # the lines that were printed


def pick(kernel, x, B):
    """The module whose `forward` and `backward` run for rows x (N, in) and heads B (E, r, out).

    kernel: one of KERNELS, or "": then CRAB_KERNEL decides. Raises ValueError for another name.
    """
    asked = kernel or os.environ.get("CRAB_KERNEL") or "auto"
    if x.shape[0] == 0:
        return torch_path
    key = (asked, x.device, x.dtype, B.shape[0], B.shape[1])
    if key not in _decided:
        _check(asked, "kernel" if kernel else "CRAB_KERNEL")
        _decided[key] = _decide(asked, x, B)
    return _decided[key]


def _check(name, source):
    """Raises ValueError, in one line, unless `name` is one of KERNELS."""
    if name not in KERNELS:
        raise ValueError(f"{source}: expected one of {', '.join(KERNELS)}, found {name!r}")


def _decide(asked, x, B):
    """The choice itself. Prints one line that says what runs, and why."""
    if asked == "torch":
        return torch_path

    # auto means the kernel of the tensor's device, if there is one.
    name = asked if asked != "auto" else x.device.type.replace("cpu", "cpp")
    missing = refusal(name, x, B)
    compiled = None
    if missing is None:
        compiled, missing = build.load(name, compile_it=asked != "auto")

    # The same line is printed once, however many shapes lead to it.
    reason = missing or ("as asked" if asked != "auto" else "the fastest that is built and fits")
    line = f"fused_lora: {name if compiled else 'torch'} for {x.dtype} on {x.device.type}: {reason}"
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
    return compiled or torch_path


def refusal(name, x, B):
    """Why the kernel `name` cannot serve x (N, in) and B (E, r, out). None if it can."""
    device = {"cpp": "cpu", "cuda": "cuda"}.get(name)
    if device is None:
        return f"there is no kernel for {name}"
    if x.device.type != device:
        return f"the {name} kernel does not run on {x.device.type}"
    if x.dtype not in _DTYPES[name]:
        return f"the {name} kernel does not know {x.dtype}"
    heads, rank = B.shape[:2]
    columns = max(heads * rank, heads + rank)
    if name == "cuda" and columns > MOST_COLUMNS:
        return (f"{heads} heads of rank {rank} need {columns} sums a row, and {MOST_COLUMNS} fit "
                "in registers")
    return None
