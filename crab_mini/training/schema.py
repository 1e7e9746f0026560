"""What the fields of a checkpoint must be. An intact file may still hold anything.

    expect(path, content, {"step": WHOLE, "module": TENSORS})

raises a CheckpointError that names the file, the field, what was expected and what was found.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError


class Rule(NamedTuple):
    """What a field must be, in words, and the test of it."""
    words: str
    holds: Callable[[object], bool]


def is_tensor(value) -> bool:
    """Whether this is a plain tensor on the CPU whose numbers are really there."""
    return (isinstance(value, Tensor) and value.layout is torch.strided
            and value.device.type == "cpu" and not value.is_quantized and are_there([value]))


def are_there(tensors: list[Tensor]) -> bool:
    """Whether the memory of the tensors holds all of their numbers.

    A file can name the same memory many times, or repeat a number by a stride of zero.
    """
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(t.numel() * t.element_size() for t in tensors) <= sum(memory.values())


def are_tensors(value) -> bool:
    """Whether this is a dict of names and tensors, each with numbers of its own."""
    return (isinstance(value, dict) and all(isinstance(name, str) for name in value)
            and all(map(is_tensor, value.values())) and are_there(list(value.values())))


def is_bytes(value) -> bool:
    """Whether this is a vector of bytes."""
    return is_tensor(value) and value.dtype == torch.uint8 and value.ndim == 1


def are_generators(value) -> bool:
    """Whether this is a list of what rng.rng_state returns."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(one, dict) and "cpu" in one and all(map(is_bytes, one.values())) for one in value)


def are_texts(value) -> bool:
    """Whether this is a list of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


TEXT = Rule("text", lambda value: isinstance(value, str))
TEXTS = Rule("a list of texts", are_texts)
DICT = Rule("named values", lambda value: isinstance(value, dict)
            and all(isinstance(name, str) for name in value))
DICTS = Rule("a list of named values",
             lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value))
WHOLE = Rule("a whole number of at least 0", lambda value: type(value) is int and value >= 0)
SECONDS = Rule("a number of at least 0", lambda value: type(value) in (int, float)
               and 0 <= value < math.inf)
YES_OR_NO = Rule("true or false", lambda value: isinstance(value, bool))
BYTES = Rule("a vector of bytes", is_bytes)
TENSORS = Rule("names and whole tensors", are_tensors)
GENERATORS = Rule("the random numbers' states", are_generators)


def found_text(value) -> str:
    """A value for a message: its type, and what can be shown of it in a line."""
    if isinstance(value, (bool, int, float, str)):
        text = " ".join(repr(value)[:60].split())
        return text if len(text) < 60 else f"{text[:60]} ..."
    return f"{type(value).__name__}"


def expect(path: Path, content: dict, rules: dict[str, Rule]) -> None:
    """CheckpointError unless every field is there and follows its rule."""
    for name, rule in rules.items():
        place = f"{path}: {name}: expected {rule.words}"
        if name not in content:
            raise CheckpointError(f"{place}, found nothing")
        if not rule.holds(content[name]):
            raise CheckpointError(f"{place}, found {found_text(content[name])}")


def expect_alike(path: Path, field: str, own: dict[str, Tensor],
                 tensors: dict[str, Tensor]) -> None:
    """CheckpointError unless the tensors have the names and shapes of one's own, and are floats
    where those are.
    """
    for name in own | tensors:
        place = f"{path}: {field}{found_text(name)[1:-1]}:"
        expected = list(own[name].shape) if name in own else "nothing"
        found = list(tensors[name].shape) if name in tensors else "nothing"
        if expected != found:
            raise CheckpointError(f"{place} expected {expected}, found {found}")
        if tensors[name].is_floating_point() != own[name].is_floating_point():
            raise CheckpointError(f"{place} expected {own[name].dtype}, found {tensors[name].dtype}")
