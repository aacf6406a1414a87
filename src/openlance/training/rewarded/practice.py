"""The rollouts of a pack of samples, on their way through the rewards.

These can score some results while the next are drawn: requests are taken as many at once as go through the model
together, and what is drawn of them besides their probes comes after the probes of the next ones. The order is always
the same, since results are those of their batch but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator

from openlance.config.sampling import GenerationConfig
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.inference.visual import until_target
from openlance.media.clip import Clip
from openlance.model.precision import autocast
from openlance.rl.advantages import mixed, sound, table_of
from openlance.rl.results import Result
from openlance.rl.rewards import Drawn, Pending, RewardPool, Score
from openlance.rl.rollout import batches, given_rows, roll
from openlance.rl.settings import exploring_of, rolling
from openlance.runtime.components import LazyVAE
from openlance.runtime.media_encoder import decoded
from openlance.sequence.segment import Kind, Role, Segments, prompt_in
from openlance.training.batch import Batch, Preparer
from openlance.training.distillation import emptied
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
        scores: Of all in order, in pieces: some that are known, or a promise of them.
        drawn: What the rewards see of each; none of what the data show.
    """

    numbers: list[int]
    results: list[Result]
    scores: list[Pending | list[Score | None]]
    drawn: Sequence[Drawn] = ()

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """Make one of several."""
        numbers, results, scores, drawn = (
            [one for part in parts for one in getattr(part, name)] for name in ("numbers", "results", "scores", "drawn")
        )
        return cls(numbers, results, scores, drawn)

    def scored(self) -> list[Score | None]:
        """Wait for the scores."""
        return [one for some in self.scores for one in (some.collect() if isinstance(some, Pending) else some)]

    def of(self, numbers: Sequence[int]) -> Part:
        """Those of some requests, once their scores are known."""
        some, scores = [n for n, number in enumerate(self.numbers) if number in numbers], self.scored()
        return Part([self.numbers[n] for n in some], [self.results[n] for n in some], [[scores[n] for n in some]])

    def differing(self) -> list[int]:
        """Wait for the scores, and return the requests whose results differ in them."""
        told = list(zip(self.numbers, self.scored()))
        told = [told[n] for n in sound(told)]  # what could not be scored leaves nothing to compare
        return sorted({n for (n, _), yes in zip(told, mixed(*table_of(told)).tolist()) if yes}) if told else []

    def diversity(self) -> list[float]:
        """Return of each request how far its results are apart: the standard deviation of a pixel's value, 0 to 1, over
        the results, on average over the pixels."""
        found = list[float]()
        for number in sorted(set(self.numbers)) if self.drawn else ():
            own = [one.media.pixels for n, one in zip(self.numbers, self.drawn) if n == number]
            sums, squares = np.zeros(own[0].shape, np.float32), np.zeros(own[0].shape, np.float32)
            for pixels in own:  # one after the other: a group of large clips would not fit
                values = pixels.astype(np.float32) / 255
                sums += values
                squares += values**2
            variance = (squares - sums**2 / len(own)) / max(len(own) - 1, 1)
            found.append(float(np.sqrt(variance.clip(0)).mean()))
        return found


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What one pack of samples came to in a round: results of each of its requests, and their scores, on the way.

    Args:
        ids: Of the samples.
        kinds: Likewise, `Sample.kind`.
        requests: Of each result, its media in model space.
        groups: Of each result, a number that no other request of the round has.
        parts: The results.
        first: Of each request what was drawn first, its probes or all of its results.
        lesson: Some of the samples as they are, for the usual loss.
        seconds: That drawing took, and waiting for probes to be scored.
    """

    ids: list[str]
    kinds: list[str]
    requests: list[Segments]
    groups: list[int]
    parts: list[Part]
    first: Part
    lesson: Batch | None
    seconds: dict[str, float]

    @property
    def told(self) -> list[tuple[str, Score | None]]:
        """Wait for the scores of what was drawn first, each with the kind of its request."""
        return [(self.kinds[n], score) for n, score in zip(self.first.numbers, self.first.scored(), strict=True)]

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
        empty = next((s.id for s in samples if until_target(s.segments)[-1].is_empty), None) if shown else None
        if empty is not None:
            raise UserError(
                f"{empty} is a prompt alone, and nothing shows what it should become: give samples with "
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
            return Part([n for n, _ in places], results, [pool.submit(seen)], seen)

        def more(probes: Part) -> list[Part]:
            nonlocal waited
            since = time.monotonic()
            differ = probes.differing()
            waited += time.monotonic() - since
            return [probes.of(differ), *([drawn(differ, how.probes, each)] if differ else [])]

        firsts, parts = list[Part](), list[Part]()
        if not (self.run.objective.samples or validates):
            firsts = parts = [self._true(samples)]
        elif validates or not how.probes:
            firsts = parts = [drawn(some, 0, each) for some in self._together(requests, each)]
        else:
            for some in self._together(requests, how.probes):
                firsts.append(drawn(some, 0, how.probes))
                parts += more(firsts[-2]) if len(firsts) > 1 else []
            parts += more(firsts[-1])
        lesson = None
        if how.supervised and not validates:
            count = max(1, round(how.supervised_share * len(samples)))
            lesson = self.usual(samples[:count], number_of_pack)
        numbers = [n for part in parts for n in part.numbers]
        return Practice(
            ids=[s.id for s in samples], kinds=[s.kind for s in samples], requests=[requests[n] for n in numbers],
            parts=parts, first=Part.joined(firsts), lesson=lesson,
            groups=[number_of_pack % HELD_OUT * GROUPS + n for n in numbers],
            seconds={"rollout": time.monotonic() - began - waited, "reward": waited},
        )  # fmt: skip

    def _true(self, samples: list[Sample]) -> Part:
        """What the data show for the requests, which counts as right."""
        with torch.no_grad(), autocast(self.stage.dtype, self.device):
            full = self.encode([until_target(s.segments) for s in samples], targets=True)
        results = [Result(clean=f[-1].tensor.float().flatten(0, 2), given=given_rows(f, self.codec)) for f in full]
        return Part(list(range(len(samples))), results, [[Score({"true": 1.0}, {"true": 1.0}) for _ in samples]])

    def _together(self, requests: list[Segments], each: int) -> list[list[int]]:
        """Cut requests into runs; the results of several, so many of each, have no more rows than a pack."""
        return [run for _, run in batches(requests, self.codec, self.stage.pack_tokens[1], lambda _: None, each)]

    def _roll(
        self, requests: list[Segments], seeds: list[int], noises: list[int], explores: bool
    ) -> list[Result]:  # fmt: skip
        """Results of requests, as many at once as a pack has rows; those that are sampled alike share a batch."""
        run, policy = self.run, self.run.drawing
        found = dict[int, Result]()
        alike = batches(
            requests, self.codec, self.stage.pack_tokens[1],
            lambda request: rolling(self.defaults, run.how, request, run.reads is not None),
        )  # fmt: skip
        with autocast(self.stage.dtype, self.device):
            for sampling, some in alike:
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
