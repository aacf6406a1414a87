"""Sizes: from a video to what a model can cut, for training, sampling, `encode`, `run` and everything else that reads
media: the aspect-ratio buckets of the release, crop and resize, and the two views of the ViT and of the VAE.

    transform = MediaTransform(config, bases={"image": (768, 672)})
    transform.views(video, "image").kept

Every rule of the buckets is the released code's, down to the rounding; Pillow's antialiased bicubic filter gives its
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import notice

# width : height of the six buckets, in the order in which ties are settled (released code).
RATIOS = {"21:9": 21 / 9, "16:9": 16 / 9, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4, "9:16": 9 / 16}
# Both branches round their buckets to 16; the ViT branch crops to its own stride afterwards (released code). A smaller
# stride of a model is met exactly.
BUCKET_STRIDE = 16
VAE_STRIDE = 16
VIT_STRIDE = 28

# Base size of the VAE branch and of the ViT branch, by the name of the resolution preset (released code).
RESOLUTIONS = {
    "video_192p": (256, 224),
    "image_256res": (256, 224),
    "image_512res": (512, 448),
    "image_768res": (768, 672),
    "video_360p": (480, 476),
    "video_480p": (640, 616),
}
LARGER = 4  # how many times the model's usual area an input may have before it is scaled down


@dataclass(frozen=True)
class Bucket:
    """One target size: name is its nominal ratio "w:h", height and width are pixels."""

    name: str
    height: int
    width: int

    @property
    def ratio(self) -> float:
        return self.width / self.height


def resolution(name: str) -> tuple[int, int]:
    """Return the base sizes (VAE branch, ViT branch) of a preset, in pixels. UserError for an unknown name."""
    if name not in RESOLUTIONS:
        raise UserError(f"unknown resolution {name!r}: use one of {', '.join(RESOLUTIONS)}")
    return RESOLUTIONS[name]


def _bucket(name: str, ratio: float, area: int, stride: int) -> Bucket:
    """Round the width first, or the height first: the one nearer to the ratio wins, then the one nearer to the area."""
    width_first = stride * round(math.sqrt(area * ratio) / stride)
    height_first = stride * round(math.sqrt(area / ratio) / stride)
    candidates = (
        Bucket(name, stride * round(width_first / ratio / stride), width_first),
        Bucket(name, height_first, stride * round(height_first * ratio / stride)),
    )
    return min(candidates, key=lambda b: (abs(b.ratio - ratio), abs(b.height * b.width - area)))


@lru_cache(maxsize=64)
def bucket_table(base: int, stride: int = BUCKET_STRIDE) -> tuple[Bucket, ...]:
    """Make the six buckets of about base * base pixels, sides multiples of stride. UserError for too small a base."""
    if base < 2 * stride:
        raise UserError(f"a base size of {base} is too small for buckets of stride {stride}: use {2 * stride} or more")
    return tuple(_bucket(name, ratio, base * base, stride) for name, ratio in RATIOS.items())


def choose_bucket(height: int, width: int, base: int, stride: int = BUCKET_STRIDE) -> Bucket:
    """Choose the bucket whose ratio is nearest to that of a video of this size in pixels."""
    return min(bucket_table(base, stride), key=lambda b: abs(width / height - b.ratio))


def ratio_crop(height: int, width: int, ratio: float) -> tuple[int, int, int, int]:
    """Find the largest window of a given ratio in the middle of a frame.

    Args:
        height: of the frame, in pixels.
        width: of the frame, in pixels.
        ratio: width / height of the window.

    Returns:
        (top, left, height, width) in pixels. If a window of the frame's own area fits, its ratio is the frame's up to
        rounding; otherwise one side is kept and the other cut.
    """
    crop_w, crop_h = round(math.sqrt(height * width * ratio)), round(math.sqrt(height * width / ratio))
    if not (0 < crop_w <= width and 0 < crop_h <= height):
        narrow = width / height < ratio
        crop_w, crop_h = (width, round(width / ratio)) if narrow else (round(height * ratio), height)
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (T, H, W, 3) to (T, height, width, 3) with Pillow's antialiased bicubic filter."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    bicubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), bicubic)) for f in frames])


def resize_to_ratio(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut uint8 (T, H, W, 3) to the ratio of a size, in the middle, and resize it to (T, height, width, 3)."""
    top, left, rows, columns = ratio_crop(frames.shape[1], frames.shape[2], width / height)
    return resize(frames[:, top : top + rows, left : left + columns], height, width)


def center_crop_to_multiple(frames: np.ndarray, stride: int) -> np.ndarray:
    """Cut uint8 (T, H, W, 3) in the middle so that both sides are multiples of stride. UserError if nothing is left."""
    height, width = frames.shape[1] // stride * stride, frames.shape[2] // stride * stride
    if not height or not width:
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        raise UserError(f"frames of {size} are smaller than one cell: use sides of {stride} pixels or more")
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def to_bucket(frames: np.ndarray, base: int, multiple: int) -> np.ndarray:
    """Crop and resize frames into the nearest bucket of a base size, then cut them to a multiple.

    Args:
        frames: uint8 (T, H, W, 3).
        base: the bucket has about base * base pixels.
        multiple: of the sides that come out; VAE_STRIDE or VIT_STRIDE for the released model.

    Returns:
        Contiguous uint8 (T, h, w, 3).
    """
    height, width = frames.shape[1:3]
    bucket = choose_bucket(height, width, base, min(BUCKET_STRIDE, multiple))
    window = resize_to_ratio(frames, bucket.height, bucket.width)
    return np.ascontiguousarray(center_crop_to_multiple(window, multiple))


def fitting_size(height: int, width: int, stride: int, usual: tuple[int, int]) -> tuple[int, int]:
    """Find the nearest (height, width) that a model of a stride can cut, of at most `LARGER` times the usual area."""
    most = LARGER * usual[0] * usual[1]
    scale = min(1.0, (most / (height * width)) ** 0.5)
    high, wide = (max(round(side * scale / stride), 1) * stride for side in (height, width))
    longest = max(int(most / stride**2), 1) * stride  # beside a side of one stride, to which a thin one is rounded up
    return min(high, longest), min(wide, longest)


@dataclass(frozen=True)
class MediaTransform:
    """Cuts videos to what ViT and VAE can read.

    Args:
        config: The model, for the strides of VAE and ViT.
        bases: Base sizes in pixels for the VAE and for the ViT, or the resolution preset that names them, by what is
            made of the input ("image", "video", "text"): crop and resize into the bucket of about base * base pixels
            whose ratio is nearest (released code). Without one an input keeps its size, but for rounding to the stride
            and for what is larger than four times the usual area.
        usual: Height and width of what the model makes, in pixels.
        max_frames: Longer videos keep so many frames, evenly spread; None keeps all.
    """

    config: ModelConfig
    _: KW_ONLY
    bases: Mapping[str, Any] = field(default_factory=dict)
    usual: tuple[int, int] = (768, 768)
    max_frames: int | None = None

    def base(self, makes: str) -> tuple[int, int] | None:
        """Find the base sizes for the VAE and for the ViT of what a kind of result is made of, if it has some."""
        found = self.bases.get(makes)
        return resolution(found) if isinstance(found, str) else found

    def views(self, clip: Clip, makes: str, size: tuple[int, int] | None = None) -> ClipViews:
        """Give both views of a video, of the same frames, each made when it is asked for.

        Args:
            clip: Frames of any size and number.
            makes: What is made of it: "image", "video" or "text".
            size: Height and width of the VAE's view, in the place of what the transform would choose.
        """
        return ClipViews(self, self.trimmed(clip), makes, size)

    def seen_size(self, height: int, width: int, makes: str) -> tuple[int, int]:
        """Return (height, width) of the ViT's view of a video of a size."""
        stride, base = self.config.vit.stride, self.base(makes)
        if base is None:
            return fitting_size(height, width, stride, self.usual)
        bucket = choose_bucket(height, width, base[1], min(BUCKET_STRIDE, stride))
        return bucket.height // stride * stride, bucket.width // stride * stride

    def trimmed(self, clip: Clip) -> Clip:
        """Keep at most `max_frames`, 1 + k * the temporal stride of them, evenly spread: the released rule for a video
        at the model's rate (`media.clip.frame_indices`)."""
        count = self.config.vae.whole_frames(min(clip.frames, self.max_frames or clip.frames))
        if count == clip.frames:
            return clip
        step = self.config.vae.temporal_stride
        notice(f"{count} of the {clip.frames} frames of a video are read, evenly spread: they have to be 1 + {step} k")
        return clip.with_pixels(clip.pixels[np.linspace(0, clip.frames - 1, count, dtype=int)])

    def _fitted(self, clip: Clip, makes: str, branch: int, stride: int) -> Clip:
        if (base := self.base(makes)) is not None:
            return clip.with_pixels(to_bucket(clip.pixels, base[branch], stride))
        return clip.with_pixels(resize(clip.pixels, *fitting_size(clip.height, clip.width, stride, self.usual)))


class ClipViews:
    """What the templates of `sequence.tasks` ask for: `seen` by the ViT, `kept` by the VAE."""

    def __init__(self, transform: MediaTransform, clip: Clip, makes: str, size: tuple[int, int] | None) -> None:
        self._transform, self._clip, self._makes, self._size = transform, clip, makes, size

    def sized(self, height: int, width: int) -> ClipViews:
        """The same video with another size, in pixels, of the VAE's view."""
        return ClipViews(self._transform, self._clip, self._makes, (height, width))

    @cached_property
    def seen(self) -> Clip:
        return self._transform._fitted(self._clip, self._makes, 1, self._transform.config.vit.stride)

    @cached_property
    def kept(self) -> Clip:
        if self._size is not None:
            return self._clip.with_pixels(np.ascontiguousarray(resize_to_ratio(self._clip.pixels, *self._size)))
        return self._transform._fitted(self._clip, self._makes, 0, self._transform.config.vae.stride)
