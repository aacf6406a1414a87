"""Sizes: the aspect-ratio buckets of the release, the crop and resize into them, and sizes that fit a stride.

Every rule here is the released code's, down to the rounding; Pillow's antialiased bicubic filter gives its pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from openlance.errors import UserError

# width : height of the six buckets, in the order in which ties are settled (released code).
RATIOS = {"21:9": 21 / 9, "16:9": 16 / 9, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4, "9:16": 9 / 16}
# Both branches round their buckets to 16; the ViT branch crops to its own stride afterwards (released code).
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
    """Base sizes (VAE branch, ViT branch) of a preset; UserError if there is none of that name."""
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
    """The six buckets of about base * base pixels, sides multiples of stride."""
    if base < 2 * stride:
        raise UserError(f"a base size of {base} is too small for buckets of stride {stride}: use {2 * stride} or more")
    return tuple(_bucket(name, ratio, base * base, stride) for name, ratio in RATIOS.items())


def choose_bucket(height: int, width: int, base: int, stride: int = BUCKET_STRIDE) -> Bucket:
    """The bucket whose ratio is nearest to the ratio of a picture of this size."""
    return min(bucket_table(base, stride), key=lambda b: abs(width / height - b.ratio))


def ratio_crop(
    height: int, width: int, ratio: float, rng: np.random.Generator | None = None
) -> tuple[int, int, int, int]:
    """The largest window (top, left, height, width) of a given width / height inside a picture.

    If a window of the picture's own area fits (its ratio is then the picture's up to rounding) it may sit anywhere:
    rng picks the place, without rng it is the middle. Otherwise one side is kept and the other cut in the middle.
    """
    area = height * width
    crop_w, crop_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < crop_w <= width and 0 < crop_h <= height:
        if rng is not None:
            return int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1)), crop_h, crop_w
    elif width / height < ratio:
        crop_w, crop_h = width, round(width / ratio)
    else:
        crop_w, crop_h = round(height * ratio), height
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bicubic (Pillow) resize of uint8 (T, H, W, 3) to (T, height, width, 3)."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    bicubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), bicubic)) for f in frames])


def centre_crop_to_multiple(frames: np.ndarray, stride: int) -> np.ndarray:
    """Cut uint8 (T, H, W, 3) in the middle so that both sides are multiples of stride."""
    height, width = frames.shape[1] // stride * stride, frames.shape[2] // stride * stride
    if not height or not width:
        raise UserError(
            f"a picture of {frames.shape[1]}x{frames.shape[2]} is smaller than one cell of {stride} pixels: "
            f"use one of at least {stride}x{stride}"
        )
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def to_bucket(
    frames: np.ndarray,
    base: int,
    multiple: int,
    *,
    bucket_stride: int = BUCKET_STRIDE,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Crop and resize frames uint8 (T, H, W, 3) into the nearest bucket of a base size, then cut to a multiple.

    multiple: VAE_STRIDE or VIT_STRIDE for the released model. Returns contiguous uint8 (T, h, w, 3).
    """
    height, width = frames.shape[1:3]
    bucket = choose_bucket(height, width, base, bucket_stride)
    top, left, crop_h, crop_w = ratio_crop(height, width, bucket.ratio, rng)
    window = frames[:, top : top + crop_h, left : left + crop_w]
    return np.ascontiguousarray(centre_crop_to_multiple(resize(window, bucket.height, bucket.width), multiple))


def bucket_size(
    height: int, width: int, base: int, multiple: int, *, bucket_stride: int = BUCKET_STRIDE
) -> tuple[int, int]:
    """(height, width) of what `to_bucket` makes of frames of a size."""
    bucket = choose_bucket(height, width, base, bucket_stride)
    return bucket.height // multiple * multiple, bucket.width // multiple * multiple
