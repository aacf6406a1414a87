"""Several processes at one request: guidance branches side by side, the rows of each dealt out (context parallelism).

    torchrun --nproc-per-node 4 -m openlance.cli.main generate t2v "a red circle moves left" --num-frames 121

All processes hold the same weights and conditions and run the same program; they differ in the rows that go through
the decoder. Within a branch keys and values are gathered in every layer, which is cheap with few key heads (the
released model: 1 KB for a row and layer in bfloat16); between branches only velocities travel, once per step.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from openlance.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def join(timeout: timedelta | None = None) -> tuple[int, int, torch.device]:
    """Join the processes that torchrun started: (rank, how many, device of this one). Alone: (0, 1, a GPU or the CPU).
    timeout: how long they wait for each other; torch's own by default."""
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    absent = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and absent:
        raise UserError(f"WORLD_SIZE is {size} but {absent[0]} is not set: start with torchrun, or unset WORLD_SIZE")
    gpu = torch.cuda.is_available()
    if gpu and local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} has no GPU: this machine has {torch.cuda.device_count()}; give torchrun no larger "
            f"--nproc-per-node"
        )
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timeout)
    return (dist.get_rank() if size > 1 else 0), size, device


def leave() -> None:
    """Part once all are done: a process that simply ends breaks the connections that others still read from, and a
    thread of gloo that outlives the interpreter aborts it. Alone: nothing."""
    if not dist.is_initialized():
        return
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()
    gc.collect()


@dataclass
class Split:
    """Rows dealt to the processes of a group in runs of nearly one length; one process needs no group."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def along(cls, mesh: DeviceMesh) -> Split:
        return cls(mesh.get_group(), mesh.get_local_rank(), mesh.size())

    def counts(self, rows: int) -> list[int]:
        """How many of the rows each process has."""
        return [rows // self.size + (n < rows % self.size) for n in range(self.size)]

    def own(self, rows: int) -> slice:
        """The rows of this process."""
        counts = self.counts(rows)
        first = sum(counts[: self.rank])
        return slice(first, first + counts[self.rank])

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """All rows from everybody's own; every process of the group has to ask."""
        if self.size == 1:
            return part
        counts = self.counts(rows)
        sent = part.new_zeros(counts[0], *part.shape[1:])  # messages of one length: the first run is the longest
        sent[: len(part)] = part
        found = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(found, sent, group=self.group)
        return torch.cat([run[:n] for run, n in zip(found, counts, strict=True)])


@dataclass(frozen=True)
class Crew:
    """The processes of one request on a mesh: guidance branches, and rows within them."""

    branch: Split
    context: Split
    device: torch.device
    leads: bool  # whether this process writes files

    @classmethod
    def join(cls, wanted: torch.device) -> Crew | None:
        """The processes of this torchrun: an even number deals two branches, an odd one rows alone. None if alone.
        wanted: the CPU, or any GPU, of which each process has its own."""
        rank, size, device = join()
        device = device if wanted.type == device.type else wanted
        if size == 1:
            return None
        from torch.distributed.device_mesh import init_device_mesh

        if size % 2:  # a mesh of one dimension needs no groups beside that of all
            rows = init_device_mesh(device.type, (size,), mesh_dim_names=("context",))
            return cls(Split(None, 0, 1), Split.along(rows), device, rank == 0)
        mesh = init_device_mesh(device.type, (2, size // 2), mesh_dim_names=("branch", "context"))
        return cls(Split.along(mesh["branch"]), Split.along(mesh["context"]), device, rank == 0)

    def leave(self) -> None:
        """Let go of the groups and part."""
        self.branch.group = self.context.group = None
        leave()

    def agreed(self, value: Any) -> Any:
        """The leading process's value of something small."""
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
