"""Pre-training the LLM on narrated scripts: scenes written out instead of clips, and what each sense holds of them.

A script says in words what a clip's prefix will say in Q-Former tokens (world/script.py), so the model learns to read
a scene by time and place from as many as it likes: none is rendered. The states that predict <mask_i> learn to hold
who is meant. Nothing here poses one of the nine tasks (world/narration.py): those are learned from instruct on.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch, Item
from ..model import Crab
from ..tasks import TASKS
from ..tokenizer import Tokenizer
from ..world.annotate import View
from ..world.narration import KINDS, narrate
from ..world.scene import sample_scene
from ..world.script import audio_words, script, visual_words
from ..world.write import POSE

NOISE = 0.1                 # how much each word of a script is said louder or softer: real interfaces are never exact
TOLD = 4000                 # narrations from which the tokenizer learns what is told before instruction tuning


def scenes(seed: int, categories):
    """(view, rng) of ever new training scenes."""
    rng = np.random.default_rng([seed, 5])
    while True:
        yield View(sample_scene(int(rng.integers(1 << 39)), tuple(categories))), rng


def narrations(categories, seed: int, count: int = TOLD):
    """Narrations of many scenes: of their words the tokenizer learns which are told before instruction tuning."""
    for _, (view, rng) in zip(range(count), scenes(seed, categories)):
        yield narrate(view, rng)


def task_text(categories, seed: int, count: int = 1000):
    """Prompts and answers of the nine tasks, one string each."""
    for _, (view, rng) in zip(range(count), scenes(seed, categories)):
        for task, pose in POSE.items():
            yield from (f"{TASKS[task].prompt(row)} {TASKS[task].answer(row)}" for row in pose(view, rng)[:4])


def narrated(tokenizer: Tokenizer, cfg, view: View, categories, rng, kinds: dict[str, float]):
    """One narration -> (the row, its rendered sequence, (groups,categories) bool: whom each mask group means or None)."""
    row = narrate(view, rng, kinds)
    text = tokenizer.render(list(row.seconds), cfg.visual_qformer.queries, cfg.audio_qformer.queries, row.prompt,
                            row.answer)
    if not row.targets:
        return row, text, None
    named = torch.zeros(len(row.targets), len(categories), dtype=torch.bool)
    for group, things in zip(named, row.targets):
        group[[categories.index(view.names[i]) for i in things]] = True
    return row, text, named


class ScriptRows:
    """draw(rng, count): narrations whose visual and audio are scripts of scenes that nobody rendered."""

    def __init__(self, cfg, tokenizer: Tokenizer, categories, kinds: dict[str, float] = KINDS):
        self.cfg, self.tokenizer, self.categories, self.kinds = cfg, tokenizer, list(categories), kinds

    def __call__(self, rng, count: int) -> list[Item]:
        items = []
        while len(items) < count:
            seed = int(rng.integers(1 << 39))
            view = View(sample_scene(seed, tuple(self.categories)))
            visual, audio = (torch.from_numpy(words * (1 + NOISE * rng.standard_normal(words.shape, np.float32)))
                             for words in script(view, self.categories))
            for _ in range(3):
                row, text, named = narrated(self.tokenizer, self.cfg, view, self.categories, rng, self.kinds)
                seconds = list(row.seconds)
                items.append(Item("narration", f"scene {seed}", {}, text.ids, text.trained, visual[seconds],
                                  audio[seconds], masks=None if named is None else torch.zeros(len(named), 1, 1),
                                  named=named))
        return items[:count]


class Script(nn.Module):
    """The embeddings of the script's words, and a reader of the mask states."""

    def __init__(self, crab: Crab, categories: int):
        super().__init__()
        width = crab.cfg.llm.width
        self.visual = nn.Parameter(0.02 * torch.randn(visual_words(categories), width))
        self.audio = nn.Parameter(0.02 * torch.randn(audio_words(categories), width))
        self.named_head = nn.Linear(crab.cfg.mask.width, categories)

    def tokens(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Scripts (N,Q,words) -> tokens (N,Q,D)."""
        return visual.float() @ self.visual, audio.float() @ self.audio


class TextStage(nn.Module):
    """LLM + script: next-token loss of the narrations, and who is meant at the mask states.

    The rows of added tokens stay as they are: narration never says them.
    """

    def __init__(self, crab: Crab, script_words: Script):
        super().__init__()
        self.crab, self.script = crab, script_words
        crab.only(crab.llm, crab.mask_prompt)
        for rows in crab.llm.added():
            rows.requires_grad_(False)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}."""
        hidden = self.crab.states(batch, *self.script.tokens(batch.visual, batch.audio))
        parts = {"text": self.crab.text_loss(batch, hidden)}
        if batch.named is not None:
            states = self.crab.mask_states(hidden, batch.ids, batch.trained)            # (G,6,D)
            logits = self.script.named_head(self.crab.mask_prompt(states)).float()           # (G,6,C)
            wanted = batch.named[:, None].expand_as(logits)
            parts["named"] = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum"),
                              torch.tensor(wanted.numel()))
        return parts
