"""Which task comes next: a pure function of (seed, index), so that it needs no state and knows no ranks.

    mixture = Mixture(stage.mixture, stage.seed)
    mixture.task(17)                                # the task of the 18th sample of the whole run

Ratios count samples, not tokens (paper). Process r of n draws the samples r, r + n, r + 2n, ...: the run as a whole
sees the same sequence however many there are, and a resumed run goes on at the index where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from openlance.errors import UserError
from openlance.sequence.tasks import spec_of

# Samples are drawn in blocks of so many: inside a block every task has its share up to one sample, in random order.
BLOCK = 256
SALT = 0x6D6978  # keeps these draws apart from others of the same seed


class Mixture:
    """Tasks by weight. Weights need not add up to one; a task of weight 0 never comes."""

    def __init__(self, weights: Mapping[str, float], seed: int = 0) -> None:
        for task in weights:
            spec_of(task)
        total = float(sum(weights.values()))
        if not weights or min(weights.values()) < 0 or not 0 < total < float("inf"):
            raise UserError(f"the mixture {dict(weights)} cannot be drawn from: give one task a weight above 0")
        self.seed = seed
        self.shares = {task: weight / total for task, weight in weights.items() if weight}
        self._names = list(self.shares)
        self._ends = np.cumsum(list(self.shares.values()))
        self._block = lru_cache(maxsize=16)(self._draw)

    def _draw(self, number: int) -> np.ndarray:
        """Task numbers of a block: one point in each of BLOCK equal strips of [0, 1), in random order. Points drawn
        freely would miss the shares by a percentage point in every twentieth run of 10,000 samples."""
        rng = np.random.default_rng((SALT, self.seed, number))
        points = (rng.permutation(BLOCK) + rng.random(BLOCK)) / BLOCK
        return np.minimum(np.searchsorted(self._ends, points, side="right"), len(self._names) - 1)

    def task(self, index: int) -> str:
        """Return the task of a sample, counted from 0 over the whole run."""
        return self._names[self._block(index // BLOCK)[index % BLOCK]]
