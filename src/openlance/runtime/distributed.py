"""The processes of one `torchrun`, for training, for files of requests, and for one request that several share.

Processes that share a request hold the same weights and conditions and run the same program; they differ in the rows
that go through the decoder. Within a guidance branch (context parallelism) keys and values are gathered in every layer,
which is cheap with few key heads (the released model: 1 KB for a row and layer in bfloat16); between branches only
velocities travel, once per step.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from openlance.config.values import differences
from openlance.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SHARED = "OPENLANCE_SHARED_GPU"


@dataclass(frozen=True)
class Distributed:
    """Which process this is. Alone: rank 0 of 1, and everything below answers at once."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    shard: int = 1  # processes that share one copy of the weights in training
    shares_gpu: bool = False  # several on one GPU, which a small model would leave idle between its launches

    @classmethod
    def join(cls, shard: int = 1, timeout: timedelta | None = None) -> Distributed:
        """Join the processes that torchrun started, one for each GPU, or several where OPENLANCE_SHARED_GPU=1 is set.

        Args:
            shard: Processes that share one copy of the weights; must divide the number of processes.
            timeout: How long they wait for each other; torch's own by default.

        Raises:
            UserError: If they cannot be cut into groups, the environment is incomplete or a process has no GPU.
        """
        size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        if shard < 1 or size % shard:
            raise UserError(f"{size} processes cannot share weights in groups of {shard}: let shard divide {size}")
        absent = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if size > 1 and absent:
            raise UserError(f"WORLD_SIZE is {size} but {absent[0]} is not set: use torchrun, or unset WORLD_SIZE")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        shares = bool(gpus) and int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)) > gpus
        if shares and (os.environ.get(SHARED) != "1" or shard > 1):
            only = f"let torchrun start no more than the {gpus} of this machine"
            raise UserError(f"process {local} has no GPU: {only}, or set {SHARED}=1 to train a small model, unsharded")
        device = torch.device("cuda", local % gpus) if gpus else torch.device("cpu")
        if gpus:
            torch.cuda.set_device(device)
        if size > 1 and not dist.is_initialized():
            # NCCL wants a GPU for each process.
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus and not shares else "gloo", timeout=timeout)
        return cls(dist.get_rank() if size > 1 else 0, size, device, shard, shares)

    @staticmethod
    def leave() -> None:
        """Part once all are done: a process that just ends breaks the connections that others still read from, and a
        thread of gloo that outlives the interpreter aborts it."""
        if not dist.is_initialized():
            return
        dist.barrier()
        gc.collect()
        dist.destroy_process_group()
        gc.collect()

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.shard > 1

    @property
    def wire(self) -> torch.device:
        """Where tensors have to lie to be summed over all processes."""
        return torch.device("cpu") if self.shares_gpu else self.device

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return values
        summed = values.detach().to(self.wire, torch.float64)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def agree(self, *wishes: bool) -> list[bool]:
        """For each wish, whether any process has it."""
        return [count > 0 for count in self.total(torch.tensor(wishes, dtype=torch.float64)).tolist()]

    def gather(self, value: Any) -> list[Any]:
        """A small plain value of every process, in the order of their ranks."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def agreed(self, value: Any) -> Any:
        """The leading process's value of something small."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def same(self, settings: Mapping[str, Any]) -> None:
        """UserError on every process, naming the first fields, unless all were started with the same settings."""
        found = self.gather(dict(settings))
        for rank, other in enumerate(found):
            wrong = differences(found[0], other)
            if wrong:
                fields = ", ".join(f"{name} ({a!r} against {b!r})" for name, (a, b) in list(wrong.items())[:3])
                raise UserError(f"ranks 0 and {rank} disagree on {fields}: start every process with the same options")


@dataclass(frozen=True)
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
class Shared:
    """How the processes share one request, on a mesh: guidance branches, and rows within them."""

    branch: Split
    context: Split

    @classmethod
    def among(cls, processes: Distributed) -> Shared | None:
        """An even number deals two branches, an odd one rows alone; None for one process."""
        size, device = processes.size, processes.device.type
        if size == 1:
            return None
        from torch.distributed.device_mesh import init_device_mesh

        if size % 2:  # a mesh of one dimension needs no groups beside that of all
            rows = init_device_mesh(device, (size,), mesh_dim_names=("context",))
            return cls(Split(None, 0, 1), Split.along(rows))
        mesh = init_device_mesh(device, (2, size // 2), mesh_dim_names=("branch", "context"))
        return cls(Split.along(mesh["branch"]), Split.along(mesh["context"]))
