"""Which kernel runs: CRAB_KERNEL or an explicit name, and what `auto` takes for a tensor's device, dtype and shape.

Decided once for each of these, and said once on stderr.

`auto` never compiles anything: it takes a compiled kernel that is there already (`python -m crab_mini.fused_lora
build`), else torch. Asking for `cpp` or `cuda` builds it on first use; where that fails or does not fit the tensor,
torch runs instead, and one line on stderr says why.
"""

import os
import sys

import torch

from crab_mini.fused_lora import build, torch_path

KERNELS = ("auto", "torch", "cpp", "cuda")
MOST_COLUMNS = 64               # heads · rank and heads + rank that the CUDA kernels hold in registers, as kernels.cuh
_DTYPES = {"cpp": (torch.float32, torch.bfloat16, torch.float64), "cuda": (torch.float32, torch.bfloat16)}
_decided = {}                   # what was asked for, device, dtype, heads and rank -> the module that runs
_said = set()


def pick(kernel, x, B):
    """What runs `forward` and `backward` for rows x (N, in) and heads B (E, R, out): a module with these two.

    kernel: one of KERNELS, or "" for CRAB_KERNEL (default auto). Raises ValueError for another name.
    """
    asked = kernel or os.environ.get("CRAB_KERNEL") or "auto"
    if x.shape[0] == 0:
        return torch_path
    key = (asked, x.device, x.dtype, B.shape[0], B.shape[1])
    if key not in _decided:
        _decided[key] = _decide(asked, x, B)
    return _decided[key]


def _decide(asked, x, B):
    """`pick` without its memory; says what runs, and why."""
    if asked not in KERNELS:
        raise ValueError(f"CRAB_KERNEL: expected one of {', '.join(KERNELS)}, found {asked!r}")
    if asked == "torch":
        return torch_path
    name = asked if asked != "auto" else x.device.type.replace("cpu", "cpp")
    reason = refusal(name, x, B)
    compiled, missing = build.load(name, compile_it=asked != "auto") if reason is None else (None, reason)
    why = "as asked" if asked != "auto" else "the fastest that is built and fits"
    line = f"fused_lora: {name if compiled else 'torch'} for {x.dtype} on {x.device.type}: {why if compiled else missing}"
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
    return compiled or torch_path


def refusal(name, x, B):
    """Why the compiled kernel `name` cannot serve x (N, in) and B (E, R, out), in a few words; None when it can."""
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
        return f"{heads} heads of rank {rank} need {columns} sums a row, and {MOST_COLUMNS} fit in registers"
    return None
