"""What people hand in, as the model wants it: media paired with texts, and clips at sizes that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.media.buckets import bucket_size, resize, resolution, to_bucket
from openlance.media.clip import Clip
from openlance.media.inputs import Medium, as_clip

# Resolution presets of the release for what goes in, by what is made of it (released commands; questions as trained).
RELEASED_BUCKETS = {"image": "image_768res", "video": "video_480p", "text": "video_480p"}
LARGER = 4  # how many times the model's usual area an input may have before it is scaled down


def is_many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def paired(media: Medium | Sequence[Medium], texts: str | Sequence[str]) -> list[tuple[Medium, str]]:
    """One medium per text; a single one of either goes with all of the other. UserError if the numbers differ.

    Only a list is several media: a tuple may be one item."""
    count = len(media) if isinstance(media, list) else len(texts) if is_many(texts) else 1
    found = media if isinstance(media, list) else [media] * count
    said = list(texts) if is_many(texts) else [texts] * count
    return list(zip(*_equally_many(found, said), strict=True))


def grouped(media: Medium | Sequence, texts: str | Sequence[str]) -> list[tuple[list[Clip], str]]:
    """Several media per text: a list of them for one text, a list of such lists for a list of texts."""
    groups = list(media) if is_many(texts) and isinstance(media, list) else [media]
    found, said = _equally_many(groups, list(texts) if is_many(texts) else [texts])
    if any(is_many(g) and not g for g in found):
        raise UserError("there is no picture or clip to go with the text: give at least one")
    return [([as_clip(m) for m in (g if is_many(g) else [g])], text) for g, text in zip(found, said, strict=True)]


def _equally_many(media: list, texts: list) -> tuple[list, list]:
    if len(media) != len(texts):
        raise UserError(f"{len(media)} images and {len(texts)} texts do not pair up: give as many of each")
    return media, texts


def check_texts(texts: Sequence[str], name: str, example: str) -> None:
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"the {name} is empty: write one, for example {example!r}")


def fitting_size(height: int, width: int, stride: int, usual: tuple[int, int]) -> tuple[int, int]:
    """The nearest (height, width) that a model of a stride can cut, of at most `LARGER` times the usual area."""
    scale = min(1.0, (LARGER * usual[0] * usual[1] / (height * width)) ** 0.5)
    return max(round(height * scale / stride), 1) * stride, max(round(width * scale / stride), 1) * stride


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Resizes inputs to what ViT and VAE can cut.

    Args:
        usual: (height, width) of what the model makes, in pixels.
        buckets: the release's resolution preset by what is made of the input ("image", "video", "text"): crop and
            resize into the preset's bucket, as released checkpoints were trained. Without one an input keeps its size,
            but for rounding to the stride and for what is larger than four times the usual area.
    """

    config: ModelConfig
    usual: tuple[int, int]
    buckets: Mapping[str, str]

    def seen(self, clip: Clip, makes: str) -> Clip:
        """As the ViT sees it."""
        return self._fitted(clip, makes, 1, self.config.vit.stride)

    def seen_size(self, height: int, width: int, makes: str) -> tuple[int, int]:
        """(height, width) of what `seen` makes of a clip of a size."""
        if makes in self.buckets:
            return bucket_size(height, width, resolution(self.buckets[makes])[1], self.config.vit.stride)
        return fitting_size(height, width, self.config.vit.stride, self.usual)

    def kept(self, clip: Clip, makes: str) -> Clip:
        """As the VAE keeps it, without frames beyond 1 + k times the temporal stride."""
        whole = clip.pixels[
            : (clip.frames - 1) // self.config.vae.temporal_stride * self.config.vae.temporal_stride + 1
        ]
        return self._fitted(clip.with_pixels(whole), makes, 0, self.config.vae.stride)

    def views(self, clip: Clip, makes: str) -> tuple[Clip, Clip]:
        """As the ViT and as the VAE see it: the same frames."""
        kept = self.kept(clip, makes)
        return self.seen(clip.with_pixels(clip.pixels[: kept.frames]), makes), kept

    def _fitted(self, clip: Clip, makes: str, branch: int, stride: int) -> Clip:
        if makes in self.buckets:
            return clip.with_pixels(to_bucket(clip.pixels, resolution(self.buckets[makes])[branch], stride))
        return clip.with_pixels(resize(clip.pixels, *fitting_size(clip.height, clip.width, stride, self.usual)))
