"""A stage from its settings to an exported model: what `openlance train` calls.

run_stage(stage("sft", "nano"), Settings(out=Path("runs/mine"), model=folder, data={"t2i": "pictures/"}))
run_recipe(recipe("nano"), Settings(...))          # stage after stage, each in a folder of its own
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openlance.checkpoint.formats import find
from openlance.checkpoint.tensors import fingerprint, open_tensors
from openlance.config.train import UNDERSTANDING, Stage
from openlance.config.values import as_data, build
from openlance.config.versions import versions
from openlance.data.cache import FOLDER, Cache, opened
from openlance.data.encoded import PROBE, EncodedSource, probed
from openlance.data.lanes import Lanes
from openlance.data.open import open_source
from openlance.data.report import look
from openlance.data.source import Endless, Reading, Source
from openlance.data.stream import Stream
from openlance.errors import UserError
from openlance.model.lance import is_generation, lance_parameters, own_generation
from openlance.model.lora import inject, read_adapter, trained, write_adapter
from openlance.model.precision import lowered
from openlance.rl.prompts import PromptSource, holds_prompts
from openlance.rl.rewards import RewardPool
from openlance.rl.settings import check_rewarding, settled
from openlance.runtime.components import with_generation
from openlance.runtime.distributed import Distributed
from openlance.runtime.media_encoder import TOGETHER, MediaEncoder, latents
from openlance.sequence.tasks import spec_of
from openlance.training.again import check_again, note_found
from openlance.training.batch import Preparer
from openlance.training.checkpoint import disk
from openlance.training.curves import write_curves
from openlance.training.distillation import Taught, check_distilling, export_distilled, sampled, taught_before
from openlance.training.files import RunFolder, Settings, as_begun, note_schedule, stage_folders, starts_of
from openlance.training.matching import Matching, MatchTrainer
from openlance.training.results import check_results
from openlance.training.rewarded.practice import Rollouts
from openlance.training.rewarded.trainer import RewardTrainer
from openlance.training.start import Base, averaged, export, open_base
from openlance.training.trainer import Trainer, Work, rewind, train

Show = Callable[[Path], None]  # called with an exported model


def run_stage(stage: Stage, settings: Settings, show: Show | None = None) -> Path:
    """Train one stage to its end, or as far as the time allows. The same call goes on where a stopped run was.

    Args:
        stage: What is done.
        settings: How, and with what.
        show: Called with the exported model, every `show_every` steps and at the end.

    Returns:
        The folder of the result: `out/model`, or `out` itself for an adapter.

    Raises:
        UserError: For settings that do not fit the stage, before anything is written.
        TrainingDiverged: When a loss or a gradient is not finite.
        Interrupted: After Ctrl-C or SIGTERM, with everything saved.
    """
    return _run({settings.out: stage}, settings, show)


def run_recipe(stages: tuple[Stage, ...], settings: Settings, show: Show | None = None) -> Path:
    """Train stages in order, in `out/1-NAME`, `out/2-NAME` ...; each takes over weights, averages and moments of the
    one before. Arguments and errors as `run_stage`; returns the folder of the last result."""
    folders = {settings.out / f"{number}-{stage.name}": stage for number, stage in enumerate(stages, start=1)}
    return _run(folders, settings, show, of_recipe=True)


def _run(stages: Mapping[Path, Stage], settings: Settings, show: Show | None, of_recipe: bool = False) -> Path:
    """Train stages in their folders."""
    began, plan = time.monotonic(), tuple(stages.values())
    check_plan(plan, settings)
    processes, base = begin(plan, settings)
    run = None
    for folder, stage in stages.items():
        left = settings.minutes - (time.monotonic() - began) / 60
        own = replace(settings, out=folder, minutes=left, of_recipe=of_recipe)
        with ExitStack() as stack:
            run, work = prepare(as_begun(stage, folder, processes), own, base, processes, stack, show, before=run)
            check_again(stage, own, work.folder.checkpoints)
            if work.found is not None:
                note_schedule(stage, folder)
                note_found(folder, work.found)
            work.folder.record(stage)
            if not train(run, work):
                break
    assert run is not None
    written = finish(run, base, settings, show)
    processes.wait()
    return written


def begin(stages: tuple[Stage, ...], settings: Settings) -> tuple[Distributed, Base]:
    """Join the processes, once all of them agree on what to do, and open the model of the first stage."""
    processes = Distributed.join(settings.shard)
    named = {"stage": stages[0]} if len(stages) == 1 else {stage.name: stage for stage in stages}
    processes.same(as_data(named) | {"options": settings.recorded()})
    first = stages[0]
    halved = first.halves_frozen(processes.sharded) and lowered(first.dtype, processes.device)
    base = open_base(settings.model, first, settings.init, allow_pickle=settings.allow_pickle, halved=halved)
    if first.lora is not None:
        start = None if settings.adapter is None else read_adapter(settings.adapter).stored.updates
        base.learner.requires_grad_(False)
        inject(base.learner.lance, first.lora, first.seed, start, lambda name: not first.freezes(f"lance.{name}"))
    return processes, base


def prepare(
    stage: Stage, settings: Settings, base: Base, processes: Distributed, stack: ExitStack, show: Show | None = None,
    before: Trainer | None = None,
) -> tuple[Trainer, Work]:  # fmt: skip
    """Return a trainer at its first step, after the stage `before`, and what it works with; streams close with the
    stack."""
    vae = base.vae.to(processes.device)
    stage = stage if stage.rl is None else settled(stage, processes.device)
    sources, held_out = sources_of(stage, settings)
    for some in (sources, held_out):
        check_latents(some, base)
        check_results(some, stage, settings.model)
    cache = cache_of(sources, stage, settings, base, processes)
    reading = Reading(
        rank=processes.rank, world=processes.size, workers=settings.workers, max_broken=settings.max_broken,
        cache=cache,
    )  # fmt: skip
    stream = stack.enter_context(Lanes(sources, stage, base.codec, style=base.style, reading=reading))
    folder = RunFolder(settings, processes)
    found = look(sources, stage, base.codec, base.style) if processes.leads else None
    if found is not None:
        print(found.text(), file=sys.stderr)
    if before is not None:
        base.learner.requires_grad_(True)
    start = base.learner.lance
    goes_on = stage.distill is not None and stage.distill.goes_on
    if stage.distill is not None or (stage.rl is not None and base.defaults.sampling.distilled):
        few = goes_on or base.defaults.sampling.distilled
        beside_start(base, settings.model if few else None, apart=processes.sharded)
    run: Trainer
    if stage.rl is not None:
        reads = start if base.learner.lance is not start else None
        run = RewardTrainer(stage, base.learner, base.codec, processes, reads, settings.compiled, settings.out)
    elif stage.distill is not None and stage.distill.matches:
        run = MatchTrainer(stage, base.learner, start, processes, settings.compiled)
    else:
        run = Trainer(stage, base.learner, processes, settings.compiled)
    if before is not None:
        take_over(run, before)
        if isinstance(run, RewardTrainer):
            run.remember()  # what was taken over is the start
    # What may be kept is encoded alone, since beside others it differs in the last bit.
    together = TOGETHER if all(isinstance(source, Endless) for source in sources.values()) else 0
    encode, device = MediaEncoder(lambda _: base.learner.vit, lambda: vae, together=together), processes.device
    made: dict[str, Any] = {"stage": stage, "codec": base.codec, "encode": encode, "device": device}
    prepare = Preparer(**made, complete=processes.sharded, cache=cache)
    if stage.distill is not None or base.learner.lance is not start:
        teacher, fewer = start.to(device).eval(), None
        if stage.distill is not None and stage.distill.repeats:
            fewer = with_generation(teacher, open_tensors(find(settings.model).distilled)).requires_grad_(False)
        taught = Taught(**made, teacher=teacher, defaults=base.defaults, distilled=fewer)
        prepare = Matching(**made, taught=taught) if isinstance(run, MatchTrainer) else taught
    if isinstance(run, RewardTrainer):
        how = run.how
        pools = [
            stack.enter_context(
                RewardPool(
                    rewards, workers=how.workers, seconds=how.seconds, failures=how.failures,
                    beside=processes.device.type != "cpu",
                )
            ) for rewards in (how.rewards, how.judge) if rewards
        ]  # fmt: skip
        prepare = Rollouts(
            **made, run=run, defaults=base.defaults, vae=vae, rewards=pools[0], judge=pools[-1], usual=prepare
        )
    packs = list[list]()
    if settings.validate_every:
        learned = {task: weight for task, weight in stage.mixture.items() if task in held_out}
        other = replace(
            stage, seed=stage.seed + 1, name=f"{stage.name} held out", drop_text=0.0, drop_all=0.0, mixture=learned,
        )  # fmt: skip
        alone = replace(reading, workers=0, cache=None)
        with Stream(held_out, other, base.codec, style=base.style, reading=alone) as validating:
            packs = [next(validating) for _ in range(settings.held_out_packs)]
    shown = partial(finish, base=base, settings=settings, show=show)
    return run, Work(folder=folder, batches=stream, prepare=prepare, held_out=packs, show=shown, found=found)


def beside_start(base: Base, model: Path | None, apart: bool = False) -> None:
    """Let a generation side of its own learn, beside the weights of the start: a copy for what distills guidance, and
    the distilled one of `model` for what goes on from that. apart: it shares no weights with the start, which stays
    whole."""
    start = base.learner.lance.requires_grad_(False)
    start = copy.deepcopy(start) if apart else start
    if model is not None:
        base.learner.lance = with_generation(start, open_tensors(find(model).distilled))
    else:
        base.learner.lance = own_generation(start)
    for name, p in base.learner.named_parameters():
        p.requires_grad_(is_generation(name.removeprefix("lance.")))


def check_generating(stage: Stage, settings: Settings, alone: bool) -> None:
    """Check what distills guidance, or learns from rewards.

    Raises:
        UserError: For what such a stage cannot do, or what it cannot begin from.
    """
    if stage.distill is not None and stage.rl is not None:
        raise UserError(f"the stage {stage.name} distils guidance and learns from rewards: make two stages of it")
    if stage.distill is not None:
        check_distilling(stage, settings.model)
        if settings.shard > 1 and stage.distill.matches:
            raise UserError("distill.matched needs whole weights on every process", fix={"shard": 1})
    if stage.rl is not None:
        check_rewarding(stage)
    if (stage.distill or stage.rl) is not None and settings.shard > 1 and not alone:
        raise UserError(f"the stage {stage.name} draws, with weights that are gathered for it: run it by itself")
    own = stage.distill is not None
    if stage.rl is not None and settings.init == "model":
        usual = find(settings.model).defaults
        own = usual.sampling.distilled
        if stage.rl.supervised and taught_before(usual).matches:
            said = f"the few steps of {settings.model} were matched, which rewards cannot teach again beside themselves"
            raise UserError(said, fix={"rl.supervised": 0})
    said = f"the stage {stage.name} trains a generation side beside the weights it starts from"
    if own and not (alone and settings.init == "model" and stage.lora is None):
        raise UserError(f"{said}: run it by itself, from a model's weights, without an adapter")
    if own and stage.rl is not None:
        names = [name for name, _ in lance_parameters(find(settings.model).config) if not is_generation(name)]
        if not all(stage.freezes(f"lance.{name}") for name in names):
            raise UserError(f"{said}, and nothing else of these learns", fix={"frozen": list(UNDERSTANDING)})
    if stage.lora is not None and not alone:
        raise UserError(f"the stage {stage.name} trains an adapter: run it by itself")
    if stage.preserve and (stage.lora is None or (stage.distill or stage.rl) is not None):
        said = f"the stage {stage.name} preserves what a model is without an adapter"
        raise UserError(f"{said}, and trains none: add lora, without distill and rl")
    if missing := [task for task in stage.preserve if not stage.mixture.get(task)]:
        said = f"the stage {stage.name} preserves {missing[0]} and does not mix it in"
        raise UserError(said, fix={"mixture": {missing[0]: 1}})
    if stage.lora is None and settings.adapter is not None:
        raise UserError(f"the stage {stage.name} trains no adapter: give it lora, or leave the one to go on from out")


def cache_of(
    sources: Mapping[str, Source], stage: Stage, settings: Settings, base: Base, processes: Distributed
) -> Cache | None:
    """Open the cache of a run; None where nothing is kept, and for rewards, which look at
    what is given. The VAE is never trained here."""
    endless = all(isinstance(source, Endless) or source.light for source in sources.values())
    if stage.rl is not None or not settings.cache_gb or endless:
        return None
    config, files = base.config.vae, [base.beside[0]] if base.beside[0].is_file() else []
    numbers = lowered(stage.dtype, processes.device)
    salt = (fingerprint(*files), config, processes.device.type, numbers, versions("openlance", "torch", "pillow", "av"))
    return opened(settings.out / FOLDER, settings.cache_gb * 1e9, processes.size, config, salt)


def check_plan(stages: tuple[Stage, ...], settings: Settings) -> None:
    """Check what can be known before training starts.

    Raises:
        UserError: For data of a task that no stage mixes in or that cannot be opened, for a task without any, and for
            stages that cannot follow each other.
    """
    if settings.shard > 1 and len({stage.frozen for stage in stages}) > 1:
        raise UserError("these stages freeze different parts, which sharded weights cannot change: run them one by one")
    mixed = {task for stage in stages for task, weight in stage.mixture.items() if weight}
    for stage in stages:
        check_generating(stage, settings, len(stages) == 1)
    for task in (*settings.data, *settings.held_out):
        if task not in mixed:
            which = f"the stage {stages[0].name} does not mix" if len(stages) == 1 else "no stage mixes"
            raise UserError(f"{which} in {task}, for which there are data", fix={"mixture": {task: 1}})
    for stage in stages:
        sources_of(stage, settings)


def check_latents(sources: Mapping[str, Any], base: Base) -> None:
    """Raise a UserError for latents that were encoded ahead with another VAE than the model's."""
    encoded = [s for s in sources.values() if isinstance(s, EncodedSource) and spec_of(s.task).makes != "text"]
    if encoded:
        own = base.vae.to(base.vae.device)  # goes again: training may need no VAE
        found = probed(latents(own, [PROBE])[0])
        for source in encoded:
            source.check_vae(found)


def sources_of(stage: Stage, settings: Settings) -> tuple[dict[str, Source], dict[str, Source]]:
    """Open what a stage reads, by task.

    Returns:
        The sources that train, those given or else the stage's own; and those that validate, which are never trained
        on: those held out, or endless ones, of which another seed validates.

    Raises:
        UserError: For a task in the mixture that has none, or whose source cannot be opened.
    """
    wanted = [task for task, weight in stage.mixture.items() if weight]
    given = stage.sources | dict(settings.data)
    missing = [task for task in wanted if task not in given]
    if missing and not stage.source:
        fix = f"data={{'{missing[0]}': 'PATH'}}, or say what to mix, such as mixture={{'t2i': 1}}"
        said = f"the stage {stage.name} mixes in {', '.join(missing)} without data"
        raise UserError(f"{said}: name a source for each, such as {fix}")

    def opened(said: Any, task: str) -> Source:
        prompts, name = stage.rl is not None and holds_prompts(said), spec_of(task).name
        return PromptSource(Path(said), name) if prompts else open_source(said, name)

    sources = {task: opened(given.get(task, stage.source), task) for task in wanted}
    held_out = {task: opened(settings.held_out[task], task) for task in wanted if task in settings.held_out}
    usual = {task: source for task, source in sources.items() if task not in stage.preserve}
    for task, source in usual.items():
        if settings.validate_every and task not in held_out and not isinstance(source, Endless):
            raise UserError(f"nothing is held out for {task} to validate", fix={"held_out": {task: "PATH"}})
    return sources, usual | held_out


@torch.no_grad()
def take_over(run: Trainer, before: Trainer) -> None:
    """Take over averages and moments of the stage before; the weights are in the learner that both share. What the
    stage leaves alone stays as its average, since that is what will be used."""
    live, old = dict(run.learner.named_parameters()), before.tensors()
    for name in before.ema.values.keys() - run.ema.values.keys():
        live[name].copy_(before.ema.values[name])
    for name, tensor in run.tensors().items():
        if name in old and old[name] is not tensor:
            tensor.copy_(old[name])
    run.ema.count = before.ema.count


def finish(run: Trainer, base: Base, settings: Settings, show: Show | None = None) -> Path:
    """Write the result as it stands, a complete model or the adapter alone, and show it. Every process has to call
    it."""
    lora = run.stage.lora
    folder = settings.out / "model" if lora is None else settings.out
    with disk(settings.out):
        distils = run.stage.distill is not None
        if distils or getattr(run, "reads", None) is not None:
            values = {n.removeprefix("lance."): t for n, t in averaged(run).items()}
            if run.processes.leads:
                export_distilled(values, settings.model, folder, sampled(base.defaults, run.stage) if distils else {})
        elif lora is None:
            export(run, base, folder)
        else:
            values = {n.removeprefix("lance."): t for n, t in averaged(run).items()}
            if run.processes.leads:
                write_adapter(folder, trained(values, lora), lora, str(settings.model))
    if run.processes.leads:
        with disk(settings.out):
            write_curves([settings.out / "log.jsonl"], settings.out / "curves.svg")
        if show is not None:
            show(folder)
    return folder


def replay_step(folder: Path, step: int) -> dict[str, Any]:
    """Do one step of a run again and write nothing.

    Args:
        folder: Of the run.
        step: Its number.

    Returns:
        The losses, and per sample of this process the sum of its losses.

    Raises:
        UserError: If there is no run, or no checkpoint to begin at.
    """
    starts = starts_of(folder)
    if not starts:
        raise UserError(f"{folder} is no run: give a folder that `openlance train` wrote, with a run.json")
    settings = replace(Settings.of_record(starts[-1]["options"]), report_to=(), validate_every=0, cache_gb=0)
    places = earlier(folder) if settings.of_recipe else [folder]
    stages = tuple(build(Stage, starts_of(place)[-1]["stage"]) for place in places)
    processes, base = begin(stages, replace(settings, out=folder))
    run = None
    with ExitStack() as stack:
        for place, stage in zip(places, stages, strict=True):
            own = replace(settings, out=place)
            run, work = prepare(as_begun(stage, place, processes), own, base, processes, stack, before=run)
            if place != folder and not work.folder.resume(run, work.batches):
                said = f"{place} has no checkpoint, and {folder} went on from it"
                raise UserError(f"{said}: the step cannot be done again")
        assert run is not None
        packs = rewind(run, work, step)
        sums = [run.documents(batch).tolist() for batch in packs]  # of the weights that the step begins with
        outcome = run.update(packs)
    samples = {i: value for batch, values in zip(packs, sums) for i, value in zip(batch.ids, values)}
    return {"step": step, "finite": outcome.finite, **outcome.values, "samples": samples}


def earlier(folder: Path) -> list[Path]:
    """Return the folders of a recipe's stages up to this one, in order. UserError if it is not beside them."""
    places, own = stage_folders(folder.resolve().parent), folder.resolve()
    if own not in places:
        raise UserError(f"{folder} is a stage of a recipe: leave it, and its name, among the folders of the others")
    return [*places[: places.index(own)], folder]
