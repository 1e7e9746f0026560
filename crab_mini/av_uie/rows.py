"""AV-UIE on disk: annotations -> `Row`, validated. No media file is opened (samples.py does that).

One folder per task with train.json and test.json, media beside them (the layout is in
data/README.md); the miniature and the published set are read by the same lines. Unusual: an
annotation can name no file outside the data folder, and whatever is wrong is one `DataError` line
(file, field, reason) before training starts, not a traceback in the middle of an epoch.

Departs from official Crab: 2,450 lines of data set classes with a path per task become one class.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..tasks.base import TASKS
from ..tokenizer import ANSWER, AUDIO, VISUAL
from .class_lists import classes_of, names_of
from .integrity import VIDEOS
from .json_files import read_json
from .paths import Inside

SPLITS = ("train", "test")
MARKS = (VISUAL, AUDIO, ANSWER)     # of the tokenizer; no text of a data set may hold them


@dataclass(frozen=True, slots=True)
class Row:
    """One validated annotation and where its files are: what can be known without opening media."""
    task: str
    split: str
    index: int                      # place in its JSON list
    fields: dict                    # the annotation itself
    root: Path                      # the data folder: nothing outside it is read
    classes: tuple[str, ...]        # names of the numbers in class maps
    video: Path | None = None       # video file, film strip or folder of frames
    image: Path | None = None
    audio: Path | None = None       # None: the video's own soundtrack
    mask: Path | None = None

    @property
    def uid(self) -> str:
        """`ave/test/0`."""
        return f"{self.task}/{self.split}/{self.index}"

    @property
    def place(self) -> str:
        """Where the annotation stands, for messages."""
        return f"{self.root / self.task / self.split}.json[{self.index}]"

    def check_text(self) -> None:
        """DataError unless prompt and answer can be learned, with reasoning and without it.

        They must hold none of the marks behind which the model's embeddings stand, and a whole
        group of mask tokens for each mask.
        """
        task = TASKS[self.task]
        answers = [task.answer(self.fields, reasoning) for reasoning in (True, False)]
        for text in (task.prompt(self.fields), *answers):
            for mark in MARKS:
                if mark in text:
                    raise DataError(self.place, self.field_with(mark),
                                    f"expected no '{mark}': it is the model's own mark")
        for text in answers:
            task.check_answer(self.fields, text, self.classes, self.place)

    def field_with(self, mark: str) -> str:
        """The key whose value holds a mark; the answer's key where none does by itself."""
        for key, value in self.fields.items():
            if mark in (value if isinstance(value, (str, list)) else ()):
                return key
        return TASKS[self.task].answer_field


def tasks_in(root: str | Path, split: str,
             wanted: list[str] | None = None) -> tuple[list[str], list[str]]:
    """(tasks that DIR has for this split, tasks that it lacks), in the order of TASKS.

    DataError if it has none, or for an unknown name.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, "data folder", "missing" if not root.exists() else "not a folder")
    for task in wanted or ():
        if task not in TASKS:
            raise DataError(root, "task", f"unknown task '{task}': expected one of "
                                          f"{', '.join(TASKS)}")
    must_be_finished(root)
    names = [task for task in TASKS if wanted is None or task in wanted]
    there = [task for task in names if (root / task / f"{split}.json").is_file()]
    if not there:
        raise DataError(root, "data folder", f"no {split}.json in any of the task folders "
                                             f"{', '.join(names)}")
    return there, [task for task in names if task not in there]


def must_be_finished(root: Path) -> None:
    """DataError for a folder whose rendering was stopped: clips/ is made first, clips.json last."""
    if (root / "clips").is_dir() and not os.path.lexists(root / "clips.json"):
        raise DataError(root / "clips.json", "file", "missing, and clips/ is there: its rendering "
                                                     "was stopped; the same command makes it anew")


def read_annotations(root: str | Path, split: str, tasks: list[str] | None = None,
                     problems: list[DataError] | None = None) -> list[Row]:
    """All rows of the tasks that the folder has (None: of all), validated; no media file is opened.

    problems: a list that receives what is wrong while the good rows are returned; without it the
    first is raised. A task whose JSON holds no sample is always an error.
    """
    rows = []
    for task in tasks_in(root, split, tasks)[0]:
        found = [] if problems is None else problems
        rows += read_task(Path(root), task, split, found)[0]
        if problems is None and found:
            raise found[0]
    return rows


def read_task(root: Path, task: str, split: str,
              problems: list[DataError]) -> tuple[list[Row], int]:
    """(the good rows of one task and split, how many samples the file holds).

    What is wrong goes to `problems`.
    """
    path = root / task / f"{split}.json"
    try:
        classes = classes_of(root)
        entries = read_json(path, root, list, "a list of samples")
        if not entries:
            raise DataError(path, "file", "empty: no samples")
    except DataError as error:
        problems.append(error)
        return [], 0

    rows, seen = [], {}             # seen: identity -> index of the sample that has it
    inside = Inside(root)
    for index, entry in enumerate(entries):
        place = f"{path}[{index}]"
        try:
            TASKS[task].validate(entry, place)
            name = TASKS[task].identity_of(entry)
            if name in seen:
                keys = " + ".join(TASKS[task].identity)
                raise DataError(place, keys, f"duplicate of sample {seen[name]}")
            seen[name] = index
            files = files_of(root, task, entry, place, inside)
            row = Row(task, split, index, entry, root, classes, **files)
            row.check_text()
            rows.append(row)
        except DataError as error:
            problems.append(error)
        except OSError as error:    # a folder that may not be searched
            problems.append(DataError(place, "file", f"{error.filename}: {error.strerror}"))
    return rows, len(entries)


def path_named(entry: dict, key: str, folder: str, place: str, inside: Inside) -> Path:
    """The file that an annotation names, relative to `folder`.

    DataError for an absolute path, for '..', and for a link that leaves the data folder.
    """
    text = entry[key]
    parts = text.split("/")
    if text.startswith("/") or "\\" in text or "\0" in text or ":" in parts[0]:
        raise DataError(place, key, f"absolute or foreign path '{text}': expected one relative to "
                                    f"{os.path.basename(folder)}/")
    if ".." in parts:
        raise DataError(place, key, f"'..' in '{text}': an annotation stays inside its folder")
    return inside(f"{folder}/{text}", place, key)


def files_of(root: Path, task: str, entry: dict, place: str,
             inside: Inside) -> dict[str, Path | None]:
    """The files of an annotation that has passed validation, by the names of Row's attributes."""
    folder = f"{root}/{task}"
    if TASKS[task].on_video:
        # A folder of frames stands in for the video of that name.
        video = path_named(entry, "video_path", f"{folder}/video", place, inside)
        frames = inside(os.path.splitext(video)[0], place, "video_path")
        if not video.exists() and frames.is_dir():
            video = frames

        # Without a sound file of its own the clip has the video's soundtrack.
        audio = None
        if entry.get("audio_path") and os.path.isdir(f"{folder}/audio"):
            audio = path_named(entry, "audio_path", f"{folder}/audio", place, inside)
        if audio is not None and audio.suffix.lower() in VIDEOS:
            audio = None
        return {"video": video, "audio": audio}

    image = path_named(entry, "image_path", folder, place, inside)
    audio = path_named(entry, "audio_path", folder, place, inside)
    mask = None
    if TASKS[task].masks:
        mask = inside(TASKS[task].mask_path(entry, image, place), place, "image_path")
    return {"image": image, "audio": audio, "mask": mask}


def event_names(root: Path) -> list[str]:
    """The names by which events are looked for in a caption.

    The world's categories where the folder has them; otherwise the names of its classes and of the
    events in its annotations (captions list no events of their own).
    """
    root = Path(root)
    index = root / "clips.json"
    if index.is_file():
        categories = read_json(index, root, dict, "an object").get("categories")
        return list(names_of(categories, index, "categories"))
    names = set(classes_of(root)[1:])
    for task in TASKS:
        for split in SPLITS:
            if (root / task / f"{split}.json").is_file():
                for row in read_annotations(root, split, [task], problems=[]):
                    found = TASKS[task].event_names(row.fields)
                    names |= {name.replace("_", " ") for name in found}
    return sorted(names)
