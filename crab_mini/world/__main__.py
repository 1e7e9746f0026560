"""`python -m crab_mini.world --out data/av_uie_mini --clips 6000`: makes a data set."""

import argparse
from pathlib import Path

from .write import write


def main() -> None:
    """Reads the command line and writes the set."""
    parser = argparse.ArgumentParser(description="Render the audio-visual world as a data set in the AV-UIE layout.")
    parser.add_argument("--out", type=Path, default=Path("data/av_uie_mini"), help="folder to write")
    parser.add_argument("--clips", type=int, default=6000, help="training clips")
    parser.add_argument("--test-clips", type=int, default=800, help="test clips (their own scenes, looks and sounds)")
    parser.add_argument("--image", type=int, default=64, help="side of the frames in pixels")
    parser.add_argument("--seed", type=int, default=0, help="first of the scene seeds")
    args = parser.parse_args()
    write(args.out, args.clips, args.test_clips, args.image, args.seed)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
