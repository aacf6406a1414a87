"""A stage that learns from rewards: rounds of rollouts, scores and updates, inside the loop of the other stages.

A round is a function of the weights, the seed and its number. Its samples come from the stage's stream; `Rollouts`
draws and hands the results to the rewards, which score them in processes of their own; `RewardTrainer.update` learns
from them. Checkpoints lie between rounds, so a run that was killed does its round again and ends as if it had not been.

The noisy rows of the results are what learns: their conditions run once, before them, without gradient. Where guidance
is distilled into the start (`training.distillation`), its generation side is what learns, at the times it acts at.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from openlance.config.sampling import GenerationConfig, Sampling
from openlance.config.train import Rewarding, Stage
from openlance.config.values import convert, hints, no_others, one_of
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.flow import schedule
from openlance.flow.stochastic import STOCHASTIC, WINDOWS
from openlance.inference.prefix import prefill
from openlance.inference.visual import before_target, conditions, rows_of_target, until_target
from openlance.media.clip import Clip
from openlance.model.lance import Cache, Lance, is_generation, own_generation
from openlance.model.precision import autocast
from openlance.rl.advantages import Advantages, Best
from openlance.rl.objectives import OBJECTIVES, Forward, Objective, Times, trust
from openlance.rl.results import Ask, Result
from openlance.rl.rewards import Drawn, Pending, RewardPool, Score, parse_rewards
from openlance.rl.rollout import Exploring, Policy, given_rows, roll
from openlance.runtime.components import LazyVAE
from openlance.runtime.distributed import Distributed
from openlance.runtime.media_encoder import decoded
from openlance.sequence.pack import pack
from openlance.sequence.segment import Kind, Role, Segments, prompt_in, roles_of
from openlance.sequence.tasks import spec_of
from openlance.text.tokenizer import SequenceCodec
from openlance.training.batch import Batch, Preparer
from openlance.training.distillation import emptied
from openlance.training.learner import Learner
from openlance.training.parallel import full, sum_gradients
from openlance.training.trainer import HELD_OUT, Outcome, Trainer

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
        lesson: Some of the samples as they are, for the usual loss.
        seconds: That drawing took, and waiting for probes to be scored.
    """

    ids: list[str]
    requests: list[Segments]
    groups: list[int]
    parts: list[Part]
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


class RewardTrainer(Trainer):
    """A stage that learns from rewards; see the module.

    Args:
        stage: With `rl`.
        learner: Whose decoder learns.
        codec: Turns its segments into tokens.
        processes: That do it together; each draws and learns from its own requests.
        reads: The decoder of conditions, where only another one of noisy rows learns.
        compiled: Compile the element-wise parts of layers.
    """

    shown = ("reward", "loss")

    def __init__(
        self, stage: Stage, learner: Learner, codec: SequenceCodec, processes: Distributed | None = None,
        reads: Lance | None = None, compiled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(stage, learner, processes, compiled)
        assert stage.rl is not None
        self.how, self.reads, self.codec = stage.rl, reads, codec
        self.objective = objective_of(stage)
        self.mute, self.others = 0, dict[str, Lance]()
        self.remember()

    def remember(self) -> None:
        """Take the weights as they are for those of the start."""
        self.others = {name: self._copy() for name in sorted(self.objective.needs)}

    @property
    def drawing(self) -> Policy:
        """What draws rollouts: the old weights where the objective keeps such."""
        return self._policy("old" if "old" in self.others else "new")

    def _policy(self, weights: str) -> Policy:
        lance = self.learner.lance if weights == "new" else self.others[weights]
        return Policy(lance=lance, conditions=self.reads)

    def _copy(self) -> Lance:
        made = copy.deepcopy(self.learner.lance) if self.reads is None else own_generation(self.learner.lance)
        return made.requires_grad_(False) if self.reads is None else _frozen(made)

    @torch.no_grad()
    def _follow(self, weights: str, step: int) -> None:
        """Move other weights towards the new ones."""
        if weights in self.others:
            keep = self.objective.keeps(weights, step)
            live = dict(self.learner.lance.named_parameters())
            for name, p in self.others[weights].named_parameters():
                if live[name].requires_grad:
                    p.lerp_(live[name].detach(), 1 - keep)

    # A round.

    def update(self, batches: Sequence[Practice]) -> Outcome:  # type: ignore[override]
        """Learn from this process's part of a round."""
        began = time.monotonic()
        scores = [batch.scored() for batch in batches]
        waited = time.monotonic() - began
        groups = [group for batch in batches for group in batch.groups]
        told = [one for some in scores for one in some]
        everyone = [part for parts in self.processes.gather(list(zip(groups, told))) for part in parts]
        first = sum(len(found) for found in self.processes.gather([0] * len(told))[: self.processes.rank])
        values, sound = self._noted(everyone)
        generator = Generator().manual_seed(self.stage.seed * 1_000_003 + self.step)
        asks, own = list[list[Ask]](), list[int]()
        if sound:
            rewards, numbered = table_of([everyone[n] for n in sound])
            if self.how.shuffle:
                rewards = shuffled(rewards, numbered, generator)
            scored = self.objective.select(rewards, numbered, generator)
            values |= scored.statistics
            results = [result for batch in batches for result in batch.results]
            for place, advantage in zip(scored.kept.tolist(), scored.advantages.tolist()):
                n = sound[place]
                mine = first <= n < first + len(results)
                asks.append(self._asks(results[n - first], advantage, everyone[n][0]) if mine else [])
                own.append(n - first)
        self.mute = 0 if any(self.processes.agree(bool(asks))) else self.mute + 1
        self._check_spread(values)
        requests = [request for batch in batches for request in batch.requests]
        lessons = [batch.lesson for batch in batches if batch.lesson is not None]
        learned = self._updates(asks, own, requests, lessons)
        self._follow("old", self.step)
        self.step += 1
        seconds = {f"{name}_seconds": sum(b.seconds[name] for b in batches) for name in ("rollout", "reward")}
        seconds["reward_seconds"] += waited
        seconds["update_seconds"] = time.monotonic() - began - waited
        finite = learned.pop("finite", 1.0) > 0
        return Outcome(values | learned | seconds, finite, [] if finite else [i for b in batches for i in b.ids])

    def _asks(self, result: Result, advantage: float, group: int) -> list[Ask]:
        # The results of a group get the same times and noise, so that they differ in nothing else.
        seed = ((self.stage.seed * 1_000_003 + self.step) * GROUPS + group) % 2**63
        return self.objective.asks(result, advantage, Generator().manual_seed(seed))

    def _noted(self, told: list[tuple[int, Score | None]]) -> tuple[dict[str, float], list[int]]:
        """What a log shows of the scores, and the results of groups that were all scored."""
        broken = {group for group, score in told if score is None}
        sound = [n for n, (group, _) in enumerate(told) if group not in broken]
        good = [told[n][1] for n in sound]
        totals = [score.total for score in good if score is not None]
        values = {"reward": sum(totals) / max(len(totals), 1), "results": float(len(told))}
        values["dropped"] = float(len(broken))
        names = {name for score in good if score is not None for name in score.facts}
        for name in sorted(names):
            some = [score.facts[name] for score in good if score is not None and name in score.facts]
            values[f"reward/{name}"] = sum(some) / len(some)
        return values, sound

    def _check_spread(self, values: Mapping[str, float]) -> None:
        if self.mute >= self.how.patience:
            reward = values["reward"]
            raise UserError(
                f"for {self.mute} rounds no request had results of different rewards (their mean is {reward:.3g}), so "
                "there is nothing to learn from: take requests that are neither always nor never right, more results "
                "of each (rl.group), or a reward with more steps"
            )

    def _updates(
        self, asks: list[list[Ask]], own: list[int], requests: list[Segments], lessons: list[Batch]
    ) -> dict[str, float]:
        """All updates of a round. asks: of every result that is learned from, empty where another process has it."""
        noted = list[dict[str, float]]()
        for update in range(self.how.updates):
            chosen = range(update, len(asks), self.how.updates)
            mine = [(requests[own[n]], asks[n]) for n in chosen if asks[n]]
            count = float(self.processes.total(torch.tensor(sum(len(a) for _, a in mine), dtype=torch.float64)))
            found = self._backward(mine, count)
            if lessons and self.how.supervised:
                found["supervised"] = self._supervise(lessons)
            sum_gradients(self.processes, self.learner)
            found = self._mean(found, count)
            stays = not (self.how.trust and noted and "error" in found and trust(found) > self.how.trust)
            norm = full(nn.utils.clip_grad_norm_(self.learner.parameters(), self.stage.max_norm))
            found |= {"norm": float(norm), "lr": self.stage.rate(self.step)}
            finite = bool(norm.isfinite())
            if finite and stays and (count or lessons):
                self.optimizer.step(found["lr"])
                self.ema.update(self.learner)
                self._follow("average", self.step * self.how.updates + update)
            self.optimizer.zero_grad()
            noted.append(found)
            if not finite:
                return {**found, "finite": 0.0}
            if not stays:
                break
        names = dict.fromkeys(name for found in noted for name in found)
        each = {name: [found[name] for found in noted if name in found] for name in names}
        means = {name: sum(some) / len(some) for name, some in each.items()}
        return {"loss": 0.0, **means, "updates": float(len(noted))}

    def _backward(self, mine: list[tuple[Segments, list[Ask]]], count: float) -> dict[str, float]:
        """Gradients of the mean loss over all asks of all processes; sums of the statistics of this one's."""
        sums = Counter[str]()
        for some in self._pieces(mine):
            asks = [ask for _, own in some for ask in own]
            velocities = self.velocities([request for request, _ in some], asks)
            loss = self.objective.loss(asks, velocities)
            (loss.per_ask.sum() / count).backward()
            for name, value in loss.statistics.items():
                sums[name] += value * len(asks)
        return dict(sums)

    def _mean(self, sums: dict[str, float], count: float) -> dict[str, float]:
        """Means over the asks of all processes; the supervised loss is one already."""
        lesson = {"supervised": sums.pop("supervised")} if "supervised" in sums else {}
        names = sorted({name for found in self.processes.gather(sorted(sums)) for name in found})
        totals = self.processes.total(torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64))
        return dict(zip(names, (totals / max(count, 1)).tolist())) | lesson

    def _supervise(self, lessons: list[Batch]) -> float:
        """Add gradients of the usual loss, weighted."""
        totals = self.processes.total(torch.stack([b.counts for b in lessons]).sum(0)).clamp(min=1)
        shares = (self.how.supervised * self.weights / totals).float().to(self.processes.device)
        loss = 0.0
        for batch in lessons:
            found, _ = self._forward(batch)
            part = (found.float() * shares).sum()
            part.backward()
            loss += float(part.detach())
        return loss

    def _pieces(self, mine: list[tuple[Segments, list[Ask]]]) -> list[list[tuple[Segments, list[Ask]]]]:
        """What goes through the model together: results with equally many asks, up to the rows of a pack."""
        pieces, rows = list[list[tuple[Segments, list[Ask]]]](), 0
        for request, asks in sorted(mine, key=lambda pair: len(pair[1])):
            more = sum(len(ask.x) for ask in asks)
            if pieces and rows + more <= self.stage.pack_tokens[1] and len(pieces[-1][0][1]) == len(asks):
                pieces[-1].append((request, asks))
                rows += more
            else:
                pieces.append([(request, asks)])
                rows = more
        return pieces

    def velocities(self, requests: Sequence[Segments], asks: Sequence[Ask]) -> dict[str, Tensor]:
        """Give the velocities (rows, C) at some asks, of the new weights and of all that the objective reads.

        Args:
            requests: Of the results of the asks, in order; each has equally many.
            asks: One result's after the other's.
        """
        device = self.processes.device
        packed = pack(list(requests), self.codec, self.codec.config.position, len(asks) // len(requests))
        rows, (features, context, _) = packed.rows, conditions(packed, device)
        prefix, noisy = (where.nonzero()[:, 0] for where in (before_target(rows), rows.noisy))
        x, times = (torch.cat(parts).to(device) for parts in ([a.x for a in asks], [a.times for a in asks]))
        caches = dict[Lance, Cache]()
        found = dict[str, Tensor]()
        with autocast(self.stage.dtype, device):
            for weights in ("new", *self.others):
                policy = self._policy(weights)
                with torch.no_grad():
                    if policy.reads not in caches:
                        caches[policy.reads] = prefill(policy.reads, packed, prefix, (features, context)).cache
                with torch.set_grad_enabled(weights == "new"):
                    layout = policy.lance.layout(rows.at(noisy), caches[policy.reads])
                    _, gen = policy.lance(layout, latents=x, times=times, cache=caches[policy.reads])
                    found[weights] = policy.lance.velocity(gen).float()
        return found

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Practice]) -> dict[str, float]:  # type: ignore[override]
        """Return the mean scores of held-out requests."""
        told = [(0, one) for batch in batches for one in batch.scored()]
        everyone = [part for parts in self.processes.gather(told) for part in parts]
        values, _ = self._noted([(n, one) for n, (_, one) in enumerate(everyone)])
        return {f"validation_{name}": value for name, value in values.items() if name != "results"}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, the other weights that move with it."""
        live = {n for n, p in self.learner.lance.named_parameters() if p.requires_grad}
        moving = {name: lance for name, lance in self.others.items() if name != "reference"}
        held = [(w, n, p.detach()) for w, lance in moving.items() for n, p in lance.named_parameters()]
        return super().tensors() | {f"{w}/{n}": p for w, n, p in held if n in live}

    def state(self) -> dict[str, Any]:
        return super().state() | {"mute": self.mute}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.mute = state["mute"]


def _frozen(lance: Lance) -> Lance:
    for name, p in lance.named_parameters():
        if is_generation(name):
            p.requires_grad_(False)
    return lance


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
            ids=[s.id for s in samples], requests=[requests[n] for n in numbers], parts=parts, lesson=lesson,
            groups=[number_of_pack % HELD_OUT * GROUPS + n for n in numbers],
            seconds={"rollout": time.monotonic() - began - waited, "reward": waited},
        )  # fmt: skip

    def _true(self, samples: list[Sample]) -> Part:
        """What the data show for the requests, which counts as right."""
        with torch.no_grad(), autocast(self.stage.dtype, self.device):
            full = self.encode([until_target(s.segments) for s in samples], targets=True)
        results = [Result(clean=f[-1].value.float().flatten(0, 2), given=given_rows(f)) for f in full]
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
                theirs = ([values[n] for n in some] for values in (requests, seeds, noises))
                mine, own, noise = theirs
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


def rolling(defaults: GenerationConfig, how: Rewarding, request: Segments, distilled: bool) -> Sampling:
    """Say how a rollout samples: as the checkpoint does, but for its steps, without guidance in several passes.

    Args:
        defaults: Of the checkpoint.
        how: Of the stage.
        request: What is drawn.
        distilled: Whether guidance is distilled into what draws.
    """
    usual = replace(
        defaults.sampling_for(roles_of([request])), num_inference_steps=how.num_inference_steps, solver=how.solver,
        step_cache=0.0, compile=False, distilled=distilled,
    )  # fmt: skip
    return usual if distilled or how.guided else replace(usual, guidance_scale=1.0, image_guidance_scale=1.0)


def exploring_of(stage: Stage, sampling: Sampling, step: int) -> Exploring | None:
    """Say which steps of a round are stochastic; none where the objective does not follow trajectories.

    Raises:
        UserError: If the window does not fit the steps, or leaves what learns.
    """
    how = stage.rl
    assert how is not None
    if not OBJECTIVES[how.objective].trajectories:
        return None
    kind = STOCHASTIC[how.stochastic](noise=how.noise)
    window: Any = WINDOWS[how.window]
    fields = {"size": how.window_size, "seed": stage.seed}
    window = window(**{name: value for name, value in fields.items() if name in hints(window)})
    steps = window.steps(sampling.num_inference_steps, step)
    times = schedule(sampling.num_inference_steps, sampling.shift)[list(steps)].tolist()
    if sampling.distilled and not all(sampling.acts_at(t) for t in times):
        low = sampling.interval[0]
        raise UserError(
            f"there are stochastic steps at times {', '.join(f'{t:.2f}' for t in times)}, but distilled guidance, "
            f"which is what learns, acts above {low:g}: set a smaller window"
        )
    return Exploring(kind=kind, steps=steps)


def objective_of(stage: Stage) -> Objective:
    """Make the objective of a stage. UserError for one that is unknown, or a field that it lacks."""
    how = stage.rl
    assert how is not None
    one_of("rl.objective", how.objective, OBJECTIVES)
    kind = OBJECTIVES[how.objective]
    no_others(how.settings, hints(kind))
    kinds = hints(kind)
    said: dict[str, Any] = {
        name: bool(value) if kinds[name] is bool else convert(kinds[name], value, f"rl.settings.{name}")
        for name, value in how.settings.items()
    }
    usual = kind().selection
    if isinstance(usual, Advantages):
        said["selection"] = Advantages(weights=how.facts, center=how.center, scale=how.scale, keep=how.keep)
    elif isinstance(usual, Best):
        said["selection"] = Best(keep=max(how.keep, 1), weights=how.facts)
    if issubclass(kind, Forward):
        steps, skip, among, draws = how.times
        said["times"] = Times(steps=steps, skip=skip, among=among, draws=draws)
    return kind(**said)


def table_of(told: Sequence[tuple[int, Score | None]]) -> tuple[dict[str, Tensor], Tensor]:
    """Make a table of scores: (R,) per fact, nan where a group does not have it, and (R,) the groups."""
    names = sorted({name for _, score in told if score is not None for name in score.facts})
    rows = [score.facts for _, score in told if score is not None]
    weights = {name: w for _, score in told if score is not None for name, w in score.weights.items()}
    table = {n: torch.tensor([float(row.get(n, float("nan"))) * weights[n] for row in rows]) for n in names}
    return table, torch.tensor([group for group, _ in told])


def shuffled(rewards: Mapping[str, Tensor], groups: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Deal the rewards of each group out among its results at random."""
    order = torch.arange(len(groups))
    for group in groups.unique():
        mine = (groups == group).nonzero()[:, 0]
        order[mine] = mine[torch.randperm(len(mine), generator=generator)]
    return {name: values[order] for name, values in rewards.items()}


def settled(stage: Stage, device: torch.device) -> Stage:
    """Take float32 for `auto` where steps are compared with those of a rollout on a CPU, whose kernels for gradients
    round bfloat16 otherwise than those without: by more than ratios may be from 1."""
    assert stage.rl is not None
    exact = stage.dtype == "auto" and device.type == "cpu" and OBJECTIVES[stage.rl.objective].trajectories
    return replace(stage, dtype="float32") if exact else stage


def check_rewarding(stage: Stage) -> None:
    """Raise a UserError for a stage that cannot learn from rewards."""
    how = stage.rl
    assert how is not None
    texts = [task for task, weight in stage.mixture.items() if weight and spec_of(task).makes == "text"]
    if texts:
        raise UserError(f"the stage {stage.name} learns from rewards of what is drawn, and {texts[0]} draws nothing")
    if stage.drop_text or stage.drop_all:
        raise UserError("rewards are about whole requests", fix={"drop_text": 0, "drop_all": 0})
    parse_rewards(how.rewards)
    parse_rewards(how.judge or how.rewards)
    one_of("rl.stochastic", how.stochastic, STOCHASTIC)
    one_of("rl.window", how.window, WINDOWS)
    kind = objective_of(stage)
    if kind.trajectories and how.guided:
        raise UserError(
            f"{how.objective} compares the steps of a rollout with those of the update, which is not guided: leave out "
            "rl.guided, or take an objective without trajectories, such as nft"
        )
