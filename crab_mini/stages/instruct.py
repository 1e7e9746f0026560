"""Instruction tuning and evaluation rows: any data set in the AV-UIE layout -> items with features behind them.

Every row is decoded once; what stays in memory is its text, its mask and the places of its features. A broken file is
one line before the first step.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..audio_encoder import fbank
from ..av_uie import Row, Sample, decode, read_annotations
from ..batch import Item
from ..features import Features
from ..media import AVSBENCH_CLASSES
from ..tasks import TASKS
from ..tokenizer import Tokenizer


@dataclass
class Prepared:
    """A decoded row without its media. `frames`, `sounds`: places in the feature stores, one a second."""
    task: str
    uid: str
    clip: str                    # rows with the same clip share their media
    row: dict
    seconds: list[int]
    target: int                  # place in `seconds` of the frame to be segmented
    frames: Tensor
    sounds: Tensor
    masks: Tensor | None         # (groups,H,W) bool
    visible: Tensor | None       # (H,W) class map of everything in the picture, where known
    box: tuple | None


def class_number(name: str, names: list[str]) -> int:
    """The number of a class in the label pictures: AVSBench's, or of a data set's own list."""
    name = name.strip()
    return names.index(name)


def _masks(task: str, sample: Sample) -> Tensor | None:
    """(groups,H,W) bool: one group, for AVSS one for each sounding category."""
    if sample.masks is None:
        return None
    if task != "avss":
        return sample.masks
    numbers = [class_number(name, list(AVSBENCH_CLASSES)) for name in sample.row["a_obj"].split(",")]
    return torch.stack([sample.masks == number for number in numbers])


class Rows:
    """All rows of a split of a data folder, prepared. `items(rows)` and `draw(rng, count)` give sequences."""

    def __init__(self, root: Path, split: str, tasks: list[str], features: Features, tokenizer: Tokenizer,
                 reasoning: bool = True, limit: int | None = None):
        self.features, self.tokenizer, self.cfg = features, tokenizer, features.crab.cfg
        self.reasoning = reasoning
        self.rows: list[Prepared] = []
        seen: dict[tuple, tuple] = {}
        counts: dict[str, int] = {}
        for row in tqdm(read_annotations(root, split, tasks), desc=f"read {split}", unit="row"):
            counts[row.task] = counts.get(row.task, 0) + 1
            if limit is None or counts[row.task] <= limit:
                self.rows.append(self._prepare(row, seen))
        self.by_task = {task: [i for i, row in enumerate(self.rows) if row.task == task] for task in tasks}
        kept = self.cfg.vision.kept
        self.llm_layer = kept.index(self.cfg.vision.llm_layer)
        self.mask_layers = [kept.index(k) for k in self.cfg.vision.mask_layers]

    def _prepare(self, row: Row, seen: dict) -> Prepared:
        """Decodes a row; clips that several rows of the video tasks share are read once."""
        key = (row.video, row.audio) if row.video else (row.uid,)
        if key not in seen:
            sample = decode(row, self.cfg.vision.image)
            places = (sample, self.features.see(sample.frames), self.features.hear(fbank(sample.audio).half()))
            if row.video:
                seen[key] = (replace(sample, frames=torch.empty(0), audio=torch.empty(0)), *places[1:])
        else:
            places = seen[key]
        sample, frames, sounds = places
        return Prepared(row.task, row.uid, str(row.video or row.image), row.fields, sample.seconds, sample.target,
                        frames, sounds, _masks(row.task, sample), sample.visible, sample.box)

    def item(self, row: Prepared, answer: bool = True, sight: Prepared | None = None,
             sound: Prepared | None = None) -> Item:
        """A sequence. sight, sound: other rows whose pictures or sound stand in for the row's own (for shuffling)."""
        frames, sounds = (sight or row).frames, (sound or row).sounds
        count = len(row.seconds)
        frames, sounds = (places[torch.arange(count) % len(places)] for places in (frames, sounds))
        visual, audio = self.features.visual.array(), self.features.audio.array()
        task = TASKS[row.task]
        text = self.tokenizer.render(row.seconds, self.cfg.visual_qformer.queries, self.cfg.audio_qformer.queries,
                                     task.prompt(row.row), task.answer(row.row, self.reasoning) if answer else None)
        at = visual[frames[row.target]][self.mask_layers] if row.masks is not None else None
        return Item(row.task, row.uid, row.row, text.ids, text.trained, visual[frames][:, self.llm_layer],
                    audio[sounds], at, row.masks)

    def __call__(self, rng, count: int, weights: dict[str, float] | None = None) -> list[Item]:
        """draw(rng, count): rows of all tasks by weight, uniform within a task."""
        names = [task for task, rows in self.by_task.items() if rows]
        share = np.array([(weights or {}).get(n, 1.0) for n in names])
        return [self.item(self.rows[self.by_task[t][int(rng.integers(len(self.by_task[t])))]])
                for t in rng.choice(names, count, p=share / share.sum())]
