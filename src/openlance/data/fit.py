"""From what lies in a file to clips that a model can read: decoded, cut into the nearest aspect bucket, frames chosen.

A picture or clip that is looked at and kept has two views, (as the ViT sees it, as the VAE sees it): their strides and
base sizes differ (released code).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.model import ModelConfig
from openlance.config.train import Resolution, Stage
from openlance.errors import UserError
from openlance.media.buckets import BUCKET_STRIDE, ratio_crop, resize, to_bucket
from openlance.media.clip import Clip
from openlance.media.image import read_image
from openlance.media.inputs import as_clip
from openlance.media.read import read_video
from openlance.sequence.segment import Kind, Role, Segments, drop
from openlance.sequence.tasks import RELEASED, SystemPrompts

# What condition dropout takes away: the prompt alone, or the visual conditions with it (paper).
CONDITIONS = tuple(role for role in Role if role not in (Role.SYSTEM, Role.TARGET))
Views = tuple[Clip, Clip]


@dataclass(frozen=True, kw_only=True)
class Strides:
    """Pixels per token side of the VAE and of the ViT, frames per latent frame."""

    vae: int = 16
    vit: int = 28
    frames: int = 4

    @classmethod
    def of(cls, config: ModelConfig) -> Strides:
        return cls(vae=config.vae.stride, vit=config.vit.stride, frames=config.vae.temporal_stride)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How rows become samples at one point of a stage.

    max_frames: longer clips keep so many frames, evenly spread. spread, sides: of scenes of the world, the widest
    placement, canonical (0) to free (1), of what their words leave open, and the shortest and longest side in pixels.
    """

    resolution: Resolution = field(default_factory=Resolution)
    strides: Strides = field(default_factory=Strides)
    max_frames: int = 69
    prompts: SystemPrompts = RELEASED
    drop_text: float = 0.0
    drop_all: float = 0.0
    spread: float = 1.0
    sides: tuple[int, int] = (64, 64)

    @classmethod
    def at(cls, stage: Stage, step: int, strides: Strides, prompts: SystemPrompts) -> Fit:
        """Of a step of a stage."""
        (low, high), along = stage.spread, min(step / stage.steps, 1.0)
        return cls(
            resolution=stage.resolution(step), strides=strides, max_frames=stage.max_frames, prompts=prompts,
            drop_text=stage.drop_text, drop_all=stage.drop_all, spread=low + (high - low) * along,
            sides=stage.sides,
        )  # fmt: skip

    def views(self, clip: Clip) -> Views:
        """The clip for the ViT and for the VAE."""
        clip = self._trim(clip)
        vae, vit = self.resolution.image if clip.frames == 1 else self.resolution.video
        seen = to_bucket(clip.pixels, vit, self.strides.vit, bucket_stride=_bucket_stride(self.strides.vit))
        kept = to_bucket(clip.pixels, vae, self.strides.vae, bucket_stride=_bucket_stride(self.strides.vae))
        return clip.with_pixels(seen), clip.with_pixels(kept)

    def like(self, clip: Clip, model: Clip) -> Clip:
        """A target cut and resized to the height and width of its source."""
        clip = self._trim(clip)
        top, left, height, width = ratio_crop(clip.height, clip.width, model.width / model.height)
        window = clip.pixels[:, top : top + height, left : left + width]
        return clip.with_pixels(np.ascontiguousarray(resize(window, model.height, model.width)))

    def _trim(self, clip: Clip) -> Clip:
        """At most max_frames, 1 + k * the temporal stride of them."""
        most = min(clip.frames, self.max_frames)
        count = (most - 1) // self.strides.frames * self.strides.frames + 1
        if count == clip.frames:
            return clip
        return clip.with_pixels(clip.pixels[np.linspace(0, clip.frames - 1, count, dtype=int)])

    def dropped(self, segments: Segments, rng: np.random.Generator) -> Segments:
        """Condition dropout of training. An answer in text keeps its question: only what is drawn is guided."""
        chance = rng.random()
        if not any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments):
            return segments
        if chance < self.drop_text:
            return drop(segments, {Role.PROMPT})
        return drop(segments, CONDITIONS) if chance < self.drop_text + self.drop_all else segments


def _bucket_stride(stride: int) -> int:
    """The release rounds its buckets to 16 and cuts them to the stride afterwards; a stride below 16 is met exactly."""
    return min(BUCKET_STRIDE, stride)


def medium(value: Any, name: str, folder: Path, reads: str) -> Clip:
    """A picture or video in any form in which a table holds one: the bytes of a file, its path (relative to `folder`),
    Hugging Face's {"bytes", "path"}, or what else `as_clip` takes: an open picture, pixels, the frames of a clip.

    reads: "image" or "video", what a file is expected to be. UserError naming `name`, the column, if it is empty,
    damaged or of another type.
    """
    if isinstance(value, dict) and (value.get("bytes") is not None or value.get("path") is not None):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return (read_video if reads == "video" else read_image)(name, bytes(value))
    if isinstance(value, str) and value:
        return (read_video if reads == "video" else read_image)(folder / value)
    if value is None or isinstance(value, (str, dict, int, float)):
        raise UserError(f"{name} is {_described(value)}: expected the bytes or the path of {_article(reads)}")
    return as_clip(value, name)


def _described(value: Any) -> str:
    return "empty" if value is None or value == "" else f"of type {type(value).__name__}"


def _article(reads: str) -> str:
    return "an image" if reads == "image" else f"a {reads}"
