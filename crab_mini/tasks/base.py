"""A task is one class: its annotation, prompt, answer, parser, rules, score and picture.

`fields` always means an annotation in the AV-UIE layout, a dict. Everything outside this folder
asks a task for what it needs and never looks at its name. A class overrides what differs from the
defaults below; one object of it is given to `register`.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .drawing import Box, Drawing, Event
from .fields import check_fields

FRAME = 224                 # AV-UIE boxes are pixels of a 224x224 frame
MASK_GROUP = "<mask_start><mask_0><mask_1><mask_2><mask_3><mask_4><mask_5><mask_end>"
MASK_TOKENS = re.findall(r"<mask_\d>", MASK_GROUP)
VIDEO = {"video_path": "text", "audio_path": "text or null"}    # keys of a task on video files
PICTURE = {"image_path": "text", "audio_path": "text"}          # keys of a task on pictures


class Task:
    """One task, with defaults for a question about a video that is answered in words."""
    name: str
    fields: dict[str, str]              # keys of an annotation, each with its kind (see fields.py)
    identity: tuple[str, ...]           # the keys that together are unique within a split
    answer_field = "label_content"      # the key that holds the full answer

    # What the model sees.
    frames = 10                         # seconds of the clip at most, one frame each
    long_clips = False                  # clips over 20 s are looked at every six seconds
    loose_pictures = False              # a picture may belong to no second of the sound
    clips_folder = ""                   # where pictures lie: {clips_folder}/{clip}/frames/{second}

    # What the model answers with.
    masks = False                       # mask tokens
    empty_masks = True                  # a mask may be empty: nothing in the frame is meant
    by_class = False                    # a class map: one mask group for each class that is named

    # `eval.py --task` on files of one's own: its options that the task needs -> key that they fill.
    own_options: dict[str, str] = {}
    alias = ""                          # another name of the task on that command line

    @property
    def on_video(self) -> bool:
        """Whether annotations name a video; otherwise they name a picture of a clip."""
        return "video_path" in self.fields

    # -- the annotation -----------------------------------------------------------------------

    def validate(self, entry, place: str) -> None:
        """DataError (place, key, expected, found) at the first thing wrong with an annotation."""
        check_fields(self.fields, entry, place)
        self.check_meaning(entry, place)

    def check_meaning(self, fields: dict, place: str) -> None:
        """DataError where keys of the right kinds contradict each other; here never."""

    def identity_of(self, fields: dict) -> tuple[str, ...]:
        """What must be unique within a split."""
        return tuple(str(fields[key]) for key in self.identity)

    def events(self, fields: dict) -> list[Event]:
        """(name, start, end) of every event in a label, in whole seconds; here none."""
        return []

    def event_names(self, fields: dict) -> set[str]:
        """The plain names of the events in a label."""
        return {name for name, _, _ in self.events(fields)}

    def last_second(self, fields: dict) -> int:
        """Where the last event of a label ends: the clip must be that long. 0 without events."""
        return max((end for _, _, end in self.events(fields)), default=0)

    def box(self, fields: dict) -> Box | None:
        """The box of a label; here none."""
        return None

    def mask_path(self, fields: dict, image: Path, place: str) -> Path:
        """Where the mask of a picture lies, for tasks with masks."""
        raise NotImplementedError

    # -- prompt and answer --------------------------------------------------------------------

    def prompt(self, fields: dict) -> str:
        """What the model is asked."""
        raise NotImplementedError

    def bare(self, fields: dict) -> str:
        """The tagged answer without reasoning."""
        raise NotImplementedError

    def parse(self, text: str) -> object | None:
        """What an answer means, as a plain value; None where it cannot be read."""
        raise NotImplementedError

    def is_tagged(self, text: str) -> bool:
        """Whether an annotation's text already holds its tagged answer."""
        return "<mask_" in text if self.masks else self.parse(text) is not None

    def answer(self, fields: dict, reasoning: bool = True) -> str:
        """The text to learn.

        A tagged answer that an annotation's text lacks is appended: real AV-UIE often leaves out
        the mask tokens.
        """
        text = fields[self.answer_field] if reasoning else self.bare(fields)
        return text if self.is_tagged(text) else f"{text.rstrip(' .')} {self.bare(fields)}."

    # -- masks --------------------------------------------------------------------------------

    def class_numbers(self, fields: dict, classes: Sequence[str], place: str = "") -> list[int]:
        """The number in a class map that each mask group means; empty unless `by_class`."""
        return []

    def groups(self, fields: dict, classes: Sequence[str], place: str = "") -> int:
        """How many groups of mask tokens the answer holds."""
        return int(self.masks)

    def check_answer(self, fields: dict, text: str, classes: Sequence[str], place: str) -> None:
        """DataError unless a text to learn holds whole mask groups, one for each mask."""
        groups = self.groups(fields, classes, place)
        tokens = re.findall(r"<mask_\d>", text)
        if tokens != groups * MASK_TOKENS:
            raise DataError(place, self.answer_field, f"expected {groups} whole group(s) of mask "
                                                      f"tokens, found {len(tokens)} mask tokens")

    # -- evaluation ---------------------------------------------------------------------------

    def names(self, fields: dict) -> set[str]:
        """What an annotation says is seen or heard, where its keys list it."""
        return set()

    def differ(self, fields: dict, other: dict) -> bool:
        """Whether two annotations ask for different things: then their clips may be exchanged."""
        return not self.names(fields) & self.names(other)

    def truth(self, fields: dict):
        """The right answer, in a form that fits into a line of JSON."""
        return self.parse(self.bare(fields))

    def score(self, answers: list, vocabulary: list[str]) -> list:
        """Answers (`score.Answer`) of all rows -> `score.Score` objects.

        vocabulary: names of events that a text may mention.
        """
        raise NotImplementedError

    def picture(self, answer) -> Drawing:
        """What can be drawn of an answer (`score.Answer`); here its text."""
        return Drawing(answer.text)


TASKS: dict[str, Task] = {}             # filled by `register`, in the order of the calls


def register(task: Task) -> Task:
    """Adds a task to TASKS; ValueError for a name that is taken."""
    if task.name in TASKS:
        raise ValueError(f"a task '{task.name}' is registered already")
    TASKS[task.name] = task
    return task


def load_plugin(path: Path | None) -> None:
    """Runs a file that registers a task of the user's own; None: nothing.

    DataError for a file that cannot be run, that registers nothing, or whose task's name is taken.
    """
    if path is None:
        return
    before = set(TASKS)
    try:
        spec = importlib.util.spec_from_file_location(f"plugin_{Path(path).stem}", path)
        if spec is None:
            raise ImportError("expected a Python file, NAME.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except Exception as error:          # the file is the user's: it may raise anything
        reason = f"cannot be loaded: {type(error).__name__}: {error}"
        raise DataError(path, "--plugin", reason) from error
    if set(TASKS) == before:
        raise DataError(path, "--plugin", "registers no task: expected a call of register(...)")


def parse_tasks(text: str) -> list[str]:
    """`all` or names with commas -> task names; ValueError with the nearest valid names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text == "all":
        names = list(TASKS)
    for name in names or [text]:
        if name not in TASKS:
            close = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.5) or list(TASKS)
            raise ValueError(f"--task {name}: no such task; nearest: {', '.join(close)}")
    return list(dict.fromkeys(names))
