"""What learns from rewarded results: objectives behind one interface, for those that follow the trajectory of a rollout
(GRPO) and for those that only need its result (DiffusionNFT, AWM, fine-tuning).

    objective = OBJECTIVES["nft"](beta=0.5)
    scored = objective.select(rewards, groups, generator)          # which results, how much each counts
    asks = [a for n, adv in zip(scored.kept, scored.advantages) for a in objective.asks(results[n], adv, generator)]
    loss = objective.loss(asks, {"new": v, "old": v_old})          # velocities (rows, C) at the asks, one after another
    loss.per_ask.mean().backward()

An ask is a state and its time at which a velocity is wanted; every result has equally many, so that they share its
context as noise samples of one target (`draws` of `sequence.pack`). A loss is one number per ask, of which an update
takes the mean, however the asks are dealt to packs and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from openlance.config.values import one_of, within
from openlance.errors import UserError
from openlance.flow import add_noise, schedule
from openlance.flow.stochastic import Moments
from openlance.rl.advantages import NONE, Advantages, Best, Everything, Scored, Selection
from openlance.rl.results import Ask, Result, Together, Transition, together


@dataclass(frozen=True, eq=False)
class Loss:
    """Of some asks.

    Args:
        per_ask: (B,) with gradients.
        statistics: Means over the asks.
    """

    per_ask: Tensor
    statistics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Times:
    """Where on the way from noise to the result its velocity is compared: some times of a schedule, drawn without
    repetition while there are others left.

    Args:
        steps: Of the schedule.
        shift: Of the schedule.
        skip: Times at its noisy end that are left out; at t = 1 the state says nothing about the result.
        among: Times after these that are drawn from.
        draws: How many each result has.
    """

    steps: int = 10
    shift: float = 2.0
    skip: int = 1
    among: int = 4
    draws: int = 4

    def __post_init__(self) -> None:
        if self.draws < 1 or self.among < 1 or not 0 <= self.skip <= self.steps - self.among:
            fits = f"{self.skip} skipped and {self.among} drawn from, of a schedule of {self.steps} steps"
            raise UserError(f"there are not enough times: {fits}, for {self.draws} draws")

    def draw(self, generator: torch.Generator) -> list[float]:
        """Return the times of one result, falling."""
        grid = schedule(self.steps, self.shift).double()[self.skip : self.skip + self.among].tolist()
        rounds = [torch.randperm(self.among, generator=generator) for _ in range(-(-self.draws // self.among))]
        return sorted((grid[int(n)] for n in torch.cat(rounds)[: self.draws]), reverse=True)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The interface.

    Args:
        selection: From rewards to the results that are learned from, and their advantages.
        square: Weight of the mean square between the new velocity and that of the reference, the weights at the start
            of training (UniGRPO, arXiv 2603.23500: firmer against reward hacking than the KL).
    """

    selection: Selection
    square: float = 0.0

    # Of a kind, not settings, so they have no annotations.
    samples = True  # learns from results of the model; otherwise from the targets of the data
    trajectories = False  # needs the transitions of rollouts

    def __post_init__(self) -> None:
        within("square", self.square, 0)

    @property
    def needs(self) -> frozenset[str]:
        """Weights, beside the `new` ones, whose velocities `loss` reads: `old`, those that drew the results;
        `reference`, those at the start of training; `average`, a moving average of the new ones."""
        return frozenset({"reference"} if self.square else ())

    def keeps(self, weights: str, step: int) -> float:
        """Return the share of themselves that `old` weights keep after a round, or `average` ones after an update; the
        rest is that of the new ones.

        Args:
            weights: The name in `needs`.
            step: Rounds or updates so far.
        """
        return 0.0

    def select(
        self, rewards: Mapping[str, Tensor], groups_R: Tensor, generator: torch.Generator | None = None,
        shares: Mapping[str, Tensor] = NONE,
    ) -> Scored:  # fmt: skip
        """Choose the results that are learned from; see `advantages.Selection`."""
        return self.selection(rewards, groups_R, generator, shares)

    def asks(self, result: Result, advantage: float, generator: torch.Generator) -> list[Ask]:
        """Return the states at which velocities are wanted, as many for every result.

        Args:
            result: From a rollout, or of the data.
            advantage: Of it.
            generator: Of times and noise. Generators of one seed give the results of one group the same.
        """
        raise NotImplementedError

    def loss(self, asks: Sequence[Ask], velocities: Mapping[str, Tensor]) -> Loss:
        """Compute the loss of some asks.

        Args:
            asks: At least one.
            velocities: (rows, C) at the states of all asks, one after another: of the `new` weights, and of those in
                `needs`.

        Returns:
            One loss per ask, of which the mean is to be taken, and statistics.

        Raises:
            ValueError: If velocities are missing.
        """
        if missing := sorted({"new", *self.needs} - velocities.keys()):
            raise ValueError(f"velocities of the weights {', '.join(missing)} are missing")
        losses, places, noted = list[Tensor](), list[Tensor](), list[dict[str, Tensor]]()
        for some in together(asks, velocities["new"].device):
            v = {name: values[some.rows].float() for name, values in velocities.items()}
            v |= {name: values.detach() for name, values in v.items() if name != "new"}
            loss, notes = self._loss(some, v)
            if self.square:
                notes["square"] = some.mean((v["new"] - v["reference"]).square())
                loss = loss + self.square * notes["square"]
            losses.append(loss)
            places.append(some.numbers)
            noted.append(_distances(some, v) | notes | {"loss": loss})
        statistics = {name: float(torch.cat([n[name].detach() for n in noted]).mean()) for name in noted[0]}
        return Loss(torch.cat(losses)[torch.cat(places).argsort()], statistics)

    def _loss(self, some: Together, v: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the losses (B,) of some asks, and what is noted of each, from velocities (M, C)."""
        raise NotImplementedError


def above_zero(**values: float) -> None:
    """Check that settings are above 0; UserError that names the first that is not."""
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name} must be more than 0, got {value}", param=name)


def trust(statistics: Mapping[str, float]) -> float:
    """Return how far the new velocities are from the old ones, mean |v - v_old|^2, as a share of mean |target -
    v_old|^2. A mean of statistics over packs gives that of them together."""
    return statistics["moved"] / statistics["error"]


def _distances(some: Together, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `trust` reads. The old velocity of a rollout's step follows from its mean."""
    old = v.get("old")
    if old is None and some.step is not None:
        state, velocity, _ = some.step.kind.coefficients(some.step.t, some.step.t_next)
        old = (some.step.mean - state * some.step.x) / velocity
    if old is None:
        return {}
    moved, error = v["new"].detach() - old, some.target - old
    return {"moved": some.mean(moved.square()), "error": some.mean(error.square())}


def _clipped(ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's loss of ratios (B,)."""
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    off = (ratio - 1).abs()
    return loss, {"ratio": ratio, "off": off, "clipped": (off > clip).float()}


@dataclass(frozen=True, kw_only=True)
class GRPO(Objective):
    """Flow-GRPO (Liu et al., 2025, arXiv 2505.05470): the clipped ratio of the probabilities of each stochastic step.

    Args:
        selection: As in the code: over the deviation of the whole round.
        clip: How far a ratio may be from 1. Log-probabilities are means over latent values, so ratios are within about
            1e-4 of 1; 1e-5 where few steps are stochastic (Flow-GRPO-Fast).
        kl: Weight of the divergence from the reference.
    """

    selection: Advantages = field(default_factory=lambda: Advantages(scale="round"))
    clip: float = 1e-4
    kl: float = 0.0

    trajectories = True

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(clip=self.clip)
        within("kl", self.kl, 0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | frozenset({"reference"} if self.kl else ())

    def asks(self, result: Result, advantage: float, generator: torch.Generator) -> list[Ask]:
        """Return the states before the result's stochastic steps."""
        if not result.transitions:
            raise ValueError("this result has no stochastic steps: draw it with a window of them")
        return [
            Ask(result=result, advantage=float(advantage), x=step.x, t=step.t, transition=step)
            for step in result.transitions
        ]

    def _loss(self, some: Together, v: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        step = some.step
        assert step is not None
        moments = step.kind.moments(step.x, v["new"], step.t, step.t_next)
        loss, notes = self._policy(some, step, moments)
        if self.kl:
            # (mean - mean_ref)^2 / (2 g^2) with g the noise per root of time: the divergence of the two distributions
            # times the length of the step, as in the code.
            reference = step.kind.moments(step.x, v["reference"], step.t, step.t_next)
            squares = some.mean((moments.mean - reference.mean).square())
            notes["kl"] = squares * (step.t - step.t_next) / (2 * moments.std**2)
            loss = loss + self.kl * notes["kl"]
        return loss, notes

    def _policy(self, some: Together, step: Transition, moments: Moments) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob = step.kind.log_prob(step.x_next, moments, some.lengths)
        return _clipped((log_prob - step.log_prob).exp(), some.advantage, self.clip)


@dataclass(frozen=True, kw_only=True)
class GRPOGuard(GRPO):
    """GRPO with normalized ratios (GRPO-Guard, Wang et al., 2025, arXiv 2510.22319), which have the mean 1 and the same
    spread at every step, so that the clip acts on both sides and at all times.

    The paper's exponent, the difference of the log-probabilities plus mean (m - m_old)^2 / (2 std^2), times std, is
    mean z (m - m_old) with the noise z that was drawn, and is computed so. The loss is divided by the length of the
    step.
    """

    def _policy(self, some: Together, step: Transition, moments: Moments) -> tuple[Tensor, dict[str, Tensor]]:
        noise = (step.x_next - step.mean) / moments.std
        exponent = some.mean(noise * (moments.mean - step.mean))
        loss, notes = _clipped(exponent.exp(), some.advantage, self.clip)
        return loss / (step.t - step.t_next), notes


@dataclass(frozen=True, kw_only=True)
class Forward(Objective):
    """Objectives that noise the results afresh, so that any sampler may have drawn them.

    Args:
        times: Where.
    """

    times: Times = field(default_factory=Times)

    def asks(self, result: Result, advantage: float, generator: torch.Generator) -> list[Ask]:
        """Return the result with fresh noise at the drawn times."""
        found = list[Ask]()
        clean = result.clean.float()
        for t in self.times.draw(generator):
            noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device)
            ask = Ask(result=result, advantage=float(advantage), x=clean, t=t)
            found.append(replace(ask, x=add_noise(clean, noise, ask.times)))
        return found


@dataclass(frozen=True, kw_only=True)
class NFT(Forward):
    """DiffusionNFT (Zheng et al., 2025, arXiv 2509.16117, and its code): the new velocity is mixed with the old one
    into a positive and a negative policy, (1 - beta) v_old + beta v and (1 + beta) v_old - beta v. The first is matched
    to the result with the weight rho = (1 + A / `most`) / 2, the second with 1 - rho, all times `most` / beta.

    Both squares together are beta^2 |v - target|^2 plus what does not depend on v, with the target v_old +
    (2 rho - 1) / beta (noise - clean - v_old): a pull towards good results and away from bad ones, and one back to the
    old velocity.

    Args:
        selection: As in the code: over the deviation of the whole round.
        square: 1e-4 in the code.
        beta: How much of the new velocity is in the mixtures; a small one moves farther and is less stable.
        most: The advantage at which a result is wholly good; larger ones are clipped to it.
        adaptive: Compare the clean latents that velocities imply, and divide each square by its own mean absolute
            error, which has no gradient. Otherwise velocities are compared as they are.
        eta: Rate, start and most of the share of themselves that old weights keep: min(rate * (step - start), most).
    """

    selection: Advantages = field(default_factory=lambda: Advantages(scale="round"))
    square: float = 1e-4
    beta: float = 1.0
    most: float = 5.0
    adaptive: bool = True
    eta: tuple[float, int, float] = (0.001, 0, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(beta=self.beta, most=self.most)
        within("eta.2", self.eta[2], 0, 1)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"old"}

    def keeps(self, weights: str, step: int) -> float:
        rate, start, most = self.eta
        return min(rate * max(step - start, 0), most) if weights == "old" else 0.0

    def _loss(self, some: Together, v: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        rho = (1 + (some.advantage / self.most).clamp(-1, 1)) / 2
        towards = self.beta * (v["new"] - v["old"])
        good, bad = self._error(some, v["old"] + towards), self._error(some, v["old"] - towards)
        return (rho * good + (1 - rho) * bad) * self.most / self.beta, {"good": good, "bad": bad}

    def _error(self, some: Together, velocity_MC: Tensor) -> Tensor:
        off = velocity_MC - some.target
        if not self.adaptive:
            return some.mean(off.square())
        scale = (some.t * some.mean(off.detach().abs())).clamp(min=1e-5)
        return some.t**2 * some.mean(off.square()) / scale


WEIGHTINGS = {
    "none": lambda loss, t: loss,
    "t": lambda loss, t: t * loss,
    "ghuber": lambda loss, t: t * ((loss + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25,
}


@dataclass(frozen=True, kw_only=True)
class AWM(Forward):
    """Advantage Weighted Matching (Xue et al., 2025, arXiv 2509.25050, and its code): the flow loss of a result takes
    the place of its negative log-probability in PPO's ratio.

    Args:
        selection: As in the code: over the deviation of the whole round.
        square: 1e-3 in the code (3e-3 for texts).
        clip: How far the ratio may be from 1; 1 in the code.
        most: Advantages are clipped to +-`most`.
        weighting: Of the loss by its time: none, t, or `ghuber`, (t / p) (loss^p - 0^p) with p = 1/4.
        pull: Weight of the mean square to the velocity of the moving average. Without it and the clip training
            collapses.
        average: Rate and most of the share of itself that the average keeps: min(rate * step, most).
    """

    selection: Advantages = field(default_factory=lambda: Advantages(scale="round"))
    square: float = 1e-3
    clip: float = 1.0
    most: float = 1.0
    weighting: str = "ghuber"
    pull: float = 1.0
    average: tuple[float, float] = (0.001, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("weighting", self.weighting, WEIGHTINGS)
        above_zero(clip=self.clip, most=self.most)
        within("pull", self.pull, 0)
        within("average.1", self.average[1], 0, 1)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"old"} | ({"average"} if self.pull else set())

    def keeps(self, weights: str, step: int) -> float:
        rate, most = self.average
        return min(rate * step, most) if weights == "average" else 0.0

    def _loss(self, some: Together, v: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weigh = WEIGHTINGS[self.weighting]
        new, old = (weigh(some.mean((v[name] - some.target).square()), some.t) for name in ("new", "old"))
        loss, notes = _clipped((old - new).exp(), some.advantage.clamp(-self.most, self.most), self.clip)
        if self.pull:
            notes["pull"] = some.mean((v["new"] - v["average"]).square())
            loss = loss + self.pull * notes["pull"]
        return loss, notes


@dataclass(frozen=True, kw_only=True)
class FlowLoss(Forward):
    """The loss of plain training, times the advantage."""

    def _loss(self, some: Together, v: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        flow = some.mean((v["new"] - some.target).square())
        return some.advantage * flow, {"flow": flow}


@dataclass(frozen=True, kw_only=True)
class SFT(FlowLoss):
    """Fine-tuning on the data's own targets of the same requests, at the same times."""

    selection: Everything = field(default_factory=Everything)

    samples = False


@dataclass(frozen=True, kw_only=True)
class BestOfN(FlowLoss):
    """Fine-tuning on the best results of the model's own, of groups that have worse ones too."""

    selection: Best = field(default_factory=Best)


OBJECTIVES: dict[str, type[Objective]] = {
    "grpo": GRPO, "grpo-guard": GRPOGuard, "nft": NFT, "awm": AWM, "sft": SFT, "best-of-n": BestOfN,
}  # fmt: skip
