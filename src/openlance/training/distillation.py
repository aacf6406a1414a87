"""Guidance in one pass: a generation side of its own for the noisy rows at times at which guidance acts.

Rewards and few steps want a model that needs no guidance. What it gives at fixed scales is a function of the request,
the state and the time, so a copy of the generation expert can learn it (Meng et al., arXiv 2210.03142). States come
from trajectories of the guided model (adapters of guided paths: arXiv 2503.07274), whose Euler steps are the velocities
to learn. The copy runs on noisy rows alone: conditions and answers are the other weights', bit for bit, and below the
interval of guidance these draw too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.formats import find, released_name
from openlance.checkpoint.writer import write_tensors
from openlance.config.sampling import DISTILLED, FILE, WORDS_ALONE, GenerationConfig, Sampling
from openlance.config.train import Distillation, Stage
from openlance.config.values import as_data, build, known, read_json
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.flow import schedule
from openlance.inference.prefix import prefill
from openlance.inference.visual import before_target, conditions, denoise, rows_of_target, until_target
from openlance.media.files import atomic_path, write_json
from openlance.model.lance import Lance, is_generation
from openlance.model.precision import autocast
from openlance.sequence.pack import pack
from openlance.sequence.segment import Segments, roles_of
from openlance.sequence.tasks import TASKS, spec_of
from openlance.training.batch import Batch, Preparer
from openlance.training.objective import Noised

State = tuple[Tensor, float, Tensor]  # (N, C), its time, and the velocity (N, C) to learn there


@dataclass(frozen=True, kw_only=True)
class Taught(Preparer):
    """Makes batches of states of guided trajectories, `stage.draws` of each request. They are a function of (seed,
    number of the pack) and of the teacher's weights, which do not change.

    Args:
        teacher: The decoder as it began.
        defaults: How it samples.
        distilled: The same with the generation side that the start had distilled, where its own few steps are learned
            from (`Distillation.progressive`).
    """

    teacher: Lance
    defaults: GenerationConfig
    distilled: Lance | None = None

    def __call__(self, samples: list[Sample], number_of_pack: int) -> Batch:
        seed = self.stage.seed * 1_000_003 + number_of_pack
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), autocast(self.stage.dtype, self.device):
            requests = self.encode([emptied(s.segments) for s in samples])
            states = self._states(requests, generator)
            packed = pack(requests, self.codec, self.codec.config.position, self.stage.draws)
            features, context = conditions(packed, self.device)
            prefix = before_target(packed.rows).nonzero()[:, 0]
            cache = prefill(self.teacher, packed, prefix, (features, context)).cache
        rows = packed.rows.at(packed.rows.noisy.nonzero()[:, 0])
        moved = rows.denoise[rows.is_latent].to(self.device)
        chosen = [state for own in states for state in own]
        x, target = (torch.cat([state[i] for state in chosen]) for i in (0, 2))  # type: ignore[misc]
        times = torch.cat([torch.full((len(state[0]),), state[1], device=self.device) for state in chosen])
        noise = Noised(x, target, torch.where(moved, times, 0.0))
        counts = torch.tensor([0, int(moved.sum()), 0], dtype=torch.float64)
        ids = [s.id for s in samples]
        return Batch(
            packed=packed, ids=ids, noise=noise, clips=[], shown=[], labels={}, counts=counts, seed=seed, cache=cache
        )

    def _states(self, requests: Sequence[Segments], generator: torch.Generator) -> list[list[State]]:
        """Some states of a trajectory of the teacher for each request; those that are drawn alike share its times."""
        # Rewards go on from what is distilled, and teach it again as it was taught; a distilled teacher is gone by
        # then, and guidance takes as many steps in its place.
        asked, draws = self.stage.distill or taught_before(self.defaults), self.stage.draws
        seeds = torch.randint(2**31, (len(requests),), generator=generator).tolist()
        alike: dict[str, tuple[Sampling, Distillation, list[int]]] = {}
        for n, request in enumerate(requests):
            how = asked.of(roles_of([request]))
            usual = guidance_of(self.defaults, request, how.progressive and self.distilled is not None)
            alike.setdefault(repr((usual, how)), (usual, how, []))[2].append(n)
        found: dict[int, list[State]] = {}
        for sampling, how, numbers in alike.values():
            steps = int(torch.randint(how.steps[0], how.steps[1] + 1, (), generator=generator))
            along = float(torch.rand((), generator=generator))
            shift = how.shift[0] ** (1 - along) * how.shift[1] ** along
            own = replace(sampling, num_inference_steps=steps, shift=shift)
            some = self._trajectories([requests[n] for n in numbers], own, [seeds[n] for n in numbers])
            for n, states in zip(numbers, some, strict=True):
                if not states:
                    low, high = own.interval
                    said = f"guidance acts from time {high:g} to {low:g}, at none of {steps} steps of the teacher"
                    raise UserError(f"{said}: let it take more of them", fix={"steps": [2 * steps, 2 * steps]})
                order = torch.randperm(len(states), generator=generator).tolist()
                found[n] = [states[order[k % len(order)]] for k in range(draws)]
        return [found[n] for n in range(len(requests))]

    def _trajectories(self, requests: list[Segments], sampling: Sampling, seeds: list[int]) -> list[list[State]]:
        """The states of each request at which guidance acts, with the mean velocity up to the next."""
        passed: list[tuple[float, Tensor]] = []  # times and states (N, C) of all requests, in order
        low, _ = sampling.interval

        def begin(step: int, t: float, x: Tensor) -> None:
            if not step:
                passed.append((t, x))

        denoise(
            self.teacher, self.codec, requests, sampling, seeds=seeds, on_step=begin,
            after_step=lambda _, t, x: passed.append((t, x)), stops=lambda: passed[-1][0] <= low,
            distilled=self.distilled if sampling.distilled else None,
        )  # fmt: skip
        sizes = [rows_of_target(request, self.codec) for request in requests]
        found = [list[State]() for _ in requests]
        for (t, x), (t_next, x_next) in zip(passed, passed[1:]):
            if not sampling.acts_at(t):
                continue
            velocity = (x - x_next) / (t - t_next)
            for own, *parts in zip(found, x.split(sizes), velocity.split(sizes), strict=True):
                own.append((parts[0].clone(), t, parts[1].clone()))  # a gradient may pass copies alone
        return found


def taught_before(defaults: GenerationConfig) -> Distillation:
    """Return how guidance was distilled into a checkpoint; what older versions wrote beside it is passed over."""
    said = known(Distillation, defaults.distillation)
    by_role = {role: known(Distillation, own) for role, own in said.get("by_role", {}).items()}
    return build(Distillation, said | {"by_role": by_role})


def emptied(segments: Segments) -> Segments:
    """The request of a sample: up to its visual target, which is left empty."""
    request = until_target(segments)
    return [*request[:-1], request[-1].filled(None)]


def guidance_of(defaults: GenerationConfig, request: Segments, distilled: bool = False) -> Sampling:
    """How a request is guided by the teacher, with the released solver; distilled: as the start draws it in one pass a
    step, where it has learned to."""
    said = defaults.denoising(distilled=distilled, step_cache=0.0, compile=False, strength=1.0)
    usual = said.sampling_for(roles_of([request]))
    return usual if usual.distilled else replace(usual, solver="euler")


def check_distilling(stage: Stage, model: Path) -> None:
    """Raise a UserError for a stage that cannot distil guidance, or a start that has none."""
    files = find(model)
    defaults = files.defaults
    texts = [task for task, weight in stage.mixture.items() if weight and spec_of(task).makes == "text"]
    if texts:
        raise UserError(
            f"the stage {stage.name} distils guidance, and {texts[0]} has none: leave it out of the mixture"
        )
    if stage.drop_text or stage.drop_all:
        raise UserError("guidance is distilled from whole requests", fix={"drop_text": 0, "drop_all": 0})
    assert stage.distill is not None
    if stage.distill.goes_on and not defaults.distilled:
        name = "matched" if stage.distill.matches else "progressive"
        said = f"distill.{name} goes on from the few steps of a distilled start, and {model} is none"
        raise UserError(f"{said}: distil its guidance first", fix={name: False})
    if defaults.sampling.guidance_scale <= 1:
        raise UserError(f"{model} samples without guidance, so there is nothing to distil")
    for roles in ([], *([role] for role in stage.distill.by_role)):
        way, guided = stage.distill.of(roles), defaults.denoising(distilled=False).sampling_for(roles)
        times = schedule(way.num_inference_steps, way.shift[0])[:-1].tolist()
        if way.matched and not any(guided.acts_at(t) for t in times):
            low, high = guided.interval
            begin = ", ".join(f"{t:.2g}" for t in times)
            said = f"the steps to match begin at {begin}, and guidance acts from time {high:g} to {low:g} alone"
            raise UserError(said, expected="one step or more at which it acts")
    if files.form != "openlance":
        raise UserError(f"{model} is of the form {files.form}: run `openlance convert` first, guidance goes beside it")


def export_distilled(
    values: Mapping[str, Tensor], model: Path, folder: Path, changes: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write the start with another generation side for noisy rows.

    Args:
        values: That, by our names.
        model: The start.
        folder: Where to.
        changes: Of `generation_config.json`.
    """
    files = find(model)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(files.root.iterdir()):
        if path.is_file() and path.name not in (DISTILLED, FILE, "README.md"):
            with atomic_path(folder / path.name) as out:
                shutil.copyfile(path, out)
    own = {n: v for n, v in values.items() if is_generation(n)}
    write_tensors(folder / DISTILLED, {released_name(n): v.to(torch.float16) for n, v in own.items()})
    said = read_json(files.tokenizer / FILE) if (files.tokenizer / FILE).is_file() else {}
    write_json(folder / FILE, said | dict(changes))


def sampled(defaults: GenerationConfig, stage: Stage) -> dict[str, Any]:
    """Say how a distilled checkpoint samples: in few steps where the stage taught it, as the start elsewhere.

    Args:
        defaults: How the start samples.
        stage: Whose mixture tells what was taught.

    Returns:
        The fields `sampling`, `distilled` and `distillation` of `generation_config.json`.
    """
    how = stage.distill
    assert how is not None

    def few(roles: list[str]) -> dict[str, Any]:
        """What differs for some roles; a shift that never varied is the one of the result."""
        own = how.of(roles)
        said = {"num_inference_steps": own.num_inference_steps, "solver": own.solver}
        return said | ({"shift": own.shift[0]} if own.shift[0] == own.shift[1] else {})

    specs = [spec_of(task) for task, weight in stage.mixture.items() if weight]
    whole = [s for s in specs if s.makes == "image" and not s.in_part]
    learned = [s for s in TASKS.values() if defaults.knows(s.name)]
    parts = [s for s in learned if s.makes == "image" and s.in_part]
    moving = [s for s in learned if s.makes == "video"]
    taught = {
        WORDS_ALONE: any(not s.reads for s in whole), "source": any(s.sized_by_source for s in whole),
        "reference": any(s.reads and not s.keeps_size for s in whole),
        "region": bool(parts) and all(s in specs for s in parts),
        "video": bool(moving) and all(s in specs for s in moving),
    }  # fmt: skip
    # A region is one of a source.
    by_role = {role: few(["source", role] if role == "region" else [role]) for role, there in taught.items() if there}
    return {
        "sampling": as_data(defaults.sampling) | {"distilled": True}, "distilled": by_role,
        "distillation": as_data(how),
    }  # fmt: skip
