"""Few passes by distribution matching: what they draw as a whole moves to where the guided model expects results.

A few steps of a generation side of its own make a result of noise, with a gradient through all of them. Noise is put on
that again, and two scores say where it should have been: the guided model's, and that of a critic, which learns what is
drawn at present, as any flow model learns images. Their difference is the gradient (distribution matching: Yin et al.,
arXiv 2311.18828; critics that learn more often than what draws, and no need of pairs: arXiv 2405.14867). There is no
adversary, and nothing but requests is read. Results may also be held to where the guided model leads from their noise,
now or ahead of training (`training.results`), or the start's own few steps: to the scores alone, what is missing from
an image is a haze over all places for it, and a noise says which of them it is.

What a stage does not match, such as edits, is distilled beside it in the usual way (`training.distillation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from openlance.config.sampling import Sampling
from openlance.config.train import Distillation, Stage
from openlance.data.source import Sample
from openlance.flow import SOLVERS, add_noise, schedule, velocity_target
from openlance.inference.visual import (
    Denoiser,
    branch_out,
    conditions,
    denoise,
    filled,
    guided_velocity,
    in_norm,
    noises,
    until_target,
)
from openlance.model.lance import Lance, is_generation, own_generation
from openlance.model.precision import autocast
from openlance.runtime.distributed import Distributed
from openlance.sequence.segment import Role, Segments, roles_of
from openlance.training.batch import Batch, Preparer
from openlance.training.distillation import Taught, emptied, guidance_of
from openlance.training.learner import Learner
from openlance.training.optim import Optimizer
from openlance.training.parallel import full, recompute, sum_gradients
from openlance.training.trainer import Outcome, Trainer

LEVELS = (0.02, 0.98)  # of the noise that is put on results (DMD2's code)
SMALL = 1e-3  # least distance that something is divided by


@dataclass(frozen=True)
class Asked:
    """Requests that are guided alike, with the prefixes that all noisy rows of theirs attend to.

    Args:
        denoiser: Of the guided model, with all branches of guidance.
        guided: How that model samples.
        few: How the few steps do that learn.
        lengths: Latents of the target of each.
        moves: (N,) bool, rows of these that are not given.
        noise: (N, C) what they begin with, where nothing is given.
        numbers: Of the samples in their batch.
        seed: Of the noise that is put on results.
        held: (N, C) where the teacher leads from the same noise, and (N,) how strongly results are held to that; None
            where they are not.
    """

    denoiser: Denoiser
    guided: Sampling
    few: Sampling
    lengths: list[int]
    moves: Tensor
    noise: Tensor
    numbers: list[int]
    seed: int
    held: tuple[Tensor, Tensor] | None = None

    def of(self, lance: Lance) -> Denoiser:
        """Give the velocities of other noisy rows, after the same prefixes."""
        return replace(self.denoiser, model=lance, layouts={})

    def each(self, values: Sequence[float] | Tensor) -> Tensor:
        """(N,) a value of each request for all of its rows that move; 0 at what is given."""
        lengths = torch.tensor(self.lengths)
        rows = torch.as_tensor(values, dtype=torch.float32).repeat_interleave(lengths).to(self.noise.device)
        return torch.where(self.moves, rows, 0.0)

    def mean(self, rows: Tensor) -> Tensor:
        """(requests,) means of a value (N,) over the rows that move."""
        parts = zip(rows.split(self.lengths), self.moves.split(self.lengths), strict=True)
        return torch.stack([part[moves].mean() for part, moves in parts])

    def drawn(self, lance: Lance) -> Tensor:
        """(N, C) results of the few steps of some noisy rows, with their gradient."""
        times, solver = schedule(self.few.num_inference_steps, self.few.shift), SOLVERS[self.few.solver]()
        own, x, before = self.of(lance), self.noise, False
        for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            acts = self.guided.acts_at(t)
            at = self.each([t] * len(self.lengths))
            [velocity] = (own if acts else self.denoiser).velocities(x, at, 1)
            if acts != before:  # as `denoise` does
                solver.restart()
            x, before = torch.where(self.moves[:, None], solver.step(x, velocity, t, t_next), x), acts
        return x

    def expected(self, x: Tensor, times: Tensor) -> Tensor:
        """(N, C) clean latents that the guided model expects of states (N, C) at times (requests,)."""
        at, branches = self.each(times), self.denoiser.branches
        found = self.denoiser.velocities(x, at, branches.count)
        counted = in_norm(self.moves, self.denoiser.model, self.guided)
        mixed = guided_velocity(found, branches, self.guided, self.lengths, counted)
        guides = self.each([float(self.guided.acts_at(t)) for t in times.tolist()])
        return x - at[:, None] * torch.where(guides[:, None] > 0, mixed, found[0])


@dataclass(frozen=True)
class Matched:
    """One pack of a stage that matches distributions.

    Args:
        ids: Of its samples.
        asked: Those that are matched.
        lesson: States of the others, None where all are matched.
        others: Their numbers.
        size: Rows of all, those of the other branches of guidance too.
    """

    ids: list[str]
    asked: list[Asked]
    lesson: Batch | None
    others: list[int]
    size: int


@dataclass(frozen=True, kw_only=True)
class Matching(Preparer):
    """Makes batches of requests to draw; those of roles that are not matched become states to learn.

    Args:
        taught: Makes these.
    """

    taught: Taught

    def __call__(self, samples: list[Sample], number_of_pack: int) -> Matched:  # type: ignore[override]
        how = self.stage.distill
        assert how is not None
        seed = self.stage.seed * 1_000_003 + number_of_pack
        alike, others = dict[str, tuple[Distillation, Sampling, list[int]]](), list[int]()
        requests = [emptied(s.segments) for s in samples]
        for n, request in enumerate(requests):
            own = how.of(roles_of([request]))
            if own.matched:
                guided = guidance_of(self.taught.defaults, request)
                alike.setdefault(repr((guided, own)), (own, guided, []))[2].append(n)
            else:
                others.append(n)
        seeds = torch.randint(2**31, (len(alike),), generator=Generator().manual_seed(seed)).tolist()
        with torch.no_grad(), autocast(self.stage.dtype, self.device):
            asked = [
                self._asked(
                    [samples[n] for n in some[2]], self.encode([requests[n] for n in some[2]]), *some,
                    Generator().manual_seed(seed),
                ) for seed, some in zip(seeds, alike.values())
            ]  # fmt: skip
        lesson = self.taught([samples[n] for n in others], number_of_pack) if others else None
        size = sum(len(one.denoiser.branches.pack) for one in asked) + (lesson.size if lesson is not None else 0)
        return Matched(ids=[s.id for s in samples], asked=asked, lesson=lesson, others=others, size=size)

    def _asked(
        self, samples: list[Sample], requests: list[Segments], own: Distillation, guided: Sampling, numbers: list[int],
        generator: Generator,
    ) -> Asked:  # fmt: skip
        """Samples whose encoded requests are guided alike, after one pass over their prefixes."""
        branches = branch_out(self.taught.teacher, self.codec, requests, guided)
        denoiser = Denoiser(self.taught.teacher, branches, *conditions(branches.pack, self.device), cached=True)
        targets = [v for v in branches.pack.visuals if v.segment.role is Role.TARGET][: len(requests)]
        lengths = [v.rows[1] - v.rows[0] for v in targets]
        fresh = torch.randint(2**31, (len(samples),), generator=generator).tolist()
        ends = [self._kept(s) if own.hold else None for s in samples]
        pairs = zip(samples, ends, fresh, strict=True)
        seeds = [seed if end is None or s.seed is None else s.seed for s, end, seed in pairs]
        noise = torch.cat(noises(branches, self.codec.config.latent_channels, seeds)).to(self.device)
        moves = filled(noise, targets, lengths)
        few = replace(
            guided, num_inference_steps=own.num_inference_steps, solver=own.solver, shift=own.shift[0], distilled=True
        )
        asked = Asked(
            denoiser, guided, few, lengths, moves, noise, numbers, int(torch.randint(2**31, (), generator=generator))
        )
        if not own.hold:
            return asked
        if new := [n for n, s in enumerate(samples) if s.seed is None]:
            usual = guidance_of(self.taught.defaults, requests[0], own.progressive)
            drawn = denoise(
                self.taught.teacher, self.codec, [requests[n] for n in new], usual,
                noise=[noise.split(lengths)[n] for n in new],
                distilled=self.taught.distilled if usual.distilled else None,
            )  # fmt: skip
            for n, latents in zip(new, drawn, strict=True):
                ends[n] = latents.flatten(0, 2).clone()  # a gradient may pass copies alone
        led = torch.cat([x if end is None else end.to(x) for end, x in zip(ends, noise.split(lengths), strict=True)])
        return replace(asked, held=(led, asked.each([own.hold * (end is not None) for end in ends])))

    def _kept(self, sample: Sample) -> Tensor | None:
        """(N, C) where the teacher led from the noise of a sample's seed (`training.results`); None where it has not
        been asked, or what it drew was refused."""
        end = until_target(sample.segments)[-1].value
        return end.flatten(0, 2) if sample.seed is not None and isinstance(end, Tensor) else None


class MatchTrainer(Trainer):
    """A stage that matches distributions; see the module.

    Args:
        stage: With `distill`.
        learner: Whose decoder draws in few steps.
        start: The guided model, as which the critic begins.
        processes: That do it together.
        compiled: Compile the element-wise parts of layers.
    """

    shown = ("flow", "apart")

    def __init__(
        self, stage: Stage, learner: Learner, start: Lance, processes: Distributed | None = None, compiled: bool = False
    ) -> None:
        super().__init__(stage, learner, processes, compiled)
        assert stage.distill is not None
        self.how = stage.distill
        self.critic = own_generation(start).to(self.processes.device).train()
        for name, p in self.critic.named_parameters():
            p.requires_grad_(is_generation(name))
        if stage.checkpointing:
            recompute(self.critic)
            recompute(start)  # gradients pass it at times at which guidance does not act
        self.critic_optimizer = Optimizer(stage, self.critic)

    def update(self, batches: Sequence[Matched]) -> Outcome:  # type: ignore[override]
        """Draw, move what draws, and let the critic learn what was drawn.

        Args:
            batches: This process's packs.

        Returns:
            `flow`, the loss of the lessons; `apart`, see `_moved`; `critic`, its loss; all over all processes. Without
            effect unless gradients are finite; a later update of the critic whose own are not is left out alone.
        """
        asked = [one for batch in batches for one in batch.asked]
        lessons = [batch.lesson for batch in batches if batch.lesson is not None]
        generators = [Generator().manual_seed(one.seed) for one in asked]
        own = [sum(float(b.counts[1]) for b in lessons), float(sum(int(one.moves.sum()) for one in asked))]
        learned, matched = self.processes.total(torch.tensor(own, dtype=torch.float64)).clamp(min=1).tolist()
        flow, apart, drawn = 0.0, 0.0, list[Tensor]()
        for lesson in lessons:
            sums, _ = self._forward(lesson)
            (self.stage.flow_weight * sums[1] / learned).backward()
            flow += float(sums[1].detach())
        for one, generator in zip(asked, generators, strict=True):
            with autocast(self.stage.dtype, self.processes.device):
                clean = self.learner(one.drawn)
            step, far = self._moved(one, clean.detach(), generator)
            apart += far * float(one.moves.sum())
            goal = clean.detach() - step
            loss = 0.5 * (clean - goal).square().mean(1)
            if one.held is not None:  # the regression of DMD, section 3.3, between latents
                ends, weight = one.held
                loss = loss + weight * (clean - ends).square().mean(1)
            (loss[one.moves].sum() / matched).backward()
            drawn.append(clean.detach())
        seen, sound = self._critical(asked, drawn, generators, matched)
        told, finite = self.descend(sound)
        for n in range(self.how.critic_updates):
            more, again = (0.0, True) if n == 0 else self._critical(asked, drawn, generators, matched)
            seen += more
            if finite and again:
                self.critic_optimizer.step(self.how.critic_lr)
            self.critic_optimizer.zero_grad()
        seen /= self.how.critic_updates
        self.step += finite
        totals = torch.tensor([flow / learned, apart / matched, seen / matched], dtype=torch.float64)
        names = ("flow", "apart", "critic")
        values = dict(zip(names, self.processes.total(totals).tolist()))
        ids = [i for batch in batches for i in batch.ids]
        return Outcome(values | told, finite, [] if finite else ids)

    @torch.no_grad()
    def _moved(self, one: Asked, clean: Tensor, generator: Generator) -> tuple[Tensor, float]:
        """How results should not have come out.

        Args:
            one: Their requests.
            clean: (N, C) the results.
            generator: Of levels and noise.

        Returns:
            (N, C) what the critic expects less what the guided model expects, over the mean distance of a result from
            the latter (DMD, equations 7 and 8, for clean latents); and the root of its mean square as a share of that
            distance's.
        """
        times = _levels(len(one.lengths), generator)
        at = one.each(times)
        with autocast(self.stage.dtype, self.processes.device):
            x = add_noise(clean, _normal(clean, generator), at)
            [velocity] = one.of(self.critic).velocities(x, at, 1)
            right, present = one.expected(x, times), x - at[:, None] * velocity
        off, difference = clean - right, present - right
        size = one.each(one.mean(off.abs().mean(1)).cpu())[:, None].clamp(min=SMALL)
        far = difference[one.moves].square().mean().sqrt() / off[one.moves].square().mean().sqrt().clamp(min=SMALL)
        return torch.where(one.moves[:, None], difference / size, 0.0), float(far)

    def _seen(self, one: Asked, clean: Tensor, generator: Generator) -> Tensor:
        """(N,) the critic's loss at results, 0 at what is given."""
        at = one.each(_levels(len(one.lengths), generator))
        noise = _normal(clean, generator)
        with autocast(self.stage.dtype, self.processes.device):
            [velocity] = one.of(self.critic).velocities(add_noise(clean, noise, at), at, 1)
        return torch.where(one.moves, (velocity - velocity_target(clean, noise)).square().mean(1), 0.0)

    def _critical(
        self, asked: list[Asked], drawn: list[Tensor], generators: list[Generator], count: float
    ) -> tuple[float, bool]:
        """Gradients of the critic's loss at results, of all processes and clipped; the sum of this one's losses, and
        whether the gradients are finite."""
        total = 0.0
        for one, clean, generator in zip(asked, drawn, generators, strict=True):
            loss = self._seen(one, clean, generator).sum()
            (loss / count).backward()
            total += float(loss.detach())
        sum_gradients(self.processes, self.critic)
        norm = full(nn.utils.clip_grad_norm_(self.critic_optimizer.named.values(), self.stage.max_norm))
        return total, bool(norm.isfinite())

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Matched]) -> dict[str, float]:  # type: ignore[override]
        """Return the flow loss of the lessons of packs, and how far what is drawn of their requests is from where the
        guided model expects it, as a share of the distance that it would change."""
        flow, apart = [0.0, 0.0], [0.0, 0.0]
        for batch in batches:
            if batch.lesson is not None:
                flow[0] += float(self._forward(batch.lesson)[0][1])
                flow[1] += float(batch.lesson.counts[1])
            for one in batch.asked:
                with autocast(self.stage.dtype, self.processes.device):
                    clean = one.drawn(self.learner.lance)
                rows = float(one.moves.sum())
                apart[0] += rows * self._moved(one, clean, Generator().manual_seed(one.seed))[1]
                apart[1] += rows
        sums = self.processes.total(torch.tensor([*flow, *apart], dtype=torch.float64)).tolist()
        found = {"flow": sums[:2], "apart": sums[2:]}
        return {f"validation_{name}": total / count for name, (total, count) in found.items() if count}

    @torch.no_grad()
    def documents(self, batch: Matched) -> Tensor:  # type: ignore[override]
        """Return the loss of each sample of a pack: the critic's at what is drawn, or the flow loss of its states."""
        found = torch.zeros(len(batch.ids))
        if batch.lesson is not None:
            found[torch.tensor(batch.others)] = self._forward(batch.lesson)[1]
        for one in batch.asked:
            with autocast(self.stage.dtype, self.processes.device):
                clean = one.drawn(self.learner.lance)
            losses = self._seen(one, clean, Generator().manual_seed(one.seed)).split(one.lengths)
            found[torch.tensor(one.numbers)] = torch.stack([loss.sum() for loss in losses]).cpu()
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, the critic and its optimizer too."""
        return super().tensors() | {
            **{f"critic/{n}": p.detach() for n, p in self.critic_optimizer.named.items()},
            **{f"critic_optimizer/{n}": v for n, v in self.critic_optimizer.tensors().items()},
        }


def _levels(count: int, generator: Generator) -> Tensor:
    low, high = LEVELS
    return low + (high - low) * torch.rand(count, generator=generator)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device)
