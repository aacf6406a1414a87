"""`openlance bench NAME`: official benchmarks, and those of installed packages (toyworld has `world` and `quality`).

openlance bench sample geneval --checkout geneval --model downloads -o results/geneval
openlance bench score geneval results/geneval/results.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.config.plugins import plugin, plugins
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.eval.records import Score

INCOMPLETE = 3  # exit code
NAMES = "geneval, dpg, gedit, imgedit, vbench or mvbench"

app = typer.Typer(no_args_is_help=True, add_completion=False)
Name = Annotated[str, Argument(metavar="BENCH", help=NAMES)]
Checkout = Annotated[Path | None, Option(help="Folder of the benchmark: its repository or dataset.")]


@app.callback()
def bench() -> None:
    """Evaluate a model on a benchmark."""


@app.command()
@options.grouped
def sample(
    name: Name,
    output: Annotated[Path, Option("-o", "--output", help="Folder of the results; an interrupted run goes on there.")],
    checkout: Checkout = None,
    size: options.Size = None,
    num_frames: Annotated[int | None, Option(min=1, help="Of videos.  \\[default: the paper's]")] = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    seed: Annotated[int, Option(min=0, help="The first one.")] = 42,
    seeding: Annotated[
        str, Option(help="each: noise of its own for every result; release: as its scripts on --world processes.")
    ] = "each",
    world: Annotated[int, Option(min=1, help="Processes of the release's run, for --seeding release.")] = 8,
    limit: Annotated[int, Option(min=0, help="Items of every group, for a look; 0: all. Not comparable.")] = 0,
    *,
    checkpoint: options.Checkpoint,
) -> None:
    """Make the results of a benchmark, in the folders that its official scorer reads, with a manifest.

    Settings are those of the paper's runs unless given. Started by torchrun, the items are shared among the processes.
    """
    from openlance.eval.benchmarks import benchmark
    from openlance.eval.sampling import Run, Seeding, chosen
    from openlance.eval.sampling import sample as make

    one = benchmark(name)
    if checkout is None:
        raise UserError(f"--checkout is missing: give the folder of {one.source}")
    if seeding not in ("each", "release"):
        raise UserError(f"--seeding {seeding!r} is unknown: use each or release")
    options.check_writable(output)
    asked = one.size
    if size is not None:
        width, height = options.parse_size(size)
        asked = ((asked or (1,))[0], height, width)
    if num_frames is not None and asked is not None:
        asked = (num_frames, *asked[1:])
    jobs = one.jobs(checkout)
    sampling = {"num_inference_steps": num_inference_steps or one.steps, "shift": one.shift}
    run = Run(
        benchmark=name, size=asked, limit=limit,
        sampling=sampling | options.given(guidance_scale=guidance_scale),
        seeding=Seeding(seed=seed, world=world if seeding == "release" else None, most=one.most),
    )  # fmt: skip
    pipe = checkpoint.load()
    from openlance.runtime.distributed import Distributed

    processes = Distributed.join()
    mine = [job for n, job in enumerate(chosen(jobs, limit)) if n % processes.size == processes.rank]
    with options.progress(sum(job.samples for job in mine), "result") as bar:
        make(pipe, jobs, output, run, rank=processes.rank, world=processes.size, on_done=bar.update)


@app.command()
def score(
    name: Name,
    results: Annotated[Path, Argument(help="File or folder of the official scorer, or of this command.")],
    checkout: Checkout = None,
    json_file: options.JsonFile = None,
) -> None:
    """Add up results: the official numbers, and ours with 95 % intervals, which guess and drop nothing.

    Exits with 3 if results are missing or failed.
    """
    from openlance.eval.benchmarks import benchmark, scored

    options.check_json(json_file)
    found = scored(name, results, checkout)
    if json_file is not None:
        options.write_json(found.as_data() | {"comparable": not found.differs}, json_file)
    show(found, benchmark(name).unit)
    if found.incomplete:
        raise typer.Exit(INCOMPLETE)


def show(found: Score, unit: str) -> None:
    """Print a score beside the rows that papers print."""
    from openlance.eval.published import published

    names = [name for name in dict.fromkeys([*found.official, *found.ours]) if name != "total"] + ["total"]
    rows = [["", "official", "ours", "95 %", "n"]]
    for name in names:
        ours = found.ours.get(name)
        official = f"{found.official[name]:.4g}" if name in found.official else ""
        interval = "" if ours is None or ours.low != ours.low else f"{ours.low:.4g} to {ours.high:.4g}"
        rows.append([name, official, *(["", "", ""] if ours is None else [f"{ours.value:.4g}", interval, str(ours.n)])])
    typer.echo("\n".join(options.columns(rows, right=(1, 2, 4))))
    typer.echo(f"unit: {unit}")
    for row in published():
        if row.benchmark == found.benchmark:
            differs = {n: f"{follows:.2f} follows" for n, (_, follows) in row.differences.items()}
            totals = ", ".join(f"{n} {v}" + (f" ({differs[n]})" if n in differs else "") for n, v in row.totals.items())
            typer.echo(f"printed for {row.model}: {totals}  [{row.source}]")
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    for why in found.differs:
        typer.echo(f"not comparable: {why}", err=True)


for name in plugins("benchmarks"):
    app.command(name)(plugin("benchmarks", name))
