"""Sequences for the LLM and their batches: of scenes as scripts, of clips, of annotations.

A sampler is called as sampler(rng, count) and returns `count` sequences:

    ScriptSampler        scenes that are never rendered, as scripts        (text)
    ClipSampler          rendered clips, as scripts or as features         (segment, align)
    AnnotationSampler    the annotations of a data folder                  (instruct)

`SequenceBatches` makes batches of similar length from any of them.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Sequence, collate
from ..config import Config
from ..tasks.base import TASKS
from ..tokenizer import Tokenizer
from ..world.scene import sample_scene
from ..world.script import script
from ..world.view import View
from ..world.write import POSE_ONE
from .clips import TrainingClips

# How often each task is drawn from a scene: in proportion to the time that it takes to learn.
WEIGHTS = dict(ave=1.0, avvp=1.2, arig=1.5, s4=0.7, ms3=0.8, avss=0.8, ref_avs=1.2, avqa=2.5,
               avcap=0.5)
MASK_WEIGHTS = dict(s4=1.0, ms3=1.0, avss=1.0, ref_avs=1.0)
MAX_SCENE = 1 << 39         # seeds of scenes are drawn below
SCRIPT_NOISE = 0.1          # standard deviation of a word's factor: no Q-Former is exact either
SCRIPT_TRIES = 4            # tasks that are drawn for each scene
CLIP_TRIES = 3              # tasks that are drawn for each clip
POOL = 8                    # steps whose sequences are drawn and sorted together


def draw_rows(view: View, rng, tries: int,
              weights: dict[str, float] = WEIGHTS) -> Iterator[tuple[str, dict]]:
    """Draws `tries` tasks by weight, yields (task, annotation) of those that the scene can pose."""
    names = list(weights)
    share = np.array([weights[name] for name in names])
    for name in rng.choice(names, tries, p=share / share.sum()):
        rows = POSE_ONE[name](view, rng)
        if rows:
            yield str(name), rows[int(rng.integers(len(rows)))]


def shown_seconds(task: str, row: dict) -> list[int]:
    """The seconds of the clip that a row's sequence holds."""
    count = TASKS[task].frames
    return [target_second(task, row)] if count == 1 else list(range(count))


def target_second(task: str, row: dict) -> int:
    """The second whose frame is segmented or grounded."""
    return row[TASKS[task].second_field]


def mask_targets(task: str, row: dict) -> list[list[int]]:
    """The things of the scene that each mask group of a row's answer means, as indices."""
    return [[thing] for thing in row["targets"]] if TASKS[task].by_class else [row["targets"]]


def named_categories(view: View, task: str, row: dict, categories: list[str]) -> Tensor | None:
    """(G,C) bool: the categories that each mask group of an answer means; None without masks."""
    if not TASKS[task].masks:
        return None
    groups = mask_targets(task, row)
    named = torch.zeros(len(groups), len(categories), dtype=torch.bool)
    for group, things in enumerate(groups):
        for thing in things:
            named[group, categories.index(view.names[thing])] = True
    return named


def render_row(cfg: Config, tokenizer: Tokenizer, task: str, row: dict,
               seconds: list[int]) -> tuple[list[int], list[bool]]:
    """A row as ids (L): seconds with placeholders, prompt, answer; and as its loss mask (L)."""
    prompt = TASKS[task].prompt(row)
    answer = TASKS[task].answer(row, cfg.reasoning == "on")
    return tokenizer.render(seconds, cfg.visual_qformer.queries, cfg.audio_qformer.queries, prompt,
                            answer)


class ScriptSampler:
    """Sequences of scenes that are never rendered: scripts stand in the place of their clips."""

    def __init__(self, cfg: Config, tokenizer: Tokenizer, categories: list[str]):
        self.cfg, self.tokenizer, self.categories = cfg, tokenizer, categories

    def __call__(self, rng, count: int) -> list[Sequence]:
        sequences = []
        while len(sequences) < count:
            seed = int(rng.integers(MAX_SCENE))
            sequences += self.of_scene(seed, rng)
        return sequences[:count]

    def of_scene(self, seed: int, rng) -> list[Sequence]:
        """A scene's script with noise on every word, and the rows that are drawn from the scene."""
        view = View(sample_scene(seed, tuple(self.categories)))
        noisy = [words * (1 + SCRIPT_NOISE * rng.standard_normal(words.shape, np.float32))
                 for words in script(view, self.categories)]
        visual, audio = map(torch.from_numpy, noisy)                    # (T,Q,words) of each
        sequences = []
        for task, row in draw_rows(view, rng, SCRIPT_TRIES):
            seconds = shown_seconds(task, row)
            ids, loss_mask = render_row(self.cfg, self.tokenizer, task, row, seconds)
            named = named_categories(view, task, row, self.categories)
            # Nothing is rendered, so a mask group has an empty picture in the place of its mask.
            masks = None if named is None else torch.zeros(len(named), 1, 1)
            sequences.append(Sequence(task, f"scene {seed}", ids, loss_mask, visual[seconds],
                                      audio[seconds], masks=masks, named=named))
        return sequences


class ClipSampler:
    """Sequences of rendered clips, with their features, or with their scripts if `scripted`."""

    def __init__(self, cfg: Config, tokenizer: Tokenizer, source: TrainingClips,
                 weights: dict[str, float] = WEIGHTS, scripted: bool = False):
        """weights: how often each task is drawn. Masks are there either way."""
        self.cfg, self.tokenizer, self.source = cfg, tokenizer, source
        self.weights, self.scripted = weights, scripted

    def __call__(self, rng, count: int) -> list[Sequence]:
        sequences = []
        while len(sequences) < count:
            clip = int(rng.integers(len(self.source.clips)))
            view = self.source.clips.views[clip]
            for task, row in draw_rows(view, rng, CLIP_TRIES, self.weights):
                sequences.append(self.sequence(clip, task, row))
        return sequences[:count]

    def sequence(self, clip: int, task: str, row: dict) -> Sequence:
        """One row of a clip."""
        clips, features = self.source.clips, self.source.features
        seconds = shown_seconds(task, row)
        ids, loss_mask = render_row(self.cfg, self.tokenizer, task, row, seconds)

        # What the placeholders stand for: scripts (T,Q,words), or features (T,P,Dv) and (T,P,Da).
        if self.scripted:
            visual = features.visual_script[clip, seconds]
            audio = features.audio_script[clip, seconds]
        else:
            visual = features.visual[features.frames[clip, seconds], features.llm_layer]
            audio = features.audio[features.sounds[clip, seconds]]

        # For each mask group, the pixels of all things of its categories.
        named = named_categories(clips.views[clip], task, row, clips.categories)
        mask_features, masks = None, None
        if named is not None:
            second = target_second(task, row)
            mask_features = features.visual[features.frames[clip, second]][features.mask_layers]
            labels = clips.labels[clip, second]                             # (H,W), 1 + category
            masks = torch.stack([torch.isin(labels, group.nonzero()[:, 0] + 1) for group in named])
        return Sequence(task, clips.vids[clip], ids, loss_mask, visual, audio, mask_features, masks,
                        named)


class AnnotationSampler:
    """Sequences of a data folder's annotations, which are opened on first use."""

    def __init__(self, open_split: Callable[[], Callable]):
        """open_split: opens the training split; what it returns is a sampler."""
        self.open_split, self.samples = open_split, None

    def __call__(self, rng, count: int) -> list[Sequence]:
        if self.samples is None:
            self.samples = self.open_split()
        return self.samples(rng, count)


class SequenceBatches:
    """Batches of sequences of similar length; each data-parallel process takes its share of each.

    `at(step)` is a pure function of seed and step, so a resumed run has the batches of an unbroken
    one. Sequences are drawn for POOL steps at once, sorted by length and cut into batches: little
    padding. Within its pool a batch comes at a random place.
    """

    def __init__(self, sampler, tokenizer: Tokenizer, batch: int, seed: int, rank: int = 0,
                 world_size: int = 1):
        """batch: sequences of a step, over all processes."""
        self.sampler, self.tokenizer, self.batch, self.seed = sampler, tokenizer, batch, seed
        self.mine = slice(rank, None, world_size)       # the sequences of this process
        self.number, self.pool = None, []               # of the pool that is in memory

    def whole(self, step: int) -> list[Sequence]:
        """The whole batch of a step, over all processes."""
        number, place = divmod(step, POOL)
        if number != self.number:
            rng = np.random.default_rng([self.seed, number])
            sequences = self.sampler(rng, self.batch * POOL)
            sequences.sort(key=lambda sequence: len(sequence.ids))
            batches = [sequences[k * self.batch:(k + 1) * self.batch] for k in range(POOL)]
            self.number, self.pool = number, [batches[k] for k in rng.permutation(POOL)]
        return self.pool[place]

    def at(self, step: int) -> Batch:
        """This process's part of a step's batch."""
        return collate(self.whole(step)[self.mine], self.tokenizer.pad)

    def ids(self, step: int) -> list[str]:
        """Names of this process's samples, for error messages."""
        return [sequence.uid for sequence in self.whole(step)[self.mine]]
