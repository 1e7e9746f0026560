"""Aligning the interfaces with the frozen LLM: say what the script says, mask what is named, then the whole way.

Each stage trains on the rendered clips of the miniature, with the encoders' features computed once. The LLM stays as
its pre-training left it; what changes is how pictures, sounds and masks are put into its words.
"""

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from ..batch import Batch, Item
from ..features import Features
from ..lora import lora_parameters
from ..model import Crab, mask_losses
from ..tokenizer import Tokenizer
from ..world.clips import Clips
from ..world.narration import KINDS
from ..world.script import script
from .encoders import Draw
from .text import Script, narrated


class ClipFeatures:
    """The frozen features and the scripts of all clips. visual (M,K,P,Dv) and audio (M,P,Da), float16, hold each
    different picture and second once; frames and sounds (N,T) say where."""

    def __init__(self, clips: Clips, features: Features):
        self.clips, crab = clips, features.crab
        self.frames = features.see(clips.frames.flatten(0, 1)).view(clips.frames.shape[:2])
        self.sounds = features.hear(clips.mels.flatten(0, 1)).view(clips.mels.shape[:2])
        self.visual, self.audio = features.visual.array(), features.audio.array()
        scripts = [script(view, list(clips.categories)) for view in clips.views]
        self.visual_script = torch.from_numpy(np.stack([s[0] for s in scripts])).half()     # (N,T,Q,words)
        self.audio_script = torch.from_numpy(np.stack([s[1] for s in scripts])).half()
        kept = crab.cfg.vision.kept
        self.llm_layer = kept.index(crab.cfg.vision.llm_layer)
        self.mask_layers = [kept.index(k) for k in crab.cfg.vision.mask_layers]


class Words(Draw):
    """at(step) -> features of single seconds, visual (n,P,Dv) and audio (n,P,Da), the scripts of the whole step, over
    all processes, (batch,Q,words) each, and which of those are this process's (n,)."""

    def __init__(self, features: ClipFeatures, batch: int, seed: int, rank: int = 0, world: int = 1):
        super().__init__(features.clips, batch, seed, rank, world)
        self.features = features

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        everyone, f = self.draw(step), self.features
        mine = torch.arange(self.batch)[self.rank::self.world]
        at = tuple(places[mine] for places in everyone)
        return (f.visual[f.frames[at], f.llm_layer].float(), f.audio[f.sounds[at]].float(),
                f.visual_script[everyone].float(), f.audio_script[everyone].float(), mine)


class SpeakStage(nn.Module):
    """The Q-Formers' tokens become the embeddings of the script's words."""

    def __init__(self, crab: Crab, script_words: Script):
        super().__init__()
        self.crab, self.script = crab, script_words.requires_grad_(False)
        crab.only(crab.visual_qformer, crab.audio_qformer)

    def losses(self, batch: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}: squared error relative to the spread of the words' embeddings in the whole step."""
        visual, audio, visual_script, audio_script, mine = batch
        grid, bins = self.crab.cfg.vision.grid, 128 // self.crab.cfg.audio.patch
        said = (self.crab.visual_qformer(visual, grid, grid),
                self.crab.audio_qformer(audio, audio.shape[1] // bins, bins))
        parts = {}
        for name, tokens, wanted in zip(("seen", "heard"), said, self.script.tokens(visual_script, audio_script)):
            wanted = wanted.float()
            spread = (wanted - wanted.mean((0, 1))).square().mean()
            parts[name] = ((tokens.float() - wanted[mine]).square().sum() / spread, torch.tensor(tokens.numel()))
        return parts


class ClipRows:
    """draw(rng, count): narrations of the clips, with features (or the script, if `scripted`) behind them."""

    def __init__(self, cfg, tokenizer: Tokenizer, features: ClipFeatures, kinds: dict[str, float] = KINDS,
                 scripted: bool = False):
        self.cfg, self.tokenizer, self.features = cfg, tokenizer, features
        self.kinds, self.scripted = kinds, scripted

    def __call__(self, rng, count: int) -> list[Item]:
        items, f = [], self.features
        while len(items) < count:
            clip = int(rng.integers(len(f.clips)))
            view = f.clips.views[clip]
            for _ in range(3):
                row, text, named = narrated(self.tokenizer, self.cfg, view, f.clips.categories, rng, self.kinds)
                seconds, masks, at = list(row.seconds), None, None
                if named is not None:
                    at = f.visual[f.frames[clip, row.at]][f.mask_layers]
                    shown = f.clips.labels[clip, row.at]                                    # (H,W)
                    masks = torch.stack([torch.isin(shown, group.nonzero()[:, 0] + 1) for group in named])
                visual, audio = (f.visual_script[clip, seconds], f.audio_script[clip, seconds]) if self.scripted \
                    else (f.visual[f.frames[clip, seconds], f.llm_layer], f.audio[f.sounds[clip, seconds]])
                items.append(Item("narration", f.clips.vids[clip], {}, text.ids, text.trained, visual, audio, at, masks,
                                  named))
        return items[:count]


class SegmentStage(nn.Module):
    """Mask decoders on the states of an LLM that reads the script: the mask of whom it means."""

    def __init__(self, crab: Crab, script_words: Script):
        super().__init__()
        self.crab, self.script = crab, script_words.requires_grad_(False)
        crab.only(crab.segmentation, crab.mask_prompt)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}."""
        with torch.no_grad():
            tokens = self.script.tokens(batch.visual, batch.audio)
            hidden = self.crab.states(batch, *tokens)
            states = self.crab.mask_states(hidden, batch.ids, batch.trained)
        return mask_losses(self.crab.mask_logits(states, batch.mask_features), batch.masks)


class WholeStage(nn.Module):
    """Everything but the encoders from features to losses: alignment with the LLM frozen, instruction with LoRA.

    added: whether the rows of added tokens learn, too. A published LLM's do in both stages, since nobody else knows
    what they mean; ours in instruction alone, as narration never says them.
    """

    def __init__(self, crab: Crab, added: bool = True):
        super().__init__()
        self.crab = crab
        crab.only(crab.visual_qformer, crab.audio_qformer, crab.mask_prompt, crab.segmentation)
        for parameter in (*lora_parameters(crab.llm), *(crab.llm.added() if added else ())):
            parameter.requires_grad_(True)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}."""
        return self.crab.losses(batch, *self.crab.interface_tokens(batch))
