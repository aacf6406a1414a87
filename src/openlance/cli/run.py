"""`openlance run requests.json --task video_edit --resolution video_480p -o results`: the release's own input files.

Every JSON form of the release, its task names, presets and defaults; the release's names of the options work as well.
Started by `torchrun`, or with `--processes`, the entries are shared among the processes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.cli.errors import one_line, with_flags
from openlance.cli.run_settings import Asked, shown
from openlance.config.values import flag
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.compat.inputs import Entry
    from openlance.compat.requests import Job
    from openlance.runtime.distributed import Distributed
    from openlance.sequence.tasks import TaskSpec

SOME_FAILED = 3  # exit code
LAUNCHED = "OPENLANCE_LAUNCHED"  # set in the processes that --processes starts

# Each option under our name and under the release's, with values in its form.
Input = Annotated[
    str | None, Argument(help="JSON or JSON lines in a form of the release.  \\[default: the task's example]")
]
Config = Annotated[str | None, Option("--CONFIG_PATH", help="FILE, as the release names it.")]
Task = Annotated[str, Option("--task", "--TASK_NAME", help="t2i, t2v, i2v, image_edit, x2t_video ...")]
Output = Annotated[
    Path | None, Option("-o", "--output", "--SAVE_PATH_GEN", help="Folder.  \\[default: results/TASK_sample]")
]
Model = Annotated[str, Option("--model", "--MODEL_PATH", help="nano or a folder with weights.")]
Show = Annotated[bool, Option("--show-defaults", help="Print the settings that the run would use, and stop.")]
Template = Annotated[str, Option("--TEXT_TEMPLATE", metavar="true", help="Accepted for the release's command.")]
Rewrite = Annotated[str, Option("--ENHANCE_PROMPT", metavar="true|false", help="As --enhance-prompt.")]
Processes = Annotated[
    int, Option("--processes", "--NUM_GPUS", min=1, max=1024, help="Share the entries among this many processes.")
]

WAIT = timedelta(days=30)  # for the slowest process, once the others are done
app = typer.Typer(add_completion=False)


@app.command()
@options.grouped
def run(
    file: Input = None,
    config_path: Config = None,
    *,
    task: Task,
    output: Output = None,
    model: Model = "nano",
    asked: Asked,
    rewriting: options.Rewriting,
    show_defaults: Show = False,
    text_template: Template = "true",
    released_enhance: Rewrite = "false",
    processes: Processes = 1,
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
    size = size_for(pipe, config)
    if ranks.leads:
        note(f"{spec.name} has no use for", asked.unused(spec))
        note(f"{model} is too small for what was asked: it makes", shrunk(spec, config, size))
    job = Job(
        task=task, size=size, preset=config.resolution, settings=asked.sampling(), max_new_tokens=config.max_new_tokens,
        seed=ranks.agreed(drawn_seed(output) if config.seed == -1 else config.seed), root=place.parent, enhance=enhance,
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
    from openlance.config.values import read_json

    settings = output / ".run" / "settings.json"
    before = read_json(settings).get("seed") if settings.is_file() else None
    return before if isinstance(before, int) else secrets.randbelow(2**31)


def share(
    pipe: Any, entries: list[Entry], job: Job, output: Path, model: str, ranks: Distributed
) -> list[tuple[str, str]] | None:
    """Run this process's entries; on rank 0 write the tables and give (key, reason) of all that failed."""
    from openlance.compat.running import Record, run, settings_of

    record = Record(output, settings_of(job, model), ranks.rank)
    mine = entries[ranks.rank :: ranks.size]
    with options.progress(len(mine), "entry", show=ranks.leads) as bar:
        failed = [(f.key, f.why) for f in run(pipe, mine, job, record, bar.update)]
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
