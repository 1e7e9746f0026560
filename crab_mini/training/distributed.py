"""Data-parallel training, by hand: each process takes its slice of a batch, gradients are added.

    torchrun --nproc_per_node 2 train.py ...        gloo on the CPU, nccl on GPUs

Unusual: no DDP wrapper. Losses are sums, divided by the count of the *whole* batch before backward.
So the gradients of the processes add to what one process would have got from the whole batch, also
where the slices hold different numbers of tokens or masks, and where a process has no mask at all.
"""

import importlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default it is alone."""
    rank: int = 0
    world_size: int = 1             # number of processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def gather(self, mine) -> list:
        """Every process's (small, picklable) object, by rank. Waits for all of them."""
        if self.world_size == 1:
            return [mine]
        everyone = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        return everyone

    def add_gradients(self, parameters: list[Tensor]) -> None:
        """Replaces each gradient by its sum over the processes; one that none has stays None."""
        if self.world_size == 1:
            return
        # One flat vector means one message: a flag for each parameter that has a gradient here,
        # then all gradients, zeros where there is none.
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32,
                           device=parameters[0].device)
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([has] + [piece.flatten().float() for piece in pieces])
        dist.all_reduce(flat)

        # The sums go back into the parameters' shapes and types.
        has, *sums = flat.split([len(parameters)] + [p.numel() for p in parameters])
        for parameter, held, total in zip(parameters, has.tolist(), sums):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if held else None


def connect(device: torch.device) -> tuple[Processes, torch.device]:
    """Joins the processes that torchrun started -> this process and its device.

    Without torchrun this process is alone.
    Objects always travel over gloo, tensors over nccl where they are on a GPU.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return Processes(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # torch.optim imports this module later. Its default arguments would then hold the group for
        # ever, and gloo's threads, alive when the interpreter ends, would sometimes abort it.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size()), device


def disconnect() -> None:
    """Leaves the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
