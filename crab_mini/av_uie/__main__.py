"""`python -m crab_mini.av_uie check DIR` and `... show DIR --task ms3 --index 4 --out a.png`.

check walks a data set without a model and says per task how many samples are complete and what is
wrong with each of the others (file, field, reason). show draws one sample as the loader sees it.
"""

import argparse
import io
import json
import sys
from pathlib import Path

from ..errors import CheckpointError, DataError, run_program
from ..files import write_result
from ..tasks.base import TASKS, load_plugin, parse_tasks
from ..world.clips import examine
from .check import check
from .draw import panel
from .rows import SPLITS, read_annotations
from .samples import decode


def show(root: str, task: str, split: str, index: int, out: str, size: int) -> None:
    """Draws one sample into a PNG file; DataError where there is no usable sample of this index."""
    # A folder that is not there is more likely a mistyped one than one to be made.
    if out != "-" and not Path(out).parent.is_dir():
        raise DataError(out, "--out", "its folder cannot be found")
    problems: list[DataError] = []
    rows = read_annotations(root, split, [task], problems)
    row = next((row for row in rows if row.index == index), None)
    if row is None:
        place = f"{Path(root) / task / split}.json"
        named = next((error for error in problems if error.file.endswith(f"[{index}]")), None)
        raise named or DataError(place, "index", f"no usable sample {index}: {len(rows)} are there, "
                                                 "counted from 0")
    sample = decode(row, size)
    image = panel(sample, TASKS[task].prompt(row.fields), TASKS[task].answer(row.fields))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_result(Path(out), buffer.getvalue())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m crab_mini.av_uie",
                                   description="Look at a folder in the AV-UIE layout, without a "
                                               "model.")
    commands = made.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="open every file and name what is wrong")
    checker.add_argument("dir")
    checker.add_argument("--json", action="store_true", help="print the report as JSON")
    shower = commands.add_parser("show", help="draw one sample into a PNG")
    shower.add_argument("dir")
    shower.add_argument("--task", required=True, help=", ".join(TASKS))
    shower.add_argument("--split", default="test", choices=SPLITS)
    shower.add_argument("--index", type=int, default=0, help="place in the JSON list, from 0")
    shower.add_argument("--out", required=True, help="PNG file to write; - is standard output")
    shower.add_argument("--size", type=int, default=224,
                        help="side of the decoded frames in pixels")
    for command in (checker, shower):
        command.add_argument("--plugin", type=Path, metavar="FILE",
                             help="a task of your own (data/README.md)")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 fine, 1 the data has problems, 2 the command cannot be done."""
    given = parser().parse_args(arguments)
    try:
        load_plugin(given.plugin)
        if given.command == "check":
            report = check(given.dir, masters=examine)
            lines = "\n".join(report.lines())
            print(json.dumps(report.to_dict(), indent=1) if given.json else lines)
            return 1 if report.problems else 0
        task, = parse_tasks(given.task)
        show(given.dir, task, given.split, given.index, given.out, given.size)
    except (ValueError, CheckpointError) as error:      # DataError among them
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
