"""The exercises, one file a topic: each function's stub, where the package has it, and what must
hold of an answer."""

from ..exercise import EXERCISES
from . import (
    attention,
    comparing,
    kernel,
    language,
    lora,
    masks,
    qformer,
    sound,
    tasks,
    tenth,
    training,
    world,
    writing,
)

__all__ = [
    "EXERCISES",
    "attention",
    "comparing",
    "kernel",
    "language",
    "lora",
    "masks",
    "qformer",
    "sound",
    "tasks",
    "tenth",
    "training",
    "world",
    "writing",
]
