"""What packs of a stage hold, on average: rows by stream, labels, pairs that attend, pixels to encode.

The templates and the packing themselves are asked, with media that have a size and no pixels; so a new task is counted
without a line here. What is assumed: square images (an aspect bucket has about the same area), videos of the greatest
length that fits, texts of a fixed length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from openlance.config.model import ModelConfig, Size
from openlance.config.sampling import EXACT, NO_PRIOR, PromptStyle
from openlance.config.train import Resolution, Stage
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.transform import BUCKET_STRIDE, bucket_table
from openlance.planning.size import encoder_half
from openlance.sequence.pack import Visual, document
from openlance.sequence.segment import LATENTS, PATCHES, REGION, Kind, Role, Segments, roles_of
from openlance.sequence.tasks import TaskSpec, Views, request, spec_of
from openlance.text.tokenizer import SequenceCodec

CHARACTERS = 4  # per token of English text
DETAILED = 120  # tokens of a prompt or an answer: a paragraph as captioners write it
TEXT = {"nano": 12}  # scales with shorter ones


class Lengths:
    """In place of a tokenizer: ids that are only counted."""

    im_start = im_end = vision_start = vision_end = visual_pad = 0

    def ids(self, text: str) -> list[int]:
        return [0] * -(-len(text) // CHARACTERS)


def ruler(config: ModelConfig) -> SequenceCodec:
    """Make a codec that only measures."""
    return SequenceCodec(Lengths(), config)  # type: ignore[arg-type]


def placeholder(frames: int, height: int, width: int) -> Clip:
    """Make a video of a size, in pixels, that takes no memory."""
    return Clip(np.broadcast_to(np.uint8(0), (frames, height, width, 3)))


def sized(
    spec: TaskSpec, seen: tuple[int, int], size: Size, tokens: int, style: PromptStyle = EXACT, filled: bool = False
) -> Segments:
    """Put a request together from media that have only a size.

    Args:
        spec: Its task.
        seen: Height and width of what the ViT reads, in pixels.
        size: Frames, height and width of what is read or made; where only one of them is a video the other has 1 frame.
        tokens: Length of its texts.
        style: How it is worded.
        filled: Whether it is a training sample.
    """
    frames, *sides = size
    read, made = (frames if kind == "video" else 1 for kind in (spec.reads, spec.makes))
    media = [Views(placeholder(read, *seen), placeholder(read, *sides))] if spec.reads else []
    text = "x" * (CHARACTERS * tokens)
    fill = (text if spec.makes == "text" else placeholder(made, *sides)) if filled else None
    return request(spec, text, media, (made, sides[0], sides[1]), fill, style)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Counts that add up over samples: of one sample, of the mean sample, or of a pack."""

    und: float = 0.0  # rows of the understanding stream: text, markers, ViT tokens
    gen: float = 0.0  # rows of the generation stream: latents
    labels: float = 0.0  # tokens whose successor is learned
    patches: float = 0.0  # ViT tokens, after merging
    pairs: float = 0.0  # (query, key) pairs that may attend
    queries: float = 0.0  # rows as attention splits them on a CPU (each once), and the keys that it gathers for them
    keys: float = 0.0
    squares: float = 0.0  # query x key products computed there, masked ones included
    vae: float = 0.0  # operations of the VAE's encoder, every image or video once
    largest: float = 0.0  # squares of the largest unit; adding keeps the maximum

    @property
    def rows(self) -> float:
        return self.und + self.gen

    def __add__(self, other: Load) -> Load:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Load(**summed | {"largest": max(self.largest, other.largest)})

    def times(self, n: float) -> Load:
        return Load(**{f.name: getattr(self, f.name) * n for f in fields(self)} | {"largest": self.largest})


def load_of(columns: Mapping[str, np.ndarray], visuals: list[Visual], config: ModelConfig) -> Load:
    """Count the load of the columns of one document."""
    kind, noisy, full = columns["kind"], columns["noisy"].astype(bool), columns["full"].astype(bool)
    _, first, sizes = np.unique(columns["segment"], return_index=True, return_counts=True)
    clean_before, pairs, squares, keys = 0, 0.0, [], 0.0
    for start, n in zip(first.tolist(), sizes.tolist()):
        pairs += n * clean_before + (n * n if full[start] else n * (n + 1) / 2)
        if noisy[start]:
            squares.append(n * (clean_before + n))
            keys += clean_before + n
        else:
            clean_before += n
    squares.append(float(clean_before) ** 2)
    encoder, encoded = encoder_half(config.vae), {v.segment: v.grid for v in visuals if v.kind == LATENTS}
    return Load(
        und=float((kind != LATENTS).sum()), gen=float((kind == LATENTS).sum()), labels=float(columns["learn"].sum()),
        patches=float((kind == PATCHES).sum()), pairs=pairs, queries=float(len(kind)), keys=keys + clean_before,
        squares=sum(squares), vae=sum(map(encoder.flops, encoded.values())), largest=max(squares),
    )  # fmt: skip


@dataclass(frozen=True)
class Typical:
    """The mean sample of a task: its load, its frames, and how many it should have had but for the limit on tokens."""

    load: Load
    frames: int
    wanted: int


def typical(task: str, stage: Stage, config: ModelConfig, at: Resolution) -> Typical:
    """Find the longest sample of a task within the stage's limits, at one resolution.

    Raises:
        UserError: If not even the shortest fits.
    """
    spec, vae, most = spec_of(task), config.vae, stage.max_sample_tokens
    wanted = vae.whole_frames(stage.max_frames) if "video" in (spec.reads, spec.makes) else 1
    for frames in range(wanted, 0, -vae.temporal_stride):
        load = _load(spec, stage.scale, stage.draws, at.image if spec.makes == "image" else at.video, frames, config)
        if load.rows <= most:
            return Typical(load, frames, wanted)
    more = f"use max_sample_tokens={int(load.rows)} or more, or a smaller resolution than {at.video[0]}"
    raise UserError(f"no sample of {task} fits into max_sample_tokens={most}: {more}")


@lru_cache(maxsize=512)
def _load(spec: TaskSpec, scale: str, draws: int, bases: tuple[int, int], frames: int, config: ModelConfig) -> Load:
    """The load of one training sample; bases: sizes for the VAE and for the ViT, as of `Resolution`."""
    segments = _segments(spec, scale, bases, frames, config, filled=True)
    return load_of(*document(segments, ruler(config), config.position, draws), config)


@dataclass(frozen=True)
class Asked:
    """The request of the typical sample of a task that makes something visual.

    Args:
        segments: Their media have only a size.
        roles: See `sequence.segment.roles_of`.
        sample: Rows of the sample.
    """

    segments: Segments
    roles: frozenset[str]
    sample: float

    @property
    def size(self) -> Size:
        """Frames, height and width of the result."""
        [size] = [s.size for s in self.segments if s.role is Role.TARGET]
        assert size is not None
        return size


def asked(task: str, stage: Stage, config: ModelConfig, at: Resolution) -> Asked:
    """Ask for what a sample of a task shows, at one resolution. UserError if none fits, or it makes a text."""
    spec = spec_of(task)
    if spec.makes == "text":
        raise UserError(f"the stage {stage.name} draws, and {task} makes a text: leave it out of the mixture")
    found = typical(task, stage, config, at)
    segments = _segments(spec, stage.scale, at.image if spec.makes == "image" else at.video, found.frames, config)
    roles = roles_of([segments]) | ({REGION} if spec.in_part else set())
    return Asked(segments, frozenset(roles), found.load.rows)


def halves(segments: Segments, config: ModelConfig) -> tuple[Load, Load]:
    """Count what a request is drawn with: its noisy rows, which every pass has, and what comes before them, which runs
    once."""
    columns, visuals = document(segments, ruler(config), config.position)
    noisy, latent = columns["noisy"].astype(bool), columns["kind"] == LATENTS
    n, m, whole = float(noisy.sum()), float((~noisy).sum()), load_of(columns, visuals, config)
    ask = Load(
        und=float((noisy & ~latent).sum()), gen=float((noisy & latent).sum()), pairs=n * (n + m), queries=n, keys=n + m,
        squares=n * (n + m), largest=n * (n + m),
    )  # fmt: skip
    context = Load(
        und=float((~noisy & ~latent).sum()), gen=float((~noisy & latent).sum()), pairs=whole.pairs - ask.pairs,
        queries=m, keys=m, squares=m * m, largest=m * m, patches=whole.patches,
    )  # fmt: skip
    return ask, context


def encoding(segments: Segments, config: ModelConfig) -> float:
    """Count the operations of the VAE's encoder for what a request shows or keeps, each image and video once."""
    latents = [s for s in segments if s.kind is Kind.LATENTS]
    clips = {id(clip): clip for s in latents for clip in (s.value, s.given) if isinstance(clip, Clip)}
    return sum(encoder_half(config.vae).flops(config.vae.latent_grid(clip.pixels.shape[:3])) for clip in clips.values())


def _segments(
    spec: TaskSpec, scale: str, bases: tuple[int, int], frames: int, config: ModelConfig, filled: bool = False
) -> Segments:
    sides, seen = _square(bases[0], config.vae.stride), _square(bases[1], config.vit.stride)
    style = NO_PRIOR if scale == "nano" else EXACT
    return sized(spec, seen, (frames, *sides), TEXT.get(scale, DETAILED), style, filled)


def _square(base: int, stride: int) -> tuple[int, int]:
    """The square bucket of a base size, cut to the stride."""
    bucket = next(b for b in bucket_table(base, min(BUCKET_STRIDE, stride)) if b.name == "1:1")
    return bucket.height // stride * stride, bucket.width // stride * stride


def packed(stage: Stage, config: ModelConfig, at: Resolution, rows: float) -> Load:
    """Count the load of a pack of so many rows of the stage's mixture, at one resolution."""
    total = sum(stage.mixture.values())
    loads = [typical(task, stage, config, at).load.times(w / total) for task, w in stage.mixture.items() if w]
    mean = sum(loads, Load())
    return mean.times(rows / mean.rows)
