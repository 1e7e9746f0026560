"""A whole trained model in one file: weights, configuration, tokenizer.

train.py leaves it behind as crab.pt, eval.py reads it.
    bundle.save(path, crab, tokenizer, tasks=["ave"]);  crab, tokenizer, facts = bundle.load(path)
Files of version 0.1 are read too: names that have changed since are mapped at loading.
"""

import re
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import OLD_FIELDS, Config, ConfigError, from_dict
from .config_check import check
from .errors import CheckpointError
from .model.crab import Crab, SpecialIds
from .tokenizer import Tokenizer
from .training import checkpoint
from .training.schema import BYTES, DICT, TENSORS, TEXT, TEXTS, expect, expect_alike

KIND = "crab"
FIELDS = {"model": TENSORS, "tokenizer": BYTES, "facts": DICT}
FACTS = {"tasks": TEXTS, "data": TEXT, "classes": TEXTS}        # of a file that train.py wrote
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
    All of it is checked before a model is built: a file cannot ask for more than it holds.
    """
    path = Path(path)
    content = checkpoint.load(path, KIND, fields=FIELDS)
    expect(path, content["facts"], {name: rule for name, rule in FACTS.items()
                                    if name in content["facts"]})
    state = renamed(content["model"])
    try:
        tokenizer = Tokenizer(bytes(content["tokenizer"].numpy()))
    except Exception as error:          # what sentencepiece makes of bytes from anywhere
        raise CheckpointError(f"{path}: tokenizer: expected a sentencepiece model, "
                              "found none") from error
    cfg = config_of(path, content["config"], state)
    expect_alike(path, "model.", outline(path, cfg, tokenizer), state)
    crab = build(cfg, tokenizer).with_lora(kernel)
    crab.load_state_dict(state)
    return crab.eval(), tokenizer, content["facts"]


def config_of(path: Path, values: dict, state: dict[str, Tensor]) -> Config:
    """The configuration of a file, checked; CheckpointError names the field.

    All fields of the model must be there. Some, such as the base of the rotary positions, change no
    shape: a default in their place would go unnoticed.
    """
    try:
        cfg = from_dict(values)
        check(cfg)
    except ConfigError as error:
        raise CheckpointError(f"{path}: config: {error}") from None
    for section, fields in (cfg.model_dict() | {"lora": asdict(cfg.lora)}).items():
        known = {OLD_FIELDS.get((section, key), key) for key in values.get(section, {})}
        for field in fields:
            if field not in known:
                raise CheckpointError(f"{path}: config: {section}.{field}: expected a value, "
                                      "found nothing")
    # Each layer has tensors, so their number bounds the time that building an outline takes.
    for section in ("llm", "vision", "audio", "visual_qformer", "audio_qformer", "mask"):
        layers = getattr(cfg, section).layers
        if layers > len(state):
            raise CheckpointError(f"{path}: config: {section}.layers: expected at most the "
                                  f"{len(state)} tensors of the file, found {layers}")
    return cfg


def outline(path: Path, cfg: Config, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The state dict of a model on the meta device: names and shapes without memory."""
    try:
        with torch.device("meta"):
            return build(cfg, tokenizer).with_lora().state_dict()
    except (ValueError, RuntimeError, OverflowError) as error:      # sizes that no tensor can have
        raise CheckpointError(f"{path}: config: {str(error).splitlines()[0]}") from error


def require(path: Path, facts: dict) -> None:
    """CheckpointError unless the facts are there that a program needs which train.py's file has."""
    expect(path, facts, FACTS)
