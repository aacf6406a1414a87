"""`openlance run requests.json --task video_edit --resolution video_480p -o results`: the release's own input files.

Every JSON form of the release, its task names, presets and defaults; the release's names of the options work as well,
and settings come from a file with `--defaults` and are shown, each with where it comes from, with `--show-defaults`.
Started by `torchrun`, or with `--processes`, the entries are shared among the processes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.cli.errors import one_line, with_flags
from openlance.config.sampling import ASKED, FILE, GenerationConfig
from openlance.config.values import as_data, flag, read_json, read_yaml
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.compat.inputs import Entry
    from openlance.compat.requests import Job
    from openlance.runtime.distributed import Distributed
    from openlance.sequence.tasks import TaskSpec

SOME_FAILED = 3  # exit code
LAUNCHED = "OPENLANCE_LAUNCHED"  # set in the processes that --processes starts

WAIT = timedelta(days=30)  # for the slowest process, once the others are done
# Each option has our name and the release's, with values in its form.
app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one run wants otherwise than its checkpoint: fields of `GenerationConfig`, and of its `Sampling`."""

    resolution: Annotated[str | None, Option("--resolution", "--RESOLUTION", help="Size preset for inputs.")] = None
    height: Annotated[int | None, Option("--height", "--VIDEO_HEIGHT", min=1, help="Of the output, in pixels.")] = None
    width: Annotated[int | None, Option("--width", "--VIDEO_WIDTH", min=1, help="Of the output, in pixels.")] = None
    num_frames: Annotated[int | None, Option("--num-frames", "--NUM_FRAMES", min=1, help="Of an output video.")] = None
    num_inference_steps: Annotated[
        int | None, Option("--num-inference-steps", "--VALIDATION_NUM_TIMESTEPS", min=1, help="Denoising steps.")
    ] = None
    shift: Annotated[float | None, Option("--shift", "--VALIDATION_TIMESTEP_SHIFT", help="Time shift.")] = None
    guidance_scale: Annotated[
        float | None, Option("--guidance-scale", "--CFG_TEXT_SCALE", min=0, help="Strength of the prompt; 1: off.")
    ] = None
    cached: Annotated[
        str | None,
        Option("--kv-cache", "--USE_KVCACHE", metavar="true|false", help="Cache keys and values of the prompt."),
    ] = None
    seed: Annotated[
        int | None, Option("--seed", "--VALIDATION_DATA_SEED", min=-1, help="Seed of every entry; -1: random.")
    ] = None
    solver: options.Solver = None
    step_cache: Annotated[float | None, Option("--step-cache", help="Reuse a step below this relative change.")] = None
    compile: Annotated[bool, Option("--compile", help="Compile the model first; with CUDA graphs on a GPU.")] = False
    max_new_tokens: Annotated[int | None, Option(min=1, help="Tokens of an answer at most.")] = None
    defaults: Annotated[Path | None, Option(help="YAML or JSON with settings, as --show-defaults prints.")] = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by field."""
        found = options.given(**vars(self) | {"defaults": None, "compile": self.compile or None})
        return found | ({"cached": flag("--kv-cache", self.cached)} if self.cached is not None else {})

    def typed(self) -> dict[str, Any]:
        """The same in the form of a file."""
        sampling = {name: value for name, value in self.given.items() if name not in ASKED}
        own = {name: value for name, value in self.given.items() if name in ASKED}
        return own | ({"sampling": sampling} if sampling else {})

    def filed(self) -> dict[str, Any]:
        """What the file says, in the same form. UserError if it cannot be read."""
        return {} if self.defaults is None else read_yaml(self.defaults)

    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that the checkpoint does not decide."""
        return self.filed().get("sampling", {}) | self.typed().get("sampling", {})

    def layers(self, model: str) -> list[tuple[str, GenerationConfig]]:
        """(where from, what holds) of the release, the checkpoint, the file and the options, the last word last; no
        tensor is read. UserError for what cannot be."""
        from openlance.checkpoint.formats import find_model

        own = find_model(model).defaults
        said = self.filed()
        try:
            filed = _changed(own, said)
        except UserError as error:
            raise UserError(f"{self.defaults}: {error}") from None
        last = _changed(filed, self.typed())
        return [
            ("the release", GenerationConfig()), (f"{FILE} of {model}", own), (str(self.defaults), filed),
            ("this command", last),
        ]  # fmt: skip

    def unused(self, spec: TaskSpec) -> str:
        """The options that were given and that a task has no use for."""
        idle = [name for name in self.given if (name if name in ASKED else "sampling") not in spec.takes]
        return ", ".join(f"{name}={self.given[name]}" for name in idle)


@app.command()
@options.grouped
def run(
    file: Annotated[str | None, Argument(help="JSON or JSON lines.  \\[default: the task's example]")] = None,
    config_path: Annotated[str | None, Option("--CONFIG_PATH", help="FILE, as the release names it.")] = None,
    *,
    task: Annotated[
        str, Option("--task", "--TASK_NAME", callback=options.named, help="t2i, t2v, i2v, image_edit, x2t_video ...")
    ],
    output: Annotated[
        Path | None, Option("-o", "--output", "--SAVE_PATH_GEN", help="Folder.  \\[default: results/TASK_sample]")
    ] = None,
    model: Annotated[str, Option("--model", "--MODEL_PATH", help="nano or a folder with weights.")] = "nano",
    lora: options.Adapters = None,
    asked: Asked,
    rewriting: options.Rewriting,
    check: options.Check = None,
    think: options.Think = False,
    show_defaults: Annotated[bool, Option("--show-defaults", help="Print the settings of the run and stop.")] = False,
    text_template: Annotated[str, Option("--TEXT_TEMPLATE", metavar="true", help="Only true is supported.")] = "true",
    released_enhance: Annotated[
        str, Option("--ENHANCE_PROMPT", metavar="true|false", help="As --enhance-prompt.")
    ] = "false",
    processes: Annotated[
        int, Option("--processes", "--NUM_GPUS", min=1, max=1024, help="Share the entries among this many processes.")
    ] = 1,
    allow_pickle: options.AllowPickle = False,
    metadata: options.Metadata = True,
) -> None:
    """Run an input file of the release, or the task's example. A run that was stopped continues where it was; entries
    that fail are listed at the end, with exit code 3."""
    if not flag("--TEXT_TEMPLATE", text_template):
        raise UserError("--TEXT_TEMPLATE false is not supported, checkpoints know the template only: leave it out")
    if flag("--ENHANCE_PROMPT", released_enhance):
        rewriting = replace(rewriting, enhance_prompt=True)
    enhance = rewriting.enhance()
    from openlance.compat.inputs import example_of, located, read_entries
    from openlance.sequence.tasks import spec_of

    spec, layers = spec_of(task), asked.layers(model)
    if spec.in_part:
        raise UserError(f"the task {task} is about regions, of which files of requests say nothing: use openlance edit "
                        "--mask, or openlance generate outpaint or extend")  # fmt: skip
    if show_defaults:
        return typer.echo("\n".join(shown(spec, layers)))
    output = output or Path("results") / f"{task}_sample"
    options.check_writable(output)
    if file and config_path and file != config_path:
        raise UserError(f"there are two files of requests, {file} and --CONFIG_PATH {config_path}: give one of them")
    said = file or config_path
    place = located(said) if said else example_of(task)
    entries = read_entries(place)
    config = layers[-1][1]
    if processes > 1 and "RANK" not in os.environ:
        return launch(processes, output)

    import openlance
    from openlance.compat.requests import Job, size_for
    from openlance.runtime.distributed import Distributed

    ranks = Distributed.join(timeout=WAIT)
    pipe: Any = openlance.load(model, allow_pickle=allow_pickle, device=ranks.device, metadata=metadata)
    options.adapted(pipe, lora)
    size = size_for(pipe, config)
    if ranks.leads:
        note(f"{spec.name} has no use for", asked.unused(spec))
        note(f"{model} is too small for what was asked: it makes", shrunk(spec, config, size))
    job = Job(
        task=task, size=size, preset=config.resolution, settings=asked.sampling(), max_new_tokens=config.max_new_tokens,
        seed=ranks.agreed(drawn_seed(output) if config.seed == -1 else config.seed), root=place.parent, enhance=enhance,
        think=think, check=check,
    )  # fmt: skip
    failures = share(pipe, entries, job, output, model, ranks)
    if failures is not None:
        report(failures, len(entries), output, job)


def note(what: str, names: str) -> None:
    """One line on stderr, if there is anything to name."""
    if names:
        typer.echo(with_flags(f"note: {what} {names}"), err=True)


def shrunk(spec: TaskSpec, config: Any, size: tuple[int, int, int]) -> str:
    """What is made in the place of a size that the model is too small for."""
    made = {name: number for name, number in zip(("num_frames", "height", "width"), size) if name in spec.takes}
    asked = {name: getattr(config, name) for name in made}
    return ", ".join(f"{name}={made[name]} in the place of {asked[name]}" for name in made if made[name] != asked[name])


def drawn_seed(output: Path) -> int:
    """A random seed; that of the run in the folder, where there is one to go on with."""
    settings = output / ".run" / "settings.json"
    before = read_json(settings).get("seed") if settings.is_file() else None
    return before if isinstance(before, int) else secrets.randbelow(2**31)


def share(
    pipe: Any, entries: list[Entry], job: Job, output: Path, model: str, ranks: Distributed
) -> list[tuple[str, str]] | None:
    """Run this process's entries; on rank 0 write the tables and give (key, reason) of all that failed."""
    from openlance.compat.running import Record, run, settings_of

    record = Record(output, settings_of(job, model, pipe.parts.adapters), ranks.rank)
    mine = entries[ranks.rank :: ranks.size]
    with options.progress(len(mine), "entry", show=ranks.leads) as bar:
        failed = run(pipe, mine, job, record, bar.update)
    everywhere = ranks.gather(failed)
    ranks.leave()
    if not ranks.leads:
        return None
    record.finish(entries)
    return [failure for some in everywhere for failure in some]


def report(failures: list[tuple[str, str]], total: int, output: Path, job: Job) -> None:
    """Say what was made, cut and failed; exit code 3 if anything failed."""
    results = json.loads((output / "result.json").read_text(encoding="utf-8"))
    if cut := sum(row.get("finish_reason") == "length" for row in results):
        what = f"{cut} answers were" if cut > 1 else "1 answer was"
        note(f"{what} cut at {job.max_new_tokens} tokens:", "raise --max-new-tokens, and choose another -o")
    for key, why in failures:
        typer.echo(f"error: entry {key!r}: {with_flags(one_line(why))}", err=True)
    if looked := [row["check"] for row in results if "check" in row]:
        fine = sum(found["fine"] for found in looked)
        typer.echo(f"{output}: the model finds no fault at {fine} of {len(looked)}; result.json names the others'")
    typer.echo(f"{output}: {total - len(failures)} of {total} entries  (seed {job.seed})")
    if os.environ.get(LAUNCHED):
        options.write_json(failures, output / ".run" / "failed.json")
    elif failures:
        raise typer.Exit(SOME_FAILED)


def launch(processes: int, output: Path) -> None:
    """The same command once per process, under torchrun on this machine."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    line += ["-m", "openlance.cli.main", *options.COMMAND_LINE.get()]
    done = subprocess.run(line, env={**os.environ, LAUNCHED: "1"}, check=False)
    if done.returncode:
        raise UserError(f"a process of {processes} stopped with code {done.returncode}: see its message above")
    if json.loads((output / ".run" / "failed.json").read_text(encoding="utf-8")):
        raise typer.Exit(SOME_FAILED)


def _changed(config: GenerationConfig, said: dict[str, Any]) -> GenerationConfig:
    from openlance.media import transform

    if (changed := config.changed(said)).resolution is not None:
        transform.resolution(changed.resolution)
    return changed


def shown(spec: TaskSpec, layers: list[tuple[str, GenerationConfig]]) -> Iterator[str]:
    """The lines of a YAML file of what a task uses, each with where its value comes from."""
    tables = [(where, dict(_leaves(spec, config))) for where, config in layers]
    for field, value in tables[-1][1].items():
        where = tables[0][0]
        for (_, before), (name, table) in zip(tables, tables[1:]):
            where = name if table[field] != before[field] else where
        yield f"{field}: {json.dumps(value)}".ljust(32) + f"  # {where}" if value != {} else f"{field}:"


def _leaves(spec: TaskSpec, config: GenerationConfig) -> Iterator[tuple[str, Any]]:
    from openlance.planning.workload import placeholder
    from openlance.sequence.tasks import Views, request

    view = placeholder(1, 1, 1)
    made = request(spec, "a prompt", [Views(view, view)] if spec.reads else [], (1, 1, 1))
    sampling = as_data(config.sampling_for(segment.role.name.lower() for segment in made))
    for name in spec.takes:
        if name == "sampling":
            yield name, {}
            yield from ((f"  {field}", value) for field, value in sampling.items())
        else:
            yield name, getattr(config, name)
