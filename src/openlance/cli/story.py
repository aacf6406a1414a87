"""`openlance story "draw a red circle" "describe the image" "make the circle green" -o story`: images, videos and
texts in turn, each with what came before it in view; a page with all of them.

The same from Python: `story` of `openlance.load("nano")`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from openlance.cli import options

app = typer.Typer(add_completion=False)


@app.command()
@options.grouped
def story(
    lines: Annotated[list[str], Argument(help="What comes next, in free words, as in chat.")],
    image: Annotated[Path | None, Option(help="An image or a video to begin with.")] = None,
    output: Annotated[Path, Option("-o", "--output", help="Folder of the page and its files.")] = Path("story"),
    history: Annotated[int | None, Option(min=0, help="Earlier turns to include.  \\[default: the model's]")] = None,
    *,
    drawing: options.Drawing,
    checkpoint: options.Checkpoint,
) -> None:
    """Generate images, videos and texts in turn; story.md shows them together. Image number k has the seed SEED + k."""
    settings = drawing.settings() | {"enhance": drawing.enhance(), "seed": drawing.seed, "history": history}
    lines = [options.check_text("line", line, "draw a red circle") for line in lines]
    options.check_writable(output)
    first = options.read_media(image) if image is not None else None
    pipe = checkpoint.load()
    pipe.metadata, start = drawing.metadata, time.perf_counter()
    made = pipe.story(lines, image=first, **settings)
    with options.no_empty_folders(output):
        page = made.save(output)
    typer.echo(f"{page}  (seed {made.seed}, {len(lines)} results, {time.perf_counter() - start:.1f} s)")
    for line, result in zip(lines, made.results, strict=True):
        if (verdict := getattr(result, "verdict", None)) is not None:
            typer.echo(f"{line}: {verdict}")
