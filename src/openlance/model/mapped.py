"""A safetensors file in virtual memory: its tensors are views, read from disk when they are touched.

So opening costs nothing, what is never used is never read, and pages that were only looked at (a check, a conversion)
can be let go again: what a process keeps in memory is what it works with, not what it has loaded.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openlance.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """`dtype`, `shape` and `data_offsets` (in the file) by tensor; UserError if the file is cut short or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # checks the header against itself and against the length of the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): get the file again") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path} holds {name} as {entry['dtype']}, which is not read here: convert it to BF16")
        entry["data_offsets"] = [8 + length + at for at in entry["data_offsets"]]
    return header


class Mapped:
    """The tensors of one file as writable private views: a change stays in this process, the file is never written."""

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._base = torch.frombuffer(self._map, dtype=torch.uint8).data_ptr()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, entry in self.header.items()}

    def read(self, name: str) -> Tensor:
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=begin).reshape(entry["shape"])

    def release(self, view: Tensor) -> None:
        """Let the pages of an unchanged view (or of a contiguous piece of one) leave memory; touching it reads them
        again. A changed view would lose its changes."""
        page = mmap.PAGESIZE
        begin = view.data_ptr() - self._base
        first, last = -(-begin // page) * page, (begin + view.nbytes) // page * page
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
