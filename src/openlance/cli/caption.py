"""`openlance caption out.png`, or of a video.

The same from Python: `openlance.load("nano").caption("out.png")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options

app = typer.Typer()


@app.command()
@options.grouped
def caption(
    medium: Annotated[Path, typer.Argument(help="A picture or video.", show_default=False)],
    max_new_tokens: options.NewTokens = 128,
    *,
    checkpoint: options.Checkpoint,
) -> None:
    """Describe a picture or video."""
    options.check_tokens(max_new_tokens)
    clip = options.read_medium(medium)
    pipe = checkpoint.load()
    from openlance.inference.methods import question_about

    checkpoint.warn(pipe, question_about([clip]).name)
    answer = pipe.caption(clip, max_new_tokens=max_new_tokens)
    typer.echo(answer)
    options.say_if_cut(answer, max_new_tokens)
