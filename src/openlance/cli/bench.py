"""`openlance bench NAME`: official benchmarks, and those of installed packages (toyworld has `world` and `quality`).

openlance bench sample geneval --checkout geneval --model downloads -o results/geneval
openlance bench score geneval results/geneval/results.jsonl
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.config.plugins import plugin, plugins
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.eval.records import Score

INCOMPLETE = 3  # exit code
DETECTOR, COLORS = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
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
    Exits with 3 if results could not be made because media of the checkout are missing or damaged.
    """
    from openlance.eval.benchmarks import benchmark, unlike
    from openlance.eval.sampling import Run, Seeding, chosen
    from openlance.eval.sampling import sample as make
    from openlance.media.files import notice

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
    jobs = one.rules.jobs(checkout)
    for why in unlike(one, jobs):
        notice(f"not comparable: {why}")
    sampling = {"num_inference_steps": num_inference_steps or one.steps, "shift": one.shift} if one.steps else {}
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
        lost = make(pipe, jobs, output, run, rank=processes.rank, world=processes.size, on_done=bar.update)
    for why, count in lost.items():
        typer.echo(f"{count} not made: {why}", err=True)
    if lost:
        raise typer.Exit(INCOMPLETE)


@app.command()
def judge(
    name: Name,
    folder: Annotated[Path, Argument(help="Folder of openlance bench sample.")],
    checkout: Checkout = None,
    judge_url: Annotated[
        str | None, Option(help="Base URL of an OpenAI-compatible server that judges.  \\[default: $OPENAI_BASE_URL]")
    ] = None,
    judge_model: Annotated[str | None, Option(help="Its model; it stands in the report.")] = None,
    rules: Annotated[Path | None, Option(help="Step1X-Edit, whose words GEdit's judge is asked with.")] = None,
    detector: Annotated[str, Option(help="Mask2Former of GenEval's objects.")] = DETECTOR,
    colors: Annotated[str, Option(help="CLIP of GenEval's colors.")] = COLORS,
    device: Annotated[str, Option(help="Of these two.")] = "cpu",
    parallel: Annotated[int, Option(min=1, max=64, help="Questions to a server at once.")] = 4,
) -> None:
    """Judge the results of geneval, dpg, gedit or imgedit; an interrupted run goes on, and what failed is tried again.

    The key of a server is read from $OPENAI_API_KEY. VBench is measured by its own package, see docs/evaluation.md.
    """
    from openlance.eval.benchmarks import benchmark, manifest_of, words_id
    from openlance.eval.judging import begin, results_of
    from openlance.eval.judging import judge as run
    from openlance.eval.sampling import chosen

    one = benchmark(name)
    if one.judge is None and name != "geneval":
        raise UserError(f"{one.title} needs no judge here: openlance bench score {name} takes its results")
    if checkout is None:
        raise UserError(f"--checkout is missing: give the folder of {one.source}")
    made = manifest_of(name, folder)
    jobs = chosen(one.rules.jobs(checkout), made["limit"])
    total = sum(1 for job in jobs for _ in results_of(job, folder))
    if not total:
        raise UserError(f"{folder} has no results of {one.title}: make them with openlance bench sample {name}")
    if name == "geneval":
        from openlance.eval.judging import Detector

        scorer: Any = Detector(detector, colors, device)
        who = {"objects": detector, "colors": colors}
    else:
        assert one.judge is not None
        server, words = _server(judge_url, judge_model), one.words_in(rules or checkout)
        scorer = one.judge(server, words)
        who = {"judge": server.model, "words": words_id(one, rules or checkout)}
    begin(folder, who)
    with options.progress(total, "result") as bar:
        records = run(jobs, folder, scorer, parallel=1 if name == "geneval" else parallel, on_done=bar.update)
    failed = sum(bool(record.failed) for record in records)
    typer.echo(f"{len(records) - failed} judged, {failed} failed: openlance bench score {name} {folder}")
    if failed:
        raise typer.Exit(INCOMPLETE)


def _server(url: str | None, model: str | None) -> Any:
    """The judge behind a server."""
    from openlance.inference.chat_server import ChatServer

    url = url or os.environ.get("OPENAI_BASE_URL")
    if not url or not model:
        raise UserError("who judges? Give --judge-url and --judge-model, an OpenAI-compatible server and its model")
    return ChatServer(url=url, model=model, key=os.environ.get("OPENAI_API_KEY", ""), temperature=0.0, max_tokens=1400)


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


@app.command()
def report(
    results: Annotated[
        list[str],
        Argument(metavar="DIR", help="Folders of results, JSON of scores, or official results as BENCH=PATH."),
    ],
    output: Annotated[Path, Option("-o", "--output", help="The page; its tables stand beside it as .md.")] = Path(
        "report.html"
    ),
    checkout: Annotated[Path | None, Option(help="Where official results of dpg or imgedit need it.")] = None,
    title: Annotated[str, Option(help="Of the page.")] = "Scores",
    gallery: Annotated[int, Option(min=0, help="Items of every group whose results are shown.")] = 4,
) -> None:
    """Put runs beside each other and beside printed rows: one HTML file, and the tables as Markdown.

    Runs of one benchmark are compared item by item with the first. Exits with 3 if results are missing or failed.
    """
    from openlance.eval.report import markdown, sections
    from openlance.eval.report_page import page
    from openlance.media.files import atomic_path

    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {output} is no page: give a name that ends in .html")
    options.check_json(output, "-o")
    found = sections(results, checkout)
    for path, text in ((output, page(found, title, gallery)), (output.with_suffix(".md"), markdown(found, title))):
        with atomic_path(path) as file:
            file.write_text(text, encoding="utf-8")
        typer.echo(path)
    if any(run.score.incomplete for one in found for run in one.runs):
        typer.echo("results are missing or failed: the report says which", err=True)
        raise typer.Exit(INCOMPLETE)


@app.command()
@options.grouped
def speed(
    tasks: Annotated[str, Option(help="Names with commas.  \\[default: one for all that is read and made]")] = "",
    size: Annotated[list[str] | None, Option(metavar="WIDTHxHEIGHT", help="Repeatable.")] = None,
    num_frames: Annotated[int | None, Option(min=1, help="Of videos.  \\[default: the model's]")] = None,
    batch: Annotated[list[int] | None, Option(min=1, help="Requests at once; repeatable.  \\[default: 1]")] = None,
    repeats: Annotated[int, Option(min=1, help="Times that count, after one that warms up.")] = 3,
    num_inference_steps: options.Steps = None,
    json_file: options.JsonFile = None,
    *,
    checkpoint: options.Checkpoint,
) -> None:
    """Measure latency, throughput and memory of requests; the JSON has all that a row of a table needs.

    Times are medians. Memory is that of the GPU, else of the process; "planned" is what openlance plan counts.
    """
    from openlance.eval import speed as measuring
    from openlance.sequence.tasks import task_name

    options.check_json(json_file)
    sizes = [options.parse_size(one) for one in size or []]
    pipe = checkpoint.load()
    names = [task_name(name.strip()) for name in tasks.split(",") if name.strip()]
    rows = measuring.wanted(pipe, names, sizes, num_frames, batch or (1,))
    with options.progress(len(rows) * (repeats + 1), "run") as bar:
        found = measuring.measured(pipe, rows, repeats=repeats, steps=num_inference_steps, on_done=bar.update)
    words = [re.sub(r"[^\s=]*/", "", word) for word in options.COMMAND_LINE.get()]  # folders may have names of people
    found |= {"command": " ".join(["openlance", *words])}
    if json_file is not None:
        options.write_json(found, json_file)
    typer.echo("\n".join(options.columns(list(measuring.lines(found)), right=range(2, 9))))
    about = found["machine"]
    typer.echo(f"{found['model']}, {about.get('gpu', about['device'])}, {about['dtype']}, torch {about['torch']}")


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
