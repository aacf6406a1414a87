"""How rows become samples at one point of a stage: what makes segments of them, and which conditions are dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.model import ModelConfig
from openlance.config.sampling import EXACT, PromptStyle
from openlance.config.train import Stage
from openlance.data.front import Front
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.image import read_image
from openlance.media.inputs import as_clip, read_video
from openlance.media.transform import MediaTransform
from openlance.sequence.segment import CONDITIONS, WORDS, Kind, Role, Segments, drop


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How rows become samples at one point of a stage.

    Args:
        front: Makes segments of words and media.
        drop_text: Share of the samples that lose their prompt.
        drop_all: Share of those that lose what they are to go by altogether.
        spread: Of scenes of the world, the widest placement, canonical (0) to free (1), of what their words leave open.
        sides: Their shortest and longest side in pixels.
    """

    front: Front = field(default_factory=lambda: Front(transform=MediaTransform(ModelConfig())))
    drop_text: float = 0.0
    drop_all: float = 0.0
    spread: float = 1.0
    sides: tuple[int, int] = (64, 64)

    @property
    def max_frames(self) -> int:
        """The longest clip."""
        return self.front.transform.max_frames or 1 << 30

    @classmethod
    def at(cls, stage: Stage, step: int, config: ModelConfig, style: PromptStyle = EXACT) -> Fit:
        """Of a step of a stage, for a model. What is only read is cut as what is made from it would be: questions as
        clips (released: pictures to describe have the ViT's size of clips)."""
        (low, high), along = stage.spread, min(step / stage.steps, 1.0)
        r = stage.resolution(step)
        bases = {"image": r.image, "video": r.video, "text": r.video}
        transform = MediaTransform(config, bases=bases, max_frames=stage.max_frames)
        return cls(
            front=Front(transform=transform, style=style), drop_text=stage.drop_text, drop_all=stage.drop_all,
            spread=low + (high - low) * along, sides=stage.sides,
        )  # fmt: skip

    def dropped(self, segments: Segments, rng: np.random.Generator) -> Segments:
        """Condition dropout of training. An answer in text keeps its question: only what is drawn is guided."""
        chance = rng.random()
        if not any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments):
            return segments
        if chance < self.drop_text:
            return drop(segments, WORDS)
        return drop(segments, CONDITIONS) if chance < self.drop_text + self.drop_all else segments


def medium(value: Any, name: str, folder: Path, reads: str) -> Clip:
    """A picture or video in any form in which a table holds one: the bytes of a file, its path (relative to `folder`),
    Hugging Face's {"bytes", "path"}, or what else `as_clip` takes: an open picture, pixels, the frames of a clip.

    reads: "image" or "video", what a file is expected to be. UserError naming `name`, the column, if it is empty,
    damaged or of another type.
    """
    if isinstance(value, dict) and (value.get("bytes") is not None or value.get("path") is not None):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    read = read_video if reads == "video" else read_image
    if isinstance(value, (bytes, bytearray, memoryview)):
        return read(bytes(value), name)
    if isinstance(value, str) and value:
        return read(folder / value)
    if value is None or isinstance(value, (str, dict, int, float)):
        raise UserError(f"{name} is {_described(value)}: expected the bytes or the path of {_article(reads)}")
    return as_clip(value, name)


def _described(value: Any) -> str:
    return "empty" if value is None or value == "" else f"of type {type(value).__name__}"


def _article(reads: str) -> str:
    return "an image" if reads == "image" else f"a {reads}"
