"""From a name to a pipeline: a shipped model, a folder of any form, or a repository of the hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.model.forms import Files
    from openlance.sample.pipeline import Pipeline

SHIPPED = ("nano",)


def folder_of(model: str | Path) -> Path:
    """The folder of a shipped model or of a path; UserError if there is none."""
    if model in SHIPPED:
        return Path(str(files("openlance"))) / "assets" / str(model)
    path = Path(model)
    if not path.is_dir():
        shipped = ", ".join(SHIPPED)
        raise UserError(
            f"no model {str(model)!r}: it is neither shipped ({shipped}) nor a folder nor owner/name on the hub; try "
            f"--model nano"
        )
    return path


def files_of(model: str | Path, *, base: str | Path | None = None) -> Files:
    """Where the parts of a model are; of a repository of the hub the small files are fetched, weights when needed."""
    from openlance.model.forms import find
    from openlance.model.hub import find_repository, is_repository

    if isinstance(model, str) and not Path(model).exists() and is_repository(model):
        return find_repository(model)
    return find(folder_of(model), base=base)


def load(model: str | Path = "nano", *, base: str | Path | None = None, **options: Any) -> Pipeline:
    """See `openlance.load`. base: a folder with what `model` lacks, such as the codec of a trainer's output."""
    from openlance.sample.pipeline import Pipeline

    return Pipeline(files_of(model, base=base), **options)
