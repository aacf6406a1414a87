"""Checkpoints of a run: `torch.distributed.checkpoint` in the background, each whole or not there at all.

    checkpoints/step-00000500/      .metadata and *.distcp (tensors), rank0.json (place in the data, random state)
    checkpoints/.step-00001000/     one that is being written; a kill leaves it behind and the next start removes it

A folder gets its name, and older ones go, only once all processes have written everything.
"""

from __future__ import annotations

import errno
import io
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from openlance.errors import UserError
from openlance.runtime.distributed import Distributed

# What DCP says to a run of one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How it sounds from libraries in C++; the last is torch's archive writer, whose tensors became too short.
FULL_WORDS = ("No space left", "Disk quota", "File too large", "inline_container")
# What the table of contents of a checkpoint is made of. DCP keeps it as a pickle; this one may name nothing else.
TABLE = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": ("Size", "float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "collections": ("OrderedDict",),
}  # fmt: skip


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: Of the run.
        processes: That train it.
        keep: How many are kept.
    """

    def __init__(self, folder: Path, processes: Distributed, keep: int = 3) -> None:
        self.folder, self.processes, self.keep = folder / "checkpoints", processes, keep
        self._writing: tuple[int, Future] | None = None
        # Its own group: a checkpoint in the background must not mix its messages with those of the training.
        self._how: dict[str, Any] = {"no_dist": True}
        if processes.size > 1:
            self._how = {"process_group": dist.new_group(backend="gloo")}

    def sweep(self) -> None:
        """Remove what a kill left half-written. Only for who trains: another process may be writing."""
        if self.processes.leads:
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left)

    def steps(self) -> list[int]:
        """Return the steps of whole checkpoints, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", p.name) for p in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int, partial: bool = False) -> Path:
        """Return the folder of a checkpoint, or of one that is being written."""
        return self.folder / f"{'.' * partial}step-{step:08d}"

    def save(self, step: int, tensors: dict[str, Tensor], own: dict[str, Any]) -> None:
        """Begin to write a checkpoint.

        Args:
            step: Its name.
            tensors: Copied before this returns.
            own: Plain data of this process.
        """
        self.finish()
        partial = self.path(step, partial=True)
        with disk(self.folder):
            if self.processes.leads:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.processes.wait()
            said = {"processes": self.processes.size} | own
            (partial / f"rank{self.processes.rank}.json").write_text(json.dumps(said))
        future: Any = dcp.async_save(dict(tensors), checkpoint_id=partial, **self._how)
        self._writing = (step, future)

    def poll(self, wait: bool = False) -> None:
        """Give a checkpoint that has been written its name. UserError if the disk is full."""
        if self._writing is None or not (wait or self._writing[1].done()):
            return
        (step, future), self._writing = self._writing, None
        with disk(self.folder):
            try:
                future.result()
                if self.processes.leads:
                    shutil.rmtree(self.path(step), ignore_errors=True)
                    self.path(step, partial=True).rename(self.path(step))
                    for old in self.steps()[: -self.keep]:
                        shutil.rmtree(self.path(old))
            finally:
                if self.processes.leads:  # nothing stays of one that failed
                    shutil.rmtree(self.path(step, partial=True), ignore_errors=True)

    def finish(self) -> None:
        """Wait until everything has its name, on all processes."""
        self.poll(wait=True)
        self.processes.wait()

    def told(self, step: int) -> list[dict[str, Any]]:
        """Return what every process that wrote a checkpoint gave to `save`. UserError if it is damaged."""
        folder = self.path(step)
        try:
            found = [json.loads((folder / "rank0.json").read_text())]
            for rank in range(1, found[0]["processes"]):
                found.append(json.loads((folder / f"rank{rank}.json").read_text()))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{folder} is damaged ({error}): delete it, and the one before it is used") from error
        return found

    def load(self, step: int, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Fill tensors in place, whatever the number of processes that wrote them.

        Returns:
            What each of these gave to `save`.

        Raises:
            UserError: If the checkpoint is damaged or holds other tensors.
        """
        folder, found = self.path(step), self.told(step)
        try:
            saved = _Strict(io.BytesIO((folder / ".metadata").read_bytes())).load().state_dict_metadata
            differ = sorted(saved.keys() ^ tensors.keys(), key=lambda name: not name.startswith("weights/"))
            if not differ:
                dcp.load(tensors, checkpoint_id=folder, **self._how)
        except (CheckpointException, OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} does not fit this run or is damaged ({reason}): delete it") from error
        if differ:
            said = f"{folder} does not fit this run: it trained other tensors ({len(differ)}: {', '.join(differ[:5])})"
            fix = "go on with `frozen` and `ema` as in run.json, or begin a new run from an exported model"
            raise UserError(f"{said}; {fix}")
        return found


class _Strict(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in TABLE.get(module, ()):
            raise pickle.UnpicklingError(f"the table of contents names {module}.{name}")
        return super().find_class(module, name)


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turn a full disk, quota or file size limit into one sentence, whoever noticed it while something was written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, CheckpointException, SafetensorError, RuntimeError) as error:
        known = list(causes(error))
        said = any(words in str(e) for e in known for words in FULL_WORDS)
        if not said and not any(isinstance(e, OSError) and e.errno in FULL for e in known):
            raise
        fix = "free some space, or keep fewer checkpoints, and start the same command again"
        raise UserError(f"the disk of {folder} is full: {fix}, which goes on from the last whole one") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and all that led to it, those of other processes included."""
    if error is None:
        return
    yield error
    yield from causes(error.__cause__ or error.__context__)
    if isinstance(error, CheckpointException):
        for wrapped, _ in error.failures.values():
            yield from causes(wrapped)
