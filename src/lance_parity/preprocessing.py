"""Pixels: crops and resizes into buckets, and the choice of frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product

import numpy as np

from lance_parity.checks import Checks, Measure
from openlance.media.clip import frame_indices
from openlance.media.transform import (
    RESOLUTIONS,
    VAE_STRIDE,
    VIT_STRIDE,
    bucket_table,
    center_crop_to_multiple,
    choose_bucket,
    resize,
    resolution,
    to_bucket,
)

# Base sizes of the small examples, where a case names no other (golden format).
SMALL_VAE, SMALL_VIT = 96, 112
# File rates that a case's clip may have had; the format states the chosen frames only.
RATES = (12, *range(1, 121))
MULTIPLE = {"vae": VAE_STRIDE, "vit": VIT_STRIDE}
LEVELS = Measure(0.0)


def view(want: np.ndarray, rgb: np.ndarray, base: int, branch: str) -> tuple[np.ndarray, str]:
    """Cut decoded frames for one branch.

    Args:
        want: The view of the release: one frame (h, w, 3), or (T, h, w, 3), of the ViT with the last of an odd number
            of frames twice.
        rgb: The frames (T, H, W, 3).
        base: Base size of the buckets.
        branch: "vae" or "vit".

    Returns:
        Our view, or, of those at places that the release may draw, the nearest one with its place.
    """

    def shown(pixels: np.ndarray) -> np.ndarray:
        if want.ndim == 3:
            return pixels[0]
        return np.concatenate([pixels, pixels[-1:]]) if branch == "vit" and len(pixels) % 2 else pixels

    def levels(made: tuple[np.ndarray, str]) -> float:
        return float(np.abs(want.astype(int) - made[0]).max()) if made[0].shape == want.shape else np.inf

    ours = shown(to_bucket(rgb, base, MULTIPLE[branch])), ""
    if np.array_equal(ours[0], want):
        return ours
    return min([ours, *((shown(pixels), place) for pixels, place in _drawn(rgb, base, MULTIPLE[branch]))], key=levels)


def _drawn(rgb: np.ndarray, base: int, multiple: int) -> Iterator[tuple[np.ndarray, str]]:
    """Frames of almost the bucket's ratio, cropped by a pixel or so at each place that the release may draw."""
    height, width = rgb.shape[1:3]
    bucket = choose_bucket(height, width, base)
    crop_h, crop_w = round(math.sqrt(height * width / bucket.ratio)), round(math.sqrt(height * width * bucket.ratio))
    for top, left in product(range(height - crop_h + 1), range(width - crop_w + 1)):
        window = resize(rgb[:, top : top + crop_h, left : left + crop_w], bucket.height, bucket.width)
        yield center_crop_to_multiple(window, multiple), f"crop at {top}, {left}"


def _views(checks: Checks, pattern: str, source: str, base: Callable[[dict], int]) -> None:
    """Every view of a pattern whose source is there."""
    for name, found in checks.file.matching(pattern):
        if source.format(**found) in checks.file:
            with checks.part(name):
                rgb, want = checks.file.take(source.format(**found)).numpy(), checks.file.take(name).numpy()
                ours, note = view(want, rgb if rgb.ndim == 4 else rgb[None], base(found), found["branch"])
                checks.compare(name, ours, LEVELS, note)


def check_media(checks: Checks) -> None:
    """Compare what VAE and ViT see of a case's media, and the frames chosen from each file."""
    arguments = checks.file.get("dataset_args", {})
    preset = next((v for v in arguments.values() if isinstance(v, str) and v in RESOLUTIONS), None)
    bases = dict(zip(("vae", "vit"), resolution(preset) if preset else (SMALL_VAE, SMALL_VIT)))
    bases |= {branch: arguments[f"r_{branch}"] for branch in bases if arguments.get(f"r_{branch}")}
    _views(checks, "in.media{n}.{branch}_u8", "in.media{n}.rgb", lambda found: bases[found["branch"]])
    for name, indices in checks.file.get("frame_indices", {}).items():
        total = indices[-1] + 1
        rate = next((r for r in RATES if frame_indices(total, r) == indices), None)
        note = f"{total} frames at {rate}/s" if rate else "no frame rate up to 120 gives these"
        checks.add(f"frame_indices {name}", float(rate is None), note=note)


def check_preprocessing(checks: Checks) -> None:
    """Compare the vectors of preprocessing alone: transforms, bucket tables, the frame sampler."""
    _views(checks, "case{n}.{branch}{s}_u8", "case{n}.rgb", lambda found: found["s"])
    for preset, table in checks.file.get("bucket_table", {}).items():
        with checks.part(f"buckets of {preset}"):
            checks.add(f"buckets of {preset}", _different_buckets(preset, table))
    for case in checks.file.get("frame_sampler", {}).get("cases", ()):
        ours = frame_indices(case["total_frames"], case["fps"])
        wrong = ours != case["indices"] or len(ours) != case.get("n", len(ours))
        checks.add(f"frames of {case['total_frames']} at {case['fps']}/s", float(wrong))


def _different_buckets(preset: str, table: Mapping) -> int:
    vae, vit = resolution(preset)
    different = int((table["vae_resolution"], table["vit_resolution"]) != (vae, vit))
    for a, b in zip(bucket_table(vae), bucket_table(vit), strict=True):
        cut = [side // VIT_STRIDE * VIT_STRIDE for side in (b.height, b.width)]
        want = table["buckets"][a.name]
        ours = {"vae_hw": [a.height, a.width], "vit_bucket_hw": [b.height, b.width], "vit_hw_after_crop28": cut}
        different += sum(want[key] != value for key, value in ours.items() if key in want)
    return different
