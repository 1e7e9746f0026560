"""`python -m crab_mini.fused_lora build` compiles the kernels; `... bench [--threads 1]` times them."""

import argparse
import sys

import torch

from crab_mini.fused_lora import bench, build


def main():
    """Parses the command and runs it; the exit status is 1 when the C++ kernel could not be built."""
    parser = argparse.ArgumentParser(prog="python -m crab_mini.fused_lora", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="compile what this machine can; print the compiler's message if it fails")
    timing = commands.add_parser("bench", help="forward + backward against a frozen linear layer and official's loop")
    timing.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    timing.add_argument("--threads", type=int, default=1, help="CPU threads")
    timing.add_argument("--rounds", type=int, default=9, help="interleaved rounds; the median is printed")
    timing.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    if args.command == "bench":
        bench.run(args.device, args.threads, args.rounds, getattr(torch, args.dtype))
        return 0
    failed = False
    for name in build.SOURCES:
        if name == "cuda" and not torch.cuda.is_available():
            print("cuda: skipped, torch sees no CUDA device")
            continue
        message = build.compile_kernel(name)
        print(f"{name}: {'built in ' + str(build.folder(name)) if message is None else 'FAILED' + chr(10) + message}")
        failed |= message is not None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
