"""Makes a data set: scenes of the world, or with --bank scenes of your own pictures and sounds.

    python -m crab_mini.world --out data/av_uie_mini --clips 3000
    python -m crab_mini.world --bank DIR --classes cow,dog,horse,owl,pig --out data/farm
"""

import argparse
import sys
from pathlib import Path

from ..errors import CheckpointError, DataError
from .bank import FolderBank, Skipped, scan
from .write import write


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m crab_mini.world",
        description="Render the audio-visual world as a data set in the AV-UIE layout.")
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/av_uie_mini"), help="folder to write")
    add("--clips", type=int, default=3000, help="training clips")
    add("--test-clips", type=int, default=800,
        help="test clips (their own scenes, looks and sounds)")
    add("--image", type=int, default=64, help="side of the frames in pixels")
    add("--seed", type=int, default=0, help="of the scenes: another seed, other clips")
    add("--bank", type=Path, metavar="DIR",
        help="take looks and sounds from name.png + name.ogg|wav|flac|mp3 pairs under this folder")
    add("--classes", metavar="A,B,...", help="only these classes of the bank")
    add("--backgrounds", type=Path, metavar="DIR", help="pictures to put behind the bank's things")
    add("--holdout-variants", action="store_true",
        help="test clips show the bank's things in colours, shapes and pitches "
             "that training never has")
    add("--list", action="store_true",
        help="name the bank's classes and all skipped files; write nothing")
    return parser


def describe(bank: FolderBank, skipped: list[Skipped], every_file: bool) -> list[str]:
    """Lines to print: the classes, then the skipped files; each with its reason (every_file) or
    grouped by reason.
    """
    lines = [f"{len(bank.categories)} classes: {', '.join(bank.categories)}"]
    if every_file:
        return lines + [f"skipped {one.path}: {one.reason}" for one in skipped]
    names_by_reason: dict[str, list[str]] = {}
    for one in skipped:
        names_by_reason.setdefault(one.reason, []).append(one.path.name)
    for reason, names in names_by_reason.items():
        more = ", ..." if len(names) > 3 else ""
        lines.append(f"skipped {len(names)}: {reason}: {', '.join(names[:3])}{more}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and writes the data set. Exit status 2 and one line on stderr if that
    cannot be done.
    """
    args = parser().parse_args(argv)
    try:
        bank = None
        if args.bank:
            names = args.classes.split(",") if args.classes else None
            bank, skipped = scan(args.bank, names, args.backgrounds, args.holdout_variants)
            print("\n".join(describe(bank, skipped, args.list)))
            if args.list:
                return 0
        else:
            # These options would have no effect, and no option is accepted and ignored.
            for flag in ("--classes", "--backgrounds", "--holdout-variants", "--list"):
                if getattr(args, flag[2:].replace("-", "_")):
                    raise ValueError(f"{flag} needs --bank DIR")
        write(args.out, args.clips, args.test_clips, args.image, args.seed, bank=bank)
    except (DataError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
