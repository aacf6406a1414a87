"""A whole folder: every file by what it holds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from lance_parity.checks import Checks, Row
from lance_parity.files import open_folder
from lance_parity.modules import check_modules
from lance_parity.parts import WAYS, Parts
from lance_parity.preprocessing import check_preprocessing
from lance_parity.requests import check_half, check_request
from lance_parity.training import check_training
from openlance.errors import UserError


@dataclass
class Report:
    """All comparisons of a run, and by file the entries that nothing was compared with."""

    rows: list[Row] = field(default_factory=list)
    uncovered: dict[str, list[str]] = field(default_factory=dict)

    @property
    def failed(self) -> list[Row]:
        """The comparisons that do not hold."""
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
    """Compare our code with a folder of golden vectors; a comparison that breaks down is a row that fails.

    Args:
        folder: A root with cases/ and bf16/, or a flat folder.
        weights: Folder of the model; left out, weights/ in or beside the folder.
        tokenizer: Likewise.
        on_file: Called with name and number of all files before each file.
        on_row: Called after each comparison.
        ways: Of `parts.WAYS`, what is on that must change no number.
        inputs: Folder of the float32 cases that vectors in half precision take their inputs from; left out, cases/ in
            or beside theirs.

    Raises:
        UserError: The folder holds no vectors, or its weights or tokenizer cannot be used.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UserError(f"verify knows no {unknown[0]!r}: use some of {', '.join(WAYS)}")
    report = Report()
    with open_folder(folder, weights, tokenizer, inputs) as golden:
        parts = Parts(golden.weights, golden.tokenizer, ways)
        for file in golden.files:
            if on_file is not None:
                on_file(file.name, len(golden.files))
            checks = Checks(file, on_row)
            if file.inputs is not None:
                check_half(checks, parts)
            elif "input" in file.facts:
                check_request(checks, parts)
            elif "samples" in file.facts:
                check_training(checks, parts)
            else:
                check_modules(checks, parts)
                check_preprocessing(checks)
            checks.close()
            report.rows += checks.rows
            if checks.uncovered():
                report.uncovered[file.name] = checks.uncovered()
    return report
