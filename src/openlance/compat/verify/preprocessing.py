"""Pixels: crops and resizes into buckets, choice of frames, and what ViT and VAE make of a case's media."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openlance.compat.verify.checks import CODEC, DEEP, EXACT, Checks
from openlance.compat.verify.parts import Parts
from openlance.media.clip import Clip, frame_indices
from openlance.media.transform import (
    BUCKET_STRIDE,
    RESOLUTIONS,
    VAE_STRIDE,
    VIT_STRIDE,
    bucket_table,
    center_crop_to_multiple,
    choose_bucket,
    ratio_crop,
    resize,
    resolution,
    to_bucket,
)
from openlance.sequence.segment import Kind, Segments
from openlance.sequence.tasks import Views
from openlance.vae.autoencoder import sample

# Base sizes of the small examples, where a case names no other (golden format).
SMALL_VAE, SMALL_VIT = 96, 112
# File rates that a case's clip may have had; the format states the chosen frames only.
RATES = (12, *range(1, 121))
MULTIPLE = {"vae": VAE_STRIDE, "vit": VIT_STRIDE}


def base_sizes(arguments: Mapping) -> dict[str, int]:
    """Base size of the VAE and of the ViT branch from the arguments: a preset, numbers, or the default."""
    preset = next((v for v in arguments.values() if isinstance(v, str) and v in RESOLUTIONS), None)
    vae, vit = resolution(preset) if preset else (SMALL_VAE, SMALL_VIT)
    return {"vae": arguments.get("r_vae") or vae, "vit": arguments.get("r_vit") or vit}


def doubled(pixels: np.ndarray) -> np.ndarray:
    """Frames as the ViT gets them: an odd number repeats the last, so that a picture stands twice."""
    return np.concatenate([pixels, pixels[-1:]]) if len(pixels) % 2 else pixels


def check_view(checks: Checks, name: str, rgb: np.ndarray, base: int, branch: str) -> None:
    """One branch's view of decoded frames (T, H, W, 3)."""
    want = checks.file.take(name).numpy()
    flat = want.ndim == 3
    ours = to_bucket(rgb, base, MULTIPLE[branch])
    best, note = _levels(want, ours, branch, flat), ""
    for window in _windows(rgb, base) if best else ():
        # A picture of almost the bucket's ratio is cropped by a pixel or so at a place that the release draws.
        levels = _levels(want, _cut(rgb, base, branch, window), branch, flat)
        if levels < best:
            best, note = levels, f"crop at {window[0]}, {window[1]}"
    checks.add(name, best, EXACT, note=note)


def _levels(want: np.ndarray, ours: np.ndarray, branch: str, flat: bool) -> float:
    ours = ours[0] if flat else doubled(ours) if branch == "vit" else ours
    if want.shape != ours.shape:
        return float("inf")
    return float(np.abs(want.astype(int) - ours.astype(int)).max())


def _windows(rgb: np.ndarray, base: int) -> list[tuple[int, int]]:
    """Places (top, left) that the release may draw for a crop of the picture's own area; none where it is fixed."""
    height, width = rgb.shape[1:3]
    ratio = choose_bucket(height, width, base, BUCKET_STRIDE).ratio
    room = height - round(math.sqrt(height * width / ratio)), width - round(math.sqrt(height * width * ratio))
    return list(product(range(room[0] + 1), range(room[1] + 1))) if min(room) >= 0 else []


def _cut(rgb: np.ndarray, base: int, branch: str, place: tuple[int, int]) -> np.ndarray:
    height, width = rgb.shape[1:3]
    bucket = choose_bucket(height, width, base, BUCKET_STRIDE)
    _, _, crop_h, crop_w = ratio_crop(height, width, bucket.ratio)
    window = rgb[:, place[0] : place[0] + crop_h, place[1] : place[1] + crop_w]
    return center_crop_to_multiple(resize(window, bucket.height, bucket.width), MULTIPLE[branch])


def check_media(checks: Checks) -> None:
    """`in.media{i}.rgb` -> what VAE and ViT see, and the frames chosen from each file."""
    bases = base_sizes(checks.file.fact("dataset_args") or {})
    for name in checks.file.names():
        match = re.fullmatch(r"in\.media(\d+)\.(vae|vit)_u8", name)
        if match and f"in.media{match[1]}.rgb" in checks.file:
            with checks.part(name):
                rgb = checks.file.take(f"in.media{match[1]}.rgb").numpy()
                check_view(checks, name, rgb, bases[match[2]], match[2])
    for medium, indices in (checks.file.fact("frame_indices") or {}).items():
        total = indices[-1] + 1
        rate = next((r for r in RATES if frame_indices(total, r) == indices), None)
        note = f"{total} frames at {rate}/s" if rate else "no frame rate up to 120 gives these"
        checks.add(f"frame_indices {medium}", float(rate is None), EXACT, note=note)


def check_file(checks: Checks) -> None:
    """The vectors of preprocessing alone: transforms, bucket tables, the frame sampler."""
    for name in checks.file.names():
        match = re.fullmatch(r"(case\d+)\.(vae|vit)(\d+)_u8", name)
        if match:
            with checks.part(name):
                rgb = checks.file.take(f"{match[1]}.rgb").numpy()
                check_view(checks, name, rgb if rgb.ndim == 4 else rgb[None], int(match[3]), match[2])
    for preset, table in (checks.file.fact("bucket_table") or {}).items():
        with checks.part(f"buckets of {preset}"):
            checks.add(f"buckets of {preset}", _different_buckets(preset, table), EXACT)
    for case in (checks.file.fact("frame_sampler") or {}).get("cases", ()):
        ours = frame_indices(case["total_frames"], case["fps"])
        wrong = ours != case["indices"] or len(ours) != case.get("n", len(ours))
        checks.add(f"frames of {case['total_frames']} at {case['fps']}/s", float(wrong), EXACT)


def _different_buckets(preset: str, table: Mapping) -> float:
    vae, vit = resolution(preset)
    different = (table["vae_resolution"], table["vit_resolution"]) != (vae, vit)
    for a, b in zip(bucket_table(vae), bucket_table(vit), strict=True):
        cut = [side // VIT_STRIDE * VIT_STRIDE for side in (b.height, b.width)]
        want = table["buckets"][a.name]
        ours = {"vae_hw": [a.height, a.width], "vit_bucket_hw": [b.height, b.width], "vit_hw_after_crop28": cut}
        different += sum(want[key] != value for key, value in ours.items() if key in want)
    return float(different)


def check_encoders(checks: Checks, parts: Parts, segments: Segments, clips: Mapping[int, Views]) -> Segments:
    """Compare what ViT and VAE make of a case's clips.

    Args:
        checks: Of the case.
        parts: The model.
        segments: The request, its media as clips.
        clips: What was shown of each medium, in the order of the request.

    Returns:
        The request in model space, with the golden features and latents where the file has them, so that the language
        model is tested alone.
    """
    file, found = checks.file, dict[bytes, Tensor]()
    seen = {view.seen.key: view.seen for view in clips.values() if view.seen is not None}
    if seen:
        with checks.part("vit.embed"):
            ours = parts.features(list(seen.values()))
            checks.near("vit.embed", torch.cat([x.flatten(0, 2) for x in ours]), DEEP)
            given = file.get("vit.embed")
            if given is not None:
                flat = given.split([x.shape[:3].numel() for x in ours])
                ours = [rows.reshape(x.shape) for rows, x in zip(flat, ours, strict=True)]
            found |= zip(seen, ours, strict=True)
    kept = dict[bytes, Tensor]()
    for k, (i, view) in enumerate(clips.items()):
        if view.kept is not None:
            with checks.part(f"cond.latent{k}"):
                kept[view.kept.key] = _latents(checks, parts, view.kept, k, medium=i)

    return in_model_space(segments, found, kept)


def in_model_space(segments: Segments, cells: Mapping[bytes, Tensor], latents: Mapping[bytes, Tensor]) -> Segments:
    """Segments whose clips are replaced by given features (T, Y, X, D) and latents (T, Y, X, C), by the clips' keys."""

    def made(kind: Kind, value: Any) -> Any:
        return (cells if kind is Kind.PATCHES else latents)[value.key] if isinstance(value, Clip) else value

    return [replace(s, value=made(s.kind, s.value), given=made(s.kind, s.given)) for s in segments]


def _latents(checks: Checks, parts: Parts, clip: Clip, number: int, medium: int) -> Tensor:
    """Clean latents of one condition: sampled with the stored noise, or those of a first frame."""
    file = checks.file
    mean, logvar = parts.moments(clip)
    first = f"cond.latent{number}_first_frame"
    if first in file:
        checks.near("cond.first_frame_mu", mean, CODEC)
        checks.near("cond.first_frame_logvar", logvar, CODEC)
        eps, name = file.get("cond.first_frame_eps"), first
    else:
        eps, name = file.get(f"cond.eps{number}"), f"cond.latent{number}"
    if eps is not None:
        checks.near(name, sample(mean, logvar, eps), CODEC)
    given = file.get(name)
    return mean if given is None else given
