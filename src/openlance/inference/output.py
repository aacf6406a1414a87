"""What a call in diffusers' manner gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openlance.media.clip import Clip
from openlance.sequence import tasks

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass
class LanceOutput:
    """What a call made, in `images` or, where it is clips, in `frames`; the other one is None.

    "pil": pictures, or a list of pictures per clip. "np" and "pt": float32 in [0, 1], (B, H, W, 3) and (B, 3, H, W);
    of clips (B, T, H, W, 3) and (B, T, 3, H, W). "latent": (B, C, T, Y, X).
    """

    images: Any = None
    frames: Any = None


def _pictures(clips: list[Clip], makes: str) -> list[Any]:
    from PIL import Image

    frames = [[Image.fromarray(frame) for frame in clip.pixels] for clip in clips]
    return frames if makes == tasks.kind_of(2) else [pictures[0] for pictures in frames]


def _array(clips: list[Clip], makes: str) -> np.ndarray:
    found = np.stack([clip.pixels for clip in clips]).astype(np.float32) / 255
    return found if makes == tasks.kind_of(2) else found[:, 0]


def _tensor(clips: list[Clip], makes: str) -> Tensor:
    return torch.from_numpy(_array(clips, makes)).movedim(-1, -3)


OUTPUT: dict[str, Callable[[list[Clip], str], Any]] = {"pil": _pictures, "np": _array, "pt": _tensor}
