"""`openlance caption out.png`, or of a video.

The same from Python: `openlance.load("nano").caption("out.png")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from openlance.cli import options
from openlance.cli.ask import answer

app = typer.Typer(add_completion=False)


@app.command()
@options.grouped
def caption(
    media: Annotated[Path, Argument(help="An image or a video.")],
    max_new_tokens: options.NewTokens = 128,
    *,
    checkpoint: options.Checkpoint,
) -> None:
    """Describe an image or a video; the description appears as it is written."""
    answer([media], "", max_new_tokens, checkpoint)
