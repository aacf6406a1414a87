"""`openlance plan ...`: what training or a request takes, before it is started.

openlance plan 3b --stage pt --gpus 128xA100-80GB           # memory, speed, days, cost of a stage
openlance plan nano --stage sft --set pack_tokens=[4000,5000]
openlance plan 3b --stage pt --diff ct-i                    # fields in which two stages differ
openlance plan 3b --stage sft --dump > mine.yaml            # a stage as a file to change
openlance plan --task t2v --size 848x480 --frames 121 --memory 16GB
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.cli.errors import with_flags
from openlance.config import train
from openlance.config.lora import Lora
from openlance.config.model import ModelConfig, nano
from openlance.config.train import Stage
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.config.sampling import GenerationConfig
    from openlance.planning.sampling import SamplingPlan
    from openlance.planning.training import Machine, Plan

RELEASED = "3b"
SMALL = 10**8  # parameters below which a CPU is what one plans for
app = typer.Typer(add_completion=False)


@app.command()
def plan(
    model: Annotated[str, Argument(help="3b, nano, or a folder with weights.")] = RELEASED,
    stage: Annotated[str | None, Option(help="pt, ct-i, ct-ii, ct-iii, sft, rl, lora; or one of --file.")] = None,
    file: Annotated[Path | None, Option(help="A YAML file with stages in place of the presets.")] = None,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="FIELD=VALUE", help="Change a field of the stage; repeatable.")
    ] = None,
    diff: Annotated[str | None, Option(metavar="STAGE", help="Print how another stage differs.")] = None,
    dump: Annotated[bool, Option("--dump", help="Print the stage as YAML.")] = False,
    gpus: Annotated[str | None, Option(help="Devices, such as 128xA100-80GB, 8xH100, 4090, CPU.")] = None,
    utilization: Annotated[
        float, Option("--utilization", "--utilisation", help="Share of the peak that is reached (MFU).")
    ] = 0.4,
    price: Annotated[float | None, Option(help="Dollars per device and hour.")] = None,
    tflops: Annotated[float | None, Option(help="Peak TFLOP/s of one device in bfloat16.")] = None,
    memory: Annotated[str | None, Option(help="Memory of one device, such as 16GB.")] = None,
    shard: Annotated[str, Option(help="full, hybrid, none, or a number: devices per copy of the weights.")] = "hybrid",
    lora: Annotated[int, Option(min=0, help="Rank of LoRA adapters to train in place of the weights; 0: none.")] = 0,
    task: Annotated[
        str | None,
        Option(callback=options.named, help="Plan a request of this task, such as t2v, instead of training."),
    ] = None,
    size: options.Size = None,
    frames: Annotated[int | None, Option(min=1, help="Frames of a video.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Estimate what a stage of training or a request needs: memory, time, cost, and what to change if it does not fit.

    Without --stage and --task it lists the stages.
    """
    from openlance.planning import training as planning
    from openlance.planning.hardware import parse_devices
    from openlance.runtime.offload import parse_memory

    config, scale = config_of(model)
    limit = parse_memory(memory)
    said = [stage, file, settings, diff, dump or None, gpus]
    named = dict(zip(("--stage", "--file", "--set", "--diff", "--dump", "--gpus"), said))
    check_use(task, named, {"--size": size, "--frames": frames})
    if task is not None:
        return request(config, task, size, frames, limit, as_json)
    if stage is None and file is None:
        return listing(scale, as_json)
    adapts = stage == "lora" and file is None
    chosen = adapting(model, config, settings or []) if adapts else pick(stage, scale, file, settings or [])
    chosen = replace(chosen, lora=Lora(rank=lora)) if lora else chosen
    if dump:
        return typer.echo(train.dump(chosen).rstrip())
    if diff is not None:
        return compared(chosen, pick(diff, scale, file, []), as_json)
    from openlance.data.mixture import Mixture

    Mixture(chosen.mixture)  # names of tasks that do not exist
    count, device = parse_devices(gpus or ("CPU" if is_small(config) else "8xA100-80GB"))
    given = options.given(memory=limit and limit / 2**30, tflops=tflops, price=price)
    machine = planning.Machine(
        count=count, device=replace(device, **given), utilization=utilization, shard=shard
    )  # fmt: skip
    found = planning.plan(config, chosen, machine, usual=usual_of(model))
    say(found, training_text(found, chosen, machine), as_json)


def check_use(task: str | None, training: dict[str, Any], requesting: dict[str, Any]) -> None:
    """UserError for an option that says nothing of what is planned."""
    trains = [name for name, value in training.items() if value is not None]
    requests = [name for name, value in requesting.items() if value is not None]
    if task is not None and trains:
        raise UserError(f"{trains[0]} plans training, and --task a request: leave one of them out")
    if task is None and requests:
        raise UserError(f"{requests[0]} plans a request: add --task, for example --task t2v")
    if trains and training["--stage"] is None and training["--file"] is None:
        raise UserError(f"{trains[0]} is about one stage: say which, for example --stage pt")


def say(found: Plan | SamplingPlan, text: str, as_json: bool) -> None:
    if as_json:
        return options.print_json(asdict(found) | {"fits": found.fits})
    typer.echo(text)


def config_of(model: str) -> tuple[ModelConfig, str]:
    """Configuration of a name or folder, and the scale whose stages are meant for it; no tensor is read."""
    if model in (RELEASED, "nano"):
        return (ModelConfig() if model == RELEASED else nano()), model
    if not Path(model).is_dir():
        raise UserError(f"there is no model {model!r}: use {RELEASED}, nano or a folder with weights")
    from openlance.checkpoint.formats import find

    config = find(model).config
    return config, "nano" if is_small(config) and "nano" in train.presets() else RELEASED


def usual_of(model: str) -> GenerationConfig:
    """How a model samples; no tensor is read."""
    from openlance.checkpoint.formats import find, folder_of
    from openlance.config.sampling import GenerationConfig

    return GenerationConfig() if model == RELEASED else find(folder_of(model)).defaults


def is_small(config: ModelConfig) -> bool:
    from openlance.model.lance import lance_parameters

    return sum(n for _, n in lance_parameters(config)) < SMALL


def pick(name: str | None, scale: str, file: Path | None, settings: list[str]) -> Stage:
    """A stage of a preset or of a file, changed by the settings. `nano/sft` names its scale itself."""
    if file is not None and "/" not in (name or ""):
        return train.changed(train.read_stage(file, name), settings)
    return train.changed(train.stage(name or "", scale), settings)


def adapting(model: str, config: ModelConfig, settings: list[str]) -> Stage:
    """What `openlance train lora` does with the tasks of its mixture, images from words if none is set."""
    from openlance.training.start import adapter_stage, settled, sources_in

    stage = adapter_stage(config, usual_of(model), sources_in(settings), steps=100, lr=2e-3)
    return settled(replace(stage, lora=Lora()), settings)


def listing(scale: str, as_json: bool) -> None:
    """The stages of a scale, one per line."""
    stages = train.recipe(scale)
    if as_json:
        return options.print_json([asdict(one) for one in stages])
    rows = [("stage", "steps", "lr", "schedule", "text : flow", "shift", "pack tokens")]
    for s in stages:
        weights, tokens = f"{s.text_weight:g} : {s.flow_weight:g}", f"{s.pack_tokens[0]:,} to {s.pack_tokens[1]:,}"
        rows.append((s.name, f"{s.steps:,}", f"{s.lr:g}", s.schedule, weights, f"{s.shift:g}", tokens))
    lines = options.columns(rows, right=range(1, len(rows[0])))
    typer.echo("\n".join([*lines, "", f"plan one: openlance plan {scale} --stage {stages[0].name}"]))


def compared(one: Stage, other: Stage, as_json: bool) -> None:
    """The fields in which two stages differ."""
    from openlance.config.values import differences

    found = differences(one, other)
    if as_json:
        return options.print_json(found)
    names = (f"{one.scale}/{one.name}", f"{other.scale}/{other.name}")
    rows = [(field, f"{plainly(a)} -> {plainly(b)}") for field, (a, b) in found.items()]
    title = f"{names[0]} -> {names[1]}" if found else f"{names[0]} and {names[1]} are the same"
    typer.echo("\n".join([title, *options.columns(rows)]))


def plainly(value: Any) -> str:
    """A value as `--set` takes it."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def request(
    config: ModelConfig, task: str, size: str | None, frames: int | None, memory: float | None, as_json: bool
) -> None:
    """Plan a request."""
    from openlance.planning import sampling

    width, height = options.parse_size(size) if size else (0, 0)
    found = sampling.plan(config, sampling.Wanted(task=task, height=height, width=width, frames=frames or 0), memory)
    say(found, request_text(found), as_json)


UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def short(value: float) -> str:
    """Three digits and a unit: 1.50T, 47.0K."""
    for size, unit in UNITS:
        if value >= size:
            number = value / size
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}{unit}"
    return f"{value:.3g}"


def table(title: str, rows: list[tuple[str, str, str]]) -> str:
    """A title above three columns, the second to the right."""
    return "\n".join([title, *options.columns(rows, right=[1], indent="  ")])


def training_text(found: Plan, stage: Stage, machine: Machine) -> str:
    """The plan of a stage."""
    whole = machine.group == 1
    sharing = "weights whole on each" if whole else f"one copy of the weights per {machine.group}"
    parts = [
        f"{found.stage} on {machine.count} x {machine.device.name}, {sharing}, at {machine.utilization:.0%} "
        f"of {machine.device.tflops:g} TFLOP/s",
        table("Model", _model(found, stage)),
        table("Memory per device, for the longest pack, in GiB", _memory(found, stage, machine)),
        table("Time", _time(found, stage, machine)),
    ]
    if found.notes:
        parts.append("\n  ".join(["Notes", *found.notes]))
    return "\n\n".join([*parts, _verdict(found)])


def _model(found: Plan, stage: Stage) -> list[tuple[str, str, str]]:
    m, total = found.model, sum(found.flops_per_token.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in found.flops_per_token.items() if value)
    whole = f"decoder {short(m['decoder'])}, vision tower {short(m['vision tower'])}"
    kind = "all of a round" if stage.rl else "all of a step" if stage.distill else "forward and backward"
    pack = f"mean: {short(found.pack['generation'])} latents, {short(found.pack['labels'])} labels"
    return [
        (
            "parameters", short(m["decoder"] + m["vision tower"]),
            f"{whole}; VAE encoder {short(m['VAE encoder'])} beside them",
        ),
        ("trained", short(m["trained"]), f"adapters of rank {stage.lora.rank}" if stage.lora else "the rest is frozen"),
        ("active per token", short(m["active, understanding"]), "in either stream; embedding and heads apart"),
        ("operations per token", short(total), f"{kind}: {shares}"),
        ("tokens of a pack", short(found.pack["tokens"]), f"{pack}; clips of {stage.max_frames} frames assumed"),
    ]  # fmt: skip


def _memory(found: Plan, stage: Stage, machine: Machine) -> list[tuple[str, str, str]]:
    notes = {
        "weights": ("float32 but for matrices below adapters" if stage.halves_frozen(machine.group > 1) else "float32")
        + ", with those of the VAE's encoder",
        "whole layers": "copies in which a pass computes",
        "activations": "at the end of the forward pass, " + ("recomputed" if stage.checkpointing else "all kept"),
        "backward": "the layer at work",
        "other weights": "copies of what learns, such as the old weights",
        "whole weights": "a copy on each device, which draws",
        "results": "of a round, with their stochastic steps",
        "conditions": "keys and values that an update keeps for the other weights",
        "rollouts": "drawing and decoding, before the update",
        "peak": "gradients come while activations go, so this is less than the sum",
    }
    other = found.without_checkpointing if stage.checkpointing else found.with_checkpointing
    return [
        *((name, f"{value:.1f}", notes.get(name, "")) for name, value in found.memory.items()),
        (f"peak with checkpointing={'false' if stage.checkpointing else 'true'}", f"{other:.1f}", ""),
        ("usable", f"{found.usable:.1f}", "92 % of the device"),
    ]


def _time(found: Plan, stage: Stage, machine: Machine) -> list[tuple[str, str, str]]:
    rate, packs, hours = found.tokens_per_second, machine.count * stage.accumulate, found.days * 24
    seconds = found.tokens_per_step / rate
    rows = [
        ("tokens per second", short(rate), f"{short(rate / machine.count)} on each device; {seconds:.1f} s a step"),
        ("tokens per step", short(found.tokens_per_step), f"{packs} pack{'s' * (packs > 1)}"),
    ]
    if found.paper:
        p = found.paper
        rows += [
            ("tokens", short(p["tokens"]), f"as the paper prints; {p['steps_here']:,.0f} steps of {packs} here"),
            ("", "", f"its {stage.steps:,} steps are then {short(p['tokens_per_step'])} each: {_ranks(p)}"),
            ("", "", f"(all {stage.steps:,} steps here would see {short(p['tokens_of_all_steps_here'])})"),
        ]
    else:
        rows.append(("tokens", short(found.tokens), f"in {stage.steps:,} steps"))
    days = f"{found.days:.1f}" if hours > 48 else f"{found.days:.3g}"
    return [
        *rows,
        ("days", days, f"{short(hours * machine.count)} device hours"),
        ("cost", f"${short(found.cost)}", f"at ${machine.device.price:g} per device and hour"),
    ]


def _ranks(p: dict[str, float]) -> str:
    """How many packs a step the paper's counts mean, and which numbers of whole machines of eight fit."""
    low, high = p["packs_per_step_low"], p["packs_per_step_high"]
    eights = [str(n) for n in range(8 * int(-(-low // 8)), int(high) + 1, 8)]
    fitting = f" ({' or '.join(eights)} devices)" if eights else ""
    return f"{low:.1f} to {high:.1f} packs{fitting}, not 128"


def _verdict(found: Plan) -> str:
    peak = f"{found.memory['peak']:.1f} of {found.usable:.1f} GiB"
    if found.fits:
        return f"Verdict: fits, {peak} at the peak."
    if not found.changes:
        return f"Verdict: does NOT fit, {peak} at the peak; nothing that this command tries makes it fit."
    said = f"Verdict: does NOT fit, {peak} at the peak. Any one of these makes it fit:"
    return "\n  ".join([said, *map(with_flags, found.changes)])


def request_text(found: SamplingPlan) -> str:
    """The plan of one request."""
    w, t = found.wanted, found.tokens
    length = f", {w.frames} frames" if w.frames > 1 else ""
    made = f"{t['denoised']:,.0f} tokens to denoise, " if t["denoised"] else ""
    rows = [
        *((name, gigabytes(value), "") for name, value in found.weights.items()),
        ("keys and values", gigabytes(found.cache), f"of {t['context']:,.0f} tokens of context"),
        ("activations", gigabytes(found.activations), "at the fullest, on the large side"),
    ]
    places = [(text, gigabytes(needed), "") for text, needed in found.placements]
    return "\n\n".join([
        f"{w.task} at {w.width}x{w.height}{length}: {made}{t['context']:,.0f} of context",
        table("What it needs in bfloat16, in GB", rows),
        table("What is on the device at once, in GB", places),
        f"Verdict: {with_flags(found.verdict)}.",
    ])  # fmt: skip


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}" if value >= 1e8 else f"{value / 1e9:.2g}"
