"""Instruction tuning and evaluation rows: any data set in the AV-UIE layout -> items with features behind them.

Every row's media are decoded at most once; what stays in memory is its text, its mask and the places of its features.
A broken file or an annotation that cannot be posed is one line before the first step, or, with a list for problems,
left out. `usable` looks at everything without a model, so that nobody waits half an hour for that line.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..av_uie import Row, Sample, check_length, decode, read_annotations
from ..batch import Item
from ..classes import class_meant, class_number, classes_of
from ..features import Features
from ..media import DataError
from ..tasks import TASKS
from ..tokenizer import Tokenizer

# How often a task's rows are drawn, against 1: questions come in nine kinds, expressions in five.
SHARE = dict(avqa=2.5, ref_avs=1.5, ave=1.2, avvp=1.2, ms3=0.8, avss=0.8, avcap=0.8, s4=0.5)
GLANCE = 32                      # side of the frames that `usable` decodes: files are read whole whatever it is


@dataclass
class Prepared:
    """A decoded row without its media. `frames`, `sounds`: places in the feature stores."""
    task: str
    uid: str
    clip: str                    # the file that its sound is in; each frame of a clip is a row of its own
    row: dict
    seconds: list[int]
    target: int                  # place in `seconds` of the frame to be segmented
    frames: Tensor               # (T,)
    sounds: Tensor               # (T,n): n pieces of one second for each frame, two of them in clips of a minute
    masks: Tensor | None         # (groups,H,W) bool
    visible: Tensor | None       # (H,W) class map of everything in the picture, where known
    box: tuple | None
    classes: tuple[str, ...]     # names of the numbers in class maps
    labels: Tensor | None = None         # (H,W) the annotation's own class map, for AVSS


def _numbers(row: dict, classes: tuple[str, ...]) -> list[int]:
    """The class numbers of an AVSS row's sounding categories, in their order."""
    return [class_number(name, classes) for name in row["a_obj"].split(",")]


def _masks(sample: Sample, classes: tuple[str, ...]) -> Tensor | None:
    """(groups,H,W) bool: one group, for AVSS one for each sounding category."""
    if sample.masks is None or sample.task != "avss":
        return sample.masks
    return torch.stack([sample.masks == number for number in _numbers(sample.row, classes)])


def check_text(row: Row, tokenizer: Tokenizer, classes: tuple[str, ...], reasoning: bool) -> None:
    """DataError where a row's prompt and answer do not hold exactly the marks that its masks and media stand for."""
    task, place = TASKS[row.task], f"{row.root / row.task / row.split}.json[{row.index}]"
    text = task.answer(row.fields, reasoning)
    prompt, answer = tokenizer.encode(task.prompt(row.fields)), tokenizer.encode(text)
    for mark in (tokenizer.visual, tokenizer.audio, tokenizer.answer):
        if mark in prompt or mark in answer:
            raise DataError(place, task.field, f"expected no '{tokenizer.names[mark]}': it is the model's own mark")
    groups, numbers = int(task.masks), []
    if row.task == "avss":
        try:
            numbers = _numbers(row.fields, classes)
        except ValueError as error:
            raise DataError(place, "a_obj", str(error)) from None
        groups = len(numbers)
    found = [i for i in answer if i in tokenizer.masks]
    if found != groups * tokenizer.masks:
        raise DataError(place, task.field, f"expected {groups} whole group(s) of mask tokens, found "
                                           f"{len(found)} mask tokens")
    for words, number in zip(numbers and task.parse(text) or [], numbers):
        if class_meant(words, classes) not in (number, None):
            raise DataError(place, task.field, f"expected masks in the order of a_obj, {row.fields['a_obj']}: "
                                               f"'{classes[number]}' comes where the text says '{words[-40:]}'")


def annotations(root: Path, split: str, tasks: list[str], tokenizer: Tokenizer, reasoning: bool,
                problems: list[DataError] | None) -> list[Row]:
    """The rows of a split whose annotations are in order; problems: see `Rows`. No media file is opened."""
    classes, good = classes_of(root), []
    for row in read_annotations(root, split, tasks, problems):
        try:
            check_text(row, tokenizer, classes, reasoning)
            good.append(row)
        except DataError as error:
            if problems is None:
                raise
            problems.append(error)
    return good


def usable(root: Path, splits: tuple[str, ...], tasks: list[str], tokenizer: Tokenizer, reasoning: bool,
           problems: list[DataError] | None) -> None:
    """Opens everything that `Rows` of these splits will open, where they are there; problems: see `Rows`."""
    rows = [row for split in splits if any((root / task / f"{split}.json").is_file() for task in tasks)
            for row in annotations(root, split, tasks, tokenizer, reasoning, problems)]
    seconds: dict[tuple, list[int]] = {}         # of the good clips: ten questions about a clip open it once
    for row in tqdm(rows, desc="check", unit="row"):
        clip = (row.video, row.audio, row.task == "avqa") if row.video else row.uid
        try:
            if clip in seconds:
                check_length(row, seconds[clip])
            else:
                seconds[clip] = decode(row, GLANCE).seconds
        except DataError as error:
            if problems is None:
                raise
            problems.append(error)


class Posed:
    """Prepared rows as a model is asked about them: `item(row)` gives the sequence. by_task: places in `rows`."""

    def __init__(self, features: Features, tokenizer: Tokenizer, reasoning: bool = True):
        self.features, self.tokenizer, self.cfg, self.reasoning = features, tokenizer, features.crab.cfg, reasoning
        self.rows: list[Prepared] = []
        self.by_task: dict[str, list[int]] = {}
        kept = self.cfg.vision.kept
        self.llm_layer = kept.index(self.cfg.vision.llm_layer)
        self.mask_layers = [kept.index(k) for k in self.cfg.vision.mask_layers]

    def item(self, row: Prepared, answer: bool = True, sight: Prepared | None = None,
             sound: Prepared | None = None) -> Item:
        """A sequence. sight, sound: other rows whose pictures or sound stand in for the row's own (for shuffling)."""
        frames, sounds = (sight or row).frames, (sound or row).sounds                        # (T,), (T,n)
        count = len(row.seconds)
        frames, sounds = (places[torch.arange(count) % len(places)] for places in (frames, sounds))
        heard = sounds.shape[1] * self.cfg.audio_qformer.queries     # each second of sound has queries of its own
        visual, audio = self.features.visual.array(), self.features.audio.array()
        task = TASKS[row.task]
        text = self.tokenizer.render(row.seconds, self.cfg.visual_qformer.queries, heard, task.prompt(row.row),
                                     task.answer(row.row, self.reasoning) if answer else None)
        at = visual[frames[row.target]][self.mask_layers] if row.masks is not None else None
        return Item(row.task, row.uid, row.row, text.ids, text.trained, visual[frames][:, self.llm_layer],
                    audio[sounds.flatten()], at, row.masks)


class Rows(Posed):
    """All rows of a split of a data folder, prepared. `item(row)` and `rows(rng, count)` give sequences.

    limit: rows a task at most. problems: a list that receives what is wrong with rows that are left out; without it
    the first raises its DataError. A split with no usable row always does.
    """

    def __init__(self, root: Path, split: str, tasks: list[str], features: Features, tokenizer: Tokenizer,
                 reasoning: bool = True, limit: int | None = None, problems: list[DataError] | None = None):
        super().__init__(features, tokenizer, reasoning)
        classes, found = classes_of(root), {task: [] for task in tasks}
        for row in annotations(root, split, tasks, tokenizer, reasoning, problems):
            found[row.task].append(row)
        wanted = {row.uid: row for rows in found.values() for row in rows[:limit]}
        for cached in features.cache.prepare(list(wanted.values()), problems):
            sample = cached.sample
            row = wanted[sample.uid]
            self.rows.append(Prepared(row.task, row.uid, str(row.audio or row.video), row.fields, sample.seconds,
                                      sample.target, cached.frames, cached.sounds, _masks(sample, classes),
                                      sample.visible, sample.box, classes,
                                      sample.masks if row.task == "avss" else None))
        if not self.rows:
            raise DataError(root, f"{split}.json", f"no usable sample of {', '.join(tasks)}")
        self.by_task = {task: [i for i, row in enumerate(self.rows) if row.task == task] for task in tasks}

    def __call__(self, rng, count: int) -> list[Item]:
        """draw(rng, count): tasks by their share, every row of a task equally often."""
        names = [task for task, rows in self.by_task.items() if rows]
        share = np.array([SHARE.get(name, 1.0) for name in names])
        return [self.item(self.rows[self.by_task[t][int(rng.integers(len(self.by_task[t])))]])
                for t in rng.choice(names, count, p=share / share.sum())]
