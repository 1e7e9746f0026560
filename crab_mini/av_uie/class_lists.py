"""The names of the classes that a data folder uses."""

import json
from pathlib import Path

from ..errors import DataError
from ..tasks.class_names import AVSBENCH_CLASSES


def classes_of(root: Path) -> tuple[str, ...]:
    """The names by number of a data folder's class maps: its classes.json, or AVSBench's 71."""
    path = Path(root) / "classes.json"
    return listed_in(path) if path.is_file() else AVSBENCH_CLASSES


def listed_in(path: Path, key: str | None = None) -> tuple[str, ...]:
    """The names in a JSON file that is a list, or whose `key` is one; DataError for others."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if key is not None:
            names = names[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, "file", f"no list of class names: {type(error).__name__}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(path, "file", "expected a JSON list of class names")
    return tuple(names)
