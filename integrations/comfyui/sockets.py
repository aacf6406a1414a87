"""What ComfyUI's sockets and widgets hold, in openlance's terms."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from comfy_api.latest import InputImpl, Types, io

from openlance.config.sampling import CHOICES, RANGES, STRONGEST, Sampling
from openlance.config.values import hints
from openlance.errors import UserError
from openlance.media.inputs import as_clip

Model = io.Custom("OPENLANCE_MODEL")  # a pipeline
Settings = io.Custom("OPENLANCE_SETTINGS")  # fields of `Sampling` that are not the checkpoint's own

OWN, OWN_NUMBER = "model's own", -1  # a choice, and a number below every range
INTERVAL = ("interval_from", "interval_to")


def media_in(value: Any) -> list[Any]:
    """List what a socket holds: each image (H, W, C) of an IMAGE (B, H, W, C), or the one clip of a VIDEO. Values that
    lie outside of 0 to 1, as those of some filters do, are cut off where ComfyUI cuts them off when it saves."""
    if isinstance(value, torch.Tensor):
        return list(value.clamp(0, 1))
    parts = value.get_components()
    return [replace(as_clip(parts.images.clamp(0, 1), "the video"), fps=float(parts.frame_rate))]


def groups(*sockets: Any) -> list[tuple[Any, ...]]:
    """Put the media of several sockets side by side, one group for each of a batch; what is single goes with all.

    Raises:
        UserError: If there are different numbers of them.
    """
    batches = [media_in(value) for value in sockets if value is not None]
    most = max(len(batch) for batch in batches)
    if any(len(batch) not in (1, most) for batch in batches):
        sizes = " and ".join(str(len(batch)) for batch in batches)
        raise UserError(f"batches of {sizes} images do not pair up: give as many in each, or a single one")
    return [tuple(batch[k % len(batch)] for batch in batches) for k in range(most)]


def image_of(images: Sequence[Any]) -> torch.Tensor:
    """Make an IMAGE of images of one size."""
    return _levels(np.stack([as_clip(image).pixels[0] for image in images]))


def video_of(made: Any) -> Any:
    """Make a VIDEO of a clip, or of an image, which is one frame."""
    clip = as_clip(made)
    parts = Types.VideoComponents(images=_levels(clip.pixels), frame_rate=Fraction(clip.fps))
    return InputImpl.VideoFromComponents(parts)


def _levels(pixels: np.ndarray) -> torch.Tensor:
    """float32 from 0 to 1, of which ComfyUI makes the same bytes again."""
    return torch.from_numpy(pixels).float() / 255


def widget(group: type, name: str, default: Any) -> Any:
    """Make the widget of a field of `Sampling` or `Decoding`, with its range and what its class says of it."""
    tip, kind = _words(group).get(name), hints(group)[name]
    if kind is bool or name in CHOICES:
        options = [default, *CHOICES.get(name, ("on", "off"))]
        return io.Combo.Input(name, options=options, default=default, tooltip=tip)
    least, most, _ = RANGES[name]
    ends = {"min": min(least, default), "max": STRONGEST if most is None else most}
    if kind is int:
        return io.Int.Input(name, default=default, tooltip=tip, **ends)
    return io.Float.Input(name, default=default, step=0.01, tooltip=tip, **ends)


def settings_widgets() -> list[Any]:
    """Make a widget for every field of `Sampling`; each begins as the model's own."""
    made = []
    for name, kind in hints(Sampling).items():
        if name == "interval":
            ends = {"default": OWN_NUMBER, "min": OWN_NUMBER, "max": 1, "step": 0.01}
            made += [io.Float.Input(end, tooltip=_words(Sampling)[name], **ends) for end in INTERVAL]
        else:
            made.append(widget(Sampling, name, OWN if kind is bool or name in CHOICES else OWN_NUMBER))
    return made


def settings_said(values: dict[str, Any]) -> dict[str, Any]:
    """Pick what is not the model's own. UserError for what `Sampling` refuses."""
    said = {name: value for name, value in values.items() if value not in (OWN, OWN_NUMBER)}
    if ends := [said.pop(end) for end in INTERVAL if end in said]:
        said["interval"] = tuple(ends)
    Sampling(**said)
    return said


def _words(group: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field."""
    found = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", inspect.getdoc(group) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
