"""Class names of segmentation maps: which list a data folder uses, and which entry an annotation's words mean.

Published annotations say "lawn mower" where AVSBench's palette says `mower`, and `missile-rocket` comes with blanks: so
a name means a class if it ends with the class's words.
"""

import json
from pathlib import Path

from .annotations import events
from .av_uie import SPLITS, read_annotations
from .media import AVSBENCH_CLASSES, DataError


def classes_of(root: Path) -> tuple[str, ...]:
    """The names by number of a data folder's class maps: its classes.json, or AVSBench's 71."""
    path = Path(root) / "classes.json"
    if not path.is_file():
        return AVSBENCH_CLASSES
    return _listed(path, lambda content: content)


def _listed(path: Path, part) -> tuple[str, ...]:
    """The names in a part of a JSON file."""
    try:
        names = part(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, "file", f"no list of class names: {type(error).__name__}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(path, "file", "expected a JSON list of class names")
    return tuple(names)


def words_of(name: str) -> list[str]:
    """A name without case and hyphens, word by word."""
    return name.lower().replace("-", " ").replace("_", " ").replace(",", " ").split()


def class_meant(text: str, classes: tuple[str, ...]) -> int | None:
    """The number of the class whose words end the text, the longest if there are several; None if there is none.

    Class 0, the background, is never meant.
    """
    said = words_of(text)
    fits = [k for k, name in enumerate(classes) if k and words_of(name) == said[-len(words_of(name)):]]
    return max(fits, key=lambda k: len(words_of(classes[k])), default=None)


def class_number(name: str, classes: tuple[str, ...]) -> int:
    """`class_meant` for a label; ValueError in one line if the list has no such class."""
    number = class_meant(name, classes)
    if number is None:
        raise ValueError(f"'{name.strip()}' is none of the {len(classes)} class names")
    return number


def event_names(root: Path) -> list[str]:
    """The names that a caption's events are looked for by: the world's categories where the folder has them, else the
    names of its classes and of the events in its AVE and AVVP annotations (captions say no events of their own)."""
    index = Path(root) / "clips.json"
    if index.is_file():
        return list(_listed(index, lambda content: content["categories"]))
    rows = [row for task in ("ave", "avvp") for split in SPLITS if (Path(root) / task / f"{split}.json").is_file()
            for row in read_annotations(root, split, [task], problems=[])]
    said = {name for row in rows for name, *_ in events(row.task, row.fields)}
    heard = {name.removeprefix("see ").removeprefix("hear ").replace("_", " ") for name in said}
    return sorted({*classes_of(root)[1:], *heard})
