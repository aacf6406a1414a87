"""A stage from its settings to an exported model: what `openlance train` calls.

run_stage(stage("sft", "nano"), Settings(out=Path("runs/mine"), model=folder, data={"t2i": "pictures/"}))
run_recipe(recipe("nano"), Settings(...))          # stage after stage, each in a folder of its own
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from openlance.config.train import Stage
from openlance.config.values import as_data, build
from openlance.data.encoded import PROBE, EncodedSource, probed
from openlance.data.open import open_source
from openlance.data.source import Endless, Source
from openlance.data.stream import Reading, Stream
from openlance.errors import UserError
from openlance.runtime.distributed import Distributed
from openlance.runtime.lora import Lora, inject, write_adapter
from openlance.runtime.media_encoder import TOGETHER, MediaEncoder, latents
from openlance.sequence.tasks import spec_of
from openlance.training.batch import Preparer
from openlance.training.checkpoint import disk
from openlance.training.files import RunFolder, check_reporters, stage_folders, starts_of
from openlance.training.loop import Work, rewind, train
from openlance.training.start import Base, averaged, export, open_base
from openlance.training.trainer import Trainer

Data = Mapping[str, Any]  # task: what `open_source` reads
Show = Callable[[Path], None]  # called with an exported model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a run that is not the stage.

    model: folder to start from; init: what of it, see `open_base`. data, held_out: sources by task; held_out_packs: how
    many packs validate. Lengths in steps, 0 is never. shard: processes that share one copy of the weights. of_recipe:
    `out` is one of the folders of a recipe. command: the words that started it, for `train resume`.
    """

    out: Path
    model: Path
    init: str = "model"
    data: Data = field(default_factory=dict)
    held_out: Data = field(default_factory=dict)
    held_out_packs: int = 2
    workers: int = 0
    max_broken: float = 0.001
    save_every: int = 500
    keep: int = 3
    validate_every: int = 0
    show_every: int = 0
    shard: int = 1
    compiled: bool = False
    report_to: tuple[str, ...] = ()
    minutes: float = float("inf")
    lora: Lora | None = None
    allow_pickle: bool = False
    of_recipe: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_reporters(self.report_to)

    def recorded(self) -> dict[str, Any]:
        """What all processes have to agree on, as plain data."""
        options = {k: v for k, v in asdict(self).items() if k not in ("command", "minutes")}
        return {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}

    @classmethod
    def of_record(cls, options: dict[str, Any]) -> Settings:
        """The settings that were recorded."""
        said = options | {"out": Path(options["out"]), "model": Path(options["model"])}
        return cls(**said | {"lora": Lora(**said["lora"]) if said["lora"] else None})


def run_stage(stage: Stage, settings: Settings, show: Show | None = None) -> Path:
    """Train one stage to its end, or as far as the time allows, and return the folder of the result: `out/model`, or
    `out` itself for an adapter. The same call goes on where a stopped run was."""
    check_plan((stage,), settings)
    processes = joined((stage,), settings)
    base = prepared_base(stage, settings)
    with ExitStack() as stack:
        run, work = prepare(stage, settings, base, processes, stack, show)
        work.folder.record(stage, settings.recorded(), settings.command)
        train(run, work)
        written = finish(run, base, settings)
        if show is not None and processes.leads:
            show(written)
    processes.wait()
    return written


def run_recipe(stages: tuple[Stage, ...], settings: Settings, show: Show | None = None) -> Path:
    """Stages in order, in `out/1-NAME`, `out/2-NAME` ...; each takes over weights, averages and moments of the one
    before. Returns the folder of the last result."""
    check_plan(stages, settings)
    processes = joined(stages, settings)
    base, before, began = prepared_base(stages[0], settings), None, time.monotonic()
    for number, stage in enumerate(stages, start=1):
        left = settings.minutes - (time.monotonic() - began) / 60
        own = replace(settings, out=settings.out / f"{number}-{stage.name}", minutes=left, of_recipe=True)
        with ExitStack() as stack:
            base.learner.requires_grad_(True)
            run, work = prepare(stage, own, base, processes, stack, show)
            if before is not None:
                take_over(run, before)
            work.folder.record(stage, own.recorded(), settings.command)
            if not train(run, work):
                break
        before = run
    written = finish(run, base, settings)
    if show is not None and processes.leads:
        show(written)
    processes.wait()
    return written


def joined(stages: tuple[Stage, ...], settings: Settings) -> Distributed:
    """The processes, once all of its processes agree on what to do."""
    processes = Distributed.join(settings.shard)
    named = {"stage": stages[0]} if len(stages) == 1 else {stage.name: stage for stage in stages}
    processes.same(as_data(named) | {"options": settings.recorded()})
    return processes


def prepared_base(stage: Stage, settings: Settings) -> Base:
    base = open_base(settings.model, stage, settings.init, allow_pickle=settings.allow_pickle)
    if settings.lora is not None:
        base.learner.requires_grad_(False)
        inject(base.learner.lance, settings.lora, stage.seed)
    return base


def prepare(
    stage: Stage, settings: Settings, base: Base, processes: Distributed, stack: ExitStack, show: Show | None
) -> tuple[Trainer, Work]:
    """A trainer at its first step and what it works with; streams close with the stack."""
    vae = base.vae.to(processes.device)
    sources = {task: open_source(spec, task) for task, spec in specs(stage, settings.data).items()}
    check_latents(sources, base)
    reading = Reading(
        rank=processes.rank, world=processes.size, workers=settings.workers, max_broken=settings.max_broken
    )
    stream = stack.enter_context(Stream(sources, stage, base.codec, style=base.style, reading=reading))
    folder = RunFolder(settings.out, processes, settings.keep, settings.report_to)
    run = Trainer(stage, base.learner, processes, settings.compiled)

    def exported(run: Trainer) -> None:
        written = finish(run, base, settings)
        if show is not None and processes.leads:
            show(written)

    work = Work(
        folder=folder,
        batches=stream,
        prepare=Preparer(
            stage=stage,
            codec=base.codec,
            encode=MediaEncoder(lambda _: base.learner.vit, lambda: vae, together=TOGETHER),
            device=processes.device,
            complete=processes.sharded,
        ),
        save_every=settings.save_every,
        validate_every=settings.validate_every,
        held_out=held_out(stage, settings, base, reading) if settings.validate_every else (),
        show_every=settings.show_every,
        show=exported,
        minutes=settings.minutes,
    )
    return run, work


def check_plan(stages: tuple[Stage, ...], settings: Settings) -> None:
    """What can be said before hours of work. UserError for data of a task that no stage mixes in or that cannot be
    opened, for a task without any, and for stages that cannot follow each other."""
    if settings.shard > 1 and len({stage.frozen for stage in stages}) > 1:
        raise UserError("these stages freeze different parts, which sharded weights cannot change: run them one by one")
    mixed = {task for stage in stages for task, weight in stage.mixture.items() if weight}
    for given in (settings.data, settings.held_out):
        for task, spec in given.items():
            if task not in mixed:
                which = f"the stage {stages[0].name} does not mix" if len(stages) == 1 else "no stage mixes"
                raise UserError(f"{which} in {task}: add --set mixture.{task}=1")
            open_source(spec, task)
    for stage in stages:
        if settings.validate_every:
            held_out_sources(stage, settings)
        specs(stage, settings.data)


def check_latents(sources: Mapping[str, Any], base: Base) -> None:
    """UserError for latents that were encoded ahead with another codec than the model's."""
    encoded = [s for s in sources.values() if isinstance(s, EncodedSource) and spec_of(s.task).makes != "text"]
    if encoded:
        own = base.vae.to(base.vae.device)  # goes again: training may need no VAE
        found = probed(latents(own, [PROBE])[0])
        for source in encoded:
            source.check_codec(found)


def specs(stage: Stage, data: Data) -> dict[str, Any]:
    """The source of every task in the mixture: the one given, or else the stage's own."""
    wanted = [task for task, weight in stage.mixture.items() if weight]
    missing = [task for task in wanted if task not in data]
    if missing and not stage.source:
        raise UserError(
            f"the stage {stage.name} mixes in {', '.join(missing)} without data: add --data {missing[0]}=PATH "
            f"for each, or say what to mix with --set 'mixture={{t2i: 1}}'"
        )
    return {task: data.get(task, stage.source) for task in wanted}


def held_out_sources(stage: Stage, settings: Settings) -> dict[str, Source]:
    """The sources that validate: those held out, or endless ones that train. UserError for a task that has neither."""
    chosen = {task: settings.held_out.get(task, spec) for task, spec in specs(stage, settings.data).items()}
    sources = {task: open_source(spec, task) for task, spec in chosen.items()}
    for task, source in sources.items():
        if task not in settings.held_out and not isinstance(source, Endless):
            raise UserError(
                f"nothing is held out for {task}: add --held-out {task}=PATH, or leave --validate-every out"
            )
    return sources


def held_out(stage: Stage, settings: Settings, base: Base, reading: Reading) -> list[list]:
    """Packs that are never trained on: from sources of their own, or of another seed where the source is endless."""
    sources = held_out_sources(stage, settings)
    other = replace(stage, seed=stage.seed + 1, name=f"{stage.name} held out", drop_text=0.0, drop_all=0.0)
    with Stream(sources, other, base.codec, style=base.style, reading=replace(reading, workers=0)) as stream:
        return [next(stream) for _ in range(settings.held_out_packs)]


@torch.no_grad()
def take_over(run: Trainer, before: Trainer) -> None:
    """Averages and moments of the stage before; the weights are in the learner that both share. What the stage leaves
    alone stays as its average, since that is what will be used."""
    live, old = dict(run.learner.named_parameters()), before.tensors()
    for name in before.ema.values.keys() - run.ema.values.keys():
        live[name].copy_(before.ema.values[name])
    for name, tensor in run.tensors().items():
        if name in old and old[name] is not tensor:
            tensor.copy_(old[name])
    run.ema.count = before.ema.count


def finish(run: Trainer, base: Base, settings: Settings) -> Path:
    """Write the result as it stands: a complete model, or the adapter alone. Every process has to call it."""
    with disk(settings.out):
        if settings.lora is None:
            export(run, base, settings.out / "model")
            return settings.out / "model"
        tensors = {n.removeprefix("lance."): t for n, t in averaged(run).items() if ".lora_" in n}
        if run.processes.leads:
            write_adapter(settings.out, tensors, settings.lora, str(settings.model))
        return settings.out


def replay_step(folder: Path, step: int) -> dict[str, Any]:
    """Do one step of the run in a folder again, write nothing, and return its losses and, per sample of this process,
    the sum of its losses. UserError if there is no run, or no checkpoint to begin at."""
    starts = starts_of(folder)
    if not starts:
        raise UserError(f"{folder} is no run: give a folder that `openlance train` wrote, with a run.json")
    settings = replace(Settings.of_record(starts[-1]["options"]), report_to=(), validate_every=0)
    places = earlier(folder) if settings.of_recipe else [folder]
    stages = [build(Stage, starts_of(place)[-1]["stage"]) for place in places]
    processes = joined((stages[-1],), replace(settings, out=folder))
    base, before = prepared_base(stages[0], settings), None
    with ExitStack() as stack:
        for place, stage in zip(places, stages, strict=True):
            if before is not None:
                base.learner.requires_grad_(True)
            run, work = prepare(stage, replace(settings, out=place), base, processes, stack, None)
            if before is not None:
                take_over(run, before)
            if place != folder and not work.folder.resume(run, work.batches):
                raise UserError(
                    f"{place} has no checkpoint, and {folder} went on from it: the step cannot be done again"
                )
            before = run
        packs = rewind(run, work, step)
        sums = [run.documents(batch).tolist() for batch in packs]  # of the weights that the step begins with
        outcome = run.update(packs)
    samples = {i: value for batch, values in zip(packs, sums) for i, value in zip(batch.ids, values)}
    return {"step": step, "finite": outcome.finite, **outcome.values, "samples": samples}


def earlier(folder: Path) -> list[Path]:
    """The folders of a recipe's stages up to this one, in order. UserError if it is not beside them."""
    places, own = stage_folders(folder.resolve().parent), folder.resolve()
    if own not in places:
        raise UserError(f"{folder} is a stage of a recipe: leave it, and its name, among the folders of the others")
    return [*places[: places.index(own)], folder]
