"""Means with intervals, in which the samples of one prompt count as one draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FLIPS = 20_000  # of signs, where not all can be tried
TRIED = 14  # differences at most of which all signs are tried
Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval.

    Args:
        value: The mean.
        low: Of the interval.
        high: Of the interval.
        n: Values that it is of.
    """

    value: float
    low: float
    high: float
    n: int

    def scaled(self, by: float) -> Estimate:
        """The same in other units, percent for example."""
        return Estimate(value=self.value * by, low=self.low * by, high=self.high * by, n=self.n)

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def mean(clusters: Iterable[Sequence[float]], bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Average all values.

    The variance is that of a ratio of sums over clusters (Cochran, Sampling Techniques, section 6.3), the interval
    Wilson's (1927) with as many independent draws as give this variance, so that it stays honest at both ends.

    Args:
        clusters: Values that belong together, such as those of one prompt's samples.
        bounds: Least and greatest value that there can be.
    """
    found = [list(cluster) for cluster in clusters if cluster]
    n = sum(map(len, found))
    if not n:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)
    value = math.fsum(map(math.fsum, found)) / n
    return _interval(value, _variance(found, value, n), len(found), n, bounds)


def macro(groups: Mapping[str, Iterable[Sequence[float]]], bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Average the means of groups, each group alike however large it is.

    Args:
        groups: Clusters of values by group, as in `mean`.
        bounds: Least and greatest value that there can be.
    """
    kept = [[list(cluster) for cluster in clusters if cluster] for clusters in groups.values()]
    sizes = [sum(map(len, clusters)) for clusters in kept]
    if not kept or not all(sizes):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=sum(sizes))
    means = [math.fsum(map(math.fsum, clusters)) / size for clusters, size in zip(kept, sizes)]
    variance = sum(_variance(*one) for one in zip(kept, means, sizes)) / len(kept) ** 2
    value = math.fsum(means) / len(means)
    return _interval(value, variance, sum(map(len, kept)), sum(sizes), bounds)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a second run has more than a first one, on the items of both.

    Args:
        value: Mean of the second less that of the first.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        p: Chance of a difference as large if the runs were alike.
        n: Items of both.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def paired(first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]) -> Difference:
    """Compare two runs item by item, the groups alike.

    The p value is that of Fisher's randomization test (The Design of Experiments, section 21): how many ways to
    swap the runs of each item give as large a difference. The interval is normal.

    Args:
        first: Means of items, by group and item.
        second: Of the other run; items that one of them lacks are left out.
    """
    import numpy as np

    groups = {g: [second[g][key] - own[key] for key in own if key in second.get(g, {})] for g, own in first.items()}
    kept = [each for each in groups.values() if each]
    n = sum(map(len, kept))
    if not n:
        return Difference(value=math.nan, low=math.nan, high=math.nan, p=math.nan, n=0)
    value = math.fsum(math.fsum(each) / len(each) for each in kept) / len(kept)
    spread = math.sqrt(sum(_variance([[d] for d in each], math.fsum(each) / len(each), len(each)) for each in kept))
    spread /= len(kept)
    shares = np.array([d / len(each) / len(kept) for each in kept for d in each if d])
    if len(shares) <= TRIED:
        signs = 1 - 2 * (np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares)) & 1)
        seen, more = signs @ shares, 0
    else:
        rng, blocks = np.random.default_rng(0), 20
        ways = (FLIPS // blocks, len(shares))
        seen = np.concatenate([(1 - 2 * rng.integers(0, 2, ways, dtype=np.int8)) @ shares for _ in range(blocks)])
        more = 1  # what was seen itself
    p = (np.count_nonzero(abs(seen) >= abs(value) - 1e-12) + more) / (len(seen) + more)
    return Difference(value=value, low=value - Z95 * spread, high=value + Z95 * spread, p=float(p), n=n)


def _variance(clusters: list[list[float]], value: float, n: int) -> float:
    """Of a mean of clusters; nan where a single one says nothing about it."""
    count = len(clusters)
    if count < 2:
        return math.nan
    return count / (count - 1) * math.fsum((math.fsum(c) - value * len(c)) ** 2 for c in clusters) / n**2


def _interval(value: float, variance: float, clusters: int, n: int, bounds: tuple[float, float]) -> Estimate:
    least, span = bounds[0], bounds[1] - bounds[0]
    p, spread = (value - least) / span, variance / span**2
    draws = p * (1 - p) / spread if spread > 0 and 0 < p < 1 else float(clusters)
    low, high = wilson(p * draws, draws)
    return Estimate(value=value, low=least + low * span, high=least + high * span, n=n)


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    p, z2 = successes / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(max(p * (1 - p), 0.0) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
