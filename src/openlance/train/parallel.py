"""Data parallel training: the processes of one `torchrun` draw different samples and average their gradients.

torchrun --nproc-per-node 2 -m openlance.cli.main train nano -o runs/nano
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Team:
    """Which process this is. Alone, rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Team:
        """Join the processes that torchrun started; alone otherwise."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        if self.size == 1:
            return stop
        votes = torch.tensor([int(stop)])
        dist.all_reduce(votes)
        return bool(votes.item())

    @torch.no_grad()
    def average_gradients(self, module: nn.Module) -> None:
        """Mean over the processes, in one message; a parameter that a process did not use counts as zero there."""
        if self.size == 1:
            return
        live = [p for p in module.parameters() if p.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in live])
        dist.all_reduce(flat)
        flat /= self.size
        for p, grad in zip(live, flat.split([p.numel() for p in live]), strict=True):
            p.grad = grad.view_as(p)
