"""Alignment: the interfaces learn to speak to the LLM, which stays as its pre-training left it.

    speak     the Q-Formers' tokens become what a script would hold in their place
    segment   the mask decoders draw the things that the LLM's mask states mean
    align     the whole way from features to the losses, LLM frozen; `instruct` does it with LoRA

The encoders are frozen, so their features are computed once for all clips.
"""

import torch
import torch.nn as nn
from torch import Tensor

from ..batch import Batch
from ..model.crab import Crab, mask_losses
from ..model.lora import lora_parameters
from .encoders import SecondBatches
from .text import ScriptEmbeddings


class ScriptedSecondBatches(SecondBatches):
    """Features of single seconds, with what their scripts hold."""

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """visual (B,P,Dv), audio (B,P,Da), visual and audio scripts (batch,Q,words), mine (B,).

        The scripts are those of the whole batch, over all processes; `mine` says which of them
        belong to this process's features.
        """
        whole, features = self.whole(step), self.source.features
        mine = torch.arange(self.batch)[self.mine]
        at = self.index(step)
        visual = features.visual[features.frames[at], features.llm_layer].float()
        audio = features.audio[features.sounds[at]].float()
        return (visual, audio, features.visual_script[whole].float(),
                features.audio_script[whole].float(), mine)


class SpeakStage(nn.Module):
    """The Q-Formers learn to produce the embeddings of a second's script."""

    def __init__(self, crab: Crab, script: ScriptEmbeddings):
        """Freezes everything but the two Q-Formers."""
        super().__init__()
        self.crab, self.script = crab, script.requires_grad_(False)
        crab.freeze_except(crab.visual_qformer, crab.audio_qformer)

    def losses(self, batch: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}: squared error, as a share of the targets' variance.

        The variance is that of the whole batch, so that it does not depend on how many processes
        share it.
        """
        visual, audio, visual_script, audio_script, mine = batch
        tokens = self.crab.interface_tokens(visual, audio)                      # (B,Q,D) of each
        targets = self.script.tokens(visual_script, audio_script)               # (batch,Q,D)
        parts = {}
        for part, found, target in zip(("seen", "heard"), tokens, targets):
            target = target.float()
            variance = (target - target.mean((0, 1))).square().mean()
            error = (found.float() - target[mine]).square().sum()
            parts[part] = (error / variance, torch.tensor(found.numel()))
        return parts


class SegmentStage(nn.Module):
    """The mask decoders learn to draw what the mask states mean. The LLM reads scripts."""

    def __init__(self, crab: Crab, script: ScriptEmbeddings):
        """Freezes everything but the mask decoders and the projection of the mask states."""
        super().__init__()
        self.crab, self.script = crab, script.requires_grad_(False)
        crab.freeze_except(crab.segmentation, crab.mask_prompt)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}: bce and dice."""
        crab = self.crab
        # Nothing before the mask states is trained.
        with torch.no_grad():
            tokens = self.script.tokens(batch.visual, batch.audio)              # (N,Q,D) of each
            states = crab.llm.encode(crab.embed(batch.ids, *tokens))            # (B,L,D)
            mask_states = crab.mask_states(states, batch.ids, batch.loss_mask)  # (G,6,D)
        logits = crab.mask_logits(mask_states, batch.mask_features)             # (G,H,W)
        return mask_losses(logits, batch.masks)


class WholeModelStage(nn.Module):
    """The whole way from features to the losses: alignment, and with LoRA instruction tuning."""

    def __init__(self, crab: Crab):
        """Freezes the encoders and the LLM; the interfaces learn, and LoRA where it is attached.

        Tokens that were added to a published LLM learn too: its own weights know nothing of them.
        """
        super().__init__()
        self.crab = crab
        crab.freeze_except(crab.visual_qformer, crab.audio_qformer, crab.mask_prompt,
                           crab.segmentation)
        for parameter in (*lora_parameters(crab.llm), *crab.llm.added()):
            parameter.requires_grad_(True)

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}: text, bce and dice."""
        return self.crab(batch).losses
