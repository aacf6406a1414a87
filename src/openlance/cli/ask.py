"""`openlance ask out.png "how many squares are there?"`, of one image or video or of several.

    openlance caption out.png

The same from Python: `ask("out.png", "how many squares are there?")` and `caption("out.png")` of
`openlance.load("nano")`.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from typer import Argument

from openlance.cli import options
from openlance.errors import UserError

app = typer.Typer(add_completion=False)


@app.command()
@options.grouped
def ask(
    media: Annotated[
        list[Path] | None, Argument(help="Images or videos.", metavar="MEDIA...", show_default=False)
    ] = None,
    question: Annotated[str, Argument(help="What to ask about them.", metavar="QUESTION", show_default=False)] = "",
    max_new_tokens: options.NewTokens = 64,
    *,
    checkpoint: options.Checkpoint,
) -> None:
    """Answer a question about one or several images or videos; the answer appears as it is written."""
    text = options.check_text("question", question, "how many squares are there?")
    if not media:
        is_file = os.path.exists(text)  # which is False for what cannot be a path
        line = f"{quote(text)} 'how many squares are there?'" if is_file else f"in.png {quote(text)}"
        raise UserError(f"there is no {'question' if is_file else 'image'}: give one, as in `openlance ask {line}`")
    answer(media, text, max_new_tokens, checkpoint)


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


def answer(media: list[Path], question: str, most: int, checkpoint: options.Checkpoint) -> None:
    """Print an answer about files; an empty question asks for a description."""
    clips = [options.read_media(path) for path in media]
    pipe = checkpoint.load()
    from openlance.inference.methods import question_about

    checkpoint.warn(pipe, question_about(clips).name)
    options.say_answer(pipe.ask(clips, question, max_new_tokens=most, stream=options.live()), most)
