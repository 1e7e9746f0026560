"""What in a data folder cannot be used: every annotation, picture, sound, video and mask is opened.

`examine` decides what is usable, for `check` (which names everything that is wrong) and for
training (which stops at the first). Unusual: a sample with three broken files gets three lines.
Decoding stops at the first, so a failed sample is opened once more, file by file.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..errors import DataError
from ..tasks.base import TASKS
from .media import open_picture, read_audio, read_image
from .rows import SPLITS, Row, must_be_finished, read_task
from .samples import check_length, decode, siblings
from .video import open_clip

MASTERS = "clips"           # what the report calls the files of the earlier stages
CHECK_SIZE = 32             # side of the copies: frames are decoded at full size whatever this is


@dataclass
class Report:
    """What `check` found.

    samples: task -> split -> (complete, all). problems: (task, split, DataError).
    """
    root: str
    samples: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    problems: list[tuple[str, str, DataError]] = field(default_factory=list)
    lines_seen: set[str] = field(default_factory=set)

    def add(self, task: str, split: str, errors: list[DataError]) -> None:
        """Keeps each different line once: a broken sound may serve many samples."""
        new = [error for error in errors if str(error) not in self.lines_seen]
        self.problems += [(task, split, error) for error in new]
        self.lines_seen |= {str(error) for error in errors}

    def to_dict(self) -> dict:
        """For --json."""
        tasks = {}
        for task, splits in self.samples.items():
            tasks[task] = {split: {"complete": good, "samples": count}
                           for split, (good, count) in splits.items()}
        problems = [{"task": task, "split": split, "file": error.file, "field": error.field,
                     "reason": error.reason} for task, split, error in self.problems]
        return {"root": self.root, "lacking": self.lacking, "tasks": tasks, "problems": problems}

    def lines(self) -> list[str]:
        """For people: one line a task and split, one line a problem, one line in the end."""
        out = [f"{task:8} {split:6} {good:7} of {count:7} samples complete"
               for task, splits in self.samples.items() for split, (good, count) in splits.items()]
        if self.lacking:
            out.append(f"not in this folder: {', '.join(self.lacking)}")
        out += [str(error) for _, _, error in self.problems]
        count = len(self.problems)
        return out + [f"{count or 'no'} problem{'s' * (count != 1)} in {self.root}"]


def error_of(call, *arguments) -> DataError | None:
    """The DataError that a call raises, or None."""
    try:
        call(*arguments)
    except DataError as error:
        return error
    return None


def first_frame(row: Row) -> None:
    """Decodes the first frame of a row's video."""
    open_clip(row.video, "video_path", row.root).frames([0], CHECK_SIZE)


def broken_files(row: Row) -> list[DataError]:
    """What is wrong with each of a row's files on its own."""
    found = []
    if row.video is not None:
        found.append(error_of(first_frame, row))
    else:
        try:
            pictures = siblings(row).values()
        except DataError:                       # a link out of the folder: `decode` names it
            pictures = [row.image]
        found += [error_of(read_image, path, CHECK_SIZE, "image_path") for path in pictures]
    if row.audio is not None:
        found.append(error_of(read_audio, row.audio, "audio_path"))
    if row.mask is not None:
        found.append(error_of(open_picture, row.mask, "mask"))
    return [error for error in found if error is not None]


def examine(rows: list[Row], progress: bool = True) -> Iterator[tuple[Row, list[DataError]]]:
    """Each row with everything that is wrong with its media; the first is what `decode` raises.

    Ten questions about a clip open it once.
    """
    seconds: dict[tuple, list[int]] = {}        # of the good clips: the seconds that they show
    for row in tqdm(rows, desc="check", unit="sample", disable=not progress):
        clip = (row.uid,)
        if row.video is not None:
            clip = (row.video, row.audio, TASKS[row.task].long_clips)
        if clip in seconds:
            error = error_of(check_length, row, seconds[clip])
            yield row, [error] if error is not None else []
            continue
        try:
            seconds[clip] = decode(row, CHECK_SIZE).seconds
            yield row, []
        except DataError as error:
            errors = [error, *broken_files(row)]
            yield row, list({str(error): error for error in errors}.values())


def check(root: str | Path, progress: bool = True, masters: Callable | None = None) -> Report:
    """Opens every file that training would open, of both splits of every task in the folder.

    masters: `examine` of world/clips.py, which opens the files of the earlier stages where the
    folder has them. It is handed in, since the world knows this folder and not the other way round.
    """
    root, report, rows = Path(root), Report(str(root)), []
    report.lacking = [task for task in TASKS if not (root / task).is_dir()]
    if len(report.lacking) == len(TASKS):
        reason = "missing, or without any AV-UIE task folder"
        report.add("", "", [DataError(root, "data folder", reason)])

    # The annotations.
    for task in TASKS:
        if task in report.lacking:
            continue
        for split in SPLITS:
            errors: list[DataError] = []
            good, count = read_task(root, task, split, errors)
            rows += good
            report.samples.setdefault(task, {})[split] = (0, count)
            report.add(task, split, errors)

    # The files of the stages before instruction tuning.
    try:
        must_be_finished(root)
    except DataError as error:
        report.add("", "", [error])
    if masters is not None and os.path.lexists(root / "clips.json"):
        report.samples[MASTERS] = {}
        for split, error in masters(root, progress):
            good, count = report.samples[MASTERS].get(split, (0, 0))
            report.samples[MASTERS][split] = (good + (error is None), count + 1)
            report.add(MASTERS, split, [] if error is None else [error])

    # What the annotations name.
    for row, errors in examine(rows, progress):
        report.add(row.task, row.split, errors)
        good, count = report.samples[row.task][row.split]
        report.samples[row.task][row.split] = (good + (not errors), count)
    return report
