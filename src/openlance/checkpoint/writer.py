"""Writing weight files piece by piece: a model of any size in little memory, in one file or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.tensors import NAMES, PIECE, TensorSource, check_finite
from openlance.errors import UserError
from openlance.media.files import atomic_path, write_json

OnBytes = Callable[[int], Any]  # called with each number of bytes


@dataclass(frozen=True)
class Stream:
    """A tensor that is yet to be written: its form, and its content as flat pieces in order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stream_of(source: TensorSource, name: str, dtype: torch.dtype | None = None) -> Stream:
    """Stream a tensor of a file, checked to be finite on its way; floating-point ones become `dtype` if given."""
    stored = source.read(name).dtype
    final = dtype if dtype is not None and stored.is_floating_point else stored

    def pieces() -> Iterator[Tensor]:
        for piece in source.read(name).reshape(-1).split(PIECE):
            check_finite(name, piece, source.origin)
            yield piece.to(final)
            source.release(name, piece)

    return Stream(source.shapes[name], final, pieces)


def write_file(path: Path, tensors: Mapping[str, Stream], on_bytes: OnBytes = lambda _: None) -> None:
    """Write one safetensors file, whole or not at all; on_bytes(n) is called as it grows."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Larger elements first, so that every tensor begins at a multiple of its element.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    at = 0
    for name, tensor in ordered:
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, at + tensor.bytes]}
        at += tensor.bytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in ordered:
            for piece in tensor.pieces():
                on_bytes(file.write(piece.contiguous().view(torch.uint8).numpy().data))


def write_shards(
    folder: Path, stem: str, tensors: Mapping[str, Stream], shards: int = 1, on_bytes: OnBytes = lambda _: None
) -> list[Path]:
    """Write `stem.safetensors`, or that many shards of about equal size, in order, and `stem.safetensors.index.json`.

    Returns:
        The files.

    Raises:
        UserError: If there are more shards than tensors, or none.
    """
    if not 1 <= shards <= max(len(tensors), 1):
        raise UserError(f"{len(tensors)} tensors make no {shards} shards: expected shards=1 to {len(tensors)}")
    if shards == 1:
        write_file(folder / f"{stem}.safetensors", tensors, on_bytes)
        return [folder / f"{stem}.safetensors"]
    total, done = sum(t.bytes for t in tensors.values()), 0
    parts: list[dict[str, Stream]] = [{}]
    for left, (name, tensor) in zip(range(len(tensors), 0, -1), tensors.items(), strict=True):
        full = parts[-1] and done >= total * len(parts) / shards
        if len(parts) < shards and (full or left <= shards - len(parts)):
            parts.append({})
        parts[-1][name] = tensor
        done += tensor.bytes
    names = [f"{stem}-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    for name, part in zip(names, parts, strict=True):
        write_file(folder / name, part, on_bytes)
    table = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = folder / f"{stem}.safetensors.index.json"
    write_json(index, {"metadata": {"total_size": total}, "weight_map": table})
    return [*(folder / name for name in names), index]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; it appears whole or not at all."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        ready = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(ready, temporary, dict(metadata or {}))


@contextmanager
def progress(total: int, what: str, show: bool = True) -> Iterator[OnBytes]:
    """Show a bar over bytes on the error stream, from two seconds on; gives what to call with each number."""
    from tqdm import tqdm

    bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, delay=2.0, leave=False, disable=not show)
    with bar:
        yield bar.update
