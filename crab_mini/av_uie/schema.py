"""What an AV-UIE annotation must hold, task by task: one table, checked field by field.

Unusual: the numbers inside a label's tags are held against the annotation's own fields (`<range> 0,8 </range>` against
start_time and end_time), so that a mislabelled sample is found without a model. Paths are only checked for being text
here; av_uie.py decides where they may lead. The published keys are in data/README.md.
"""

import json
import re
from dataclasses import dataclass

from ..errors import DataError

TASKS = ("ave", "avvp", "arig", "s4", "ms3", "avss", "ref_avs", "avqa", "avcap")
VIDEO_TASKS = ("ave", "avvp", "avqa", "avcap")
SEGMENTATION = ("s4", "ms3", "avss", "ref_avs")
BOX_FRAME = 224             # boxes are pixels of a frame of this side
CLIP_SECONDS = 10
SPAN = re.compile(r"\(\s*(\d{1,3})[\s,]+(\d{1,3})\s*\)")      # (3 6): from the start of second 3 to that of second 6


@dataclass(frozen=True)
class Fields:
    """Keys of one sample, each with its kind, and the keys that together name it."""
    kinds: dict[str, str]
    identity: tuple[str, ...]


_VIDEO = {"video_path": "text", "audio_path": "text or null"}
_IMAGE = {"image_path": "text", "audio_path": "text"}
_MASKED = Fields({"vid": "id", "uid": "id", "a_obj": "text", "frame_idx": "second", **_IMAGE, "label_content": "text"},
                 ("uid", "frame_idx"))
FIELDS = {
    "ave": Fields({"vid": "id", "event": "text", "start_time": "second", "end_time": "second", **_VIDEO,
                   "label_content": "text"}, ("vid", "event")),
    "avvp": Fields({"vid": "id", "filename": "id", "event": "text or list", **_VIDEO, "label_content": "text"},
                   ("filename",)),
    "avqa": Fields({"video_id": "id", "question_id": "id", "type": "types", "question": "text", "answer": "text",
                    **_VIDEO, "label": "text"}, ("video_id", "question_id")),
    "avcap": Fields({"video_id": "id", **_VIDEO, "label_content": "text"}, ("video_id",)),
    "arig": Fields({"a_obj": "text", **_IMAGE, "label_content": "text"}, ("image_path", "audio_path")),
    "s4": _MASKED, "ms3": _MASKED, "avss": _MASKED,
    "ref_avs": Fields({"vid": "id", "uid": "id", "fid": "number", "idx": "second", "description": "text", **_IMAGE,
                       "output": "text"}, ("uid", "fid", "idx")),
}


def _is_text(value) -> bool:
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode("utf-8"))
    except UnicodeEncodeError:      # half of a surrogate pair, legal in JSON, no character
        return False


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_types(value) -> bool:
    """A list of question types, as JSON in a string (MUSIC-AVQA's way) or as a list."""
    try:
        names = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return False
    return isinstance(names, list) and len(names) > 0 and all(_is_text(name) for name in names)


_KINDS = {
    "text": (_is_text, "non-empty text"),
    "text or null": (lambda v: v is None or v == "" or _is_text(v), "a path, or null for the video's soundtrack"),
    "text or list": (lambda v: _is_text(v) or isinstance(v, list) and v != [] and all(map(_is_text, v)),
                     "text or a list of texts"),
    "id": (lambda v: _is_text(v) or _is_whole(v), "text or a whole number"),
    "number": (lambda v: _is_whole(v) and v >= 0 or isinstance(v, str) and re.fullmatch("[0-9]{1,9}", v) is not None,
               "a whole number"),
    "second": (lambda v: _is_whole(v) and 0 <= v <= CLIP_SECONDS, f"a whole number from 0 to {CLIP_SECONDS}"),
    "types": (_is_types, "a JSON list of question types"),
}


def validate(task: str, entry, place: str) -> None:
    """DataError (place, key, expected, found) at the first thing that is wrong with an annotation."""
    if not isinstance(entry, dict):
        raise DataError(place, "sample", f"expected an object, found {type(entry).__name__}")
    for key, kind in FIELDS[task].kinds.items():
        is_right, expected = _KINDS[kind]
        if key not in entry and kind != "text or null":
            raise DataError(place, key, f"missing key, expected {expected}")
        if not is_right(entry.get(key)):
            raise DataError(place, key, f"expected {expected}, found {_short(entry.get(key))}")
    _MEANING.get(task, lambda entry, place: None)(entry, place)


def _short(value) -> str:
    text = ascii(value)             # whatever is in there, it prints
    return text if len(text) <= 60 else text[:57] + "..."


def identity(task: str, entry: dict) -> tuple:
    """What must be unique within a split."""
    return tuple(str(entry[key]) for key in FIELDS[task].identity)


def _ave(entry: dict, place: str) -> None:
    start, end = entry["start_time"], entry["end_time"]
    if start >= end:
        raise DataError(place, "end_time", f"{end} is not after start_time {start}")
    told = re.search(r"<range>\s*(\d+)\s*,\s*(\d+)\s*</range>", entry["label_content"])
    if told and (int(told[1]), int(told[2])) != (start, end):
        raise DataError(place, "label_content", f"mislabelled: the range {told[1]},{told[2]} is not {start},{end}")


def _avvp(entry: dict, place: str) -> None:
    """Each pair of tags holds a name and spans such as (3 6), inside the clip."""
    text = entry["label_content"]
    for sense in ("visual_event", "audio_event"):
        inner = re.findall(f"<{sense}>(.*?)</{sense}>", text, re.S)
        if not len(inner) == text.count(f"<{sense}>") == text.count(f"</{sense}>"):
            raise DataError(place, "label_content", f"mislabelled: <{sense}> tags do not pair up")
        for event in inner:
            name, spans = name_and_spans(event)
            if not name or not spans or any(not start < end <= CLIP_SECONDS for start, end in spans):
                raise DataError(place, "label_content", f"mislabelled: {_short(event)} needs a name and spans "
                                                        f"(start end) within 0..{CLIP_SECONDS}")
    if "_event>" not in text and "no audio event" not in text and "no visual event" not in text:
        raise DataError(place, "label_content", "mislabelled: no <visual_event> or <audio_event>")


def name_and_spans(inner: str) -> tuple[str, list[tuple[int, int]]]:
    """`dog,(2 6),(7 8)`, what stands between the tags of an event -> (dog, [(2, 6), (7, 8)]), in seconds."""
    first = SPAN.search(inner)
    name = inner[:first.start()] if first else inner
    return name.strip().rstrip(",").rstrip(), [(int(start), int(end)) for start, end in SPAN.findall(inner)]


def tagged_events(text: str) -> list[tuple[str, str]]:
    """(audio or visual, what stands between the tags) of every event in a text."""
    return re.findall(r"<(audio|visual)_event>(.*?)</\1_event>", text, re.S)


def events(task: str, entry: dict) -> list[tuple[str, int, int]]:
    """(name, start, end) of every event in a label, in seconds; avvp's names begin with "see " or "hear "."""
    if task == "ave":
        return [(entry["event"], entry["start_time"], entry["end_time"])]
    found = []
    if task == "avvp":
        for sense, inner in tagged_events(entry["label_content"]):
            name, spans = name_and_spans(inner)
            found += [(("see " if sense == "visual" else "hear ") + name, start, end) for start, end in spans]
    return found


def last_second(task: str, entry: dict) -> int:
    """Where the last event of a label ends, in seconds; 0 for tasks without spans. The clip must be that long."""
    return max((end for _, _, end in events(task, entry)), default=0)


def _arig(entry: dict, place: str) -> None:
    key = "top_left" if "top_left" in entry or "bottom_right" in entry else "label_content"
    box = box_of("arig", entry)
    if box is None:
        raise DataError(place, key, "no box: expected two corners, [x, y] each or (x,y),(x,y) in the label")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= BOX_FRAME and 0 <= y0 < y1 <= BOX_FRAME):
        raise DataError(place, key, f"box {box} is not inside a {BOX_FRAME}x{BOX_FRAME} frame, top left corner first")


def _masked(entry: dict, place: str) -> None:
    if entry["frame_idx"] >= CLIP_SECONDS:
        raise DataError(place, "frame_idx", f"expected a frame from 0 to {CLIP_SECONDS - 1}, "
                                            f"found {entry['frame_idx']}")


_MEANING = {"ave": _ave, "avvp": _avvp, "arig": _arig, "s4": _masked, "ms3": _masked, "avss": _masked}


def box_of(task: str, entry: dict) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) in a 224 x 224 frame: from the two corner keys, or else the last two corners in the label."""
    if task != "arig":
        return None
    corners = [entry.get("top_left"), entry.get("bottom_right")]
    if corners == [None, None]:
        number = r"\s*(-?\d+(?:\.\d+)?)\s*"
        pairs = re.findall(rf"[(\[]{number},{number}[)\]]", entry["label_content"])[-2:]
        corners = [[float(x), float(y)] for x, y in pairs]
    right = all(isinstance(c, list) and len(c) == 2 and all(_is_number(v) for v in c) for c in corners)
    return tuple(float(v) for corner in corners for v in corner) if right and len(corners) == 2 else None


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e6


def scale_box(box: tuple[float, float, float, float], size: int) -> tuple[float, float, float, float]:
    """A box of the 224 x 224 frame in pixels of a frame of side `size`."""
    return tuple(v * size / BOX_FRAME for v in box)
