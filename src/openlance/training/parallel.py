"""Gradients and weights over the processes of one `torchrun`: each reads its own samples, gradients are sums over all.

Weights are whole on every process (plain data parallel), or sharded over groups of `shard` processes with FSDP2, the
groups being replicas of each other (hybrid sharding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openlance.runtime.distributed import Distributed

BUCKET = 1 << 24  # 64 MB in float32; PyTorch's own data parallelism sends 25 MB at a time


def shard(processes: Distributed, module: nn.Module, low: bool, whole: nn.Module | None = None) -> None:
    """Shard the weights over the processes, one group per layer and one for the rest.

    Args:
        processes: Over which.
        module: What runs as a whole.
        low: Whether its weights travel, and multiply, in bfloat16.
        whole: A part that runs by itself too, and so stays whole on every process. It must not learn.
    """
    if not processes.sharded or hasattr(module, "set_requires_gradient_sync"):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shape, names = (processes.size // processes.shard, processes.shard), ("replicate", "shard")
    mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
    mesh = mesh if shape[0] > 1 else mesh["shard"]
    kind = torch.bfloat16 if low else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    apart = set[nn.Parameter]() if whole is None else set(whole.parameters())
    inner = [block for block in layers(module) if not apart.intersection(block.parameters())]
    for part in [*inner, module]:
        wrapped = fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=apart)
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
    gradients = list[Tensor]()
    for p in module.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
    for some in _buckets(gradients):
        joined = torch.cat([g.flatten() for g in some]).to(processes.wire)
        dist.all_reduce(joined)
        for g, summed in zip(some, joined.to(processes.device).split([g.numel() for g in some]), strict=True):
            g.copy_(summed.view_as(g))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type that travel together, up to BUCKET numbers each: hundreds of small messages cost more
    than what is in them, and one of all gradients would double their memory."""
    some = list[Tensor]()
    for tensor in tensors:
        if some and (some[0].dtype != tensor.dtype or sum(t.numel() for t in some) + tensor.numel() > BUCKET):
            yield some
            some = []
        some.append(tensor)
    if some:
        yield some


def layers(module: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of decoder and vision tower."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    return [block for name, part in lists if name.rpartition(".")[2] in ("layers", "blocks") for block in part]


def recompute(module: nn.Module) -> None:
    """Turn activation checkpointing on: a layer keeps its input alone and runs again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for block in layers(module):
        if not isinstance(block.forward, partial):  # a recipe comes here once per stage
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def full(tensor: Tensor) -> Tensor:
    """Return a whole tensor from a sharded one; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Return what this process holds of each tensor that there is."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
