"""The recipe of the paper in miniature: seven stages, trained one after the other.

    pre-training         text, see, hear          the LLM and the two encoders, each by itself
    alignment            speak, segment, align    the interfaces, to an LLM that stays frozen
    instruction tuning   instruct                 LoRA and the interfaces, on all nine tasks

The paper takes published weights for the first row (CLIP, BEATs, LLaMA) and aligns on captions and
masks. With published weights the stages that they replace are skipped here, too; see
pretrained/options.py. `speak` and `segment` are this project's own. They use what the world knows:
a script of every clip, from which a small LLM learns in minutes.

A stage learns what its module leaves unfrozen, from its batches. Its result is a checkpoint, which
is valid as long as everything that it depends on stays the same: facts, such as the configuration
of the model, and earlier stages. The loop over the stages is in train.py.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..config import seed_of
from ..model.crab import Crab
from ..tokenizer import Tokenizer
from ..world.scene import WORLD
from .clips import TrainingClips
from .encoders import FrameBatches, HearStage, SeeStage, SoundBatches
from .interfaces import ScriptedSecondBatches, SegmentStage, SpeakStage, WholeModelStage
from .rows import (
    MASK_WEIGHTS,
    AnnotationSampler,
    ClipSampler,
    ScriptSampler,
    SequenceBatches,
)
from .text import ScriptEmbeddings, TextStage

INTERFACE_LR = 0.3          # in `instruct`, as a share of LoRA's: the interfaces are aligned


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe."""
    name: str                               # of its checkpoint, its curve and its options
    depends: tuple[str, ...]                # facts and earlier stages that the result depends on
    module: Callable[[], nn.Module]         # makes what is trained, and freezes the rest
    batches: Callable[[], object]           # makes the batches; they read no data before the first
    lora: bool = False                      # the LLM gets its LoRA before this stage
    lr_scale: Callable[[str], float] | None = None      # parameter name -> factor of its rate


def recipe(crab: Crab, script: ScriptEmbeddings, tokenizer: Tokenizer, clips: TrainingClips,
           annotations: AnnotationSampler, rank: int = 0, world_size: int = 1) -> list[Stage]:
    """The seven stages in order.

    script: what the LLM reads in the place of clips. clips: rendered by the world. annotations: of
    the data folder of the last stage. rank, world_size: of this data-parallel process.

    Modules and batches are functions: they are made when a stage's turn comes. Then the encoders
    have learned what the features need, and the parts that the stage does not train are frozen.
    """
    cfg, categories = crab.cfg, script.categories
    share = rank, world_size

    def sequences(sampler, stage: str) -> SequenceBatches:
        batch, seed = getattr(cfg, stage).batch, seed_of(cfg.seed, stage)
        return SequenceBatches(sampler, tokenizer, batch, seed, *share)

    # What every stage depends on; then, what the sequences that the LLM reads depend on.
    base = ("world", "model", "weights")
    language = ("tokenizer", "reasoning")
    return [
        # The LLM learns to answer all nine tasks. In the place of a clip it reads a script: words
        # that say what is seen and heard in each second. Scenes are drawn anew for every step.
        # Learns: the LLM, the script's words, the projection of the mask states. Frozen: the rest.
        Stage("text", (*base, *language),
              module=lambda: TextStage(crab, script),
              batches=lambda: sequences(
                  ScriptSampler(cfg, tokenizer, categories), "text")),

        # The ViT learns which category fills how much of each patch, and which pixels belong to
        # things, from single frames of the clips and their class maps.
        # Learns: the ViT, and heads that are thrown away. Frozen: the rest.
        Stage("see", (*base, "clips"),
              module=lambda: SeeStage(crab, len(categories)),
              batches=lambda: FrameBatches(clips, cfg.see.batch, seed_of(cfg.seed, "see"), *share)),

        # BEATs learns acoustic labels of hidden patches, then which categories sound in a second
        # and which is the loudest, from single seconds of the clips' sound.
        # Learns: BEATs, and heads that are thrown away. Frozen: the rest.
        Stage("hear", (*base, "clips"),
              module=lambda: HearStage(crab, len(categories)),
              batches=lambda: SoundBatches(
                  clips, cfg.hear.batch, seed_of(cfg.seed, "hear"), cfg.hear.steps, cfg.audio.patch,
                  *share)),

        # The Q-Formers learn to turn the features of a second into the tokens that the script has
        # for it: the LLM understands those already.
        # Learns: the two Q-Formers. Frozen: encoders, LLM, the script's words, mask decoders.
        Stage("speak", (*base, "clips", "text", "see", "hear"),
              module=lambda: SpeakStage(crab, script),
              batches=lambda: ScriptedSecondBatches(
                  clips, cfg.speak.batch, seed_of(cfg.seed, "speak"), *share)),

        # The mask decoders learn to draw what the mask states mean. The LLM still reads scripts, so
        # the states are right while the Q-Formers are not yet; the frame's features are real.
        # Learns: the mask decoders, the projection of the mask states. Frozen: the rest.
        Stage("segment", (*base, *language, "clips", "text", "see"),
              module=lambda: SegmentStage(crab, script),
              batches=lambda: sequences(
                  ClipSampler(cfg, tokenizer, clips, MASK_WEIGHTS, scripted=True),
                  "segment")),

        # All three interfaces learn together, on all tasks, through the frozen LLM: from the
        # clips' features to the losses of text and masks. This is the paper's alignment.
        # Learns: Q-Formers, mask decoders, the projection. Frozen: the encoders and the LLM.
        Stage("align", (*base, *language, "clips", "text", "see", "hear", "speak", "segment"),
              module=lambda: WholeModelStage(crab),
              batches=lambda: sequences(
                  ClipSampler(cfg, tokenizer, clips), "align")),

        # Instruction tuning: the annotations of a data folder, every task equally often.
        # Learns: LoRA in every linear layer of the LLM, and, slower, the interfaces. Frozen: the
        # encoders and the LLM's own weights.
        Stage("instruct", (*base, *language, "see", "hear", "align", "lora", "tasks", "data"),
              module=lambda: WholeModelStage(crab),
              batches=lambda: sequences(annotations, "instruct"),
              lora=True,
              lr_scale=instruct_lr_scale),
    ]


def instruct_lr_scale(name: str) -> float:
    """The factor of a parameter's learning rate in instruction tuning."""
    return 1.0 if "lora_" in name else INTERFACE_LR


def facts(crab: Crab, tokenizer: Tokenizer, clips_folder: Path, weights: dict[str, str],
          tasks: list[str], data: Path) -> dict[str, object]:
    """What a stage can depend on beside earlier stages, by name.

    weights: hashes of published weights. tasks, data: of the last stage.
    """
    cfg = crab.cfg
    return {
        "world": WORLD,                                     # the version of scenes and annotations
        "model": cfg.model_dict(),
        "weights": weights,
        "tokenizer": hashlib.sha256(tokenizer.model).hexdigest(),
        "reasoning": cfg.reasoning,
        "clips": dataclasses.asdict(cfg.world) | {"folder": str(clips_folder)},
        "lora": dataclasses.asdict(cfg.lora),
        "tasks": tasks,
        "data": str(data),
    }
