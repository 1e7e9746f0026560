"""A whole trained model in one file: weights, configuration, tokenizer.

train.py leaves it behind as crab.pt, eval.py reads it.
    bundle.save(path, crab, tokenizer, tasks=["ave"]);  crab, tokenizer, facts = bundle.load(path)
Files of version 0.1 are read too: names that have changed since are mapped at loading.
"""

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
# Parameters that had another name in version 0.1: the projections of the Q-Formers' attention.
OLD_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
OLD_PARAMETER = re.compile(r"((?:visual|audio)_qformer\.layers\.\d+\.(?:self|cross)_attention\.)"
                           r"(q|k|v|out)(\.\w+)")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with version 0.1's parameter names replaced; one of today is not changed."""
    return {OLD_PARAMETER.sub(lambda match: match[1] + OLD_NAMES[match[2]] + match[3], name): tensor
            for name, tensor in state.items()}


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids that the model treats specially."""
    masks = tokenizer.masks[0], tokenizer.masks[-1]
    return SpecialIds(tokenizer.visual, tokenizer.audio, masks, tokenizer.eos)


def build(cfg: Config, tokenizer: Tokenizer, parts: dict[str, nn.Module] | None = None) -> Crab:
    """A model that fits a tokenizer, from random weights but for `parts` (see `Crab`).

    Tokens that the tokenizer has added to a published vocabulary grow the LLM, so
    cfg.llm.vocab_size counts them. ValueError if that is not the tokenizer's size.
    """
    if cfg.llm.vocab_size != tokenizer.size:
        raise ValueError(f"llm.vocab_size: expected {tokenizer.size}, the tokenizer's size, "
                         f"found {cfg.llm.vocab_size}")
    # The LLM begins with the rows that its published weights have, and then grows.
    published = replace(cfg, llm=replace(cfg.llm, vocab_size=tokenizer.known))
    crab = Crab(published, special_ids(tokenizer), parts)
    crab.llm.resize_token_embeddings(tokenizer.size)
    crab.cfg = cfg
    return crab


def save(path: Path, crab: Crab, tokenizer: Tokenizer, **facts) -> None:
    """Writes the model (with its LoRA), atomically. facts: plain values to keep with it."""
    words = torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8)
    checkpoint.save(path, KIND, crab.cfg.to_dict(), model=crab.state_dict(), tokenizer=words,
                    facts=facts)


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
        # torch's first line names the class, its second the first parameter that does not fit.
        reason = str(error).splitlines()[1].strip()
        raise checkpoint.CheckpointError(f"{path}: {reason}") from error
    return crab.eval(), tokenizer, content["facts"]
