"""The names of the classes that a data folder uses."""

import os
from pathlib import Path

from ..errors import DataError
from ..tasks.class_names import AVSBENCH_CLASSES, words_of
from ..tasks.fields import is_text, shortened
from .json_files import read_json

LONGEST = 60                # characters of a class name


def classes_of(root: Path) -> tuple[str, ...]:
    """The names by number of a data folder's class maps: its classes.json, or AVSBench's 71."""
    path = Path(root) / "classes.json"
    if not os.path.lexists(path):
        return AVSBENCH_CLASSES
    names = names_of(read_json(path, Path(root), list, "a JSON list of class names"), path, "class names")
    if len(names) > len(AVSBENCH_CLASSES):
        raise DataError(path, "class names", f"expected {len(AVSBENCH_CLASSES)} at most, the "
                                             f"numbers of AVSBench's palette, found {len(names)}")
    return names


def names_of(value, path: Path, field: str) -> tuple[str, ...]:
    """A list of different class names; DataError (path, field) for all else.

    A name is a short text with a word in it, and without the marks of which answers are made.
    """
    if not isinstance(value, list) or not value:
        raise DataError(path, field, f"expected a list of names, found {shortened(value)}")
    for name in value:
        if not is_text(name) or not words_of(name) or len(name) > LONGEST or set("<>") & set(name):
            raise DataError(path, field, f"{shortened(name)} cannot name a class")
    if len(set(value)) < len(value):
        raise DataError(path, field, "a name stands there twice")
    return tuple(value)
