"""Gradients and weights over the processes of one `torchrun`: each draws its own samples, gradients are sums over all.

    torchrun --nproc-per-node 8 -m openlance.cli.main train 3b/sft ... --shard 8

Weights are whole on every process (plain data parallel), or sharded over groups of `shard` processes with FSDP2, the
groups being replicas of each other (hybrid sharding).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openlance.runtime.distributed import Distributed

BUCKET = 1 << 24  # numbers that travel in one message


def shard(processes: Distributed, module: nn.Module, low: bool) -> None:
    """Shard the weights over the processes, one group per layer and one for the rest. low: bfloat16 travels."""
    if not processes.sharded or hasattr(module, "set_requires_gradient_sync"):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shape, names = (processes.size // processes.shard, processes.shard), ("replicate", "shard")
    mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
    mesh = mesh if shape[0] > 1 else mesh["shard"]
    kind = torch.bfloat16 if low else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in [*layers(module), module]:
        wrapped = fully_shard(part, mesh=mesh, mp_policy=policy)
        wrapped.set_gradient_divide_factor(1.0)  # the losses are divided by totals over all processes already
        wrapped.set_force_sum_reduction_for_comms(True)


def only_last(processes: Distributed, module: nn.Module, last: bool) -> None:
    """Before each of several packs: sharded gradients travel with the last one only."""
    if processes.sharded:
        module.set_requires_gradient_sync(last)  # type: ignore[operator]


@torch.no_grad()
def sum_gradients(processes: Distributed, module: nn.Module) -> None:
    """Sum over the processes; a parameter that a process did not use counts as zero there."""
    if processes.size == 1 or processes.sharded:
        return
    live, size = [p for p in module.parameters() if p.requires_grad], 0
    bucket: list[nn.Parameter] = []
    for p in live:
        bucket.append(p)
        size += p.numel()
        if size >= BUCKET or p is live[-1]:
            flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket])
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
