"""Pre-training of the LLM on the world's text: scripts in the place of clips, prompts and answers.

A script holds in words what a clip's sequence will hold in Q-Former tokens (world/script.py). So
the LLM learns to look facts up by time and place from any number of scenes: none is rendered. The
states that predict <mask_i> learn to hold which categories are meant. After alignment only the LLM
and the projection of the mask states are used.
Departs from the paper, whose LLM is a published LLaMA.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch
from ..config import seed_of
from ..model.crab import Crab
from ..tasks.base import TASKS
from ..world.scene import sample_scene
from ..world.script import audio_words, visual_words
from ..world.view import View
from .rows import MAX_SCENE, draw_rows

VOCABULARY_SCENES = 400     # whose text the tokenizer learns its words from
VOCABULARY_TRIES = 12       # tasks that are tried with each of them


def world_text(categories: list[str], seed: int):
    """Prompts and answers of many scenes, one string each: what the tokenizer is trained on."""
    rng = np.random.default_rng(seed_of(seed, "vocabulary"))
    for _ in range(VOCABULARY_SCENES):
        view = View(sample_scene(int(rng.integers(MAX_SCENE)), tuple(categories)))
        for task, row in draw_rows(view, rng, VOCABULARY_TRIES):
            yield f"{TASKS[task].prompt(row)} {TASKS[task].answer(row)}"


class ScriptEmbeddings(nn.Module):
    """Embeddings of the scripts' words, and a head that tells what a mask state means."""

    def __init__(self, crab: Crab, categories: list[str]):
        """categories: names of the world's categories."""
        super().__init__()
        self.categories = categories
        count, width = len(categories), crab.cfg.llm.dim
        self.visual = nn.Parameter(0.02 * torch.randn(visual_words(count), width))
        self.audio = nn.Parameter(0.02 * torch.randn(audio_words(count), width))
        self.named_head = nn.Linear(crab.cfg.mask.dim, count)

    def tokens(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Scripts (N,Q,words) -> visual and audio tokens (N,Q,D), the sums of their words."""
        return visual.float() @ self.visual, audio.float() @ self.audio


class TextStage(nn.Module):
    """The LLM learns to answer from scripts, and the mask states to hold what is meant."""

    def __init__(self, crab: Crab, script: ScriptEmbeddings):
        """Freezes everything but the LLM, the script's words and the mask states' projection."""
        super().__init__()
        self.crab, self.script = crab, script
        crab.freeze_except(crab.llm, crab.mask_prompt)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}.

        text: cross-entropy of the answers' ids. named: binary cross-entropy of which categories a
        mask group means, at each of its six states.
        """
        output = self.crab(batch, self.script.tokens(batch.visual, batch.audio))
        parts = {"text": output.losses["text"]}
        if batch.named is not None:
            prompts = self.crab.mask_prompt(output.mask_states)             # (G,6,cfg.mask.dim)
            logits = self.script.named_head(prompts).float()                # (G,6,C)
            targets = batch.named[:, None].expand_as(logits)                # (G,6,C)
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            parts["named"] = (loss, torch.tensor(targets.numel()))
        return parts
