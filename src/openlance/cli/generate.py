"""`openlance generate t2i "a red circle left of a blue square" --size 96x96 --seed 7 -o out.png`

    openlance generate t2v "a red circle moves left" --num-frames 17 -o out.mp4
    openlance generate i2v photo.png "the circle moves left" -o out.mp4
    openlance generate flf2v first.png last.png "the circle moves left" -o out.mp4
    openlance generate subject thing.png --prompt "the circle on a white background" -o out.png

The same from Python: `generate`, `generate_video`, `animate` and `subject` of `openlance.load("nano")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options
from openlance.cli.drawing import CLIPS, PICTURES, Job, choose_paths, choose_prompts, draw

app = typer.Typer()

Prompt = Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)]
Motion = Annotated[str | None, typer.Argument(help="What happens.", show_default=False)]
Picture = Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP ...", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; a folder with --prompts-file.")]


@app.callback()
def generate() -> None:
    """Draw pictures and clips from prompts and pictures. Result number k is drawn with seed SEED + k."""


@app.command()
def t2i(
    prompt: Prompt = None,
    output: Output = Path("out.png"),
    prompts_file: options.PromptsFile = None,
    model: options.Model = "nano",
    size: options.Size = None,
    seed: options.Seed = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    solver: options.Solver = None,
    num_images: Annotated[int, typer.Option("--num-images", help="Pictures per prompt: out-0.png, out-1.png ...")] = 1,
    lora: options.Lora = None,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Draw a picture from a prompt, or one per line of a file."""
    settings = options.drawing(size, None, num_inference_steps, guidance_scale, solver)
    options.at_least("--num-images", num_images, 1)
    prompts = choose_prompts(prompt, prompts_file, "generate t2i 'a red circle'")
    job = Job(
        task="t2i",
        call=lambda pipe: pipe.generate,
        inputs=[[text for text in prompts for _ in range(num_images)]],
        paths=choose_paths(output, len(prompts), num_images, folder=prompts_file is not None),
        seed=seed,
        settings=settings,
    )
    draw(job, options.Checkpoint(model=model, allow_pickle=allow_pickle, memory=memory, lora=lora))


@app.command()
def t2v(
    prompt: Motion = None,
    output: Output = Path("out.mp4"),
    prompts_file: options.PromptsFile = None,
    model: options.Model = "nano",
    size: options.Size = None,
    num_frames: options.Frames = None,
    seed: options.Seed = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    solver: options.Solver = None,
    lora: options.Lora = None,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Make a clip from a prompt, or one per line of a file: .mp4, .webp or .gif."""
    settings = options.drawing(size, num_frames, num_inference_steps, guidance_scale, solver)
    prompts = choose_prompts(prompt, prompts_file, "generate t2v 'a red circle moves left'")
    job = Job(
        task="t2v",
        call=lambda pipe: pipe.generate_video,
        inputs=[prompts],
        paths=choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=CLIPS),
        seed=seed,
        settings=settings,
    )
    draw(job, options.Checkpoint(model=model, allow_pickle=allow_pickle, memory=memory, lora=lora))


@app.command()
def i2v(
    image: Picture,
    prompt: Motion = None,
    output: Output = Path("out.mp4"),
    prompts_file: options.PromptsFile = None,
    model: options.Model = "nano",
    size: options.Size = None,
    num_frames: options.Frames = None,
    seed: options.Seed = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    solver: options.Solver = None,
    lora: options.Lora = None,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Make a clip that begins with a picture."""
    settings = options.drawing(size, num_frames, num_inference_steps, guidance_scale, solver)
    prompts = choose_prompts(prompt, prompts_file, f"generate i2v {image} 'the circle moves left'")
    paths = choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=CLIPS)
    job = Job(
        task="i2v",
        call=lambda pipe: pipe.animate,
        inputs=[[options.read_medium(image)] * len(prompts), prompts],
        paths=paths,
        seed=seed,
        settings=settings,
    )
    draw(job, options.Checkpoint(model=model, allow_pickle=allow_pickle, memory=memory, lora=lora))


@app.command()
def flf2v(
    first: Picture,
    last: Picture,
    prompt: Motion = None,
    output: Output = Path("out.mp4"),
    prompts_file: options.PromptsFile = None,
    model: options.Model = "nano",
    size: options.Size = None,
    num_frames: options.Frames = None,
    seed: options.Seed = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    solver: options.Solver = None,
    lora: options.Lora = None,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Make a clip between two pictures, its first and its last frame."""
    settings = options.drawing(size, num_frames, num_inference_steps, guidance_scale, solver)
    prompts = choose_prompts(prompt, prompts_file, f"generate flf2v {first} {last} 'the circle moves left'")
    paths = choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=CLIPS)
    begin, end = options.read_medium(first), options.read_medium(last)
    job = Job(
        task="flf2v",
        call=lambda pipe: pipe.animate,
        inputs=[[begin] * len(prompts), prompts],
        paths=paths,
        seed=seed,
        settings=settings | {"last": end},
    )
    draw(job, options.Checkpoint(model=model, allow_pickle=allow_pickle, memory=memory, lora=lora))


@app.command()
def subject(
    images: Annotated[list[Path], typer.Argument(help="Pictures of the subjects.", show_default=False)],
    prompt: Annotated[str | None, typer.Option("--prompt", help="The new scene.", show_default=False)] = None,
    output: Output = Path("out.png"),
    prompts_file: options.PromptsFile = None,
    model: options.Model = "nano",
    size: options.Size = None,
    num_frames: Annotated[int, typer.Option("--num-frames", help="1 is a picture, more a clip.")] = 1,
    seed: options.Seed = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    solver: options.Solver = None,
    lora: options.Lora = None,
    memory: options.Memory = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Draw the subjects of given pictures in a new scene: a picture, or a clip with --num-frames."""
    settings = options.drawing(size, num_frames, num_inference_steps, guidance_scale, solver)
    prompts = choose_prompts(prompt, prompts_file, f"generate subject {images[0]} --prompt 'the circle on white'")
    task, suffixes = ("image_idip", PICTURES) if num_frames == 1 else ("video_idip", CLIPS)
    paths = choose_paths(output, len(prompts), folder=prompts_file is not None, suffixes=suffixes)
    job = Job(
        task=task,
        call=lambda pipe: pipe.subject,
        inputs=[[[options.read_medium(path) for path in images]] * len(prompts), prompts],
        paths=paths,
        seed=seed,
        settings=settings,
    )
    draw(job, options.Checkpoint(model=model, allow_pickle=allow_pickle, memory=memory, lora=lora))
