"""A whole trained model in one file: weights, configuration, tokenizer. What eval.py reads and train.py leaves behind."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import Config, from_dict
from .model.crab import Crab, SpecialIds
from .tokenizer import Tokenizer
from .training import checkpoint

KIND = "crab"
# Parameters that had another name in version 0.1: the Q-Formers' projections.
OLD_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with version 0.1's parameter names replaced by today's; one of today comes back as it is."""
    old = re.compile(r"((?:visual|audio)_qformer\.layers\.\d+\.(?:self|cross)_attention\.)(q|k|v|out)(\.\w+)")
    return {old.sub(lambda found: found[1] + OLD_NAMES[found[2]] + found[3], name): tensor
            for name, tensor in state.items()}


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids that the model treats specially."""
    return SpecialIds(tokenizer.visual, tokenizer.audio, (tokenizer.masks[0], tokenizer.masks[-1]), tokenizer.eos)


def build(cfg: Config, tokenizer: Tokenizer, parts: dict[str, nn.Module] | None = None) -> Crab:
    """A model that fits a tokenizer, from random weights but for `parts`; ValueError if the vocabulary does not fit.

    Tokens that the tokenizer has added to a published vocabulary grow the LLM, so cfg.llm.vocab_size counts them.
    """
    if cfg.llm.vocab_size != tokenizer.size:
        raise ValueError(f"llm.vocab_size: expected {tokenizer.size}, the tokenizer's size, found {cfg.llm.vocab_size}")
    crab = Crab(replace(cfg, llm=replace(cfg.llm, vocab_size=tokenizer.known)), special_ids(tokenizer), parts)
    crab.llm.resize_token_embeddings(tokenizer.size)
    crab.cfg = cfg
    return crab


def save(path: Path, crab: Crab, tokenizer: Tokenizer, **facts) -> None:
    """Writes the model (with its LoRA), atomically. facts: plain values to keep with it."""
    checkpoint.save(path, KIND, crab.cfg.to_dict(), model=crab.state_dict(),
                    tokenizer=torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8), facts=facts)


def load(path: Path, kernel: str = "") -> tuple[Crab, Tokenizer, dict]:
    """-> (model in eval mode, tokenizer, facts).

    kernel: of the LoRA, see `Crab.with_lora`. CheckpointError names what is wrong with the file.
    """
    content = checkpoint.load(path, KIND)
    tokenizer = Tokenizer(bytes(content["tokenizer"].numpy()))
    crab = build(from_dict(content["config"]), tokenizer).with_lora(kernel)
    try:
        crab.load_state_dict(renamed(content["model"]))
    except RuntimeError as error:
        raise checkpoint.CheckpointError(f"{path}: {str(error).splitlines()[1].strip()}") from error
    return crab.eval(), tokenizer, content["facts"]
