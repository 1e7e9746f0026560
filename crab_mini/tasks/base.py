"""The nine tasks: each owns its prompt, its answer, its parser and what its truth looks like. Scores are in scoring.py.

A row is one annotation in the AV-UIE layout (a dict). `TASKS["ave"].prompt(row)` is what the model is asked,
`.answer(row)` what it should say (with the reasoning first, or bare), `.parse(text)` what its words mean: a plain
value, or None where the answer cannot be read (it then scores zero and is counted).
"""

import difflib
import json
import re
from dataclasses import dataclass
from typing import Callable

from ..av_uie.schema import box_of, name_and_spans, tagged_events

MASK_GROUP = "<mask_start>" + "".join(f"<mask_{i}>" for i in range(6)) + "<mask_end>"
FRAME = 224                      # AV-UIE boxes are pixels of a 224x224 frame


@dataclass(frozen=True)
class Task:
    """One task. `frames`: how many seconds of the clip the model gets; `field`: the row's key with the full answer."""
    name: str
    frames: int
    field: str
    prompt: Callable[[dict], str]
    bare: Callable[[dict], str]            # the tagged answer without reasoning
    parse: Callable[[str], object | None]
    masks: bool = False                    # answers with mask tokens

    def answer(self, row: dict, reasoning: bool = True) -> str:
        """The text to learn. A tagged answer that an annotation's text lacks is appended: real AV-UIE often leaves out
        the mask tokens."""
        text = row[self.field] if reasoning else self.bare(row)
        tagged = "<mask_" in text if self.masks else self.parse(text) is not None
        return text if tagged else f"{text.rstrip(' .')} {self.bare(row)}."


def parse_ave(text: str) -> tuple[str, int, int] | None:
    """`<event> dog </event> .. <range> 2,6 </range>` -> (event, start, end) in seconds."""
    event = re.search(r"<event>\s*(.+?)\s*</event>", text)
    span = re.search(r"<range>\s*(\d+)\s*,\s*(\d+)\s*</range>", text)
    if not event or not span or int(span[1]) > int(span[2]):
        return None
    return event[1], int(span[1]), int(span[2])


def parse_avvp(text: str) -> dict[str, list[tuple[str, int, int]]] | None:
    """All `<audio_event> dog,(3 6),(8 9) </audio_event>` and visual ones -> {"audio": [(name, start, end)], "visual"}."""
    events, found = {"audio": [], "visual": []}, tagged_events(text)
    for kind, inner in found:
        name, spans = name_and_spans(inner)
        events[kind] += [(name, start, end) for start, end in spans]
    said_none = "no audio event" in text or "no visual event" in text
    return events if found or said_none else None


def parse_avqa(text: str) -> str | None:
    """`<answer> word </answer>` -> word."""
    found = re.search(r"<answer>\s*([^<\s][^<]*?)\s*</answer>", text)
    return found[1].lower() if found else None


def parse_arig(text: str) -> tuple[int, int, int, int] | None:
    """The last two corners `(x,y)` -> (x0, y0, x1, y1) in pixels of the 224x224 frame."""
    corners = re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", text)
    if len(corners) < 2:
        return None
    (x0, y0), (x1, y1) = [(int(x), int(y)) for x, y in corners[-2:]]
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def parse_caption(text: str) -> str | None:
    """`<answer> caption </answer>`, or the whole text where it holds no tag, as in AV-UIE.

    None for an empty caption, and where the tag is never closed.
    """
    if "<answer>" not in text:
        return text.strip() or None
    found = re.search(r"<answer>(.*?)</answer>", text, re.S)
    return found[1].strip() or None if found else None


def parse_masks(text: str) -> list[str] | None:
    """The words before each group of mask tokens: the k-th group's name is what k-th entry ends with."""
    groups = text.split(MASK_GROUP.replace("><", "> <")) if "> <" in text else text.split(MASK_GROUP)
    return [g.strip(" ,.") for g in groups[:-1]] or None


def _bare_avvp(row: dict) -> str:
    return " ".join(f"<{sense}_event>{inner}</{sense}_event>" for sense, inner in tagged_events(row["label_content"])) \
        or "no audio event no visual event"


def _bare_avss(row: dict) -> str:
    return ", ".join(f"{name.strip()} {MASK_GROUP}" for name in row["a_obj"].split(","))


def _bare_arig(row: dict) -> str:
    box = parse_arig(row["label_content"]) or [round(v) for v in box_of("arig", row)]
    return "({},{}),({},{})".format(*box)


def _bare_caption(row: dict) -> str:
    return parse_caption(row["label_content"]) or row["label_content"]


_EVENT = lambda row: (f"<event> {row['event']} </event> "
                      f"<range> {row['start_time']},{row['end_time']} </range>")

TASKS = {task.name: task for task in (
    Task("ave", 10, "label_content",
         lambda row: "which event is both seen and heard, and from when to when?", _EVENT, parse_ave),
    Task("avvp", 10, "label_content",
         lambda row: "list every event that is heard and every event that is seen, with their times.",
         _bare_avvp, parse_avvp),
    Task("arig", 1, "label_content",
         lambda row: "give the box of the object that makes the sound.", _bare_arig, parse_arig),
    Task("s4", 1, "label_content",
         lambda row: "segment the object that makes the sound.", lambda row: MASK_GROUP, parse_masks, True),
    Task("ms3", 5, "label_content",
         lambda row: f"segment all objects that make a sound at second {row['frame_idx']}.",
         lambda row: MASK_GROUP, parse_masks, True),
    Task("avss", 10, "label_content",
         lambda row: f"name and segment each object that makes a sound at second {row['frame_idx']}.",
         _bare_avss, parse_masks, True),
    Task("ref_avs", 10, "output",
         lambda row: f"segment {row['description']} at second {row['idx']}.",
         lambda row: MASK_GROUP, parse_masks, True),
    Task("avqa", 10, "label",
         lambda row: row["question"], lambda row: f"<answer> {row['answer']} </answer>", parse_avqa),
    Task("avcap", 10, "label_content",
         lambda row: "describe what is seen and heard.", _bare_caption, parse_caption),
)}


def parse_tasks(text: str) -> list[str]:
    """`all` or names with commas -> task names; ValueError with the nearest valid names."""
    names = list(TASKS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        if name not in TASKS:
            close = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.5) or list(TASKS)
            raise ValueError(f"--task {name}: no such task; nearest: {', '.join(close)}")
    return list(dict.fromkeys(names))


def question_type(row: dict) -> tuple[str, ...]:
    """MUSIC-AVQA's `type`, a JSON list as a string (or a list), usually (modality, kind)."""
    return tuple(json.loads(row["type"]) if isinstance(row["type"], str) else row["type"])
