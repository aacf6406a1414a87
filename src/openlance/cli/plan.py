"""`openlance plan ...`: what training or drawing takes, before it is started.

openlance plan 3b --stage pt --gpus 128xA100-80GB           # memory, speed, days, cost of a stage
openlance plan nano --stage sft --set pack_tokens=[4000,5000]
openlance plan 3b --stage pt --diff ct-i                    # fields in which two stages differ
openlance plan 3b --stage sft --dump > mine.yaml            # a stage as a file to change
openlance plan --task t2v --size 848x480 --frames 121 --memory 16GB
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.config.model import ModelConfig
    from openlance.config.train import Stage
    from openlance.planning.sampling import SamplingPlan
    from openlance.planning.training import Machine, Plan

RELEASED = "3b"
SMALL = 10**8  # parameters below which a CPU is what one plans for
app = typer.Typer()


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="3b, nano, or a folder with weights.")] = RELEASED,
    stage: Annotated[str | None, typer.Option(help="pt, ct-i, ct-ii, ct-iii, sft, rl; or one of --file.")] = None,
    file: Annotated[Path | None, typer.Option(help="A YAML file with stages in place of the presets.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the stage.")
    ] = None,
    diff: Annotated[str | None, typer.Option(metavar="STAGE", help="Print how another stage differs.")] = None,
    dump: Annotated[bool, typer.Option("--dump", help="Print the stage as YAML.")] = False,
    gpus: Annotated[str | None, typer.Option(help="Such as 128xA100-80GB, 8xH100, 4090, CPU.")] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that is reached (MFU).")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Dollars per device and hour.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Peak of one device in bfloat16.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one device, such as 16GB.")] = None,
    shard: Annotated[str, typer.Option(help="full, hybrid, none, or a number: devices per copy.")] = "hybrid",
    lora: Annotated[int, typer.Option(min=0, help="Rank of adapters to train instead of the weights.")] = 0,
    task: Annotated[str | None, typer.Option(help="Plan drawing or answering instead of training.")] = None,
    size: options.Size = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a stage of training, or one request, needs: memory, time, money, and what to change if it does not fit.

    Without --stage and --task it lists the stages.
    """
    from openlance.runtime.offload import parse_memory

    config, scale = numbers_of(model)
    limit = parse_memory(memory)
    training = {
        "--stage": stage,
        "--file": file,
        "--set": settings,
        "--diff": diff,
        "--dump": dump or None,
        "--gpus": gpus,
    }
    drawing = {"--size": size, "--frames": frames}
    unused = [name for name, value in (training if task is not None else drawing).items() if value is not None]
    if unused:
        raise UserError(
            f"{unused[0]} plans {'training, and --task a request' if task is not None else 'a request'}: "
            f"{'leave one of them out' if task is not None else 'add --task, for example --task t2v'}"
        )
    unstaged = [name for name, value in training.items() if value is not None]
    if stage is None and file is None and unstaged:
        raise UserError(f"{unstaged[0]} is about one stage: say which, for example --stage pt")
    if task is not None:
        return request(config, task, size, frames, limit, as_json)
    if stage is None and file is None:
        return listing(scale, as_json)
    chosen = pick(stage, scale, file, settings or [])
    if dump:
        return said(chosen)
    if diff is not None:
        return compared(chosen, pick(diff, scale, file, []), as_json)
    from openlance.data.mixture import Mixture
    from openlance.planning.hardware import parse_devices
    from openlance.planning.training import Machine
    from openlance.planning.training import plan as planned

    Mixture(chosen.mixture)  # names of tasks that do not exist
    count, device = parse_devices(gpus or ("CPU" if is_small(config) else "8xA100-80GB"))
    given: dict[str, Any] = {"memory": limit and limit / 2**30, "tflops": tflops, "price": price}
    machine = Machine(
        count=count,
        device=replace(device, **{name: value for name, value in given.items() if value is not None}),
        utilization=utilisation,
        shard=shard,
        lora=lora,
    )
    found = planned(config, chosen, machine)
    typer.echo(
        json.dumps(asdict(found) | {"fits": found.fits}, indent=1) if as_json else text_of(found, chosen, machine)
    )


def numbers_of(model: str) -> tuple[ModelConfig, str]:
    """Configuration of a name or folder, and the scale whose stages are meant for it; no tensor is read."""
    from openlance.config.model import ModelConfig, nano
    from openlance.config.train import presets

    shipped: dict[str, Callable[[], ModelConfig]] = {RELEASED: ModelConfig, "nano": nano}
    if model in shipped:
        return shipped[model](), model
    if not Path(model).is_dir():
        raise UserError(f"there is no model {model!r}: use {', '.join(shipped)} or a folder with weights")
    from openlance.checkpoint.formats import find

    config = find(model).config
    return config, "nano" if is_small(config) and "nano" in presets() else RELEASED


def is_small(config: ModelConfig) -> bool:
    from openlance.model.lance import lance_parameters

    return sum(n for _, n in lance_parameters(config)) < SMALL


def pick(name: str | None, scale: str, file: Path | None, settings: list[str]) -> Stage:
    """A stage of a preset or of a file, changed by the settings. `nano/sft` names its scale itself."""
    from openlance.config.train import changed, read_stage
    from openlance.config.train import stage as preset

    if file is not None and (name is None or "/" not in name):
        return changed(read_stage(file, name), settings)
    assert name is not None
    given, _, short = name.rpartition("/")
    return changed(preset(short, given or scale), settings)


def listing(scale: str, as_json: bool) -> None:
    """The stages of a scale, one per line."""
    from openlance.config.train import recipe

    stages = recipe(scale)
    if as_json:
        return typer.echo(json.dumps([asdict(one) for one in stages], indent=1))
    rows: list[tuple[str, ...]] = [("stage", "steps", "lr", "schedule", "text : flow", "shift", "pack tokens")]
    rows += [
        (
            s.name, f"{s.steps:,}", f"{s.lr:g}", s.schedule, f"{s.text_weight:g} : {s.flow_weight:g}", f"{s.shift:g}",
            f"{s.pack_tokens[0]:,} to {s.pack_tokens[1]:,}",
        )
        for s in stages
    ]  # fmt: skip
    typer.echo(columns(rows) + f"\n\nplan one: openlance plan {scale} --stage {stages[0].name}")


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows of text, the first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ("  ".join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def said(stage: Stage) -> None:
    from openlance.config.train import dump

    typer.echo(dump(stage).rstrip())


def compared(one: Stage, other: Stage, as_json: bool) -> None:
    """The fields in which two stages differ."""
    from openlance.config.values import differences

    found = differences(one, other)
    if as_json:
        return typer.echo(json.dumps(found, indent=1))
    names = (f"{one.scale}/{one.name}", f"{other.scale}/{other.name}")
    wide = max(map(len, found), default=0)
    lines = [f"{field.ljust(wide)}  {plainly(a)} -> {plainly(b)}" for field, (a, b) in found.items()]
    typer.echo("\n".join([f"{names[0]} -> {names[1]}", *lines]) if found else f"{names[0]} and {names[1]} are the same")


def plainly(value: Any) -> str:
    """A value as `--set` takes it; `-` for an entry that is not there."""
    if isinstance(value, list):
        return "[" + ", ".join(plainly(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {plainly(entry)}" for name, entry in value.items()) + "}"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"


def text_of(found: Plan, stage: Stage, machine: Machine) -> str:
    from openlance.cli.plan_text import training

    return training(found, stage, machine)


def request(
    config: ModelConfig, task: str, size: str | None, frames: int | None, memory: float | None, as_json: bool
) -> None:
    """The plan of drawing or answering."""
    from openlance.cli.plan_text import sampling
    from openlance.planning.sampling import Wanted
    from openlance.planning.sampling import plan as planned

    width, height = options.parse_size(size) if size else (0, 0)
    found = planned(config, Wanted(task=task, height=height, width=width, frames=frames or 0), memory)
    typer.echo(as_data(found) if as_json else sampling(found))


def as_data(found: Plan | SamplingPlan) -> str:
    return json.dumps(asdict(found) | {"fits": found.fits}, indent=1)
