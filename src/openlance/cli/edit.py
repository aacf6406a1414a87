"""`openlance edit in.png "make the circle blue" -o out.png`, and the same for a video: what is in the file decides.

The same from Python: `openlance.load("nano").edit("in.png", "make the circle blue")[0].save("out.png")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from openlance.cli import options
from openlance.cli.drawing import Files, draw

app = typer.Typer(add_completion=False)


@app.command()
@options.grouped
def edit(
    source: Annotated[Path, Argument(help="An image or a video.")],
    instruction: Annotated[str | None, Argument(help="What to change.")] = None,
    image_guidance_scale: options.SourceGuidance = None,
    *,
    files: Files,
    denoising: options.Denoising,
    checkpoint: options.Adapted,
) -> None:
    """Edit an image or a video as instructed; the result has its size and length."""
    prompts = files.prompts(instruction, f"edit {source} 'make the circle blue'")
    media = options.read_media(source)
    from openlance.sequence.tasks import edit as template
    from openlance.sequence.tasks import kind_of, the_task

    draw(
        the_task(template, kind_of(media.frames)).name, "edit", prompts, {"source": media}, files, denoising,
        checkpoint, prompt_name="instruction", image_guidance_scale=image_guidance_scale,
    )  # fmt: skip
