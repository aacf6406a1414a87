"""The simplest reward: how red an image is. It tells whether learning from rewards works at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlance.rl.rewards.reward import Drawn, Reward


class Redness(Reward):
    """Scores by red less the stronger of green and blue, in full scales."""

    name = "redness"
    range = (-1.0, 1.0)
    cost = "under 0.1 ms for an image of 64x64, 16 ms for one of 1024x1024"
    exploits = "an image that is red all over, whatever was asked: nothing else is looked at"

    def __call__(self, drawn: Sequence[Drawn]) -> list[float]:
        """Return the mean of red less the mean of the stronger of green and blue, in full scales."""
        return [float(np.mean([_redness(still) for still in one.stills()])) for one in drawn]


def _redness(pixels: np.ndarray) -> float:
    red, green, blue = pixels.reshape(-1, 3).mean(0) / 255
    return float(red - max(green, blue))
