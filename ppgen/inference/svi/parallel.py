"""Several processes that train one model, each on its rows of every batch: what ``torchrun`` starts.

All processes are given the same data and options. Each takes its share of the rows of a batch; gradients and bounds
are averaged over processes, so that all of them hold the same parameters after every step.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Group", "group", "own_device", "world_size"]


@final
@dataclass(frozen=True)
class Group:
    """The processes of a run: which one this is, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True if this process shows progress and writes files."""
        return self.rank == 0

    def mean(self, *tensors: Tensor) -> None:
        """Replace each tensor by its mean over processes."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.size

    def share(self, rows: Tensor) -> Tensor:
        """The part of the indices of a batch that is this process's."""
        return rows if self.size == 1 else rows[self.rank :: self.size]

    def copy_first(self, *tensors: Tensor) -> None:
        """Overwrite each tensor by that of the first process."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def own_device(device: torch.device) -> torch.device:
    """The device of this process: with several GPUs, each process takes the one of its local rank."""
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank)) if device.type == "cuda" and rank is not None else device


def world_size() -> int:
    """Count the processes that a run will have."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() else 1


@contextmanager
def group(device: torch.device) -> Iterator[Group]:
    """The processes that ``torchrun`` started, or a group that was initialised before; else this process alone.

    Gloo on the CPU, NCCL on a GPU.
    """
    if not dist.is_available():
        yield Group()
        return
    own = not dist.is_initialized() and world_size() > 1
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Group()
    finally:
        if own:
            dist.destroy_process_group()
