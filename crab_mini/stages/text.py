"""Pre-training the LLM on the world's text: scripts instead of clips, then the tasks' questions and answers.

A script says in words what a clip's prefix will say in Q-Former tokens (world/script.py), so the model learns to look
things up by time and place from as many scenes as it likes: none is rendered. The states that predict <mask_i> learn
to hold who is meant. Nothing here is used after alignment except the LLM and the mask projection.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch, Sequence
from ..model.crab import Crab
from ..tasks.base import TASKS
from ..tokenizer import Tokenizer
from ..world.annotate import View
from ..world.scene import sample_scene
from ..world.script import audio_words, script, visual_words
from ..world.write import POSE_ONE
from .rows import WEIGHTS

NOISE = 0.1                 # how much each word of a script is said louder or softer: real interfaces are never exact


def pose(view: View, rng, tries: int, weights: dict[str, float] = WEIGHTS):
    """Up to `tries` (task, row) of a scene, tasks drawn by weight; of the questions one kind, drawn evenly."""
    names = list(weights)
    share = np.array([weights[n] for n in names])
    for name in rng.choice(names, tries, p=share / share.sum()):
        rows = POSE_ONE[name](view, rng)
        if rows:
            yield str(name), rows[int(rng.integers(len(rows)))]


def seconds_of(task: str, row: dict) -> list[int]:
    """The seconds of the clip that a task's prefix holds."""
    count = TASKS[task].frames
    return [row["frame_idx"]] if count == 1 else list(range(count))


def text_of(tokenizer: Tokenizer, cfg, task: str, row: dict, seconds: list[int], reasoning: bool = True):
    """The rendered sequence of a row."""
    return tokenizer.render(seconds, cfg.visual_qformer.queries, cfg.audio_qformer.queries,
                            TASKS[task].prompt(row), TASKS[task].answer(row, reasoning))


def meant(view: View, row: dict, task: str, categories) -> Tensor | None:
    """(groups, categories) bool: whom each mask group of a row's answer means; None without masks."""
    if not TASKS[task].masks:
        return None
    by_class = TASKS[task].by_class
    named = torch.zeros(len(row["targets"]) if by_class else 1, len(categories), dtype=torch.bool)
    for k, i in enumerate(row["targets"]):
        named[k if by_class else 0, categories.index(view.names[i])] = True
    return named


def world_text(categories, seed: int, scenes: int = 400):
    """Prompts and answers of many scenes, one string each: what the tokenizer learns its words from."""
    rng = np.random.default_rng([seed, 5])
    for _ in range(scenes):
        view = View(sample_scene(int(rng.integers(1 << 39)), tuple(categories)))
        for task, row in pose(view, rng, 12):
            yield f"{TASKS[task].prompt(row)} {TASKS[task].answer(row)}"


class ScriptRows:
    """draw(rng, count): items whose visual and audio are scripts of scenes that nobody rendered."""

    def __init__(self, cfg, tokenizer: Tokenizer, categories, reasoning: bool = True, weights=WEIGHTS):
        self.cfg, self.tokenizer, self.categories = cfg, tokenizer, list(categories)
        self.reasoning, self.weights = reasoning, weights

    def __call__(self, rng, count: int) -> list[Sequence]:
        items = []
        while len(items) < count:
            seed = int(rng.integers(1 << 39))
            view = View(sample_scene(seed, tuple(self.categories)))
            visual, audio = (torch.from_numpy(words * (1 + NOISE * rng.standard_normal(words.shape, np.float32)))
                             for words in script(view, self.categories))
            for task, row in pose(view, rng, 4, self.weights):
                seconds = seconds_of(task, row)
                ids, loss_mask = text_of(self.tokenizer, self.cfg, task, row, seconds, self.reasoning)
                named = meant(view, row, task, self.categories)
                items.append(Sequence(
                    task, f"scene {seed}", ids, loss_mask, visual[seconds], audio[seconds],
                    masks=None if named is None else torch.zeros(len(named), 1, 1), named=named))
        return items[:count]


class Script(nn.Module):
    """The embeddings of the script's words, and a reader of the mask states."""

    def __init__(self, crab: Crab, categories: int):
        super().__init__()
        width = crab.cfg.llm.dim
        self.visual = nn.Parameter(0.02 * torch.randn(visual_words(categories), width))
        self.audio = nn.Parameter(0.02 * torch.randn(audio_words(categories), width))
        self.named_head = nn.Linear(crab.cfg.mask.dim, categories)

    def tokens(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Scripts (N,Q,words) -> tokens (N,Q,D)."""
        return visual.float() @ self.visual, audio.float() @ self.audio


class TextStage(nn.Module):
    """LLM + script: next-token loss of the answers, and who is meant at the mask states."""

    def __init__(self, crab: Crab, script_words: Script):
        super().__init__()
        self.crab, self.script = crab, script_words
        crab.freeze_except(crab.llm, crab.mask_prompt)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}."""
        hidden = self.crab.states(batch, *self.script.tokens(batch.visual, batch.audio))
        parts = {"text": self.crab.text_loss(batch, hidden)}
        if batch.named is not None:
            states = self.crab.mask_states(hidden, batch.ids, batch.loss_mask)            # (G,6,D)
            logits = self.script.named_head(self.crab.mask_prompt(states)).float()           # (G,6,C)
            wanted = batch.named[:, None].expand_as(logits)
            parts["named"] = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum"),
                              torch.tensor(wanted.numel()))
        return parts
