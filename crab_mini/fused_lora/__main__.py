"""The commands of the folder: `build` compiles the kernels, `bench` times them.

    python -m crab_mini.fused_lora build
    python -m crab_mini.fused_lora bench --threads 1
"""

import argparse
import sys

import torch

from . import bench, build


def main():
    """Runs the command. The exit status is 1 when a kernel could not be built."""
    # Two commands, each with its own options.
    package = __package__ or "fused_lora"
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="compile what this machine can, or say what failed")
    timing = commands.add_parser("bench", help="time the kernels beside a frozen linear layer")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    timing.add_argument("--device", choices=("cpu", "cuda"), default=found)
    timing.add_argument("--threads", type=int, default=1, help="CPU threads")
    timing.add_argument("--rounds", type=int, default=9, help="rounds; the median is printed")
    timing.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    timing.add_argument("--sizes", choices=tuple(bench.SIZES),
                        help="default: square on a CPU, paper on a GPU")
    args = parser.parse_args()
    if args.command == "bench":
        sizes = args.sizes or ("paper" if args.device == "cuda" else "square")
        bench.run(args.device, args.threads, args.rounds, getattr(torch, args.dtype), sizes)
        return 0

    # Without a CUDA device the CUDA kernels are no failure. A failed compiler is.
    failed = False
    for name in build.SOURCES:
        if name == "cuda" and not torch.cuda.is_available():
            print("cuda: skipped, torch sees no CUDA device")
            continue
        message = build.compile_kernel(name)
        print(f"{name}: built in {build.folder(name)}" if message is None
              else f"{name}: FAILED\n{message}")
        failed |= message is not None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
