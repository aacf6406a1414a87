"""`openlance generate t2i "a red circle left of a blue square" --size 96x96 --seed 7 -o out.png`

    openlance generate t2v "a red circle moves left" --num-frames 17 -o out.mp4
    openlance generate i2v photo.png "the circle moves left" -o out.mp4
    openlance generate flf2v first.png last.png "the circle moves left" -o out.mp4
    openlance generate subject thing.png --prompt "the circle on a white background" -o out.png

The same from Python: `generate`, `generate_video`, `animate` and `subject` of `openlance.load("nano")`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.cli.drawing import CLIPS, PICTURES, Job, choose_paths, choose_prompts, draw

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

app = typer.Typer()

Prompt = Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)]
Motion = Annotated[str | None, typer.Argument(help="What happens.", show_default=False)]
Picture = Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP ...", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; a folder with --prompts-file.")]


@app.callback()
def generate() -> None:
    """Draw pictures and clips from prompts and pictures. Result number k is drawn with seed SEED + k."""


@app.command()
@options.grouped
def t2i(
    prompt: Prompt = None,
    output: Output = Path("out.png"),
    prompts_file: options.PromptsFile = None,
    num_images: Annotated[int, typer.Option("--num-images", help="Pictures per prompt: out-0.png, out-1.png ...")] = 1,
    *,
    drawing: options.Drawing,
    checkpoint: options.Adapted,
) -> None:
    """Draw a picture from a prompt, or one per line of a file."""
    options.at_least("--num-images", num_images, 1)
    prompts = choose_prompts(prompt, prompts_file, "generate t2i 'a red circle'")
    paths = choose_paths(output, len(prompts), num_images, folder=prompts_file is not None)
    inputs = [[text for text in prompts for _ in range(num_images)]]
    draw(Job(task="t2i", call=lambda pipe: pipe.generate, inputs=inputs, paths=paths), drawing, checkpoint)


@app.command()
@options.grouped
def t2v(
    prompt: Motion = None,
    output: Output = Path("out.mp4"),
    prompts_file: options.PromptsFile = None,
    *,
    filming: options.Filming,
    checkpoint: options.Adapted,
) -> None:
    """Make a clip from a prompt, or one per line of a file: .mp4, .webp or .gif."""
    prompts = choose_prompts(prompt, prompts_file, "generate t2v 'a red circle moves left'")
    paths = choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=CLIPS)
    draw(Job(task="t2v", call=lambda pipe: pipe.generate_video, inputs=[prompts], paths=paths), filming, checkpoint)


@app.command()
@options.grouped
def i2v(
    image: Picture,
    prompt: Motion = None,
    output: Output = Path("out.mp4"),
    prompts_file: options.PromptsFile = None,
    *,
    filming: options.Filming,
    checkpoint: options.Adapted,
) -> None:
    """Make a clip that begins with a picture."""
    prompts = choose_prompts(prompt, prompts_file, f"generate i2v {image} 'the circle moves left'")
    paths = choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=CLIPS)
    inputs: list[list[Any]] = [[options.read_medium(image)] * len(prompts), prompts]
    draw(Job(task="i2v", call=lambda pipe: pipe.animate, inputs=inputs, paths=paths), filming, checkpoint)


@app.command()
@options.grouped
def flf2v(
    first: Picture,
    last: Picture,
    prompt: Motion = None,
    output: Output = Path("out.mp4"),
    prompts_file: options.PromptsFile = None,
    *,
    filming: options.Filming,
    checkpoint: options.Adapted,
) -> None:
    """Make a clip between two pictures, its first and its last frame."""
    prompts = choose_prompts(prompt, prompts_file, f"generate flf2v {first} {last} 'the circle moves left'")
    paths = choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=CLIPS)
    ends = [[options.read_medium(end)] * len(prompts) for end in (first, last)]

    def call(pipe: LancePipeline) -> Callable[..., list[Any]]:
        return lambda begin, end, text, **how: pipe.animate(begin, text, last=end, **how)

    draw(Job(task="flf2v", call=call, inputs=[*ends, prompts], paths=paths), filming, checkpoint)


@app.command()
@options.grouped
def subject(
    images: Annotated[list[Path], typer.Argument(help="Pictures of the subjects.", show_default=False)],
    prompt: Annotated[str | None, typer.Option("--prompt", help="The new scene.", show_default=False)] = None,
    output: options.OutputByKind = None,
    prompts_file: options.PromptsFile = None,
    *,
    filming: options.Filming,
    checkpoint: options.Adapted,
) -> None:
    """Draw the subjects of given pictures in a new scene: a picture, or a clip with --num-frames."""
    filming.settings()  # what is wrong with them comes first: they decide what is made
    prompts = choose_prompts(prompt, prompts_file, f"generate subject {images[0]} --prompt 'the circle on white'")
    task, suffixes = ("image_idip", PICTURES) if (filming.num_frames or 1) == 1 else ("video_idip", CLIPS)
    many = prompts_file is not None
    place = output or Path("subjects" if many else f"out{suffixes[0]}")
    paths = choose_paths(place, len(prompts), folder=many, suffixes=suffixes)
    inputs: list[list[Any]] = [[[options.read_medium(path) for path in images]] * len(prompts), prompts]
    draw(Job(task=task, call=lambda pipe: pipe.subject, inputs=inputs, paths=paths), filming, checkpoint)
