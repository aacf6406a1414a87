"""Commands about checkpoints:

    openlance download -o downloads                                     # without -o into the hub's cache
    openlance inspect downloads                                         # what it holds, and whether it is complete
    openlance inspect out.png                                           # how an image or video was made
    openlance convert downloads/Lance_3B lance-int8 --quantize int8     # half the size, loads as any other
    openlance init 3b --random -o lance-random                          # true names and shapes, for tests of speed

The same from Python: `checkpoint.hub.fetch`, `runtime.inspection.inspect`, `openlance.read_provenance` and
`runtime.conversion.write`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.config.sampling import LARGEST_SEED
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.runtime.inspection import Report

PRESETS = ("3b", "nano")
PARTS = ("decoder", "vit", "vae")
Shards = Annotated[int, Option(min=1, help="Number of files for the weights of the decoder.")]
Layout = Annotated[str, Option("--to", help="Layout: openlance, released or diffusers.")]
app = typer.Typer(add_completion=False)


@app.command()
def download(
    repo: Annotated[str, Argument(help="owner/name on the Hugging Face Hub.")] = "bytedance-research/Lance",
    output: Annotated[Path | None, Option("-o", "--output", help="A folder.  \\[default: the hub's cache]")] = None,
    revision: Annotated[
        str | None,
        Option(help="A branch, tag or commit.  \\[default: a pinned commit of the released model, else main]"),
    ] = None,
    only: Annotated[str | None, Option(help="Files to download, for example 'Lance_3B/*,Qwen*,Wan*'.")] = None,
) -> None:
    """Download a model from the hub; run it again to complete or to update it."""
    if output is not None:
        options.check_writable(output)
    from openlance.checkpoint.formats import Hub
    from openlance.checkpoint.hub import fetch
    from openlance.runtime import inspection

    patterns = [name.strip() for name in only.split(",")] if only else None
    folder = fetch(repo, patterns, folder=output, hub=Hub(revision=revision))
    typer.echo(folder if patterns else inspection.summary(inspection.inspect(folder)))


@app.command()
def inspect(
    path: Annotated[str, Argument(help="A model: its folder, a file of weights, nano; or an image or video.")],
    allow_pickle: options.AllowPickle = False,
    values: Annotated[bool, Option("--values", help="Read every parameter and check that it is finite.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what a model is, or how an image or video was made. The exit code is 0 for a complete checkpoint, a good
    file or a result that says how it was made, and 1 for anything less."""
    from openlance.media.files import is_media

    if not (making(path, as_json) if is_media(Path(path)) else checkpoint(path, allow_pickle, values, as_json)):
        raise typer.Exit(1)


def making(path: str, as_json: bool) -> bool:
    """Print how a result was made, or that its file does not say; returns whether it does."""
    from openlance.media.inputs import read_provenance

    made = read_provenance(path)
    if as_json:
        options.print_json(None if made is None else made.as_data())
    elif made is None:
        typer.echo(f"{path}: does not say how it was made: not by openlance, or its metadata were taken out")
    else:
        kept = [(name, value) for name, value in made.as_data().items() if value not in ("", [], ())]
        typer.echo("\n".join(options.columns([[printable(cell) for cell in row] for row in kept])))
    return made is not None


def printable(value: Any) -> str:
    """A value on one line; a file can hold codes that do something to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def checkpoint(path: str, allow_pickle: bool, values: bool, as_json: bool) -> bool:
    """Print what a checkpoint is; returns whether it is complete."""
    from openlance.checkpoint.formats import SHIPPED, folder_of
    from openlance.runtime.inspection import inspect as look

    report = look(folder_of(path) if path in SHIPPED else Path(path), allow_pickle=allow_pickle, values=values)
    if as_json:
        options.print_json(report.as_data())
    else:
        show(report)
    return report.complete


def show(report: Report) -> None:
    """A table of parts, what is wrong with them, and the tasks."""
    from openlance.runtime.inspection import summary

    rows = [("part", "tensors", "parameters", "types", "on disk", "files")]
    for part in report.parts:
        names = ", ".join(Path(f).name for f in part.files[:2]) + " ..." * (len(part.files) > 2)
        counts = f"{part.tensors}", f"{part.parameters / 1e6:,.1f} M", " ".join(part.dtypes) or "-"
        rows.append((part.name, *counts, f"{part.bytes / 1e6:,.1f} MB", names))
    typer.echo("\n".join(options.columns(rows)))
    for part in report.parts:
        if part.note or part.fault not in ("", "missing"):
            typer.echo(f"{part.name}: {part.note or part.fault}")
    if report.hashes:
        typer.echo(f"{report.hashes} files are what the hub has")
    if report.form != "file":
        typer.echo(f"tasks: {' '.join(report.tasks) or 'none'}")
    typer.echo(summary(report))


@app.command()
def convert(
    source: Annotated[str, Argument(help="A checkpoint folder in any layout, or a shipped model.")],
    output: Annotated[Path, Argument(help="A new folder.")],
    to: Layout = "openlance",
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16.  \\[default: unchanged]")] = None,
    quantize: Annotated[
        str | None, Option("--quantize", "--quantise", help="Quantize experts: int8, fp8 or int4.")
    ] = None,
    shards: Shards = 1,
    base: Annotated[Path | None, Option(help="A folder that has what is missing, such as the VAE of a run.")] = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write a checkpoint in another layout; every tensor is checked by name, shape and value."""
    options.check_writable(output.parent)
    from openlance.checkpoint.formats import find_model
    from openlance.inference.inputs import dtype_of
    from openlance.runtime.conversion import gather, write

    files, wanted = find_model(source, base=base), dtype_of(dtype)
    write(output, gather(files, wanted, quantize=quantize, allow_pickle=allow_pickle), to, shards=shards)
    typer.echo(f"{output}\ntry: openlance inspect {output}")


@app.command()
def init(
    preset: Annotated[str, Argument(help="3b or nano.")],
    output: Annotated[Path, Option("-o", "--output", help="A new folder.")],
    random: Annotated[bool, Option("--random", help="Random weights (required: there are no others).")] = False,
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    shards: Shards = 1,
    parts: Annotated[str, Option(help="Which parts to write, with commas.")] = ",".join(PARTS),
    seed: Annotated[int, Option(min=0, max=LARGEST_SEED, help="Seed of the weights.")] = 0,
    form: Layout = "openlance",
) -> None:
    """Write a checkpoint folder with random weights. The tokenizer is nano's; 3b takes 15 GB of disk in bfloat16."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}: use one of {', '.join(PRESETS)}")
    if not random:
        fix = "add --random; trained ones come from `openlance download`"
        raise UserError(f"weights to begin with can only be random: {fix}")
    wanted = [part.strip() for part in parts.split(",") if part.strip()]
    if not wanted or set(wanted) - set(PARTS):
        raise UserError(f"--parts {parts!r} is not a list of parts: use decoder, vit and vae, separated by commas")
    options.check_writable(output.parent)

    import torch

    from openlance.checkpoint.formats import folder_of
    from openlance.config.model import ModelConfig, nano
    from openlance.inference.inputs import dtype_of
    from openlance.runtime.conversion import random_checkpoint, write

    config, number = (ModelConfig() if preset == "3b" else nano()), dtype_of(dtype) or torch.bfloat16
    checkpoint = random_checkpoint(
        config, number, beside=folder_of("nano"), seed=seed, parts=wanted, preferences=preset == "nano"
    )
    write(output, checkpoint, form, shards=shards)
    typer.echo(f"{output}\ntry: openlance inspect {output}")
