"""What a call in diffusers' manner gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openlance.config.values import brief
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.sequence import tasks

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass
class LanceOutput:
    """What a call made, in `images` or, where it is clips, in `frames`; the other one is None.

    "pil": pictures, or a list of pictures per clip. "np" and "pt": float32 in [0, 1], (B, H, W, 3) and (B, 3, H, W);
    of clips (B, T, H, W, 3) and (B, T, 3, H, W). "latent": (B, C, T, Y, X). It has the manners of diffusers' outputs,
    without the seconds that it takes to import them.
    """

    images: Any = None
    frames: Any = None

    def to_tuple(self) -> tuple[Any, ...]:
        """What was made, as the only element."""
        return tuple(value for value in (self.images, self.frames) if value is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        """By name, or as in `to_tuple`."""
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.to_tuple())

    def keys(self) -> list[str]:
        """Names of what was made."""
        return [name for name, _ in self.items()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of what was made."""
        return [(name, value) for name, value in vars(self).items() if value is not None]


def _pictures(clips: list[Clip], makes: str) -> list[Any]:
    frames = [clip.images() for clip in clips]
    return frames if makes == tasks.kind_of(2) else [pictures[0] for pictures in frames]


def _array(clips: list[Clip], makes: str) -> np.ndarray:
    found = np.stack([clip.pixels for clip in clips]).astype(np.float32) / 255
    return found if makes == tasks.kind_of(2) else found[:, 0]


def _tensor(clips: list[Clip], makes: str) -> Tensor:
    return torch.from_numpy(_array(clips, makes)).movedim(-1, -3)


def check_output(output_type: Any, sizes: Sequence[Any]) -> None:
    """UserError unless it is a form of output, and one that results of these sizes can have together."""
    if not isinstance(output_type, str) or output_type not in OUTPUTS:
        raise UserError(f"output_type {brief(output_type)} is unknown: use one of {', '.join(OUTPUTS)}")
    if output_type != OUTPUTS[0] and len(set(sizes)) > 1:
        raise UserError('results of several sizes do not stack: use output_type="pil", or give height and width')


OUTPUT: dict[str, Callable[[list[Clip], str], Any]] = {"pil": _pictures, "np": _array, "pt": _tensor}
