"""`openlance inspect downloads`: what a path holds, whether it is complete, its sizes and types, and what it can do.

    openlance inspect out.png           # how a picture or clip was made

The same from Python: `openlance.runtime.inspection.inspect(Path("downloads"))`, `openlance.read_provenance("out.png")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.cli.errors import with_flags

if TYPE_CHECKING:
    from openlance.runtime.inspection import Report

app = typer.Typer()


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(help="A model: its folder, a file of weights, nano; or a picture or clip.", show_default=False),
    ],
    allow_pickle: options.AllowPickle = False,
    values: Annotated[bool, typer.Option("--values", help="Read every number and check that it is finite.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a model is, or how a picture or clip was made. The exit code is 0 for a complete checkpoint, a good file
    or a result that says how it was made, and 1 for anything less."""
    from openlance.media.source import is_picture

    if is_picture(Path(path)):
        return show_making(path, as_json)
    from openlance.checkpoint.hub import SHIPPED, folder_of
    from openlance.runtime.inspection import inspect as look

    report = look(folder_of(path) if path in SHIPPED else Path(path), allow_pickle=allow_pickle, values=values)
    if as_json:
        import json

        typer.echo(json.dumps(report.as_data(), indent=1))
    else:
        show(report)
    if not report.complete:
        raise typer.Exit(1)


def show_making(path: str, as_json: bool) -> None:
    """Print how a result was made, or that its file does not say."""
    from openlance.media.provenance import read_provenance

    made = read_provenance(path)
    if as_json:
        import json

        typer.echo(json.dumps(None if made is None else made.as_data(), indent=1))
    elif made is None:
        typer.echo(f"{path}: does not say how it was made: not by openlance, or its metadata were taken out")
    else:
        rows = {name: value for name, value in made.as_data().items() if value not in ("", [], ())}
        width = max(map(len, rows))
        for name, value in rows.items():
            typer.echo(f"{printable(name).ljust(width)}  {printable(value)}")
    if made is None:
        raise typer.Exit(1)


def printable(value: Any) -> str:
    """A value on one line; a file can hold codes that do something to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def show(report: Report) -> None:
    """A table of parts, what is wrong with them, and the tasks."""
    from openlance.runtime.inspection import summary

    head = ("part", "tensors", "parameters", "types", "on disk", "files")
    rows = [
        (
            part.name, f"{part.tensors}", f"{part.parameters / 1e6:,.1f} M", " ".join(part.dtypes) or "-",
            f"{part.bytes / 1e6:,.1f} MB",
            ", ".join(Path(f).name for f in part.files[:2]) + " ..." * (len(part.files) > 2),
        )
        for part in report.parts
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for part in report.parts:
        if part.note or part.fault not in ("", "missing"):
            typer.echo(with_flags(f"{part.name}: {part.note or part.fault}"))
    if report.hashes:
        typer.echo(f"{report.hashes} files are what the hub has")
    if report.form != "file":
        typer.echo(f"tasks: {' '.join(report.tasks) or 'none'}")
    typer.echo(summary(report))
