"""`openlance ask out.png "how many squares are there?"`, of one picture or video or of several.

The same from Python: `openlance.load("nano").ask("out.png", "how many squares are there?")`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlance.cli import options

if TYPE_CHECKING:
    from openlance.sample.text import Answer

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
    options.at_least("--max-new-tokens", max_new_tokens, 1)
    clips = [options.read_medium(path) for path in media]
    pipe = checkpoint.load()
    from openlance.sample.pipeline import question_about

    checkpoint.warn(pipe, question_about(clips).name)
    live = sys.stdout.isatty()
    answer = pipe.ask(clips, question, max_new_tokens=max_new_tokens, stream=show if live else None)
    typer.echo("" if live else answer)
    say_if_cut(answer, max_new_tokens)


def say_if_cut(answer: Answer, most: int) -> None:
    """One line on stderr for an answer that ended at its limit."""
    if answer.finish_reason == "length":
        typer.echo(f"note: the answer was cut at {most} tokens: raise --max-new-tokens for the rest", err=True)


def show(piece: str) -> None:
    """Print a piece of an answer as soon as it is there."""
    typer.echo(piece, nl=False)
