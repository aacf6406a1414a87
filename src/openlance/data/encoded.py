"""Shards of samples whose media are latents and ViT features already: written by `openlance encode`.

A shard is one safetensors file. Tensors: "SAMPLE/SEGMENT" (T, Y, X, C) latents or (t, y, x, D) features in half
precision or uint8 pixels (T, H, W, 3), "SAMPLE/SEGMENT/given", "SAMPLE/labels". Its metadata hold everything else as
JSON, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.data.fit import Fit
from openlance.data.source import Row, Sample, shuffled
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import atomic_path
from openlance.sequence.segment import Kind, Role, Segment

if TYPE_CHECKING:
    from torch import Tensor

MARK = ".encoded.safetensors"
FORMAT = "openlance encoded 1"
# A picture whose latents tell one codec from another, in whatever file and precision either is kept.
PROBE = Clip(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(1, 64, 64, 3).astype(np.uint8))
ALIKE = 0.1  # by how much means of normalised latents may differ between precisions


def write_shard(path: Path, samples: Sequence[Sample], about: dict[str, Any]) -> None:
    """Write samples whose visual values are tensors or clips; the file appears whole or not at all. about: plain
    data that `read_about` gives back. UserError if the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors, described = dict[str, Any](), []
    for n, sample in enumerate(samples):
        entries = []
        for k, s in enumerate(sample.segments):
            entry: dict[str, Any] = {"kind": s.kind.name, "role": s.role.name}
            if s.kind is Kind.TEXT:
                entry["text"] = s.value
            else:
                entry["size"] = list(s.size or ())
                tensors[f"{n}/{k}"] = _stored(s.value)
                if s.given is not None:
                    tensors[f"{n}/{k}/given"] = _stored(s.given)
            entries.append(entry)
        if sample.labels is not None:
            tensors[f"{n}/labels"] = _stored(sample.labels)
        described.append({"id": sample.id, "segments": entries})
    # One entry, since the order of several is not fixed and equal data should be equal files.
    metadata = {FORMAT: json.dumps({"about": about, "samples": described})}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot write {path} ({error}): make room and start again, finished shards stay"
            ) from error


def _stored(value: Any) -> Tensor:
    """Pixels and labels as they are, latents and features in half precision."""
    import torch

    if isinstance(value, (Clip, np.ndarray)):
        return torch.from_numpy(np.ascontiguousarray(value.pixels if isinstance(value, Clip) else value))
    return value.half().contiguous()


def _restored(tensor: Tensor) -> Any:
    import torch

    return Clip(tensor.numpy()) if tensor.dtype is torch.uint8 else tensor.float()


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """The shard and what it says of itself; UserError naming the file if it has vanished or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
        metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there any more: put it back and resume, or encode it again") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run `openlance encode` again") from error
    if FORMAT not in metadata:
        raise UserError(f"{path} is not a shard of `openlance encode`: encode the data again with this version")
    return file, json.loads(metadata[FORMAT])


def probed(latents: Any) -> list[float]:
    """The means of the channels of PROBE's latents (..., C), as a shard notes them."""
    return [round(float(mean), 3) for mean in latents.reshape(-1, latents.shape[-1]).float().mean(0)]


def read_about(path: Path) -> dict[str, Any]:
    return _opened(path)[1]["about"]


@dataclass(frozen=True)
class EncodedSource:
    """Rows of encoded shards; a part is one shard."""

    files: tuple[Path, ...]
    task: str
    light = True

    def __post_init__(self) -> None:
        held = read_about(self.files[0])["task"]
        if held != self.task:
            raise UserError(f"{self.files[0]} holds samples of {held}, not of {self.task}: encode those as well")

    def check_codec(self, found: Sequence[float]) -> None:
        """UserError if the latents are of another codec than the one that makes `found` of PROBE."""
        held = read_about(self.files[0]).get("codec", ())
        if len(held) != len(found) or max(abs(a - b) for a, b in zip(held, found, strict=True)) > ALIKE:
            raise UserError(
                f"{self.files[0].parent} holds latents of another codec than the model's: encode the data again with "
                f"--model and the folder that is trained"
            )

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[Path]:
        return shuffled(self.files, rng)

    def rows(self, part: Path) -> Iterator[Row]:
        file, said = _opened(part)
        names = set(file.keys())
        for n, described in enumerate(said["samples"]):
            yield Row(f"{part}, row {n}", (file, names, n, described))

    def stamp(self, part: Path) -> str:
        return f"{part} {part.stat().st_size}"

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        file, names, n, described = row.values

        def value(name: str) -> Any:
            return _restored(file.get_tensor(name)) if name in names else None

        segments = []
        for k, entry in enumerate(described["segments"]):
            kind, role = Kind[entry["kind"]], Role[entry["role"]]
            if kind is Kind.TEXT:
                segments.append(Segment(kind, role, entry["text"]))
            else:
                size = tuple(entry["size"])
                segments.append(Segment(kind, role, value(f"{n}/{k}"), size, value(f"{n}/{k}/given")))
        labels = file.get_tensor(f"{n}/labels").numpy() if f"{n}/labels" in names else None
        return Sample(segments, described["id"], labels)

    def __str__(self) -> str:
        return f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
