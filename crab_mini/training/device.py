"""A batch of any form, moved to the device that computes."""

import dataclasses

import torch
from torch import Tensor


def to_device(batch, device: torch.device):
    """The batch on the device: its tensors, also within tuples, lists and dataclasses."""
    if isinstance(batch, Tensor):
        # From pinned memory the copy to a GPU runs beside the computation.
        pin = device.type == "cuda" and batch.device.type == "cpu"
        return (batch.pin_memory() if pin else batch).to(device, non_blocking=True)
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch):
        moved = {field.name: to_device(getattr(batch, field.name), device)
                 for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch
