"""`openlance verify tests/golden --json results.json`

    openlance verify --checkpoint DIR --report report.json     # what a checkpoint is and does on this machine

The same from Python: `openlance.compat.verify.run.verify(Path("tests/golden")).failed` and
`openlance.compat.report.report(openlance.load("DIR"))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.compat.verify.checks import Row
    from openlance.compat.verify.run import Report

app = typer.Typer(add_completion=False)


@app.command()
def verify(
    folder: Annotated[
        Path | None, Argument(help="Golden vectors: a root with cases/ and bf16/, or a flat folder.")
    ] = None,
    weights: Annotated[
        Path | None, Option(help="Folder of the model.  \\[default: weights/ in or beside FOLDER]")
    ] = None,
    tokenizer: Annotated[
        Path | None, Option(help="Folder of the tokenizer.  \\[default: tokenizer/ in or beside FOLDER]")
    ] = None,
    inputs: Annotated[
        Path | None, Option(help="Folder of the cases with the inputs of bfloat16 vectors.  \\[default: ../cases]")
    ] = None,
    json_file: options.JsonFile = None,
    ways: Annotated[
        str, Option("--with", help="Features to turn on, with commas: compile, offload, tiling, prefix, batch.")
    ] = "",
    only_failed: Annotated[bool, Option("--only-failed", help="List only the comparisons that fail.")] = False,
    checkpoint: Annotated[
        str | None, Option(help="Report on this model instead: a folder, nano, or owner/name on the hub.")
    ] = None,
    report_file: Annotated[Path, Option("--report", help="File of that report.")] = Path("report.json"),
    against: Annotated[Path | None, Option(help="An earlier report to compare it with.")] = None,
    minutes: Annotated[
        float, Option(callback=options.positive, help="Time limit of the report; what does not fit is left out.")
    ] = 10.0,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Compare this code with golden vectors of the released model; or, with --checkpoint, write a report of what a
    checkpoint is and does here: tensors, images, videos and answers, with their hashes, time and memory.

    The exit code is 0 if all pass and 1 if one does not. Entries of the files that nothing is compared with are listed
    below the table; they count neither way.
    """
    if (folder is None) == (checkpoint is None):
        raise UserError("give one of the two: a folder of golden vectors, or --checkpoint DIR for a report on a model")
    if folder is not None:
        options.check_json(json_file)
        chosen = [w.strip() for w in ways.split(",") if w.strip()]
        passed = compare_vectors(folder, weights, tokenizer, inputs, chosen, json_file, only_failed)
    else:
        model = options.Checkpoint(model=str(checkpoint), memory=memory, allow_pickle=allow_pickle)
        passed = write_report(model, report_file, minutes, against)
    if not passed:
        raise typer.Exit(1)


def compare_vectors(
    folder: Path,
    weights: Path | None,
    tokenizer: Path | None,
    inputs: Path | None,
    ways: list[str],
    json_file: Path | None,
    only_failed: bool,
) -> bool:
    """Compare with golden vectors under a bar, print the table and write the file; returns whether all pass."""
    from openlance.compat.verify.run import verify as run

    with options.progress(None, "file") as bar:

        def on_file(name: str, total: int) -> None:
            bar.update(bar.total is not None)  # the one before is done
            bar.total = total
            bar.set_description_str(name)

        report = run(folder, weights, tokenizer, on_file, lambda row: bar.set_postfix_str(row.quantity), ways, inputs)
    if json_file is not None:
        options.write_json(as_data(report), json_file)
    show(report, only_failed)
    return not report.failed


def show(report: Report, only_failed: bool) -> None:
    """The table, what was not covered, and one line that says how it went. Names are never cut, so that the lines can
    be searched."""
    rows = report.failed if only_failed else report.rows
    cells = [("case", "quantity", "max error", "tolerance", "", "note")]
    cells += [(r.case, r.quantity, *numbers(r), "pass" if r.passed else "FAIL", r.note) for r in rows]
    previous = ""
    for (case, *_), line in zip(cells, options.columns(cells) if rows else ()):
        typer.echo(line if case == previous else f"\n{line}")
        previous = case
    typer.echo()
    for name, entries in report.uncovered.items():
        typer.echo(f"not covered in {name}: {', '.join(entries)}")
    files = len({row.case for row in report.rows})
    passed = len(report.rows) - len(report.failed)
    outcome = "all pass" if not report.failed else f"{len(report.failed)} FAIL"
    typer.echo(f"{passed} of {len(report.rows)} comparisons in {files} files pass: {outcome}")


def numbers(row: Row) -> tuple[str, str]:
    """Error and tolerance as people read them."""
    if not row.tolerance:
        return (f"{row.error:g} differ" if row.error else "equal"), "exact"
    return f"{row.error:.1e}", f"{row.tolerance:g}{' relative' if row.relative else ''}"


def as_data(report: Report) -> dict[str, Any]:
    """Every comparison and what was not covered. An error that is no finite number is null."""
    rows = [
        {
            "case": row.case, "quantity": row.quantity, "error": row.error if math.isfinite(row.error) else None,
            "tolerance": row.tolerance, "relative": row.relative, "pass": row.passed, "note": row.note,
        }
        for row in report.rows
    ]  # fmt: skip
    return {"passed": not report.failed, "failed": len(report.failed), "rows": rows, "uncovered": report.uncovered}


def write_report(checkpoint: options.Checkpoint, file: Path, minutes: float, against: Path | None) -> bool:
    """Make a report, print it in short, and compare it; returns whether all is well."""
    options.check_json(file, "--report")
    earlier = read_report(against) if against is not None else None
    from openlance.compat.report import report

    pipe = checkpoint.load()
    with options.progress(None, "part") as bar:

        def tell(said: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(said[:60])

        found = report(pipe, seconds=60 * minutes, save=lambda data: options.write_json(data, file), tell=tell)
    show_report(found)
    differ = compare_reports(found, earlier) if earlier is not None else False
    bad = len(found["failed"])
    typer.echo(f"{file}: {f'{bad} parts FAIL' if bad else 'all is well'}")
    return not bad and not differ


def read_report(file: Path) -> dict[str, Any]:
    """An earlier report; UserError if the file is none."""
    from openlance.compat.against import differences
    from openlance.compat.report import FORM
    from openlance.config.values import read_json

    if not file.is_file():
        raise UserError(f"there is no file {file}: --against takes a report of `openlance verify --checkpoint`")
    found = read_json(file)
    if found.get("form") != FORM:
        raise UserError(f"{file} is no report that can be compared: write one with `openlance verify --checkpoint DIR`")
    differences(found, found)  # says now, not after minutes, that it is damaged
    return found


def show_report(found: Mapping[str, Any]) -> None:
    """What was found, one line each; answers beside what is right."""
    machine = found["machine"]
    typer.echo(f"{machine.get('gpu', machine['device'])}, {machine['dtype']}, torch {machine['torch']}")
    for name, part in found["parts"].items():
        typer.echo(f"{name}: {len(part.get('tensors', ()))} tensors, {part.get('fingerprint', 'not read')}")
    for name, result in found["results"].items():
        said = f"{result['answer']!r}" if "answer" in result else result["pixels"]
        right = f" (right: {result['expected']!r})" if result.get("expected") else ""
        typer.echo(f"{name}: {said}{right}  {result['seconds']:.1f} s")
    for name, why in found["failed"].items():
        typer.echo(f"FAIL {name}: {why}")
    if found["left_out"]:
        typer.echo(f"left out for want of time: {', '.join(found['left_out'])}; --minutes gives more")


def compare_reports(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Print how two reports differ; returns whether they do."""
    from openlance.compat.against import differences

    rows = differences(found, earlier)
    for row in rows:
        typer.echo(f"{'same' if row.passed else 'DIFFERENT'}  {row.what}: {row.said}")
    return not all(row.passed for row in rows)
