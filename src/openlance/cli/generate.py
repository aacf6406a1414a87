"""`openlance generate t2i "a red circle left of a blue square" --size 96x96 --seed 7 -o out.png`

    openlance generate t2v "a red circle moves left" --num-frames 17 -o out.mp4
    openlance generate i2v photo.png "the circle moves left" -o out.mp4
    openlance generate flf2v first.png last.png "the circle moves left" -o out.mp4
    openlance generate subject thing.png --prompt "the circle on a white background" -o out.png
    openlance generate extend clip.mp4 "the circle moves left" --after 8 -o longer.mp4

From Python: `generate`, `generate_video`, `animate`, `subject`, `outpaint` and `extend` of `openlance.load("nano")`.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.cli.drawing import Files, draw
from openlance.cli.options import Checkpoint, Denoising, Drawing, Filming

app = typer.Typer(add_completion=False)

Prompt = Annotated[str | None, Argument(help="What to generate.")]
Motion = Annotated[str | None, Argument(help="What happens in the video.")]
Image = Annotated[Path, Argument(help="An image: PNG, JPEG, WebP ...")]


@app.callback()
def generate() -> None:
    """Generate images and videos from prompts and images. Result number k has the seed SEED + k."""


@app.command()
@options.grouped
def t2i(
    prompt: Prompt = None,
    num_images: Annotated[int, Option(min=1, help="Images per prompt: out-0.png, out-1.png ...")] = 1,
    *,
    files: Files,
    drawing: Drawing,
    checkpoint: Checkpoint,
) -> None:
    """Generate an image from a prompt, or one per line of a file."""
    prompts = files.prompts(prompt, "generate t2i 'a red circle'")
    draw("t2i", "generate", prompts, {}, files, drawing, checkpoint, per_prompt=num_images)


@app.command()
@options.grouped
def t2v(prompt: Motion = None, *, files: Files, filming: Filming, checkpoint: Checkpoint) -> None:
    """Generate a video from a prompt, or one per line of a file: .mp4, .webp or .gif."""
    prompts = files.prompts(prompt, "generate t2v 'a red circle moves left'")
    draw("t2v", "generate_video", prompts, {}, files, filming, checkpoint)


@app.command()
@options.grouped
def i2v(image: Image, prompt: Motion = None, *, files: Files, filming: Filming, checkpoint: Checkpoint) -> None:
    """Generate a video that begins with an image."""
    prompts = files.prompts(prompt, f"generate i2v {quote(str(image))} 'the circle moves left'")
    draw("i2v", "animate", prompts, {"image": options.read_media(image)}, files, filming, checkpoint)


@app.command()
@options.grouped
def flf2v(
    first: Image, last: Image, prompt: Motion = None, *, files: Files, filming: Filming, checkpoint: Checkpoint
) -> None:
    """Generate a video between two images, its first and its last frame."""
    prompts = files.prompts(prompt, f"generate flf2v {quote(str(first))} {quote(str(last))} 'the circle moves left'")
    ends = {"image": options.read_media(first), "last": options.read_media(last)}
    draw("flf2v", "animate", prompts, ends, files, filming, checkpoint)


@app.command()
@options.grouped
def outpaint(
    image: Image,
    prompt: Prompt = None,
    left: Annotated[int, Option(min=0, help="Pixels more on this side.")] = 0,
    top: Annotated[int, Option(min=0, help="Likewise.")] = 0,
    right: Annotated[int, Option(min=0, help="Likewise.")] = 0,
    bottom: Annotated[int, Option(min=0, help="Likewise.")] = 0,
    *,
    files: Files,
    denoising: Denoising,
    checkpoint: Checkpoint,
) -> None:
    """Generate what is beyond the borders of an image, whose own pixels stay."""
    prompts = files.prompts(prompt, f"generate outpaint {quote(str(image))} 'a red circle' --right 32")
    room: dict[str, Any] = {"left": left, "top": top, "right": right, "bottom": bottom}
    draw("outpaint", "outpaint", prompts, {"image": options.read_media(image)}, files, denoising, checkpoint, **room)


@app.command()
@options.grouped
def extend(
    video: Annotated[Path, Argument(help="A video.")],
    prompt: Motion = None,
    before: Annotated[int, Option(min=0, help="Frames more at the beginning.")] = 0,
    after: Annotated[int, Option(min=0, help="Frames more at the end; all together 9, 13, 17 ...")] = 0,
    *,
    files: Files,
    denoising: Denoising,
    checkpoint: Checkpoint,
) -> None:
    """Generate what comes before or after a video, whose own frames stay."""
    prompts = files.prompts(prompt, f"generate extend {quote(str(video))} 'a red circle moves left' --after 8")
    room: dict[str, Any] = {"before": before, "after": after}
    from openlance.media.inputs import every_frame

    draw("extend", "extend", prompts, {"video": every_frame(video)}, files, denoising, checkpoint, **room)


@app.command()
@options.grouped
def subject(
    images: Annotated[list[Path], Argument(help="Images of the subjects.")],
    prompt: Annotated[str | None, Option(help="The new scene.")] = None,
    *,
    files: Files,
    filming: Filming,
    checkpoint: Checkpoint,
) -> None:
    """Generate the subjects of given images in a new scene: an image, or a video with --num-frames."""
    prompts = files.prompts(prompt, f"generate subject {quote(str(images[0]))} --prompt 'the circle on white'")
    from openlance.sequence.tasks import kind_of, subject_driven, the_task

    task = the_task(subject_driven, kind_of(filming.num_frames or 1)).name
    subjects = {"images": [options.read_media(path) for path in images]}
    draw(task, "subject", prompts, subjects, files, filming, checkpoint)
