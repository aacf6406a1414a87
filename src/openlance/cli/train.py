"""`openlance train ...`: stages, recipes and adapters; the same command goes on where a stopped run was.

openlance train recipe/nano -o runs/nano                                  # nano from nothing, stage after stage
openlance train nano/sft --data t2i=photos -o runs/mine --set steps=200 --set "mixture={t2i: 1}"
openlance train lora --data photos -o runs/mine                           # captioned images -> an adapter
openlance train lora --data edit=pairs --data vqa=questions -o runs/mine  # ... of any task, or of several
openlance train recipe/nano-rl --reward my_reward.py:score -o runs/mine    # from what a function says of results
torchrun --nproc-per-node 8 -m openlance.cli.main train mine.yaml --model DIR --data t2i=DIR -o runs/sft --shard 8
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from openlance.cli import options
from openlance.config.train import Stage, presets, read_recipe, read_stage, recipe_of
from openlance.config.train import recipe as recipe_named
from openlance.config.train import stage as preset
from openlance.config.values import override
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.sequence.tasks import TaskSpec


class StageGroup(TyperGroup):
    """A first word that is no command of its own names a stage."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        named = args and args[0] not in self.commands and not args[0].startswith("-")
        return super().resolve_command(ctx, ["stage", *args] if named else args)


app = typer.Typer(cls=StageGroup, no_args_is_help=True, add_completion=False)

Output = Annotated[Path, Option("-o", "--output", help="Folder of the run; a stopped run in it is continued.")]
Minutes = Annotated[float, Option(callback=options.positive, show_default=False, help="Save and stop after this time.")]
Set = Annotated[list[str] | None, Option("--set", metavar="FIELD=VALUE", help="Change a field of the stage.")]
Keep = Annotated[int, Option(min=1, help="Checkpoints to keep.")]
Workers = Annotated[int, Option(min=0, help="Processes that decode ahead; 0: decode in this one.")]
SaveEvery = Annotated[int, Option(min=0, help="Steps between checkpoints; 0: only at the end.")]


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a stage runs: fields of `training.run.Settings`."""

    minutes: Minutes = math.inf
    save_every: SaveEvery = 500
    save_minutes: Annotated[float, Option(callback=options.positive, help="Longest time between checkpoints.")] = 30
    keep: Keep = 3
    validate_every: Annotated[int, Option(min=0, help="Steps between validations; 0: none.")] = 0
    show_every: Annotated[int, Option(min=0, help="Steps between exports with sample images; 0: at the end.")] = 0
    workers: Workers = 0
    cache_gb: Annotated[float, Option(min=0, help="Encodings of files to keep in the run's folder; 0: none.")] = 10
    max_broken: options.MaxBroken = 0.001
    shard: Annotated[int, Option(min=1, help="Processes that share one copy of the weights (FSDP2).")] = 1
    compiled: Annotated[bool, Option("--compile/--no-compile", help="Compile with torch.compile.")] = False
    report_to: Annotated[list[str] | None, Option(help="tensorboard, wandb or trackio; repeatable.")] = None
    allow_pickle: options.AllowPickle = False


@app.callback()
def train() -> None:
    """Train a stage (3b/pt, nano/sft, mine.yaml), a recipe (recipe/nano), or a LoRA adapter."""


@app.command()
@options.grouped
def stage(
    name: Annotated[str, Argument(metavar="STAGE", help="SCALE/NAME, recipe/SCALE, or a YAML file.")],
    output: Output,
    model: Annotated[str | None, Option(help="nano or a folder with weights to start from.")] = None,
    init: Annotated[str, Option(help="model: its weights; fresh: random; or a folder of Qwen2.5-VL.")] = "model",
    data: Annotated[list[str] | None, Option(metavar="TASK=PATH", help="Training samples; repeatable.")] = None,
    held_out: Annotated[list[str] | None, Option(metavar="TASK=PATH", help="Validation samples; repeatable.")] = None,
    caption: options.Caption = None,
    reward: Annotated[
        list[str] | None, Option(metavar="NAME[:WEIGHT]", help="What a stage with rl rewards; repeatable.")
    ] = None,
    settings: Set = None,
    only: Annotated[str | None, Option("--stage", help="Which stage of a file with several.")] = None,
    *,
    running: Running,
) -> None:
    """Train a stage, or a recipe of stages in order."""
    from openlance.sequence.tasks import spec_of
    from openlance.training.files import Settings
    from openlance.training.run import run_recipe, run_stage

    stages = rewarded(chosen_stages(name, only, settings or []), reward)
    scale = stages[0].scale
    recipe = recipe_of(scale) if scale in presets() else None
    from_nothing = recipe.from_nothing if recipe and name == f"recipe/{scale}" and model is None else None
    start = Settings(
        out=output, model=output if from_nothing else start_folder(model, scale), init=init,
        data=options.captioned(pairs("--data", data), caption),
        held_out=options.captioned(pairs("--held-out", held_out), caption), command=options.COMMAND_LINE.get(),
        **vars(running) | {"report_to": tuple(running.report_to or ())},
    )  # fmt: skip
    whole = recipe and recipe.prompts and stages[-1].lora is None
    show = partial(write_samples, output / "samples.png", recipe.prompts) if recipe and whole else None
    with stopping():
        if from_nothing:
            done = from_nothing(output, stages=stages, settings=start, show=show)
        elif len(stages) > 1:
            done = run_recipe(stages, start, show)
        else:
            done = run_stage(stages[0], start, show)
    then = "the same command continues it"  # with the VAE
    if (done / "model.safetensors").is_file():
        then = f'try: openlance generate t2i "a red circle" --model {done} -o out.png'
    elif (done / "adapter_model.safetensors").is_file():
        then = f"try: openlance {use_of(spec_of(next(iter(stages[-1].mixture))), model or scale, done)}"
    ended(f"{done}\n{then}")


@app.command()
def nano(
    output: Output,
    minutes: Minutes = math.inf,
    seed: Annotated[int, Option(min=0, help="Seed of weights, data and noise.")] = 0,
    settings: Set = None,
    compiled: Annotated[bool, Option("--compile/--no-compile", help="Compile with torch.compile.")] = True,
) -> None:
    """Train nano from scratch on the procedural world: recipe/nano, with sample images and curves as it goes."""
    every = {"save_every": 100, "show_every": 100}
    changes = [f"seed={seed}", *(settings or [])]
    stage(name="recipe/nano", output=output, settings=changes, minutes=minutes, compiled=compiled, **every)


@dataclass(frozen=True, kw_only=True)
class Adapting(Running):
    """The same for an adapter, which is small and soon trained."""

    save_every: SaveEvery = 50
    keep: Keep = 1
    workers: Workers = 1


@app.command()
@options.grouped
def lora(
    data: Annotated[list[str], Option(metavar="[TASK=]PATH", help="Training samples; repeatable.")],
    output: Output,
    task: Annotated[
        str | None,
        Option(help="What --data is for: t2i, t2v, i2v, flf2v, edit, video_edit, subject, vqa ...  \\[default: t2i]"),
    ] = None,
    caption: options.Caption = None,
    model: Annotated[str, Option(help="nano or a folder with weights.")] = "nano",
    steps: Annotated[int, Option(min=1, help="Optimizer steps.")] = 100,
    lr: Annotated[float, Option(help="Learning rate.")] = 2e-3,
    rank: Annotated[int | None, Option(min=1, help="Rank of the adapter.  \\[default: 16]")] = None,
    alpha: Annotated[float | None, Option(help="alpha / rank is its scale.  \\[default: the rank]")] = None,
    dropout: Annotated[float, Option(help="Share of the adapter's inputs to drop, below 1.")] = 0.0,
    targets: Annotated[
        str | None, Option(help="Ends of layer names (q,v or gen.q), or a pattern.  \\[default: all of the experts]")
    ] = None,
    adapter: Annotated[Path | None, Option(help="Adapter to go on from; its rank, alpha and layers hold.")] = None,
    held_out: Annotated[list[str] | None, Option(metavar="[TASK=]PATH", help="Validation samples; repeatable.")] = None,
    preserve: Annotated[
        list[str] | None,
        Option(metavar="TASK=PATH", help="Samples at which the model is to stay what it is; repeatable."),
    ] = None,
    seed: Annotated[int, Option(min=0, help="Seed of the adapter, the order and the noise.")] = 0,
    settings: Set = None,
    *,
    adapting: Adapting,
) -> None:
    """Fine-tune an adapter for any task or a mixture of them: for --lora, in PEFT's format."""
    from openlance.config.lora import Lora
    from openlance.model.lora import read_adapter
    from openlance.sequence.tasks import spec_of, task_name
    from openlance.training.files import Settings
    from openlance.training.run import run_stage
    from openlance.training.start import lora_stage, settled, sources_in

    folder, changes = start_folder(model, "nano"), settings or []
    usual = [task_name(task)] if task is not None else sources_in(changes)
    sources = pairs("--data", data, usual)
    kept = {f"{name}@preserved": path for name, path in pairs("--preserve", preserve).items()}
    if both := sorted(sources.keys() & kept.keys()):
        raise UserError(f"--data {both[0]}={sources[both[0]]} has the name of what --preserve gives: choose another")
    said = options.given(rank=rank, alpha=alpha, targets=targets)
    if adapter is not None and said:
        raise UserError(f"--adapter {adapter} has its own {', '.join(said)}: leave them out, or begin without it")
    trained = Lora(**said) if adapter is None else read_adapter(adapter).lora()
    start = Settings(
        out=output, model=folder, data=options.captioned(sources, caption) | kept, adapter=adapter,
        held_out=options.captioned(pairs("--held-out", held_out, usual), caption),
        command=options.COMMAND_LINE.get(), **vars(adapting) | {"report_to": tuple(adapting.report_to or ())},
    )  # fmt: skip
    plan = lora_stage(folder, [*sources, *kept], steps=steps, lr=lr, seed=seed)
    plan = replace(plan, lora=replace(trained, dropout=dropout), preserve=tuple(kept))
    if kept:  # without conditions the model is to stay as it is: what is learned is learned of whole requests
        plan = replace(plan, drop_text=0.0, drop_all=0.0)
    plan = settled(plan, changes)
    with stopping():
        done = run_stage(plan, start)
    ended(f"{done}\ntry: openlance {use_of(spec_of(next(iter(sources))), model, done)}")


@app.command()
@options.grouped
def dreambooth(
    data: Annotated[Path, Option(help="Folder with a few images of one subject.")],
    prompt: Annotated[str, Option(help="Names it, with a word that means nothing yet: a zib, a sks dog.")],
    class_prompt: Annotated[str, Option(help="Names what it is one of: a circle, a dog.")],
    output: Output,
    class_images: Annotated[int, Option(min=0, help="Results for the class to train on beside it; 0: none.")] = 100,
    model: Annotated[str, Option(help="nano or a folder with weights.")] = "nano",
    steps: Annotated[int, Option(min=1, help="Optimizer steps.")] = 100,
    lr: Annotated[float, Option(help="Learning rate.")] = 2e-3,
    rank: Annotated[int | None, Option(min=1, help="Rank of the adapter.  \\[default: 16]")] = None,
    seed: Annotated[int, Option(min=0, help="Seed of the adapter, the order and the noise.")] = 0,
    settings: Set = None,
    *,
    adapting: Adapting,
) -> None:
    """Teach a model one subject from a few images, as an adapter, and keep what it knows of others of its class.

    Half of the samples are results of the model for the class, drawn before it learns (DreamBooth's prior preservation
    with weight 1: Ruiz et al. 2022, section 3.3).
    """
    from openlance.cli.dreambooth import samples
    from openlance.training.start import lora_stage

    prompt = options.check_text("prompt", prompt, "a zib circle")
    class_prompt = options.check_text("class prompt", class_prompt, "a circle")
    if prompt.split() == class_prompt.split():
        raise UserError(f"--prompt and --class-prompt are both {prompt!r}: name the subject with a word of its own")
    override(lora_stage(start_folder(model, "nano"), ["t2i"], steps=steps, lr=lr), settings or [])  # before drawing
    options.check_writable(output)
    listed = samples(data, prompt, class_prompt, class_images, model, output)
    lora(
        data=[f"t2i={listed}"], output=output, model=model, steps=steps, lr=lr, rank=rank, seed=seed,
        settings=settings, **vars(adapting),
    )  # fmt: skip


def use_of(spec: TaskSpec, model: str, adapter: Path) -> str:
    """How an adapter is used for a task, as a command."""
    chosen = f"--model {model} --lora {adapter}"
    if spec.makes == "text":
        return f'ask IN "a question" {chosen}'
    out = f"{chosen} -o out.{'png' if spec.makes == 'image' else 'mp4'}"
    if spec.sized_by_source:
        return f'edit IN "an instruction" {out}'
    if spec.reads and not spec.keeps_size:
        return f'generate subject IMAGE --prompt "a caption" {out}'
    return f'generate {spec.name} {"IMAGE " if spec.reads else ""}"a caption" {out}'


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def resume(
    ctx: typer.Context,
    folder: Annotated[Path, Argument(help="Folder of a run.")],
    only_step: Annotated[int | None, Option(min=0, help="Only print the loss per sample of this step again.")] = None,
) -> None:
    """Continue a stopped run with the command that started it; further options are added to it."""
    from openlance.cli.main import main
    from openlance.training.files import stage_folders, starts_of

    if only_step is not None:
        return replayed(folder, only_step)
    begun = [start for place in (folder, *stage_folders(folder)) for start in starts_of(place)]
    if not begun:
        raise UserError(f"{folder} is no run: give a folder that `openlance train` wrote, with a run.json")
    command = begun[-1]["command"]
    if not command:
        raise UserError(f"{folder} was started from Python, so it has no command: call the function again")
    of_recipe = starts_of(folder) and begun[-1]["options"].get("of_recipe")
    place = folder.resolve().parent if of_recipe else folder  # which may have been moved since
    raise typer.Exit(main([*command, *ctx.args, "-o", str(place)]))


def chosen_stages(name: str, only: str | None, settings: list[str]) -> tuple[Stage, ...]:
    """The stages that a first word means, with the changes of the command line."""
    from_file = name.endswith((".yaml", ".yml", ".json"))
    if only is not None and not from_file:
        raise UserError(f"--stage chooses one stage of a file, and {name} is a preset: write SCALE/{only} in its place")
    if from_file:
        found = read_recipe(Path(name)) if only is None else (read_stage(Path(name), only),)
    elif name.startswith("recipe/"):
        found = recipe_named(name)
    else:
        found = (preset(name),)
    return tuple(override(one, settings) for one in found)


def rewarded(stages: tuple[Stage, ...], said: Sequence[str] | None) -> tuple[Stage, ...]:
    """The stages with these rewards, a name or FILE.py:FUNCTION each, in the place of their own."""
    from openlance.rl.rewards.registry import parse_rewards

    if not said:
        return stages
    if all(one.rl is None for one in stages):
        raise UserError(f"--reward {said[0]} is for a stage that learns from rewards: take recipe/nano-rl or 3b/rl")
    rewards = {one.said: one.weight for one in parse_rewards(",".join(said))}
    return tuple(one if one.rl is None else replace(one, rl=replace(one.rl, rewards=rewards)) for one in stages)


def pairs(option: str, given: list[str] | None, usual: Sequence[str] | None = None) -> dict[str, Any]:
    """TASK=PATH or TASK@NAME=PATH options as a table; a path in braces is a YAML mapping that says more
    (docs/howto/data.md).

    Args:
        option: Its name.
        given: What was said.
        usual: Tasks that a path alone may be for; None where it may not stand alone.
    """
    from openlance.sequence.tasks import ALSO, TASKS, source_name

    found: dict[str, Any] = {}
    for text in given or []:
        task, equals, path = text.partition("=")
        named = re.fullmatch(r"(\w+)(@[\w-]+)?", task)
        if named and (named[1] in TASKS or named[1] in ALSO) and equals and path:
            task = source_name(task)
        else:
            alone = usual is not None and (not re.fullmatch(r"[\w@-]+=.*", text) or Path(text).exists())
            if not alone:
                good = f"{'' if usual is None else 'PATH or '}TASK=PATH"
                raise UserError(f"{option} {text} is not {good} with a task of {', '.join(TASKS)}: write t2i=pictures")
            if len(usual or ()) != 1:
                each = " and ".join(f"{option} {one}={text}" for one in usual or ())
                raise UserError(f"{option} {text} could be for {' or '.join(usual or ())}: say which, {each}")
            task, path = (usual or ("",))[0], text
        if task in found:
            own = f"{option} {task}@more={path}"
            said = f"{option} names data for {task} twice, {found[task]} and {path}"
            raise UserError(f"{said}: give the second a name of its own, such as {own}")
        found[task] = path
    return found


def start_folder(model: str | None, scale: str) -> Path:
    from openlance.checkpoint.formats import SHIPPED, folder_of

    if model is None and scale not in SHIPPED:
        raise UserError(f"there is no model to start a stage of {scale} from: add --model DIR, and --init to train it")
    return folder_of(model or scale)


def replayed(folder: Path, step: int) -> None:
    """Print what a step comes to, sample by sample."""
    from openlance.training.run import replay_step

    found = replay_step(folder, step)
    for sample, loss in found.pop("samples").items():
        typer.echo(f"{loss:12.4f}  {sample}")
    typer.echo(" ".join(f"{name} {value}" for name, value in found.items()))


def ended(text: str, err: bool = False) -> None:
    """Part from the other processes; the first of all prints."""
    from openlance.runtime.distributed import Distributed

    Distributed.leave()
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text, err=err)


@contextmanager
def stopping() -> Iterator[None]:
    """Say how to do a step again that is not finite, and how a run that was interrupted goes on."""
    from openlance.training.interrupt import Interrupted
    from openlance.training.trainer import TrainingDiverged

    try:
        yield
    except TrainingDiverged as error:
        size = os.environ.get("WORLD_SIZE", "1")
        start = "openlance" if size == "1" else f"torchrun --nproc-per-node {size} -m openlance.cli.main"
        raise UserError(f"{error} (`{start} train resume {error.folder} --only-step {error.step}`)") from error
    except Interrupted as error:
        ended(str(error), err=True)
        raise typer.Exit(128 + error.number) from error


def write_samples(out: Path, prompts: tuple[str, ...], folder: Path) -> None:
    """Write the images that a checkpoint generates now into one file, as a grid of 8 columns at twice their size."""
    from PIL import Image

    import openlance
    from openlance.media.files import atomic_path

    images = openlance.load(str(folder)).generate(list(prompts), seed=0)
    width, height = (2 * side + 4 for side in images[0].size)
    grid = Image.new("RGB", (8 * width, -(-len(images) // 8) * height), (80, 80, 80))
    for n, image in enumerate(images):
        grid.paste(image.resize((width - 4, height - 4), Image.Resampling.NEAREST), (n % 8 * width, n // 8 * height))
    with atomic_path(out) as path:
        grid.save(path, format="PNG")
