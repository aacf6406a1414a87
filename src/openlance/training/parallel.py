"""The processes of one `torchrun`: each draws its own samples; gradients are sums over all of them.

    torchrun --nproc-per-node 8 -m openlance.cli.main train 3b/sft ... --shard 8

Weights are whole on every process (plain data parallel), or sharded over groups of `shard` processes with FSDP2, the
groups being replicas of each other (hybrid sharding).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openlance.config.values import differences
from openlance.errors import UserError
from openlance.model import crew

BUCKET = 1 << 24  # numbers that travel in one message


@dataclass(frozen=True)
class Team:
    """Which process this is. Alone, rank 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    shard: int = 1  # processes that share one copy of the weights

    @classmethod
    def join(cls, shard: int = 1) -> Team:
        """Join the processes that torchrun started; alone otherwise. UserError if they cannot be cut into groups."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if shard < 1 or size % shard:
            raise UserError(
                f"{size} processes cannot share weights in groups of {shard}: give --shard a divisor of {size}, or "
                f"start more with torchrun --nproc-per-node"
            )
        return cls(*crew.join(), shard)

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.shard > 1

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return values
        summed = values.detach().to(self.device, torch.float64)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        return bool(self.total(torch.tensor([float(stop)])).item())

    def gather(self, value: Any) -> list[Any]:
        """A small plain value of every process, in the order of their ranks."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def same(self, settings: Mapping[str, Any]) -> None:
        """UserError on every process, naming the first fields, unless all were started with the same settings."""
        found = self.gather(dict(settings))
        for rank, other in enumerate(found):
            wrong = differences(found[0], other)
            if wrong:
                fields = ", ".join(f"{name} ({a!r} against {b!r})" for name, (a, b) in list(wrong.items())[:3])
                raise UserError(f"ranks 0 and {rank} disagree on {fields}: start every process with the same options")

    def spread(self, module: nn.Module, low: bool) -> None:
        """Shard the weights over the team, one group per layer and one for the rest. low: bfloat16 travels."""
        if not self.sharded or hasattr(module, "set_requires_gradient_sync"):
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        shape, names = (self.size // self.shard, self.shard), ("replicate", "shard")
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        mesh = mesh if shape[0] > 1 else mesh["shard"]
        kind = torch.bfloat16 if low else None
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for part in [*layers(module), module]:
            wrapped = fully_shard(part, mesh=mesh, mp_policy=policy)
            wrapped.set_gradient_divide_factor(1.0)  # the losses are divided by totals over all processes already
            wrapped.set_force_sum_reduction_for_comms(True)

    def only_last(self, module: nn.Module, last: bool) -> None:
        """Before each of several packs: sharded gradients travel with the last one only."""
        if self.sharded:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]

    @torch.no_grad()
    def sum_gradients(self, module: nn.Module) -> None:
        """Sum over the processes; a parameter that a process did not use counts as zero there."""
        if self.size == 1 or self.sharded:
            return
        live, size = [p for p in module.parameters() if p.requires_grad], 0
        bucket: list[nn.Parameter] = []
        for p in live:
            bucket.append(p)
            size += p.numel()
            if size >= BUCKET or p is live[-1]:
                flat = torch.cat(
                    [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket]
                )
                dist.all_reduce(flat)
                for q, grad in zip(bucket, flat.split([q.numel() for q in bucket]), strict=True):
                    q.grad = grad.view_as(q)
                bucket, size = [], 0


def layers(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of decoder and vision tower."""
    return [
        block
        for name, blocks in module.named_modules()
        if isinstance(blocks, nn.ModuleList) and name.rpartition(".")[2] in ("layers", "blocks")
        for block in blocks
    ]


def recompute(module: nn.Module) -> None:
    """Activation checkpointing: a layer keeps its input alone and runs again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for block in layers(module):
        if not isinstance(block.forward, partial):  # a recipe comes here once per stage
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def full(tensor: Tensor) -> Tensor:
    """A whole tensor from a sharded one; every process has to ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
