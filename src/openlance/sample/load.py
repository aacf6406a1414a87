"""From a name to a pipeline."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from openlance.errors import UserError

SHIPPED = ("nano",)


def folder_of(model: str) -> Path:
    """The folder of a shipped model or of a path; UserError if there is none."""
    if model in SHIPPED:
        return Path(str(files("openlance"))) / "assets" / model
    path = Path(model)
    if not path.is_dir():
        shipped = ", ".join(SHIPPED)
        raise UserError(f"no model {model!r}: it is neither shipped ({shipped}) nor a folder; try --model nano")
    return path


def load(model: str = "nano", **options: Any):
    """See `openlance.load`."""
    from openlance.sample.engine import Pipeline

    return Pipeline(folder_of(model), **options)
