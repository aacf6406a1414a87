"""From rewards to the results that are learned from and how much each counts.

    scored = Advantages(weights={"right": 1.0, "kept": 0.5})(rewards, groups, generator)

A group is the results of one request. Rewards come by fact, so that two facts that pull against each other are both
seen; every fact is centered alone, then they are summed with their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from openlance.config.values import one_of, within

if TYPE_CHECKING:
    from openlance.rl.rewards import Score

EPS = 1e-4  # added to a deviation that divides (Flow-GRPO's code)


@dataclass(frozen=True)
class Scored:
    """What is learned from.

    Args:
        kept: (K,) numbers of results, rising.
        advantages: (K,) of these; above 0 is better than expected.
        statistics: Means that a log shows.
    """

    kept: Tensor
    advantages: Tensor
    statistics: dict[str, float]


NONE: Mapping[str, Any] = MappingProxyType({})


class Selection(Protocol):
    def __call__(
        self, rewards: Mapping[str, Tensor], groups_R: Tensor, generator: torch.Generator | None = None,
        shares: Mapping[str, Tensor] = NONE,
    ) -> Scored:  # fmt: skip
        """Choose among results.

        Args:
            rewards: (R,) per fact. A fact that a group does not have is nan for all of its results.
            groups_R: The group of each result, any whole numbers.
            generator: Decides between equals.
            shares: (R,) per fact, how much it counts in the reward of a result, the same in a group; 1 where not named.
        """


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """Rewards minus what is expected.

    Args:
        weights: Of the facts, each centered alone; those that are not named count 1.
        center: What is expected: the mean of the `group`, or of all results of the `round`.
        scale: Deviation that divides, of the `group`, of the `round` (Flow-GRPO's global_std), or `none`. Without one
            a rare success keeps its weight, and groups of nearly equal results stay quiet (Pref-GRPO, arXiv
            2508.20751).
        clip: Largest absolute advantage.
        least: A fact counts in a group only if it spreads there by more than this (largest minus smallest). Groups
            without any such fact are mute, and left out where the group is what is expected.
        keep: So many of the best above the mean of their group and so many of the worst below it are kept, and what is
            expected is the mean of those (Pro-GRPO, arXiv 2512.15347); 0 keeps all.
    """

    weights: dict[str, float] = field(default_factory=dict)
    center: str = "group"
    scale: str = "none"
    clip: float = 5.0
    least: float = 1e-6
    keep: int = 0

    def __post_init__(self) -> None:
        one_of("center", self.center, ("group", "round"))
        one_of("scale", self.scale, ("none", "group", "round"))
        for name in ("clip", "least", "keep"):
            within(name, getattr(self, name), 0)

    def __call__(
        self, rewards: Mapping[str, Tensor], groups_R: Tensor, generator: torch.Generator | None = None,
        shares: Mapping[str, Tensor] = NONE,
    ) -> Scored:  # fmt: skip
        """Return the results of groups that are not mute, with their advantages."""
        facts = Facts.of(rewards, groups_R, self.weights, shares)
        speaks = facts.spread(self.least)
        # Against the mean of the round a group has something to say also where all of its results are equal.
        kept = (speaks if self.center == "group" else torch.ones_like(speaks)).nonzero()[:, 0]
        if self.keep:
            kept = kept[facts.at(kept).extremes(self.keep, self.keep, generator)]
        advantages = self._advantages(facts, kept).clamp(-self.clip, self.clip)
        return Scored(kept, advantages, facts.statistics(speaks))

    def _advantages(self, facts: Facts, kept: Tensor) -> Tensor:
        over = {"group": facts.groups, "round": torch.zeros_like(facts.groups)}
        total = torch.zeros(len(kept))
        for name, values in facts.values.items():
            away = from_mean(values[kept], over[self.center][kept])
            if self.scale != "none":
                away = away / (deviation(values, over[self.scale])[kept] + EPS)
            if self.center == "group":
                away = torch.where(spreads(values, facts.groups, self.least)[kept], away, 0.0)
            total += facts.weights[name][kept] * away
        return total


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best of each group, with an advantage of 1 (best-of-n).

    Args:
        keep: How many of each group.
        weights: See `Advantages`.
        least: See `Advantages`: groups that are mute are left out, those in which all are right too.
    """

    keep: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    least: float = 1e-6

    def __post_init__(self) -> None:
        within("keep", self.keep, 1)
        within("least", self.least, 0)

    def __call__(
        self, rewards: Mapping[str, Tensor], groups_R: Tensor, generator: torch.Generator | None = None,
        shares: Mapping[str, Tensor] = NONE,
    ) -> Scored:  # fmt: skip
        """Return results above the mean of their group, at most `keep` of each."""
        facts = Facts.of(rewards, groups_R, self.weights, shares)
        speaks = facts.spread(self.least)
        kept = speaks.nonzero()[:, 0]
        kept = kept[facts.at(kept).extremes(self.keep, 0, generator)]
        return Scored(kept, torch.ones(len(kept)), facts.statistics(speaks))


@dataclass(frozen=True, kw_only=True)
class Everything:
    """All results, with an advantage of 1: for results that are known to be right."""

    def __call__(
        self, rewards: Mapping[str, Tensor], groups_R: Tensor, generator: torch.Generator | None = None,
        shares: Mapping[str, Tensor] = NONE,
    ) -> Scored:  # fmt: skip
        """Return all of them."""
        count = float(len(groups_R.unique()))
        return Scored(torch.arange(len(groups_R)), torch.ones(len(groups_R)), {"groups": count, "mute": 0.0})


@dataclass(frozen=True)
class Facts:
    """Rewards that are known to be sound.

    Args:
        values: (R,) float32 per fact; nan where a group does not have it.
        groups: (R,) the group of each result, from 0.
        weights: (R,) of every fact, its share in the reward of a result and what an objective says of it.
    """

    values: dict[str, Tensor]
    groups: Tensor
    weights: dict[str, Tensor]

    @classmethod
    def of(
        cls, rewards: Mapping[str, Tensor], groups_R: Tensor, weights: Mapping[str, float] = NONE,
        shares: Mapping[str, Tensor] = NONE,
    ) -> Facts:  # fmt: skip
        """Check them.

        Raises:
            ValueError: If there are none, their number is wrong, one is infinite, or some results of a group lack one.
        """
        groups = groups_R.cpu().unique(return_inverse=True)[1]
        values = {name: v.detach().float().cpu() for name, v in rewards.items()}
        if not values:
            raise ValueError("there are no rewards: pass at least one fact")
        for name, v in values.items():
            if len(v) != len(groups):
                raise ValueError(f"{len(v)} rewards {name} do not fit {len(groups)} results")
            lacking = by_group(v.isnan().float(), groups, "mean")
            if v.isinf().any() or ((lacking > 0) & (lacking < 1)).any():
                raise ValueError(f"some rewards {name} are not finite: leave their groups out")
        ones = torch.ones(len(groups))
        weighed = {name: float(weights.get(name, 1.0)) * shares.get(name, ones).float().cpu() for name in values}
        return cls(values, groups, weighed)

    def at(self, where: Tensor) -> Facts:
        """Those of some results."""
        values, weights = ({name: v[where] for name, v in some.items()} for some in (self.values, self.weights))
        return Facts(values, self.groups[where], weights)

    def spread(self, least: float) -> Tensor:
        """(R,) whether a result is in a group that has a fact of some weight that spreads by more than `least`."""
        weighed = [spreads(v, self.groups, least) & (self.weights[name] != 0) for name, v in self.values.items()]
        return torch.stack(weighed).any(0)

    def extremes(self, best: int, worst: int, generator: torch.Generator | None = None) -> Tensor:
        """Choose the results that are farthest from the mean of their group, all facts in one.

        Args:
            best: At most so many of each group above it.
            worst: Below it.
            generator: Decides between equals.

        Returns:
            Their numbers, rising.
        """
        away = torch.stack([self.weights[name] * from_mean(v, self.groups) for name, v in self.values.items()]).sum(0)
        order, found = torch.randperm(len(away), generator=generator), [torch.zeros(0, dtype=torch.long)]
        for side, most in ((away, best), (-away, worst)):
            ranked = order[side[order].argsort(descending=True, stable=True)]
            ranked = ranked[side[ranked] > 1e-6]
            found += [ranked[self.groups[ranked] == group][:most] for group in self.groups.unique()]
        return torch.cat(found).sort().values

    def statistics(self, speaks: Tensor) -> dict[str, float]:
        """How many groups there are, and the share of mute ones."""
        count, heard = len(self.groups.unique()), len(self.groups[speaks].unique())
        return {"groups": float(count), "mute": 1 - heard / max(count, 1)}


def sound(told: Sequence[tuple[int, Score | None]]) -> list[int]:
    """Return the places of the scores of groups in which every result has one.

    Args:
        told: The group of each result, and its score; None where a reward failed.
    """
    broken = {group for group, score in told if score is None}
    return [n for n, (group, _) in enumerate(told) if group not in broken]


def table_of(told: Sequence[tuple[int, Score | None]]) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Make a table of scores: (R,) per fact, nan where a group does not have it; (R,) the groups; and (R,) per fact how
    much it counts."""
    rows = [score for _, score in told if score is not None]
    names = sorted({name for row in rows for name in row.facts})
    table, shares = (
        {name: torch.tensor([float(getattr(row, said).get(name, other)) for row in rows]) for name in names}
        for said, other in (("facts", float("nan")), ("weights", 0.0))
    )
    return table, torch.tensor([group for group, _ in told]), shares


def mixed(
    rewards: Mapping[str, Tensor], groups_R: Tensor, shares: Mapping[str, Tensor] = NONE, *, least: float = 1e-6
) -> Tensor:
    """Tell (R,) of each result if its group spreads in any fact: of probes, those whose requests deserve more."""
    return Facts.of(rewards, groups_R, shares=shares).spread(least)


def expected_best(values: Sequence[float], k: int) -> float:
    """Estimate the best of k results of a request from n of them, without bias: the mean over all choices of k among n.

    Where rewards are 0 or 1 this is pass@k, 1 - C(n - c, k) / C(n, k) with c right ones (Chen et al., 2021, arXiv
    2107.03374, equation 1).

    Args:
        values: (n,) rewards.
        k: From 1 to n.
    """
    n = len(values)
    # The i-th smallest is the best of those choices that take the other k - 1 from the i - 1 below it.
    return math.fsum(math.comb(i, k - 1) * value for i, value in enumerate(sorted(values))) / math.comb(n, k)


def shuffled(rewards: Mapping[str, Tensor], groups_R: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Deal the rewards of each group anew to its results, all facts of one together: nothing can be learned from them,
    so a run with them shows what noise does."""
    order = torch.randperm(len(groups_R), generator=generator)
    dealt = torch.empty_like(order)
    dealt[groups_R.cpu().argsort(stable=True)] = order[groups_R.cpu()[order].argsort(stable=True)]
    return {name: values[dealt] for name, values in rewards.items()}


def by_group(values_R: Tensor, groups: Tensor, reduce: str) -> Tensor:
    """Return for each result (R,) the `mean`, `amax` or `amin` of its group; groups are numbered from 0."""
    count = int(groups.max()) + 1 if len(groups) else 0
    return torch.zeros(count).scatter_reduce(0, groups, values_R, reduce, include_self=False)[groups]


def spreads(values_R: Tensor, groups: Tensor, least: float) -> Tensor:
    """Tell (R,) if the group of a result has values that differ by more than `least`; it has not where it has none."""
    return by_group(values_R, groups, "amax") - by_group(values_R, groups, "amin") > least


def from_mean(values_R: Tensor, groups: Tensor) -> Tensor:
    """Return values (R,) minus the mean of their group, 0 where there is no value."""
    there = ~values_R.isnan()
    known, share = torch.where(there, values_R, 0.0), by_group(there.float(), groups, "mean")
    return torch.where(there, known - by_group(known, groups, "mean") / share, 0.0)


def deviation(values_R: Tensor, groups: Tensor) -> Tensor:
    """Return the standard deviation (of the population) in the group of each result, 0 where there are no values."""
    share = by_group((~values_R.isnan()).float(), groups, "mean")
    return (by_group(from_mean(values_R, groups).square(), groups, "mean") / share.clamp(min=1e-12)).sqrt()
