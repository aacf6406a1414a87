"""The rollouts of a pack of samples, on their way through the rewards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator

from openlance.config.sampling import GenerationConfig, Sampling
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.inference.visual import rows_of_target, until_target
from openlance.media.clip import Clip
from openlance.model.precision import autocast
from openlance.rl.results import Result
from openlance.rl.rewards import Drawn, Pending, RewardPool, Score
from openlance.rl.rollout import given_rows, roll
from openlance.runtime.components import LazyVAE
from openlance.runtime.media_encoder import decoded
from openlance.sequence.segment import Kind, Role, Segments, prompt_in
from openlance.training.batch import Batch, Preparer
from openlance.training.distillation import emptied
from openlance.training.rewarded.settings import exploring_of, rolling
from openlance.training.trainer import HELD_OUT

if TYPE_CHECKING:
    from openlance.training.rewarded.trainer import RewardTrainer

GROUPS = 1 << 20  # of a pack at most; numbers of groups of different packs never meet


@dataclass(frozen=True)
class Part:
    """Results that are scored together.

    Args:
        numbers: Of the request of each.
        results: What was drawn.
        scores: Of each, or a promise of them.
    """

    numbers: list[int]
    results: list[Result]
    scores: Pending | list[Score | None]

    def scored(self) -> list[Score | None]:
        """Wait for the scores."""
        return self.scores.collect() if isinstance(self.scores, Pending) else self.scores

    def of(self, numbers: Sequence[int], scores: Sequence[Score | None]) -> Part:
        """Those of some requests, whose scores are known by now."""
        some = [n for n, number in enumerate(self.numbers) if number in numbers]
        return Part(
            [self.numbers[n] for n in some], [self.results[n] for n in some], [scores[n] for n in some]
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What one pack of samples came to in a round: results of each of its requests, and their scores, on the way.

    Args:
        ids: Of the samples.
        requests: Of each result, its media in model space.
        groups: Of each result, a number that no other request of the round has.
        parts: The results.
        probed: Scores of the probes of all requests, those too whose results did not differ; None without probes.
        lesson: Some of the samples as they are, for the usual loss.
        seconds: That drawing took, and waiting for probes to be scored.
    """

    ids: list[str]
    requests: list[Segments]
    groups: list[int]
    parts: list[Part]
    probed: list[Score | None] | None
    lesson: Batch | None
    seconds: dict[str, float]

    @property
    def results(self) -> list[Result]:
        return [result for part in self.parts for result in part.results]

    @property
    def size(self) -> int:
        """Noisy rows that were drawn."""
        return sum(len(result.clean) for result in self.results)

    def scored(self) -> list[Score | None]:
        """Wait for all scores."""
        return [one for part in self.parts for one in part.scored()]


@dataclass(frozen=True, kw_only=True)
class Rollouts(Preparer):
    """Draws the results of a pack of samples and hands them to the rewards. Noise is a function of (seed, number of the
    pack); held-out packs are drawn once, without stochastic steps.

    Args:
        run: Whose weights draw.
        defaults: How the model samples.
        vae: Decodes.
        rewards: Score results of training.
        judge: Scores those of held-out requests.
        usual: Makes batches for the usual loss.
    """

    run: RewardTrainer
    defaults: GenerationConfig
    vae: LazyVAE
    rewards: RewardPool
    judge: RewardPool
    usual: Preparer

    def __call__(self, samples: list[Sample], number_of_pack: int) -> Practice:  # type: ignore[override]
        how, validates = self.run.how, number_of_pack >= HELD_OUT
        began, waited = time.monotonic(), 0.0
        pool = self.judge if validates else self.rewards
        for sample in samples:
            pool.check(prompt_in(sample.segments), sample.truth)
        shown = how.supervised > 0 and self.run.reads is None or not self.run.objective.samples
        if shown and any(until_target(s.segments)[-1].is_empty for s in samples):
            raise UserError(
                f"{samples[0].id} is a prompt alone, and nothing shows what it should become: give samples with "
                "targets, or leave out rl.supervised and the objective sft"
            )
        generator = Generator().manual_seed(self.stage.seed * 1_000_003 + number_of_pack)
        each = 1 if validates else how.group
        seeds = torch.randint(2**31, (len(samples), each), generator=generator).tolist()
        with torch.no_grad(), autocast(self.stage.dtype, self.device):
            requests = self.encode([emptied(s.segments) for s in samples])

        def drawn(numbers: Sequence[int], first: int, end: int) -> Part:
            places = [(n, k) for n in numbers for k in range(first, end)]
            noises = [seeds[n][0 if how.same_noise else k] for n, k in places]
            some = [requests[n] for n, _ in places]
            results = self._roll(some, [seeds[n][k] for n, k in places], noises, not validates)
            seen = [
                Drawn(prompt=prompt_in(r), media=clip, sources=sources_of(samples[n].segments), truth=samples[n].truth)
                for (n, _), r, clip in zip(places, some, self._decoded(results, some), strict=True)
            ]
            return Part([n for n, _ in places], results, pool.submit(seen))

        scores = None
        if not (self.run.objective.samples or validates):
            parts = [self._true(samples)]
        elif not how.probes or validates:
            parts = [drawn(range(len(samples)), 0, each)]
        else:
            probes, since = drawn(range(len(samples)), 0, how.probes), time.monotonic()
            scores = probes.scored()
            waited = time.monotonic() - since
            differ = [n for n in range(len(samples)) if _differ([s for i, s in zip(probes.numbers, scores) if i == n])]
            parts = [probes.of(differ, scores), *([drawn(differ, how.probes, each)] if differ else [])]
        lesson = None
        if how.supervised and not validates:
            count = max(1, round(how.supervised_share * len(samples)))
            lesson = self.usual(samples[:count], number_of_pack)
        numbers = [n for part in parts for n in part.numbers]
        return Practice(
            ids=[s.id for s in samples], requests=[requests[n] for n in numbers], parts=parts, probed=scores,
            lesson=lesson, groups=[number_of_pack % HELD_OUT * GROUPS + n for n in numbers],
            seconds={"rollout": time.monotonic() - began - waited, "reward": waited},
        )  # fmt: skip

    def _true(self, samples: list[Sample]) -> Part:
        """What the data show for the requests, which counts as right."""
        with torch.no_grad(), autocast(self.stage.dtype, self.device):
            full = self.encode([until_target(s.segments) for s in samples], targets=True)
        results = [Result(clean=f[-1].tensor.float().flatten(0, 2), given=given_rows(f)) for f in full]
        return Part(list(range(len(samples))), results, [Score({"true": 1.0}, {"true": 1.0}) for _ in samples])

    def _roll(
        self, requests: list[Segments], seeds: list[int], noises: list[int], explores: bool
    ) -> list[Result]:  # fmt: skip
        """Results of requests, as many at once as a pack has rows; those that are sampled alike share a batch."""
        run, policy = self.run, self.run.drawing
        batches: dict[tuple[Sampling, int], list[int]] = {}
        rows, opened = Counter[Sampling](), Counter[Sampling]()
        for n, request in enumerate(requests):
            sampling = rolling(self.defaults, run.how, request, run.reads is not None)
            more = rows_of_target(request, self.codec)
            if rows[sampling] + more > self.stage.pack_tokens[1]:
                rows[sampling], opened[sampling] = 0, opened[sampling] + 1
            rows[sampling] += more
            batches.setdefault((sampling, opened[sampling]), []).append(n)
        found = dict[int, Result]()
        with autocast(self.stage.dtype, self.device):
            for (sampling, _), some in batches.items():
                exploring = exploring_of(self.stage, sampling, run.step) if explores else None
                mine, own = [requests[n] for n in some], [seeds[n] for n in some]
                noise = [noises[n] for n in some]
                found |= zip(some, roll(policy, self.codec, mine, sampling, own, exploring, noise), strict=True)
        return [found[n] for n in range(len(requests))]

    def _decoded(self, results: Sequence[Result], requests: Sequence[Segments]) -> list[Clip]:
        """What results look like; those of one size are decoded together."""
        grids = [self.codec.latent_grid(request[-1].size) for request in requests]  # type: ignore[arg-type]
        found = dict[int, Clip]()
        for grid in dict.fromkeys(grids):
            some = [n for n, own in enumerate(grids) if own == grid]
            found |= zip(some, decoded(self.vae, [results[n].clean.view(*grid, -1) for n in some]), strict=True)
        return [found[n] for n in range(len(results))]


def sources_of(segments: Segments) -> tuple[Clip, ...]:
    """Pick what is given with a request, as it looks: what is edited, objects, first and last frames."""
    kept = [s.value for s in segments if s.kind is Kind.LATENTS and s.role is not Role.TARGET]
    given = [s.given for s in segments if s.role is Role.TARGET]
    return tuple(value for value in (*given, *kept) if isinstance(value, Clip))


def _differ(scores: Sequence[Score | None]) -> bool:
    """Whether the rewards of a request's probes differ; one that could not be scored leaves nothing to compare."""
    told = [score for score in scores if score is not None]
    names = {name for score in told for name in score.facts}
    return len(told) == len(scores) and any(len({score.facts.get(name) for score in told}) > 1 for name in names)
