"""A whole folder: every file by what it holds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from openlance.compat.verify.checks import Checks, Row
from openlance.compat.verify.files import GoldenFile, GoldenSet, open_folder
from openlance.compat.verify.halves import check_halves
from openlance.compat.verify.modules import check_modules
from openlance.compat.verify.parts import WAYS
from openlance.compat.verify.preprocessing import check_file
from openlance.compat.verify.requests import check_request
from openlance.compat.verify.runs import PLAIN, Family
from openlance.compat.verify.training import check_training
from openlance.errors import UserError


@dataclass(frozen=True)
class Report:
    """All comparisons of a run, and by file the entries that nothing was compared with."""

    rows: list[Row]
    uncovered: dict[str, list[str]]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]


def verify(
    folder: Path,
    weights: Path | None = None,
    tokenizer: Path | None = None,
    on_file: Callable[[str, int], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    ways: Collection[str] = (),
    inputs: Path | None = None,
) -> Report:
    """Compare our code with a folder of golden vectors; ways: of `WAYS`, what is on that must change no number; inputs:
    folder of the float32 cases that vectors in bfloat16 take their inputs from (left out: cases/ in or beside theirs).

    on_file(name, files in all) is called before each file, on_row after each comparison. UserError if the folder holds
    no vectors or its weights or tokenizer cannot be used; a comparison that breaks down is a row that fails.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UserError(f"verify knows no {unknown[0]!r}: use some of {', '.join(WAYS)}")
    with open_folder(folder, weights, tokenizer, inputs) as golden:
        family = Family(golden.weights, golden.tokenizer, ways)
        rows, uncovered = list[Row](), dict[str, list[str]]()
        for file in golden.files:
            if on_file is not None:
                on_file(file.name, len(golden.files))
            checks = Checks(file, on_row)
            _check(file, checks, family, golden)
            checks.close()
            rows += checks.rows
            if checks.uncovered():
                uncovered[file.name] = checks.uncovered()
    return Report(rows, uncovered)


def _check(file: GoldenFile, checks: Checks, family: Family, golden: GoldenSet) -> None:
    parts = family.of(PLAIN)
    if file.half:
        check_halves(checks, golden.inputs_of(file), family)
    elif "input" in file.facts:
        check_request(checks, parts)
    elif "samples" in file.facts:
        check_training(checks, parts)
    else:
        check_modules(checks, parts)
        check_file(checks)
