"""torch's random numbers: seeded from numbers and names, saved with a checkpoint and put back."""

import torch
from torch import Tensor

from ..config import seed_of


def seed_all(*names) -> None:
    """Seeds torch on all devices from numbers and names: seed_all(0, "text", rank).

    Everything that is not torch draws from generators of its own.
    """
    torch.manual_seed(seed_of(*names))


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the CPU's generator, and of the device's if that is a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what `rng_state` returned, as far as this device has it."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
