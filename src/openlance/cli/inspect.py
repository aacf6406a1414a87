"""`openlance inspect downloads`: what a path holds, whether it is complete, its sizes and types, and what it can do.

    openlance inspect out.png           # how an image or video was made

The same from Python: `openlance.runtime.inspection.inspect(Path("downloads"))`, `openlance.read_provenance("out.png")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options

if TYPE_CHECKING:
    from openlance.runtime.inspection import Report

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    path: Annotated[str, Argument(help="A model: its folder, a file of weights, nano; or an image or video.")],
    allow_pickle: options.AllowPickle = False,
    values: Annotated[bool, Option("--values", help="Read every parameter and check that it is finite.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what a model is, or how an image or video was made. The exit code is 0 for a complete checkpoint, a good
    file or a result that says how it was made, and 1 for anything less."""
    from openlance.media.source import is_picture

    if not (making(path, as_json) if is_picture(Path(path)) else model(path, allow_pickle, values, as_json)):
        raise typer.Exit(1)


def making(path: str, as_json: bool) -> bool:
    """Print how a result was made, or that its file does not say; returns whether it does."""
    from openlance.media.provenance import read_provenance

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


def model(path: str, allow_pickle: bool, values: bool, as_json: bool) -> bool:
    """Print what a checkpoint is; returns whether it is complete."""
    from openlance.checkpoint.hub import SHIPPED, folder_of
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
        counts = f"{part.tensors}", f"{part.numbers / 1e6:,.1f} M", " ".join(part.dtypes) or "-"
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
