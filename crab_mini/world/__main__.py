"""Makes a data set: scenes of the world, or (--bank) of your own pictures and sounds.

    python -m crab_mini.world --out data/av_uie_mini --clips 6000
    python -m crab_mini.world --bank DIR --classes cow,dog,horse,owl,pig --out data/farm
"""

import argparse
import sys
from pathlib import Path

from ..errors import DataError
from .bank import Folder, Skipped, scan
from .write import write


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m crab_mini.world",
                                     description="Render the audio-visual world as a data set in the AV-UIE layout.")
    parser.add_argument("--out", type=Path, default=Path("data/av_uie_mini"), help="folder to write")
    parser.add_argument("--clips", type=int, default=6000, help="training clips")
    parser.add_argument("--test-clips", type=int, default=800, help="test clips (their own scenes, looks and sounds)")
    parser.add_argument("--image", type=int, default=64, help="side of the frames in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes: another seed, other clips")
    parser.add_argument("--bank", type=Path, metavar="DIR",
                        help="take looks and sounds from name.png + name.ogg|wav|flac|mp3 pairs under this folder")
    parser.add_argument("--classes", metavar="A,B,...", help="only these classes of the bank")
    parser.add_argument("--backgrounds", type=Path, metavar="DIR", help="pictures to put behind the bank's things")
    parser.add_argument("--holdout-variants", action="store_true",
                        help="test clips show the bank's things in colours, shapes and pitches that training never has")
    parser.add_argument("--list", action="store_true", help="name the bank's classes and all skipped files; write nothing")
    return parser


def describe(bank: Folder, skipped: list[Skipped], everything: bool) -> list[str]:
    """Lines for people: the classes, and what was skipped by reason (everything: file by file)."""
    lines = [f"{len(bank.categories)} classes: {', '.join(bank.categories)}"]
    if everything:
        return lines + [f"skipped {s.path}: {s.reason}" for s in skipped]
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one.reason, []).append(one.path.name)
    return lines + [f"skipped {len(names)}: {reason}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
                    for reason, names in reasons.items()]


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and writes the set; exit status 2 and one line for what cannot be done."""
    args = parser().parse_args(argv)
    lone = [flag for flag, value in (("--classes", args.classes), ("--backgrounds", args.backgrounds),
                                     ("--holdout-variants", args.holdout_variants), ("--list", args.list)) if value]
    try:
        bank = None
        if args.bank:
            names = args.classes.split(",") if args.classes else None
            bank, skipped = scan(args.bank, names, args.backgrounds, args.holdout_variants)
            print("\n".join(describe(bank, skipped, args.list)))
            if args.list:
                return 0
        elif lone:
            raise ValueError(f"{lone[0]} needs --bank DIR")
        write(args.out, args.clips, args.test_clips, args.image, args.seed, bank=bank)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
