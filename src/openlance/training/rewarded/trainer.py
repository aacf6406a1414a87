"""A stage that learns from rewards: rounds of rollouts, scores and updates, inside the loop of the other stages.

A round is a function of the weights, the seed and its number. Its samples come from the stage's stream; `Rollouts`
draws and hands the results to the rewards, which score them in processes of their own; `RewardTrainer.update` learns
from them. Checkpoints lie between rounds, so a run that was killed does its round again and ends as if it had not been.

What learns is what the stage does not freeze, or its adapter. Conditions run once, before the noisy rows of all results
of a request, with gradient wherever what they run through learns. Weights that are kept beside the new ones (old,
reference, average) are copies of what learns alone, and share the rest. Where guidance is distilled into the start
(`training.distillation`), its generation side is what learns, at the times it acts at.

Where weights are sharded, whatever needs no gradient runs a whole copy of the decoder, in the precision of the stage,
into which the weights that are asked for are gathered: once a round for drawing, once an update for each that the
objective compares with. Only passes with gradient go through the sharded decoder, as many on every process, and each
with a blank that uses every weight, since gradients travel too.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.distributed.tensor import DTensor

from openlance.config.train import Stage
from openlance.errors import UserError
from openlance.inference.prefix import prefill
from openlance.inference.visual import before_target, conditions
from openlance.model.lance import Cache, Lance
from openlance.model.precision import autocast, lowered
from openlance.rl.advantages import expected_best, shuffled, sound, table_of
from openlance.rl.objectives import trust
from openlance.rl.results import Ask, Result
from openlance.rl.rewards import Score
from openlance.rl.rollout import Policy
from openlance.rl.settings import objective_of
from openlance.runtime.distributed import Distributed
from openlance.sequence.pack import pack
from openlance.sequence.segment import Kind, Role, Segment, Segments
from openlance.sequence.tasks import text_to_visual
from openlance.text.tokenizer import SequenceCodec
from openlance.training.batch import Batch
from openlance.training.checkpoint import disk
from openlance.training.learner import Learner
from openlance.training.parallel import full, local
from openlance.training.rewarded.agreement import Agreement
from openlance.training.rewarded.pictures import SHOWN, add_round
from openlance.training.rewarded.practice import GROUPS, Practice
from openlance.training.trainer import Outcome, Trainer

BEST_OF = 8  # results of a request of which a log shows the expected best


class Turn(NamedTuple):
    """A result that is learned from: number of its group, its own on this process, and what is asked there, which is
    empty where another process has it."""

    group: int
    n: int
    asks: list[Ask]


class RewardTrainer(Trainer):
    """A stage that learns from rewards; see the module.

    Args:
        stage: With `rl`.
        learner: Whose decoder learns.
        codec: Turns its segments into tokens.
        processes: That do it together; each draws and learns from its own requests.
        reads: The decoder of conditions, where only another one of noisy rows learns.
        compiled: Compile the element-wise parts of layers.
        folder: Of the run, where pictures of held-out requests are kept; None keeps none.
    """

    shown = ("reward", "loss")
    measures_start = True

    def __init__(
        self, stage: Stage, learner: Learner, codec: SequenceCodec, processes: Distributed | None = None,
        reads: Lance | None = None, compiled: bool = False, folder: Path | None = None,
    ) -> None:  # fmt: skip
        processes = processes or Distributed()
        # Before weights are sharded, which cannot be copied.
        self.plain, self._holds = without_gradient(learner.to(processes.device).lance), ""
        super().__init__(stage, learner, processes, compiled)
        assert stage.rl is not None
        self.how, self.reads, self.codec, self.folder = stage.rl, reads, codec, folder
        self.objective = objective_of(stage)
        self.mute, self.others = 0, dict[str, dict[str, Tensor]]()
        if self.processes.sharded:
            self.plain.to(torch.bfloat16 if lowered(stage.dtype, self.processes.device) else torch.float32)
        self.remember()

    def remember(self) -> None:
        """Take the weights as they are for those of the start."""
        self.others = {w: {n: p.clone() for n, p in self._learned().items()} for w in sorted(self.objective.needs)}
        self._holds = ""

    def _learned(self) -> dict[str, Tensor]:
        """The new weights, those that learn alone."""
        return {n: p.detach() for n, p in self.learner.lance.named_parameters() if p.requires_grad}

    @property
    def drawing(self) -> Policy:
        """What draws rollouts: the old weights where the objective keeps such. Every process has to ask, whenever they
        have changed."""
        return Policy(lance=self._without("old" if "old" in self.others else "new"), conditions=self.reads)

    @torch.no_grad()
    def _without(self, weights: str) -> Lance:
        """A decoder of some weights for what needs no gradient, until others are asked for."""
        if weights == "new" and not self.processes.sharded:
            return self.learner.lance
        if self._holds != weights:
            values = self._learned() if weights == "new" else self.others[weights]
            for name, p in self.plain.named_parameters():
                if isinstance(value := values.get(name), DTensor):
                    p.copy_(full(value.to(p.dtype)))
                elif value is not None:
                    p.data = value
            self._holds = weights
        return self.plain

    @torch.no_grad()
    def _follow(self, weights: str, step: int) -> None:
        """Move other weights towards the new ones."""
        if weights in self.others:
            keep, live = self.objective.keeps(weights, step), self._learned()
            for name, value in self.others[weights].items():
                [mine], [new] = local([value]), local([live[name]])
                mine.lerp_(new, 1 - keep)

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
        each = (self.how.probes or self.how.group) if self.objective.samples else 1
        values = noted(self._told(batches), each)
        apart = [one for batch in batches for one in batch.first.diversity()]
        if apart := [one for part in self.processes.gather(apart) for one in part]:
            values["diversity"] = fmean(apart)
        good = sound(everyone)
        dropped = {group for group, _ in everyone} - {everyone[n][0] for n in good}
        values |= {"results": float(len(everyone)), "dropped": float(len(dropped))}
        generator = Generator().manual_seed(self.stage.seed * 1_000_003 + self.step)
        turns = list[Turn]()
        if good:
            rewards, numbered, shares = table_of([everyone[n] for n in good])
            if self.how.shuffle:
                rewards = shuffled(rewards, numbered, generator)
            scored = self.objective.select(rewards, numbered, generator, shares)
            speaking = scored.statistics["groups"] * (1 - scored.statistics["mute"])
            requested = sum(self.processes.gather(sum(len(batch.ids) for batch in batches)))
            values |= scored.statistics | {"mute": 1 - speaking / requested}
            results = [result for batch in batches for result in batch.results]
            for place, advantage in zip(scored.kept.tolist(), scored.advantages.tolist()):
                n = good[place]
                mine = first <= n < first + len(results)
                group = everyone[n][0]
                turns.append(Turn(group, n - first, self._asks(results[n - first], advantage, group) if mine else []))
        turns.sort(key=lambda turn: turn.group)
        self.mute = 0 if any(self.processes.agree(bool(turns))) else self.mute + 1
        self._check_spread(values)
        requests = [request for batch in batches for request in batch.requests]
        lessons = [batch.lesson for batch in batches if batch.lesson is not None]
        learned = self._updates(turns, requests, lessons)
        finite = learned.pop("finite", 1.0) > 0
        if finite:
            self._follow("old", self.step)
            self.step += 1
        seconds = {f"{name}_seconds": sum(b.seconds[name] for b in batches) for name in ("rollout", "reward")}
        seconds["reward_seconds"] += waited
        seconds["update_seconds"] = time.monotonic() - began - waited
        return Outcome(values | learned | seconds, finite, [] if finite else [i for b in batches for i in b.ids])

    def _told(self, batches: Sequence[Practice]) -> list[tuple[str, Score | None]]:
        """Of all processes."""
        own = [one for batch in batches for one in batch.told]
        return [one for part in self.processes.gather(own) for one in part]

    def _asks(self, result: Result, advantage: float, group: int) -> list[Ask]:
        # The results of a group get the same times and noise, so that they differ in nothing else.
        seed = ((self.stage.seed * 1_000_003 + self.step) * GROUPS + group) % 2**63
        return self.objective.asks(result, advantage, Generator().manual_seed(seed))

    def _check_spread(self, values: Mapping[str, float]) -> None:
        if self.mute >= self.how.patience:
            reward = values["reward"]
            raise UserError(
                f"for {self.mute} rounds no request had results of different rewards (their mean is {reward:.3g}), so "
                "there is nothing to learn from: take requests that are neither always nor never right, more results "
                "of each (rl.group), or a reward with more steps"
            )

    def _updates(self, turns: list[Turn], requests: list[Segments], lessons: list[Batch]) -> dict[str, float]:
        """All updates of a round, from the results of all processes."""
        done = list[dict[str, float]]()
        for update in range(self.how.updates):
            mine = [turn for turn in turns[update :: self.how.updates] if turn.asks]
            count = float(self.processes.total(torch.tensor(sum(len(t.asks) for t in mine), dtype=torch.float64)))
            sums, agreed = self._backward(mine, requests, count)
            found = self._mean(sums, count) | agreed
            if lessons:
                losses, _ = self.backward(lessons, self.how.supervised)
                found["supervised"] = self.how.supervised * float((losses * self.weights).sum())
            stays = not (self.how.trust and done and "error" in found and trust(found) > self.how.trust)
            told, taken = self.descend(stays and bool(count or lessons))
            self._holds = ""  # and `old` follows after the last update
            done.append(found | told)
            if not math.isfinite(told["norm"]):
                return {**done[-1], "finite": 0.0}
            if taken:
                self._follow("average", self.step * self.how.updates + update)
            if not stays:
                break
        names = dict.fromkeys(name for found in done for name in found)
        each = {name: [found[name] for found in done if name in found] for name in names}
        means = {name: sum(some) / len(some) for name, some in each.items()}
        return {"loss": 0.0, **means, "updates": float(len(done))}

    def _backward(
        self, mine: list[Turn], requests: list[Segments], count: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Gradients of the mean loss over all asks of all processes; sums of the statistics of this one's, and how far
        the gradients of its parts agree."""
        sums, agreement = defaultdict[str, float](float), Agreement(self.learner.parameters(), self.processes)
        pieces = [([requests[t.n] for t in some], [a for t in some for a in t.asks]) for some in self._pieces(mine)]
        found = [dict[str, Tensor]() for _ in pieces]
        # Whole weights lie side by side; sharded ones are gathered for one after another.
        *before, last = [[w] for w in (*self.others, "new")] if self.processes.sharded else [["new", *self.others]]
        most = max(self.processes.gather(len(pieces))) if self.processes.sharded else len(pieces)
        for weights in before:
            self._without(*weights)  # also where there are no pieces
            for velocities, piece in zip(found, pieces, strict=True):
                velocities |= self.velocities(*piece, weights)
        for velocities, (some, asks) in zip(found, pieces, strict=True):
            loss = self.objective.loss(asks, velocities | self.velocities(some, asks, last))
            (loss.per_ask.sum() / count).backward()
            agreement.add()
            for name, value in loss.statistics.items():
                sums[name] += value * len(asks)
        for _ in range(len(pieces), most):
            self.velocities([], [], ["new"])["new"].sum().backward()  # the blank alone, since others go on
            agreement.add()
        return dict(sums), agreement.signal()

    def _blank(self) -> tuple[Segments, Ask]:
        """A request with latents among its conditions, and a state of its target."""
        channels, side = self.codec.config.latent_channels, self.codec.config.vae.stride
        size = (1, side, side)
        given = Segment(Kind.LATENTS, Role.REFERENCE, torch.zeros(1, 1, 1, channels), size)
        nothing = torch.zeros(1, channels)
        ask = Ask(result=Result(clean=nothing), advantage=0.0, x=nothing, t=1.0)
        return [given, *text_to_visual("", [], size)], ask

    def _mean(self, sums: dict[str, float], count: float) -> dict[str, float]:
        """Means over the asks of all processes."""
        names = sorted({name for found in self.processes.gather(sorted(sums)) for name in found})
        totals = self.processes.total(torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64))
        return dict(zip(names, (totals / max(count, 1)).tolist()))

    def _pieces(self, mine: list[Turn]) -> list[list[Turn]]:
        """What goes through the model together: results with equally many asks, up to the rows of a pack. Those of a
        request stay together where they fit: what they were compared for is in no part alone."""
        pieces, rows, most = list[list[Turn]](), 0, self.stage.pack_tokens[1]
        for each, same in groupby(sorted(mine, key=lambda turn: (len(turn.asks), turn.group)), lambda t: len(t.asks)):
            rows = most + 1
            for _, group in groupby(same, lambda turn: turn.group):
                turns = list(group)
                if rows + each * sum(len(turn.asks[0].x) for turn in turns) > most:
                    rows = most + 1
                for turn in turns:
                    more = each * len(turn.asks[0].x)
                    if rows + more > most:
                        pieces.append([])
                        rows = 0
                    pieces[-1].append(turn)
                    rows += more
        return pieces

    def velocities(
        self, requests: Sequence[Segments], asks: Sequence[Ask], chosen: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Give the velocities (rows, C) at some asks, by weights.

        Args:
            requests: Of the results of the asks, in order; each has equally many.
            asks: One result's after the other's.
            chosen: Which weights; the new ones and all that the objective reads.
        """
        device, each, count = self.processes.device, len(asks) // max(len(requests), 1), sum(len(ask.x) for ask in asks)
        if self.processes.sharded:
            blank, ask = self._blank()
            requests, asks, each = [*requests, blank], [*asks, *max(each, 1) * [ask]], max(each, 1)
        packed = pack(list(requests), self.codec, self.codec.config.position, each)
        rows, (features, context) = packed.rows, conditions(packed, device)
        prefix, noisy = (where.nonzero()[:, 0] for where in (before_target(rows), rows.noisy))
        x, times = (torch.cat(parts).to(device) for parts in ([a.x for a in asks], [a.times for a in asks]))
        read: Cache | None = None  # by the decoder of conditions, for all weights

        def velocity(lance: Lance) -> Tensor:
            nonlocal read
            cache = read or prefill(self.reads or lance, packed, prefix, (features, context)).cache
            read = cache if self.reads is not None else None
            _, gen = lance(lance.layout(rows.at(noisy), cache), latents=x, times=times, cache=cache)
            return lance.velocity(gen).float()

        found = dict[str, Tensor]()
        with autocast(self.stage.dtype, device):
            for weights in chosen or ("new", *self.others):
                if weights == "new":
                    found[weights] = self.learner(velocity)
                else:
                    with torch.no_grad():
                        found[weights] = velocity(self._without(weights))
        return {weights: v[:count] for weights, v in found.items()}

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Practice]) -> dict[str, float]:  # type: ignore[override]
        """Return the mean scores of held-out requests, and show some of their results in the folder of the run."""
        drawn = [one for batch in batches for one in batch.first.drawn][:SHOWN]
        if self.folder is not None:
            drawn = [one for part in self.processes.gather(drawn) for one in part][:SHOWN]
            if self.processes.leads:
                with disk(self.folder):
                    add_round(self.folder, self.step, drawn)
        values = noted(self._told(batches))
        return {f"validation_{name}": value for name, value in values.items()}

    def documents(self, batch: Practice) -> Tensor:  # type: ignore[override]
        """Return the mean reward of what was drawn first for each sample; nan where a result could not be scored."""
        told = list(zip(batch.first.numbers, batch.first.scored(), strict=True))
        own = [[score for number, score in told if number == n] for n in range(len(batch.ids))]
        return torch.tensor([fmean(s.total if s is not None else math.nan for s in scores) for scores in own])

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, the other weights that move with it."""
        moving = {name: values for name, values in self.others.items() if name != "reference"}
        return super().tensors() | {f"{w}/{n}": value for w, values in moving.items() for n, value in values.items()}

    def state(self) -> dict[str, Any]:
        return super().state() | {"mute": self.mute}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.mute, self._holds = state["mute"], ""


def without_gradient(lance: Lance) -> Lance:
    """Make a decoder of the same weights, which share their memory, that carries no gradient."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in lance.parameters()}
    return copy.deepcopy(lance, shared).eval()


def noted(told: Sequence[tuple[str, Score | None]], each: int = 1) -> dict[str, float]:
    """Return what a log shows of scores.

    Args:
        told: Kind of the request and score of results, those of one request after those of the other.
        each: How many each request has.

    Returns:
        Means of the totals, of those of each kind, and of each fact, where it is told; of groups, the expected best of
        1 and of 8 results (or of as many as there are), and the standard deviation of totals inside them.
    """
    scores = [score for _, score in told]
    good = [score for score in scores if score is not None]
    names = sorted({name for score in good for name in score.facts})
    values = {"reward": sum(score.total for score in good) / max(len(good), 1)}
    values |= {f"reward/{name}": fmean(one.facts[name] for one in good if name in one.facts) for name in names}
    kinds = sorted({kind for kind, score in told if kind and score is not None})
    values |= {f"kind/{k}": fmean(one.total for kind, one in told if kind == k and one is not None) for k in kinds}
    groups = [scores[n : n + each] for n in range(0, len(scores), each)]
    whole = [[one for one in group if one is not None] for group in groups if None not in group]
    if each == 1 or not whole:
        return values
    values["spread"] = fmean(pstdev(one.total for one in group) for group in whole)
    found = {"": [[one.total for one in group] for group in whole]}
    found |= {
        f"/{name}": [[o.facts[name] for o in group] for group in whole if name in group[0].facts] for name in names
    }
    for k in (1, min(BEST_OF, each)):
        best = {name: [expected_best(group, k) for group in some] for name, some in found.items() if some}
        values |= {f"pass@{k}{name}": fmean(some) for name, some in best.items()}
    return values
