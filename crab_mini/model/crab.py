"""Crab assembled (paper, figure 3): what happens to a clip, step by step.

    1 encoders       frames (N,3,H,W) -> ViT -> (N,P,Dv); log-mels (N,F,128) -> BEATs -> (N,P,Da)
    2 Q-Formers      a second's features -> visual tokens (N,Q,D), audio tokens (N,Q,D)
    3 masked write   the tokens replace the placeholders' embeddings in the sequence: (B,L,D)
    4 LLM            LLaMA, whose frozen layers carry the interaction-aware LoRA: states (B,L,D)
    5 text loss      cross-entropy of the answers' ids
    6 mask states    the states that predict <mask_0> .. <mask_5>: (G,6,D)
    7 mask decoder   prompted by them, over two layers of the ViT: logits (G,H,W)
    8 mask losses    binary cross-entropy and dice

    visual, audio = crab.encode(frames, mels)     # step 1
    output = crab(batch)                          # steps 2 to 8; the batch holds step 1's features
    answers = crab.generate(batch, features)      # steps 2 to 4 token by token, then 6 and 7

`Crab.forward` is the place to begin. Unusual: the encoders are frozen, so step 1 runs once a clip
and its features are kept (features/cache.py). What training reads at a mask token is what
generation reads there: the state one position before it, which predicts it. Departs from official
Crab: AVSS has the mask decoders and losses of the other tasks (there: a 71-way classifier), and
each token carries the number of its second (see `embed`).
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch
from ..config import MEL_BINS, Config
from .audio_encoder import BEATs
from .llm import LLM
from .lora import attach
from .mask_decoder import SegmentationHead, bce_loss, dice_loss
from .qformer import QFormer
from .recorder import recorded_attention, recorded_routes
from .vision_encoder import ViT

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)      # of the pictures that CLIP was trained on, RGB
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Loss = tuple[Tensor, Tensor]                          # a sum and the count to divide it by


@dataclass(frozen=True)
class SpecialIds:
    """The tokenizer's ids that the model treats specially."""
    visual: int                      # placeholder of a visual token
    audio: int                       # placeholder of an audio token
    masks: tuple[int, int]           # first and last <mask_i>
    eos: int


@dataclass
class Output:
    """What `forward` returns."""
    losses: dict[str, Loss]          # "text" and, where the batch has masks, "bce" and "dice"
    states: Tensor                   # (B,L,D) of the LLM, after its final norm
    mask_states: Tensor | None       # (G,6,D), those that predict mask tokens


@dataclass
class Answers:
    """What `generate` returns, a list entry for each row of the batch."""
    ids: list[list[int]]             # up to the end token, without it
    masks: list[Tensor]              # logits (G,H,W) of the row's mask groups


def mask_losses(logits: Tensor, masks: Tensor) -> dict[str, Loss]:
    """Step 8. (G,H,W) logits and targets -> each loss summed over groups, with their count."""
    count = torch.tensor(len(masks))
    return {"bce": (bce_loss(logits, masks).sum(), count),
            "dice": (dice_loss(logits, masks).sum(), count)}


class Crab(nn.Module):
    """The whole model.

    `with_lora()` is called once: when the instruct stage begins, or before its weights are loaded.
    """

    def __init__(self, cfg: Config, ids: SpecialIds, parts: dict[str, nn.Module] | None = None):
        """parts: "vision", "audio", "llm" that are ready, instead of ones with random weights.

        Published weights come in this way (see pretrained/options.py), and so does any other
        language model that is an `llm.LanguageModel`.
        """
        super().__init__()
        self.cfg, self.ids, parts = cfg, ids, parts or {}
        self.vision = parts.get("vision") or ViT(cfg.vision)
        self.audio = parts.get("audio") or BEATs(cfg.audio)
        self.llm = parts.get("llm") or LLM(cfg.llm)
        self.visual_qformer = QFormer(cfg.visual_qformer, cfg.vision.dim, cfg.llm.dim)
        self.audio_qformer = QFormer(cfg.audio_qformer, cfg.audio.dim, cfg.llm.dim)
        self.mask_prompt = nn.Linear(cfg.llm.dim, cfg.mask.dim)
        self.segmentation = SegmentationHead(cfg.mask, cfg.vision.dim)
        self.register_buffer("pixel_mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    # ---- the way from a clip to the losses -------------------------------------------------------

    def encode(self, frames: Tensor, mels: Tensor) -> tuple[Tensor, Tensor]:
        """Step 1. frames (N,3,H,W) uint8, mels (N,F,128), a second each -> their features.

        Visual (N,K,P,Dv): the K layers of the ViT in `cfg.vision.kept`, from which a batch takes
        one for the Q-Former and two for the mask decoders. Audio (N,P,Da).
        """
        return self.encode_frames(frames), self.encode_audio(mels)

    def forward(self, batch: Batch, tokens: tuple[Tensor, Tensor] | None = None) -> Output:
        """Steps 2 to 8 for a right-padded batch: its losses (paper, section 4) and states.

        tokens: visual and audio tokens (N,Q,D) where they are known already, as in the text stage,
        which learns from scripts; then step 2 is left out. Masks are decoded where the batch holds
        features to decode them from.
        """
        # 1. The encoders are frozen. They ran once for each clip: the batch holds their features.

        # 2. Each interface compresses a second's features into a few tokens as wide as the LLM.
        visual, audio = tokens or self.interface_tokens(batch.visual, batch.audio)    # (N,Q,D)

        # 3. The sequence holds a placeholder for each of these tokens. One masked write fills them.
        embeds = self.embed(batch.ids, visual, audio)                                 # (B,L,D)

        # 4. The LLM reads sights, sounds and words alike. Padding on the right needs no mask: it is
        #    causal, so nothing sees what comes after it.
        states = self.llm.encode(embeds)                                              # (B,L,D)

        # 5. Only the answer is learned, not the prompt.
        losses = {"text": self.text_loss(states, batch)}
        if batch.masks is None:
            return Output(losses, states, None)

        # 6. The state that predicts a mask token says what its mask shows.
        mask_states = self.mask_states(states, batch.ids, batch.loss_mask)            # (G,6,D)
        if batch.mask_features is None:
            return Output(losses, states, mask_states)

        # 7. Those states prompt a mask decoder, which looks at the frame again.
        logits = self.mask_logits(mask_states, batch.mask_features)                   # (G,H,W)

        # 8. Pixel by pixel, and by overlap.
        losses |= mask_losses(logits, batch.masks)
        return Output(losses, states, mask_states)

    # ---- the steps -------------------------------------------------------------------------------

    def normalised(self, frames: Tensor) -> Tensor:
        """frames (N,3,H,W) uint8 -> pixels (N,3,H,W) as CLIP expects them."""
        return (frames.float() / 255 - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Step 1 for pictures: (N,3,H,W) uint8 -> patch features of the kept layers (N,K,P,Dv)."""
        layers = self.vision.hidden_states(self.normalised(frames))
        patches = [layers[i][:, 1:] for i in self.cfg.vision.kept]     # the class token is dropped
        return torch.stack(patches, 1)                                                # (N,K,P,Dv)

    @torch.no_grad()
    def encode_audio(self, mels: Tensor) -> Tensor:
        """Step 1 for sound: log-mels (N,F,128) -> features of their patches (N,P,Da)."""
        return self.audio(mels)[0]

    def interface_tokens(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Step 2. visual (N,P,Dv), audio (N,P,Da) -> tokens (N,Q,D) of each, by the Q-Formers."""
        side = self.cfg.vision.grid
        bins = MEL_BINS // self.cfg.audio.patch           # patches of one point in time
        return (self.visual_qformer(visual.float(), side, side),
                self.audio_qformer(audio.float(), audio.shape[1] // bins, bins))

    def embed(self, ids: Tensor, visual: Tensor, audio: Tensor) -> Tensor:
        """Step 3. ids (B,L) and the tokens of all placeholders in their order -> (B,L,D).

        Each token also carries the word before its run of placeholders, the number of its second:
        attention finds a second in one step. (Official Crab leaves time to the order of tokens.)
        """
        embeds = self.llm.embed(ids)                                                  # (B,L,D)
        slot = (ids == self.ids.visual) | (ids == self.ids.audio)                     # (B,L)

        # For each place, the last one up to it that is no placeholder: the second's number.
        place = torch.arange(ids.shape[1], device=slot.device).expand_as(slot)        # (B,L)
        word = place.masked_fill(slot, 0).cummax(1).values                            # (B,L)
        second = self.llm.embed(ids.gather(1, word))                                  # (B,L,D)

        for placeholder, tokens in ((self.ids.visual, visual), (self.ids.audio, audio)):
            here = (ids == placeholder)[..., None]                                    # (B,L,1)
            embeds = embeds.masked_scatter(here, tokens.to(embeds.dtype))
        return embeds + second * slot[..., None]

    def text_loss(self, states: Tensor, batch: Batch) -> Loss:
        """Step 5. (B,L,D) -> cross-entropy over the answers' ids, its sum and their count."""
        answer = batch.loss_mask[:, 1:]                                               # (B,L-1)
        targets = batch.ids[:, 1:][answer]                                            # (N,)
        logits = self.llm.head(states[:, :-1][answer]).float()                        # (N,V)
        return F.cross_entropy(logits, targets, reduction="sum"), answer.sum()

    def is_mask(self, ids: Tensor) -> Tensor:
        """Which ids are <mask_i>: a bool tensor of their shape."""
        first, last = self.ids.masks
        return (ids >= first) & (ids <= last)

    def grouped(self, states: Tensor) -> Tensor:
        """The states of all mask tokens of one text or batch (6 G,D) -> (G,6,D)."""
        first, last = self.ids.masks
        return states.unflatten(0, (-1, last - first + 1))

    def mask_states(self, states: Tensor, ids: Tensor, loss_mask: Tensor) -> Tensor:
        """Step 6. (B,L,D) -> (G,6,D): the states one place before each <mask_i> of the answers."""
        at = self.is_mask(ids) & loss_mask                                            # (B,L)
        return self.grouped(states[:, :-1][at[:, 1:]])

    def mask_logits(self, mask_states: Tensor, features: Tensor) -> Tensor:
        """Step 7. mask_states (G,6,D), features (G,2,P,Dv) of two ViT layers -> logits (G,H,W)."""
        size = self.cfg.vision.image
        layers = list(features.float().unbind(1))                                     # 2 (G,P,Dv)
        return self.segmentation(layers, self.mask_prompt(mask_states), (size, size))

    # ---- answering -------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, batch: Batch, features: list[Tensor | None], limit: int = 200) -> Answers:
        """Greedy answers to a left-padded batch of prompts, of at most `limit` tokens.

        features: for each row (2,P,Dv), the ViT layers of the frame that its mask tokens refer to,
        or None where the task has no masks.
        """
        embeds = self.embed(batch.ids, *self.interface_tokens(batch.visual, batch.audio))
        ids, states = self.llm.generate_states(embeds, batch.attention_mask, limit, self.ids.eos)

        # Rows that ended early are filled with end tokens up to the longest row.
        answers = Answers([], [])
        for row, row_states, row_features in zip(ids, states, features):
            ended = (row == self.ids.eos).nonzero()
            length = int(ended[0]) if len(ended) else len(row)
            answers.ids.append(row[:length].tolist())
            answers.masks.append(self.masks_of(row[:length], row_states[:length], row_features))
        return answers

    def masks_of(self, ids: Tensor, states: Tensor, features: Tensor | None) -> Tensor:
        """An answer's ids (L,) and the states (L,D) that predicted them -> mask logits (G,H,W).

        G = 0 without features, and where the mask tokens are no whole number of groups: which six
        of them belong together is unknown then.
        """
        first, last = self.ids.masks
        found = states[self.is_mask(ids)]                                             # (6 G,D)
        if features is None or not len(found) or len(found) % (last - first + 1):
            return states.new_zeros(0, self.cfg.vision.image, self.cfg.vision.image)
        mask_states = self.grouped(found)                                             # (G,6,D)
        return self.mask_logits(mask_states, features.expand(len(mask_states), *features.shape))

    # ---- what trains -----------------------------------------------------------------------------

    def freeze_except(self, *parts: nn.Module) -> None:
        """Freezes everything but these parts.

        Inside them, parameters that no output depends on are frozen, too.
        """
        self.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        self.segmentation.freeze_unused()

    def with_lora(self, kernel: str = "") -> "Crab":
        """Freezes the LLM and gives every linear layer of its blocks the interaction-aware LoRA.

        kernel: which one computes it, of fused_lora.KERNELS; "": as the variable CRAB_KERNEL says.
        """
        self.llm.requires_grad_(False)
        attach(self.llm.blocks, self.cfg.lora, kernel)
        return self

    # ---- looking inside --------------------------------------------------------------------------

    @torch.no_grad()
    def attention(self, batch: Batch, layer: int) -> Tensor:
        """Attention weights of one block of the LLM in a forward pass of the batch: (B,n,L,L).

        Row l says how much of each token the state at l takes; it sums to one. Call `eval()` first.
        For other parts see recorder.py. IndexError if there is no such block, ValueError if it has
        no attention (of another language model).
        """
        with recorded_attention({"block": self.llm.blocks[layer]}) as calls:
            self(batch)
        return calls["block"][0]

    @torch.no_grad()
    def route(self, batch: Batch) -> dict[str, Tensor]:
        """Router weights of every LoRA layer in a forward pass of the batch: {name: (B,L,E)}.

        They sum to one over the E heads; names are such as "blocks.0.attention.q_proj". Call
        `eval()` first. Empty before `with_lora()`.
        """
        with recorded_routes(self.llm) as calls:
            self(batch)
        return {name: weights[0] for name, weights in calls.items()}
