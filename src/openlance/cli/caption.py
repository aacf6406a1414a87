"""`openlance caption out.png`

The same from Python: `openlance.load("nano").caption(PIL.Image.open("out.png"))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options

app = typer.Typer()


@app.command()
def caption(
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP ...", show_default=False)],
    model: options.Model = "nano",
    allow_pickle: options.AllowPickle = False,
    max_new_tokens: options.NewTokens = 128,
) -> None:
    """Describe a picture."""
    options.at_least("--max-new-tokens", max_new_tokens, 1)
    picture = options.read_picture(image)

    import openlance

    typer.echo(openlance.load(model, allow_pickle=allow_pickle).caption(picture, max_new_tokens=max_new_tokens))
