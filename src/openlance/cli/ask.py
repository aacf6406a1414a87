"""`openlance ask out.png "how many squares are there?"`, of one picture or video or of several.

The same from Python: `openlance.load("nano").ask("out.png", "how many squares are there?")`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options

app = typer.Typer()


@app.command()
@options.grouped
def ask(
    media: Annotated[list[Path], typer.Argument(help="Pictures or videos.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about them.", show_default=False)],
    max_new_tokens: options.NewTokens = 64,
    *,
    checkpoint: options.Checkpoint,
) -> None:
    """Answer a question about a picture or video, or several; the answer appears as it is written."""
    question = options.check_text("question", question, "how many squares are there?")
    options.check_tokens(max_new_tokens)
    clips = [options.read_medium(path) for path in media]
    pipe = checkpoint.load()
    from openlance.inference.methods import question_about

    checkpoint.warn(pipe, question_about(clips).name)
    live = options.is_terminal(sys.stdout)
    answer = pipe.ask(clips, question, max_new_tokens=max_new_tokens, stream=show if live else None)
    typer.echo("" if live else answer)
    options.say_if_cut(answer, max_new_tokens)


def show(piece: str) -> None:
    """Print a piece of an answer as soon as it is there."""
    typer.echo(piece, nl=False)
