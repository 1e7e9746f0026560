"""`python -m crab_mini.av_uie check DIR` and `... show DIR --task ms3 --index 4 --out a.png`.

check walks a data set without a model: every annotation, every picture, sound, video and mask, and says per task how
many samples are complete and what is wrong with each of the others (file, field, reason). Exit status 1 if anything
is. show draws one sample as the loader sees it. Unusual: a sample with three broken files gets three lines; loading
stops at the first, so a failed sample is gone through once more, file by file.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..errors import DataError
from . import rows as av_uie
from .media import open_picture, read_audio, read_image
from .schema import TASKS
from .video import open_clip

CHECK_SIZE = 32             # frames are decoded at full size whatever this is; small keeps the copies cheap


@dataclass
class Report:
    """What `check` found. samples: task -> split -> (complete, all); problems: (task, split, DataError)."""
    root: str
    samples: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    problems: list[tuple[str, str, DataError]] = field(default_factory=list)
    lines_seen: set[str] = field(default_factory=set)

    def add(self, task: str, split: str, errors: list[DataError]) -> None:
        """Keeps each different line once: a broken sound may serve many samples."""
        self.problems += [(task, split, error) for error in errors if str(error) not in self.lines_seen]
        self.lines_seen |= {str(error) for error in errors}

    def to_dict(self) -> dict:
        """For --json."""
        return {
            "root": self.root, "lacking": self.lacking,
            "tasks": {task: {split: {"complete": good, "samples": count} for split, (good, count) in splits.items()}
                      for task, splits in self.samples.items()},
            "problems": [{"task": task, "split": split, "file": error.file, "field": error.field,
                          "reason": error.reason} for task, split, error in self.problems]}

    def lines(self) -> list[str]:
        """For people: one line a task and split, one line a problem, one line in the end."""
        out = [f"{task:8} {split:6} {good:7} of {count:7} samples complete"
               for task, splits in self.samples.items() for split, (good, count) in splits.items()]
        if self.lacking:
            out.append(f"not in this folder: {', '.join(self.lacking)}")
        out += [str(error) for _, _, error in self.problems]
        return out + [f"{len(self.problems) or 'no'} problem{'s' * (len(self.problems) != 1)} in {self.root}"]


def inspect(row: av_uie.Row) -> tuple[list[DataError], list[int]]:
    """(everything that is wrong with a row's files, the seconds that it shows if nothing is)."""
    try:
        return [], av_uie.decode(row, CHECK_SIZE).seconds
    except DataError as error:
        found = [error]
    if row.video is not None:
        found.append(_error(lambda: open_clip(row.video, "video_path", row.root).frames([0], CHECK_SIZE)))
    else:
        try:
            pictures = av_uie.siblings(row).values()
        except DataError:                       # a link out of the folder, which is what `decode` stopped at
            pictures = [row.image]
        found += [_error(read_image, path, CHECK_SIZE, "image_path") for path in pictures]
    if row.audio is not None:
        found.append(_error(read_audio, row.audio, "audio_path"))
    if row.mask is not None:
        found.append(_error(open_picture, row.mask, "mask"))
    return list({str(error): error for error in found if error is not None}.values()), []


def _error(call, *arguments) -> DataError | None:
    try:
        call(*arguments)
    except DataError as error:
        return error
    return None


def check(root: str | Path, progress: bool = True) -> Report:
    """Walks both splits of every task that the folder has; opens every file that training would open."""
    root, report, rows, totals = Path(root), Report(str(root)), [], {}
    report.lacking = [task for task in TASKS if not (root / task).is_dir()]
    if len(report.lacking) == len(TASKS):
        report.add("", "", [DataError(root, "data folder", "missing, or without any AV-UIE task folder")])
    for task in (task for task in TASKS if task not in report.lacking):
        for split in av_uie.SPLITS:
            errors: list[DataError] = []
            good, totals[task, split] = av_uie.read_task(root, task, split, errors)
            rows += good
            report.samples.setdefault(task, {})[split] = (0, totals[task, split])
            report.add(task, split, errors)
    seconds: dict[tuple, list[int]] = {}        # of the good clips: ten questions about a clip open it once
    for row in tqdm(rows, desc="check", unit="sample", disable=not progress):
        clip = (row.video, row.audio, row.task == "avqa") if row.video is not None else row.uid
        if clip in seconds:
            error = _error(av_uie.check_length, row, seconds[clip])
            errors = [error] if error is not None else []
        else:
            errors, shown = inspect(row)
            if not errors:
                seconds[clip] = shown
        report.add(row.task, row.split, errors)
        good, count = report.samples[row.task][row.split]
        report.samples[row.task][row.split] = (good + (not errors), count)
    return report


def show(root: str, task: str, split: str, index: int, out: str, size: int) -> None:
    """Draws one sample into a PNG file."""
    from ..tasks.base import TASKS as SPOKEN
    from .class_lists import classes_of
    from .draw import panel
    problems: list[DataError] = []
    rows = av_uie.read_annotations(root, split, [task], problems)
    row = next((row for row in rows if row.index == index), None)
    if row is None:
        place = f"{Path(root) / task / split}.json"
        named = next((error for error in problems if error.file.endswith(f"[{index}]")), None)
        raise named or DataError(place, "index", f"no usable sample {index}: {len(rows)} are there, counted from 0")
    sample = av_uie.decode(row, size)
    image = panel(sample, SPOKEN[task].prompt(row.fields), SPOKEN[task].answer(row.fields),
                  classes=classes_of(Path(root)))
    try:
        image.save(out)
    except (OSError, ValueError) as error:
        raise DataError(out, "--out", f"cannot be written: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 fine, 1 the data has problems, 2 the command cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m crab_mini.av_uie", description="Look at a folder in the AV-UIE "
                                                                                    "layout, without a model.")
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="open every file and name what is wrong")
    checker.add_argument("dir")
    checker.add_argument("--json", action="store_true", help="print the report as JSON")
    shower = commands.add_parser("show", help="draw one sample into a PNG")
    shower.add_argument("dir")
    shower.add_argument("--task", required=True, choices=TASKS)
    shower.add_argument("--split", default="test", choices=av_uie.SPLITS)
    shower.add_argument("--index", type=int, default=0, help="place in the JSON list, from 0")
    shower.add_argument("--out", required=True, help="PNG file to write")
    shower.add_argument("--size", type=int, default=224, help="side of the decoded frames in pixels")
    given = parser.parse_args(arguments)
    if given.command == "check":
        report = check(given.dir)
        print(json.dumps(report.to_dict(), indent=1) if given.json else "\n".join(report.lines()))
        return 1 if report.problems else 0
    try:
        show(given.dir, given.task, given.split, given.index, given.out, given.size)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
