"""One way from a clip to what a model can cut, for training, sampling, `encode`, `run` and everything else that reads
media: which frames, which crop and size, and the two views of the ViT and of the VAE.

    transform = MediaTransform.of(config, bases={"image": (768, 672)})
    transform.views(clip, "image").kept
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from openlance.config.model import ModelConfig, VAEConfig
from openlance.media.buckets import BUCKET_STRIDE, bucket_size, ratio_crop, resize, resolution, to_bucket
from openlance.media.clip import Clip
from openlance.media.notices import notice

LARGER = 4  # how many times the model's usual area an input may have before it is scaled down


def fitting_size(height: int, width: int, stride: int, usual: tuple[int, int]) -> tuple[int, int]:
    """The nearest (height, width) that a model of a stride can cut, of at most `LARGER` times the usual area."""
    scale = min(1.0, (LARGER * usual[0] * usual[1] / (height * width)) ** 0.5)
    return max(round(height * scale / stride), 1) * stride, max(round(width * scale / stride), 1) * stride


def resized(clip: Clip, height: int, width: int) -> Clip:
    """Cut a clip to the ratio of a size, in the middle, and resize it."""
    top, left, rows, columns = ratio_crop(clip.height, clip.width, width / height)
    window = clip.pixels[:, top : top + rows, left : left + columns]
    return clip.with_pixels(np.ascontiguousarray(resize(window, height, width)))


@dataclass(frozen=True, kw_only=True)
class MediaTransform:
    """Cuts clips to what ViT and VAE can read.

    Args:
        vae: The VAE's configuration, for its strides.
        vit_stride: Pixels per ViT token side.
        bases: Base sizes in pixels for the VAE and for the ViT, by what is made of the input ("image", "video",
            "text"): crop and resize into the bucket of about base * base pixels whose ratio is nearest (released
            code). Without one an input keeps its size, but for rounding to the stride and for what is larger than
            four times the usual area.
        usual: Height and width of what the model makes, in pixels.
        max_frames: Longer clips keep so many frames, evenly spread; None keeps all.
    """

    vae: VAEConfig
    vit_stride: int
    bases: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    usual: tuple[int, int] = (768, 768)
    max_frames: int | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        *,
        buckets: Mapping[str, str] | None = None,
        bases: Mapping[str, tuple[int, int]] | None = None,
        usual: tuple[int, int] = (768, 768),
        max_frames: int | None = None,
    ) -> MediaTransform:
        """Build the transform of a model; `buckets` names resolution presets in the place of base sizes."""
        named = {makes: resolution(preset) for makes, preset in (buckets or {}).items()}
        return cls(
            vae=config.vae, vit_stride=config.vit.stride, bases=named | dict(bases or {}), usual=usual,
            max_frames=max_frames,
        )  # fmt: skip

    def views(self, clip: Clip, makes: str, size: tuple[int, int] | None = None) -> ClipViews:
        """Both views of a clip, of the same frames, each made when it is asked for.

        Args:
            clip: A picture or clip.
            makes: What is made of it: "image", "video" or "text".
            size: Height and width of the VAE's view, in the place of what the transform would choose.
        """
        return ClipViews(self, self.trimmed(clip), makes, size)

    def seen_size(self, height: int, width: int, makes: str) -> tuple[int, int]:
        """(height, width) of the ViT's view of a clip of a size."""
        if makes in self.bases:
            rounding = _bucket_stride(self.vit_stride)
            return bucket_size(height, width, self.bases[makes][1], self.vit_stride, bucket_stride=rounding)
        return fitting_size(height, width, self.vit_stride, self.usual)

    def trimmed(self, clip: Clip) -> Clip:
        """At most `max_frames`, 1 + k * the temporal stride of them, evenly spread: the released rule for a clip at the
        model's rate (`media.video.frame_indices`)."""
        count = self.vae.whole_frames(min(clip.frames, self.max_frames or clip.frames))
        if count == clip.frames:
            return clip
        step = self.vae.temporal_stride
        notice(
            f"a clip of {clip.frames} frames is read as {count} of them, evenly spread: clips have 1 + {step} k frames"
        )
        return clip.with_pixels(clip.pixels[np.linspace(0, clip.frames - 1, count, dtype=int)])

    def _fitted(self, clip: Clip, makes: str, branch: int, stride: int) -> Clip:
        if makes in self.bases:
            base, rounding = self.bases[makes][branch], _bucket_stride(stride)
            return clip.with_pixels(to_bucket(clip.pixels, base, stride, bucket_stride=rounding))
        return clip.with_pixels(resize(clip.pixels, *fitting_size(clip.height, clip.width, stride, self.usual)))


def _bucket_stride(stride: int) -> int:
    """The release rounds its buckets to 16 and cuts them to the stride afterwards; a stride below 16 is met exactly."""
    return min(BUCKET_STRIDE, stride)


class ClipViews:
    """What the templates of `sequence.tasks` ask for: `seen` by the ViT, `kept` by the VAE."""

    def __init__(self, transform: MediaTransform, clip: Clip, makes: str, size: tuple[int, int] | None) -> None:
        self._transform, self._clip, self._makes, self._size = transform, clip, makes, size

    def sized(self, height: int, width: int) -> ClipViews:
        """The same clip with another size of the VAE's view."""
        return ClipViews(self._transform, self._clip, self._makes, (height, width))

    @cached_property
    def seen(self) -> Clip:
        return self._transform._fitted(self._clip, self._makes, 1, self._transform.vit_stride)

    @cached_property
    def kept(self) -> Clip:
        if self._size is not None:
            return resized(self._clip, *self._size)
        return self._transform._fitted(self._clip, self._makes, 0, self._transform.vae.stride)
