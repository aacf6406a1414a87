"""`openlance ask out.png "how many squares are there?"`

The same from Python: `openlance.load("nano").ask(PIL.Image.open("out.png"), "how many squares are there?")`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options

app = typer.Typer()


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP ...", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: options.Model = "nano",
    allow_pickle: options.AllowPickle = False,
    max_new_tokens: options.NewTokens = 64,
) -> None:
    """Answer a question about a picture; the answer appears as it is written."""
    question = options.check_text("question", question, "how many squares are there?")
    options.at_least("--max-new-tokens", max_new_tokens, 1)
    picture = options.read_picture(image)

    import openlance

    pipe = openlance.load(model, allow_pickle=allow_pickle)
    live = sys.stdout.isatty()
    answer = pipe.ask(picture, question, max_new_tokens=max_new_tokens, stream=show if live else None)
    typer.echo("" if live else answer)


def show(piece: str) -> None:
    """Print a piece of an answer as soon as it is there."""
    typer.echo(piece, nl=False)
