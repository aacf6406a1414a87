"""`openlance inspect downloads`: what a path holds, whether it is complete, its sizes and types, and what it can do.

The same from Python: `openlance.runtime.inspection.inspect(Path("downloads"))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlance.cli import options

if TYPE_CHECKING:
    from openlance.runtime.inspection import Report

app = typer.Typer()


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A folder, a file of weights, or a shipped model.", show_default=False)],
    allow_pickle: options.AllowPickle = False,
    values: Annotated[bool, typer.Option("--values", help="Read every number and check that it is finite.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a path holds. The exit code is 0 for a complete checkpoint or a good file and 1 for anything less."""
    from openlance.checkpoint.formats import SHIPPED, folder_of
    from openlance.runtime.inspection import inspect as look

    report = look(folder_of(path) if path in SHIPPED else Path(path), allow_pickle=allow_pickle, values=values)
    if as_json:
        import json

        typer.echo(json.dumps(report.as_data(), indent=1))
    else:
        show(report)
    if not report.complete:
        raise typer.Exit(1)


def show(report: Report) -> None:
    """A table of parts, what is wrong with them, and the tasks."""
    from openlance.runtime.inspection import summary

    head = ("part", "tensors", "numbers", "types", "on disk", "files")
    rows = [
        (
            part.name, f"{part.tensors}", f"{part.numbers / 1e6:,.1f} M", " ".join(part.dtypes) or "-",
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
            typer.echo(f"{part.name}: {part.note or part.fault}")
    if report.hashes:
        typer.echo(f"{report.hashes} files are what the hub has")
    if report.form != "file":
        typer.echo(f"tasks: {' '.join(report.tasks) or 'none'}")
    typer.echo(summary(report))
