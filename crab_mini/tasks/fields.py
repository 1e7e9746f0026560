"""The kinds of values that an annotation's keys may hold, and the check against them.

A task lists its keys as {key: kind}. Each kind is one line of `KINDS`.
"""

import json
import re

from ..errors import DataError

CLIP_SECONDS = 10           # AV-UIE's clips; also the largest second that a label may name
SHOWN = 60                  # characters of a wrong value that an error repeats


def is_text(value) -> bool:
    """Whether a value is text that is not blank and can be written as UTF-8."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode("utf-8"))
    except UnicodeEncodeError:      # half of a surrogate pair: legal in JSON, but no character
        return False


def is_whole(value) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_path_or_null(value) -> bool:
    """Whether a value is a path, or stands for the soundtrack of the video."""
    return value is None or value == "" or is_text(value)


def is_text_or_list(value) -> bool:
    """Whether a value is text or a list of texts that is not empty."""
    return is_text(value) or (isinstance(value, list) and value != [] and all(map(is_text, value)))


def is_number(value) -> bool:
    """Whether a value is a whole number of at least 0, or the digits of one."""
    if is_whole(value):
        return value >= 0
    return isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) is not None


def is_second(value) -> bool:
    """Whether a value is a second of a clip."""
    return is_whole(value) and 0 <= value <= CLIP_SECONDS


def is_list_of_types(value) -> bool:
    """Whether a value lists question types: a list, or its JSON in a string (MUSIC-AVQA)."""
    try:
        names = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return False
    return isinstance(names, list) and len(names) > 0 and all(map(is_text, names))


# Kind -> (its check, what an error says was expected).
KINDS = {
    "text": (is_text, "non-empty text"),
    "text or null": (is_path_or_null, "a path, or null for the video's soundtrack"),
    "text or list": (is_text_or_list, "text or a list of texts"),
    "id": (lambda value: is_text(value) or is_whole(value), "text or a whole number"),
    "number": (is_number, "a whole number"),
    "second": (is_second, f"a whole number from 0 to {CLIP_SECONDS}"),
    "types": (is_list_of_types, "a JSON list of question types"),
}
OPTIONAL = "text or null"   # the one kind whose key may be absent


def check_fields(kinds: dict[str, str], entry, place: str) -> None:
    """DataError (place, key, expected, found) at the first key that is wrong."""
    if not isinstance(entry, dict):
        raise DataError(place, "sample", f"expected an object, found {type(entry).__name__}")
    for key, kind in kinds.items():
        is_right, expected = KINDS[kind]
        if key not in entry and kind != OPTIONAL:
            raise DataError(place, key, f"missing key, expected {expected}")
        if not is_right(entry.get(key)):
            raise DataError(place, key, f"expected {expected}, found {shortened(entry.get(key))}")


def shortened(value) -> str:
    """Any value as printable text of at most SHOWN characters."""
    text = ascii(value)
    return text if len(text) <= SHOWN else text[:SHOWN - 3] + "..."
