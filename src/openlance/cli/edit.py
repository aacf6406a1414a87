"""`openlance edit in.png "make the circle blue" -o out.png`, and the same for a video: what is in the file decides.

The same from Python: `openlance.load("nano").edit("in.png", "make the circle blue")[0].save("out.png")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options
from openlance.cli.drawing import CLIPS, PICTURES, Job, choose_paths, choose_prompts, draw

app = typer.Typer()


@app.command()
@options.grouped
def edit(
    source: Annotated[Path, typer.Argument(help="A picture or a video.", show_default=False)],
    instruction: Annotated[str | None, typer.Argument(help="What to change.", show_default=False)] = None,
    output: options.OutputByKind = None,
    prompts_file: options.PromptsFile = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option("--image-guidance-scale", help="Strength of the source; 1 is none.")
    ] = None,
    *,
    denoising: options.Denoising,
    checkpoint: options.Adapted,
) -> None:
    """Change a picture or a video as told; the result has its size and length."""
    options.check_guidance(image_guidance_scale, "--image-guidance-scale")
    prompts = choose_prompts(instruction, prompts_file, f"edit {source} 'make the circle blue'")
    medium = options.read_medium(source)
    from openlance.sequence.tasks import edit as template
    from openlance.sequence.tasks import kind_of, the_task

    spec = the_task(template, kind_of(medium.frames))
    suffixes = PICTURES if spec.makes == "image" else CLIPS
    many = prompts_file is not None
    place = output or Path("edited" if many else f"out{suffixes[0]}")
    job = Job(
        task=spec.name,
        call=lambda pipe: pipe.edit,
        inputs=[[medium] * len(prompts), prompts],
        paths=choose_paths(place, len(prompts), folder=many, suffixes=suffixes),
        settings=options.given(image_guidance_scale=image_guidance_scale),
    )
    draw(job, denoising, checkpoint)
