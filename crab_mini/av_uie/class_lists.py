"""The names of classes and events that a data folder uses."""

import json
from pathlib import Path

from ..errors import DataError
from ..tasks.class_names import AVSBENCH_CLASSES
from .rows import SPLITS, read_annotations
from .schema import events


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

