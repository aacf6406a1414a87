"""What packs of a stage hold, on average: rows by stream, labels, pairs that attend, pixels to encode.

The templates and the packing themselves are asked, with media that have a size and no pixels; so a new task is counted
without a line here. What is assumed: square pictures (an aspect bucket has about the same area), clips of the greatest
length that fits, texts of a fixed length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from openlance.config.model import ModelConfig
from openlance.config.train import Resolution, Stage
from openlance.errors import UserError
from openlance.media.transform import BUCKET_STRIDE, bucket_table
from openlance.planning.lengths import placeholder, ruler, text
from openlance.planning.size import encoder_half
from openlance.sequence.pack import Visual, document
from openlance.sequence.rows import LATENTS, PATCHES
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import EXACT, NO_PRIOR, Views, request, spec_of

TEXT = {"nano": 12}  # tokens of a prompt or an answer, by scale; elsewhere DETAILED, a paragraph as captioners write it
DETAILED = 120


@dataclass(frozen=True, kw_only=True)
class Load:
    """Numbers that add up over samples: of one sample, of the mean sample, or of a pack."""

    und: float = 0.0  # rows of the understanding stream: text, markers, ViT tokens
    gen: float = 0.0  # rows of the generation stream: latents
    labels: float = 0.0  # tokens whose successor is learned
    patches: float = 0.0  # ViT tokens, after merging
    pairs: float = 0.0  # (query, key) pairs that may attend
    queries: float = 0.0  # rows as attention splits them on a CPU (each once), and the keys that it gathers for them
    keys: float = 0.0
    squares: float = 0.0  # query x key products computed there, masked ones included
    codec: float = 0.0  # operations of the codec's encoder, every clip once
    largest: float = 0.0  # squares of the largest unit; adding keeps the maximum

    @property
    def rows(self) -> float:
        return self.und + self.gen

    def __add__(self, other: Load) -> Load:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Load(**summed | {"largest": max(self.largest, other.largest)})

    def times(self, n: float) -> Load:
        return Load(**{f.name: getattr(self, f.name) * n for f in fields(self)} | {"largest": self.largest})


def measured(segments: Segments, config: ModelConfig, draws: int = 1) -> Load:
    """The load of one sample."""
    columns, visuals = document(segments, ruler(config), config.position, draws)
    return load_of(columns, visuals, config)


def load_of(columns: Mapping[str, np.ndarray], visuals: list[Visual], config: ModelConfig) -> Load:
    """The load of the columns of one document."""
    kind, noisy, full = columns["kind"], columns["noisy"].astype(bool), columns["full"].astype(bool)
    segment = columns["segment"]
    sizes = np.unique(segment, return_counts=True)[1]
    first = np.unique(segment, return_index=True)[1]
    clean_before, pairs, squares, keys, largest = 0, 0.0, [], 0.0, 0.0
    for start, n in zip(first.tolist(), sizes.tolist()):
        pairs += n * clean_before + (n * n if full[start] else n * (n + 1) / 2)
        if noisy[start]:
            squares.append(n * (clean_before + n))
            keys += clean_before + n
        else:
            clean_before += int(n)
    squares.append(float(clean_before) ** 2)
    keys, largest = keys + clean_before, max(squares)
    encoder = encoder_half(config.vae)
    encoded = {v.segment: v.grid for v in visuals if v.kind == LATENTS}
    return Load(
        und=float((kind != LATENTS).sum()), gen=float((kind == LATENTS).sum()), labels=float(columns["learn"].sum()),
        patches=float((kind == PATCHES).sum()), pairs=pairs, queries=float(len(kind)), keys=keys,
        squares=sum(squares), codec=sum(map(encoder.flops, encoded.values())), largest=largest,
    )  # fmt: skip


@dataclass(frozen=True)
class Typical:
    """The mean sample of a task: its load, its frames, and how many it should have had but for the limit on tokens."""

    load: Load
    frames: int
    wanted: int


def typical(task: str, stage: Stage, config: ModelConfig, at: Resolution) -> Typical:
    """The longest sample of a task within the stage's limits, at one resolution."""
    return _typical(_Kind(task, stage.scale, stage.draws, at), stage.max_frames, stage.max_sample_tokens, config)


@dataclass(frozen=True)
class _Kind:
    """What decides how a sample looks, but for its frames."""

    task: str
    scale: str
    draws: int
    at: Resolution


@lru_cache(maxsize=512)
def _typical(kind: _Kind, most_frames: int, most_tokens: int, config: ModelConfig) -> Typical:
    stride, ends = config.vae.temporal_stride, spec_of(kind.task)
    wanted = config.vae.whole_frames(most_frames) if "video" in (ends.reads, ends.makes) else 1
    for frames in range(wanted, 0, -stride):
        load = _load(kind, frames, config)
        if load.rows <= most_tokens:
            return Typical(load, frames, wanted)
    raise UserError(
        f"no sample of {kind.task} fits into max_sample_tokens={most_tokens} at base size {kind.at.video[0]}: "
        f"give it more, such as max_sample_tokens={int(load.rows)}, or a smaller resolution"
    )


@lru_cache(maxsize=512)
def _load(kind: _Kind, frames: int, config: ModelConfig) -> Load:
    """The load of one filled sample with media that have only a size."""
    ends, shown = spec_of(kind.task), TEXT.get(kind.scale, DETAILED)
    bases = kind.at.image if ends.makes == "image" else kind.at.video
    (vae_h, vae_w), (vit_h, vit_w) = _square(bases[0], config.vae.stride), _square(bases[1], config.vit.stride)
    read = frames if ends.reads == "video" else 1
    media = [Views(placeholder(read, vit_h, vit_w), placeholder(read, vae_h, vae_w))] if ends.reads else []
    size = (frames if ends.makes == "video" else 1, vae_h, vae_w)
    fill = text(shown) if ends.makes == "text" else placeholder(*size)
    style = NO_PRIOR if kind.scale == "nano" else EXACT
    return measured(request(ends, text(shown), media, size, fill, style), config, kind.draws)


def _square(base: int, stride: int) -> tuple[int, int]:
    """The square bucket of a base size, cut to the stride."""
    bucket = next(b for b in bucket_table(base, min(BUCKET_STRIDE, stride)) if b.name == "1:1")
    return bucket.height // stride * stride, bucket.width // stride * stride


def mean_sample(stage: Stage, config: ModelConfig, at: Resolution) -> Load:
    """The mean sample of the stage's mixture at one resolution."""
    total = sum(stage.mixture.values())
    loads = [typical(task, stage, config, at).load.times(w / total) for task, w in stage.mixture.items() if w]
    return sum(loads, Load())


def packed(stage: Stage, config: ModelConfig, at: Resolution, rows: float) -> Load:
    """A pack of so many rows."""
    mean = mean_sample(stage, config, at)
    return mean.times(rows / mean.rows)
