"""`openlance verify tests/golden --json results.json`

    openlance verify --checkpoint DIR --report report.json     # what a checkpoint is and does on this machine

The same from Python: `lance_parity.run.verify(Path("tests/golden")).failed` and
`lance_parity.report.report(openlance.load("DIR"))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from lance_parity.checks import Row
    from lance_parity.run import Report

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """How golden vectors are compared with."""

    weights: Annotated[Path | None, Option(help="Folder of the model.  \\[default: weights/ in or beside FOLDER]")] = (
        None
    )
    tokenizer: Annotated[Path | None, Option(help="Its tokenizer.  \\[default: tokenizer/ in or beside FOLDER]")] = None
    inputs: Annotated[Path | None, Option(help="Inputs of bfloat16 vectors.  \\[default: ../cases]")] = None
    json_file: options.JsonFile = None
    ways: Annotated[str, Option("--with", help="Turn on, with commas: compile, offload, tiling, prefix, batch.")] = ""
    only_failed: Annotated[bool, Option("--only-failed", help="List only the comparisons that fail.")] = False

    def compare(self, folder: Path) -> bool:
        """Compare under a bar, write the file and print the table; returns whether all pass."""
        options.check_json(self.json_file)
        from lance_parity.run import verify as run

        ways = [way.strip() for way in self.ways.split(",") if way.strip()]
        with options.progress(None, "file") as bar:

            def on_file(name: str, total: int) -> None:
                bar.update(bar.total is not None)  # the one before is done
                bar.total = total
                bar.set_description_str(name)

            def on_row(row: Row) -> None:
                bar.set_postfix_str(row.quantity)

            report = run(folder, self.weights, self.tokenizer, on_file, on_row, ways, self.inputs)
        if self.json_file is not None:
            options.write_json(as_data(report), self.json_file)
        show(report, self.only_failed)
        return not report.failed


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """What a report is written about and compared with."""

    checkpoint: Annotated[str | None, Option(help="Report on this model: nano, a folder, or owner/name.")] = None
    report_file: Annotated[Path, Option("--report", help="File of that report.")] = Path("report.json")
    against: Annotated[Path | None, Option(help="An earlier report to compare it with.")] = None
    minutes: Annotated[float, Option(callback=options.positive, help="Time limit; the rest is left out.")] = 10.0
    memory: options.Memory = None
    allow_pickle: options.AllowPickle = False

    def write(self, model: str) -> bool:
        """Make a report under a bar, print it in short, and compare it; returns whether all is well."""
        options.check_json(self.report_file, "--report")
        earlier = read_report(self.against) if self.against is not None else None
        from lance_parity.report import report

        pipe = options.Checkpoint(model=model, memory=self.memory, allow_pickle=self.allow_pickle).load()
        with options.progress(None, "part") as bar:

            def tell(said: str, done: int, total: int) -> None:
                bar.total, bar.n = total, done
                bar.set_description_str(said[:60])

            def save(data: Any) -> None:
                options.write_json(data, self.report_file)

            found = report(pipe, seconds=60 * self.minutes, save=save, tell=tell)
        show_report(found)
        same = earlier is None or compare_reports(found, earlier)
        bad = len(found["failed"])
        typer.echo(f"{self.report_file}: {f'{bad} parts FAIL' if bad else 'all is well'}")
        return not bad and same


@app.command()
@options.grouped
def verify(
    folder: Annotated[Path | None, Argument(help="Golden vectors: a root with cases/ and bf16/, or flat.")] = None,
    *,
    vectors: Vectors,
    reporting: Reporting,
) -> None:
    """Compare this code with golden vectors of the released model; or, with --checkpoint, write a report of what a
    checkpoint is and does here: tensors, images, videos and answers, with their hashes, time and memory.

    The exit code is 0 if all pass, else 1. Entries that nothing is compared with are listed below the table.
    """
    if folder is not None and reporting.checkpoint is None:
        passed = vectors.compare(folder)
    elif folder is None and reporting.checkpoint is not None:
        passed = reporting.write(reporting.checkpoint)
    else:
        raise UserError("give one of the two: a folder of golden vectors, or --checkpoint DIR for a report on a model")
    if not passed:
        raise typer.Exit(1)


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
        row._asdict() | {"error": row.error if math.isfinite(row.error) else None, "pass": row.passed}
        for row in report.rows
    ]
    return {"passed": not report.failed, "failed": len(report.failed), "rows": rows, "uncovered": report.uncovered}


def read_report(file: Path) -> dict[str, Any]:
    """An earlier report; UserError if the file is none."""
    from lance_parity.against import differences
    from lance_parity.report import FORM
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
    """Print how two reports differ; returns whether they are the same."""
    from lance_parity.against import differences

    rows = differences(found, earlier)
    for row in rows:
        typer.echo(f"{'same' if row.passed else 'DIFFERENT'}  {row.what}: {row.said}")
    return all(row.passed for row in rows)
