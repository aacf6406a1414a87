"""`openlance bench world --tasks t2i,image_edit,vqa --samples 100 --seed 0 --json scores.json`

The same from Python: `toyworld.suites.bench.run(openlance.load("nano"), Bench(samples=100))`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.config.sampling import LARGEST_SEED
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.config.sampling import GenerationConfig
    from toyworld.suites.bench import Results, Scored

PLACEMENTS = ("free", "loose", "canonical")


def world(
    tasks: Annotated[str, typer.Option("--tasks", help="Names with commas, or all: see below.")] = "t2i,vqa",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Requests per category.")] = 100,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Same seed, same requests and pictures.")
    ] = 0,
    placement: Annotated[
        str, typer.Option("--placement", help="Where objects stand: free; loose (15 % jitter); canonical (3 %).")
    ] = "free",
    model: options.Model = "nano",
    lora: options.Adapters = None,
    size: options.Size = "64x64",
    num_frames: Annotated[int, typer.Option("--num-frames", help="Length of clips: 5, 9, 13 or 17.")] = 9,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Requests answered together.")] = 32,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores there.")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder for every picture, with its verdict.")] = None,
) -> None:
    """Score a model on the procedural world, with 95 % intervals.

    Tasks: t2i, t2v, i2v, image_edit, video_edit, subject, vqa, video_vqa, multi_turn, subject_video, multi_turn_video,
    vqa.reasoning, image_inpaint (edits in a given region), outpaint, extend, or all that the model has learned with
    "all".
    What is drawn is right if it shows all that is asked and nothing else, judged from pixels ("text" has 1 to 3
    characters); an edit if what was asked happened ("asked") and everything else stayed ("kept"); a dialogue if all
    of its turns are ("turn_2": the first two). vqa, video_vqa: the share of right answers about true pictures and
    clips. heldout: combinations that are never trained, apart from the mean. Beside it stands what a second judge, made
    of OpenCV's outlines, says of images whose prompts it can read (no texts, fills or sizes).
    """
    width, height = options.parse_size(size or "64x64")
    if placement not in PLACEMENTS:
        raise UserError(f"--placement {placement!r} is unknown: use one of {', '.join(PLACEMENTS)}")
    options.check_json(json_file)
    if images is not None:
        options.check_writable(images)
        if (images / "records.jsonl").exists():
            raise UserError(f"--images {images} has the images of another run: choose another folder, or delete it")

    from toyworld.suites.bench import ALL, SUITES, Bench, named_tasks, prepare, run

    given = options.given(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    wanted = Bench(
        tasks=named_tasks(tasks), samples=samples, seed=seed,
        placement=placement, height=height, width=width, frames=num_frames, batch=batch, settings=tuple(given.items()),
    )  # fmt: skip
    prepare(wanted)  # says what to install before a model is loaded

    import openlance

    pipe: Any = options.adapted(openlance.load(model), lora)
    wanted = replace(wanted, tasks=learned(wanted.tasks, pipe.defaults, tasks.strip() == ALL))
    total = samples * sum(len(SUITES[task].categories) for task in wanted.tasks)
    if images is not None:
        made = {"benchmark": "world", "model": model, "seed": seed, "placement": placement, "size": size}
        expected = {f"{task} {name}": samples for task in wanted.tasks for name in SUITES[task].categories}
        options.write_json(
            made | {"samples": samples, "sampling": given, "expected": expected}, images / "manifest.json"
        )
    results = with_progress(lambda on_scored: run(pipe, wanted, on_scored), total, images)
    if json_file is not None:
        options.write_json(results, json_file)
    show(results, f"{model}, {placement} placement, {size}, {samples} per category, seed {seed}")


def learned(names: tuple[str, ...], defaults: GenerationConfig, all_of_them: bool) -> tuple[str, ...]:
    """The suites that a model can be asked; UserError for one that was named and needs what it has not learned."""
    from toyworld.suites.bench import SUITES

    missing = [name for name in names if SUITES[name].needs and SUITES[name].needs not in defaults.tasks]
    if missing and not all_of_them:
        raise UserError(f"the model was not trained for {missing[0]}: leave it out of --tasks")
    for name in missing:
        typer.echo(f"note: {name} is left out, which the model was not trained for", err=True)
    return tuple(name for name in names if name not in missing)


def with_progress(
    work: Callable[[Callable[[Scored], None]], Results], total: int, images: Path | None = None
) -> Results:
    """Do the work under a progress bar; keep every picture it reports where a folder is given."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total)

        def on_scored(scored: Scored) -> None:
            progress.update(bar, advance=1, description=f"{scored.task} {scored.category}")
            if images is not None:
                save_image(scored, images)

        return work(on_scored)


def save_image(scored: Scored, folder: Path) -> None:
    """TASK-CATEGORY-000000-right.png, and a record of it in records.jsonl."""
    import numpy as np

    from openlance.config.values import append_line
    from openlance.eval.records import Record
    from openlance.media import write_image

    verdict = "right" if scored.right else "wrong"
    name = f"{scored.task}-{scored.category}-{scored.index:06d}-{verdict}.png"
    write_image(folder / name, np.asarray(scored.image.convert("RGB")))
    second = {} if scored.second is None else {"second": scored.second}
    found = {"file": name, "right": scored.right, **second, **scored.said}
    record = Record(group=f"{scored.task} {scored.category}", key=f"{scored.index:06d}", found=found)
    append_line(folder / "records.jsonl", json.dumps(asdict(record)))


def show(results: Results, title: str) -> None:
    """Print one table per task."""
    from rich.console import Console
    from rich.table import Table

    for task, rows in results.items():
        table = Table(title=f"{task}: {title}", title_justify="left")
        table.add_column("category")
        both = any("second" in row for row in rows.values())
        for name in ("right", "95 % interval", "n", *(("second judge", "both agree", "n of both") if both else ())):
            table.add_column(name, justify="right")
        for category, row in rows.items():
            if category == "mean":
                table.add_section()
            low, high = row["ci95"]
            more = [f"{row[k]['mean']:.3f}" for k in ("second", "agree")] if "second" in row else []
            more += [str(row["agree"]["n"])] if more else []
            table.add_row(category, f"{row['mean']:.3f}", f"{low:.3f} .. {high:.3f}", str(row["n"]), *more)
        Console().print(table)
