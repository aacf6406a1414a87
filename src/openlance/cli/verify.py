"""`openlance verify tests/golden --json results.json`

    openlance verify --checkpoint DIR --report report.json     # what a checkpoint is and does on this machine

The same from Python: `openlance.compat.verify.run.verify(Path("tests/golden")).failed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.compat.verify.checks import Row
    from openlance.compat.verify.run import Report

app = typer.Typer()


@app.command()
def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Golden vectors: a root with cases/ and bf16/, or a flat folder.", show_default=False),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Folder of the model.  \\[default: weights/ in or beside DIR]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer.  \\[default: tokenizer/, likewise]")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help="Folder of the cases whose inputs bfloat16 vectors have.  \\[default: ../cases]"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every comparison there.")] = None,
    ways: Annotated[
        str, typer.Option("--with", help="What to turn on: compile, offload, tiling, prefix, batch, with commas.")
    ] = "",
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Leave out of the table what passes.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Report on this model instead: a folder, nano, owner/name.")
    ] = None,
    report_file: Annotated[Path, typer.Option("--report", help="The file of that report.")] = Path("report.json"),
    against: Annotated[
        Path | None, typer.Option("--against", help="Another such report to compare it with.", show_default=False)
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Time for it; what does not fit is left out.")] = 10.0,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Compare this code with golden vectors of the released model, quantity by quantity; or, with --checkpoint, write
    down what a checkpoint is and does here: tensors, pictures, clips and answers, with their hashes, time and memory.

    The exit code is 0 if all pass and 1 if one does not. Entries of the files that nothing is compared with are listed
    below the table; they count neither way.
    """
    if (folder is None) == (checkpoint is None):
        raise UserError("give one of the two: a folder of golden vectors, or --checkpoint DIR for a report on a model")
    if checkpoint is not None:
        from openlance.cli.verify_report import write_report

        model = options.Checkpoint(model=checkpoint, memory=memory, allow_pickle=allow_pickle)
        if not write_report(model, report_file, minutes, against):
            raise typer.Exit(1)
        return
    assert folder is not None
    options.check_json(json_file)

    from openlance.compat.verify.run import verify as run

    with progress() as (on_file, on_row):
        chosen = [w.strip() for w in ways.split(",") if w.strip()]
        report = run(folder, weights, tokenizer, on_file, on_row, chosen, inputs)
    if json_file is not None:
        write_json(report, json_file)
    show(report, only_failed)
    if report.failed:
        raise typer.Exit(1)


@contextmanager
def progress() -> Iterator[tuple[Any, Any]]:
    """A bar over the files, with the comparison that was last made, on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("loading", total=None)
    begun = list[str]()
    try:

        def on_file(name: str, total: int) -> None:
            bar.start()  # not before the folder is known to be good
            bar.update(task, total=total, completed=len(begun), description=name)
            begun.append(name)

        def on_row(row: Row) -> None:
            bar.update(task, description=f"{row.case} {row.quantity}")

        yield on_file, on_row
    finally:
        if begun:
            bar.stop()


def show(report: Report, only_failed: bool) -> None:
    """The table, what was not covered, and one line that says how it went. Names are never cut, so that the lines can
    be searched."""
    rows = report.failed if only_failed else report.rows
    head = ("case", "quantity", "max error", "tolerance", "", "note")
    cells = [(r.case, r.quantity, *numbers(r), "pass" if r.passed else "FAIL", r.note) for r in rows]
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head) - 1)]
    previous = ""
    for line in (head, *cells) if rows else ():
        if line[0] != previous:
            print()
        previous = line[0]
        print("  ".join([c.ljust(w) for c, w in zip(line, widths)] + [line[-1]]).rstrip())
    print()
    for name, entries in report.uncovered.items():
        print(f"not covered in {name}: {', '.join(entries)}")
    files = len({row.case for row in report.rows})
    passed = len(report.rows) - len(report.failed)
    outcome = "all pass" if not report.failed else f"{len(report.failed)} FAIL"
    print(f"{passed} of {len(report.rows)} comparisons in {files} files pass: {outcome}")


def numbers(row: Row) -> tuple[str, str]:
    """Error and tolerance as people read them."""
    if not row.tolerance:
        return (f"{row.error:g} differ" if row.error else "equal"), "exact"
    return f"{row.error:.1e}", f"{row.tolerance:g}{' relative' if row.relative else ''}"


def write_json(report: Report, path: Path) -> None:
    """Every comparison and what was not covered; the file appears whole or not at all. An error that is no finite
    number is null."""
    from openlance.checkpoint.formats import write_json as write

    rows = [
        {
            "case": row.case,
            "quantity": row.quantity,
            "error": row.error if math.isfinite(row.error) else None,
            "tolerance": row.tolerance,
            "relative": row.relative,
            "pass": row.passed,
            "note": row.note,
        }
        for row in report.rows
    ]
    content = {"passed": not report.failed, "failed": len(report.failed), "rows": rows, "uncovered": report.uncovered}
    write(path, content)
