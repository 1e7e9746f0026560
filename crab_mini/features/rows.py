"""Instruction tuning and evaluation: rows of a data set in the AV-UIE layout -> `Sequence`s.

A row's media are decoded at most once; what stays in memory is its text, its masks and the places
of its features. A broken file, or an annotation that does not fit the model, is one line before the
first step or, with a list for problems, left out. `usable` opens everything without a model, so
that nobody waits half an hour for that line.
"""

from pathlib import Path

import torch
from numpy.random import Generator

from ..av_uie.check import examine
from ..av_uie.rows import Row, read_annotations
from ..av_uie.samples import Sample
from ..batch import Sequence
from ..errors import DataError
from ..tasks.base import TASKS
from ..tokenizer import Tokenizer
from .encoders import Features

LISTED = 20                      # bad samples that are named one by one


def usable(root: Path, splits: tuple[str, ...], tasks: list[str],
           problems: list[DataError] | None) -> None:
    """Opens all that `Split` will open of these splits, where they exist; problems: see `Split`."""
    rows = []
    for split in splits:
        if any((root / task / f"{split}.json").is_file() for task in tasks):
            rows += read_annotations(root, split, tasks, problems)
    for _, errors in examine(rows):
        if errors and problems is None:
            raise errors[0]
        if errors:
            problems.append(errors[0])


class Samples:
    """Encoded samples, and `sequence(sample)`: what the model is asked and should say about one.

    by_task: places in `samples`.
    """

    def __init__(self, features: Features, tokenizer: Tokenizer):
        self.features, self.tokenizer, self.cfg = features, tokenizer, features.crab.cfg
        self.reasoning = self.cfg.reasoning == "on"
        self.samples: list[Sample] = []
        self.by_task: dict[str, list[int]] = {}
        vision = self.cfg.vision
        self.llm_layer, self.mask_layers = vision.kept_for_llm, vision.kept_for_masks

    def add(self, samples: list[Sample]) -> None:
        """Takes encoded samples in."""
        for place, sample in enumerate(samples, start=len(self.samples)):
            self.by_task.setdefault(sample.task, []).append(place)
        self.samples += samples

    def of(self, task: str) -> list[Sample]:
        """The samples of a task, in their order."""
        return [self.samples[place] for place in self.by_task[task]]

    def sequence(self, sample: Sample, answer: bool = True, frames_of: Sample | None = None,
                 sounds_of: Sample | None = None) -> Sequence:
        """A sample's sequence; answer False: it ends where generation begins.

        frames_of, sounds_of: other samples whose frames or sound stand in for its own (shuffling).
        """
        # Places in the stores; a clip that is shorter than this one is repeated.
        at = torch.arange(len(sample.seconds))
        frames, sounds = (frames_of or sample).frames, (sounds_of or sample).sounds
        frames, sounds = frames[at % len(frames)], sounds[at % len(sounds)]        # (T,), (T,n)

        # The text, with a placeholder for each embedding. Each second of sound has its own queries.
        task = TASKS[sample.task]
        text = task.answer(sample.fields, self.reasoning) if answer else None
        audio_queries = sounds.shape[1] * self.cfg.audio_qformer.queries
        ids, loss_mask = self.tokenizer.render(
            sample.seconds, self.cfg.visual_qformer.queries, audio_queries,
            task.prompt(sample.fields), text)

        # The features behind the placeholders, and those of the frame that is to be segmented.
        visual, audio = self.features.frames.array(), self.features.sounds.array()
        mask_features = None
        if sample.masks is not None:
            mask_features = visual[frames[sample.target]][self.mask_layers]     # (scales,P,Dv)
        return Sequence(sample.task, sample.uid, ids, loss_mask, visual[frames][:, self.llm_layer],
                        audio[sounds.flatten()], mask_features, sample.masks)


class Split(Samples):
    """All samples of a split of a data folder; `split(rng, count)` draws sequences.

    limit: samples a task at most. problems: a list that receives what is wrong with rows that are
    left out; without it the first raises its DataError. A split without a usable row always does.
    """

    def __init__(self, root: Path, split: str, tasks: list[str], features: Features,
                 tokenizer: Tokenizer, limit: int | None = None,
                 problems: list[DataError] | None = None):
        super().__init__(features, tokenizer)
        self.by_task = {task: [] for task in tasks}
        rows: dict[str, list[Row]] = {task: [] for task in tasks}
        for row in read_annotations(root, split, tasks, problems):
            rows[row.task].append(row)
        wanted = [row for task in tasks for row in rows[task][:limit]]
        self.add(features.cache.prepare(wanted, problems))
        if not self.samples:
            raise DataError(root, f"{split}.json", f"no usable sample of {', '.join(tasks)}")

    def __call__(self, rng: Generator, count: int) -> list[Sequence]:
        """Draws with replacement: every task equally often, and every sample of a task."""
        names = [task for task, places in self.by_task.items() if places]
        sequences = []
        for task in rng.choice(names, count):
            places = self.by_task[task]
            place = places[int(rng.integers(len(places)))]
            sequences.append(self.sequence(self.samples[place]))
        return sequences


def left_out(head: str, problems: list[DataError]) -> str:
    """A line and, below it, the first LISTED different reasons of bad samples."""
    lines = list(dict.fromkeys(map(str, problems)))
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n  ".join([head, *lines[:LISTED], *more])
