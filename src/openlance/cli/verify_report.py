"""`openlance verify --checkpoint DIR --report report.json`: the bar, the table and the file of such a report.

The same from Python: `openlance.compat.report.report(openlance.load("DIR"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from openlance.cli import options
from openlance.errors import UserError


def write_report(checkpoint: options.Checkpoint, file: Path, minutes: float, against: Path | None) -> bool:
    """Make a report, print it in short, and compare it; returns whether all is well."""
    options.check_json(file, "--report")
    if not minutes > 0:
        raise UserError(f"--minutes is {minutes}: it must be above 0, for example 10")
    earlier = read_report(against) if against is not None else None
    from openlance.compat.report import report

    pipe = checkpoint.load()
    with progress() as tell:
        found = report(pipe, seconds=60 * minutes, save=lambda data: options.write_json(data, file), tell=tell)
    show(found)
    differ = compare(found, earlier) if earlier is not None else False
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


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar over the parts, with what is being done, on the error stream."""
    from tqdm import tqdm

    with tqdm(unit="part", delay=2.0, disable=None, leave=False) as bar:

        def tell(said: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(said[:60])

        yield tell


def show(found: Mapping[str, Any]) -> None:
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


def compare(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Print how two reports differ; returns whether they do."""
    from openlance.compat.against import differences

    rows = differences(found, earlier)
    for row in rows:
        typer.echo(f"{'same' if row.passed else 'DIFFERENT'}  {row.what}: {row.said}")
    return not all(row.passed for row in rows)
