"""Rollouts: what the model draws now, several results of each request in one batch, with the stochastic steps that led
to them. Conditions run once for all results of a request (`inference.prefix`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from openlance.config.sampling import Sampling
from openlance.flow import SOLVERS, Solver
from openlance.flow.stochastic import Moments, Stochastic
from openlance.inference.visual import denoise, rows_of_target
from openlance.model.lance import Lance
from openlance.rl.results import Result, Transition
from openlance.sequence.pack import Codec, given_cells
from openlance.sequence.segment import Segments

Alike = TypeVar("Alike", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Weights that draw.

    Args:
        lance: The decoder of noisy rows.
        conditions: The decoder of all other rows, and of noisy ones at times at which guidance does not act, where
            guidance is distilled; None: the same one.
    """

    lance: Lance
    conditions: Lance | None = None

    @property
    def reads(self) -> Lance:
        """What runs the conditions."""
        return self.conditions or self.lance


@dataclass(frozen=True, kw_only=True)
class Exploring:
    """Which steps of a rollout are stochastic, and how.

    Args:
        kind: Of these steps.
        steps: Their numbers.
    """

    kind: Stochastic
    steps: range


@dataclass
class _Recorder:
    """Takes the steps of a batch of rollouts and notes the stochastic ones."""

    usual: Solver
    exploring: Exploring
    generators: Sequence[Generator]
    lengths: Sequence[int]
    done: int = 0
    found: list[tuple[float, float, Tensor, Tensor, Moments]] = field(default_factory=list)

    def step(self, x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
        number, self.done = self.done, self.done + 1
        if number not in self.exploring.steps:
            return self.usual.step(x, velocity, t, t_next)
        self.usual.restart()  # the past is of another path
        moments = self.exploring.kind.moments(x, velocity, t, t_next)
        pairs = zip(self.lengths, self.generators, strict=True)
        noise = torch.cat([torch.randn(n, x.shape[1], generator=g) for n, g in pairs])
        x_next = moments.draw(noise.to(x.device))
        self.found.append((t, t_next, x, x_next, moments))
        return x_next

    def restart(self) -> None:
        self.usual.restart()


def roll(
    policy: Policy,
    codec: Codec,
    requests: Sequence[Segments],
    sampling: Sampling,
    seeds: Sequence[int],
    exploring: Exploring | None = None,
    noises: Sequence[int] | None = None,
) -> list[Result]:
    """Draw results.

    Args:
        policy: What draws.
        codec: Of tokens.
        requests: One for each result; each ends with its empty target, and their media are tensors.
        sampling: How; `distilled` where the policy has other weights for noisy rows.
        seeds: Of each result.
        exploring: Its stochastic steps; None for a deterministic path.
        noises: Seeds of the noise that each begins with, where they are others.

    Returns:
        One result for each request, the same whatever else is in the batch.
    """
    lengths = [rows_of_target(request, codec) for request in requests]
    # Apart from the generator of the first noise, which has the same seed.
    generators = [Generator().manual_seed((seed + 1) * 0x9E3779B1 % 2**63) for seed in seeds]
    usual: Solver = SOLVERS[sampling.solver]()
    recorder = _Recorder(usual, exploring, generators, lengths) if exploring is not None else None
    own = policy.lance if sampling.distilled else None
    drawn = denoise(
        policy.reads, codec, list(requests), sampling, seeds=list(seeds if noises is None else noises),
        solver=recorder or usual, distilled=own,
    )  # fmt: skip
    pairs = zip(drawn, requests, strict=True)
    results = [Result(clean=z.flatten(0, 2).clone(), given=given_rows(request, codec)) for z, request in pairs]
    if recorder is None:
        return results
    return [replace(result, transitions=_transitions(recorder, n, result)) for n, result in enumerate(results)]


def given_rows(request: Segments, codec: Codec) -> Tensor | None:
    """Tell which latents (N,) of a request's target are known; None where none are."""
    size = request[-1].size
    known = given_cells(request[-1], codec.latent_grid(size), codec) if size is not None else np.zeros(0, dtype=bool)
    return torch.from_numpy(known) if known.any() else None


def _transitions(recorder: _Recorder, number: int, result: Result) -> tuple[Transition, ...]:
    """Those of one result of the batch."""
    kind, first = recorder.exploring.kind, sum(recorder.lengths[:number])
    rows = slice(first, first + recorder.lengths[number])
    made = list[Transition]()
    for t, t_next, x, x_next, moments in recorder.found:
        # Copies: a gradient may not pass tensors of inference mode, and the batch need not stay.
        mean, after = moments.mean[rows].clone(), x_next[rows].clone()
        log_prob = kind.log_prob(after, Moments(mean, moments.std), [len(mean)], result.learned)
        made.append(
            Transition(kind=kind, t=t, t_next=t_next, x=x[rows].clone(), x_next=after, mean=mean, log_prob=log_prob[0])
        )
    return tuple(made)


def batches(
    requests: Sequence[Segments], codec: Codec, rows: int, alike: Callable[[Segments], Alike], each: int = 1
) -> list[tuple[Alike, list[int]]]:
    """Cut requests into those that are drawn together.

    Args:
        requests: Each ends with its visual target.
        codec: The model's.
        rows: Latents of a batch, where no request alone has more.
        alike: Names what all requests of a batch have in common.
        each: How many results of a request are drawn.

    Returns:
        What they have in common, and the numbers of the requests.
    """
    found = dict[tuple[Alike, int], list[int]]()
    filled, opened = Counter[Alike](), Counter[Alike]()
    for n, request in enumerate(requests):
        name, more = alike(request), each * rows_of_target(request, codec)
        if filled[name] + more > rows:
            filled[name], opened[name] = 0, opened[name] + 1
        filled[name] += more
        found.setdefault((name, opened[name]), []).append(n)
    return [(name, numbers) for (name, _), numbers in found.items()]
