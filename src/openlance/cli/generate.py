"""`openlance generate t2i "a red circle left of a blue square" --size 96x96 --seed 7 -o out.png`

The same from Python: `openlance.load("nano").generate("a red circle", height=96, width=96, seed=7)[0].save("out.png")`.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from openlance.cli import options
from openlance.errors import UserError

BATCH = 8  # pictures drawn together; on two cores eight take less than four times one
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

app = typer.Typer()


@app.callback()
def generate() -> None:
    """Draw pictures from prompts."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to draw and where it goes: a prompt and a path for every picture, in the order of their seeds."""

    wanted: list[tuple[str, Path]]
    seed: int
    settings: dict[str, Any]  # height, width and whatever else the user gave


@app.command()
def t2i(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture; folder with --prompts-file.")] = Path(
        "out.png"
    ),
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="One prompt per line: 000000.png, 000001.png ... in -o.")
    ] = None,
    model: options.Model = "nano",
    size: options.Size = None,
    seed: options.Seed = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    allow_pickle: options.AllowPickle = False,
    num_images: Annotated[int, typer.Option("--num-images", help="Pictures per prompt: out-0.png, out-1.png ...")] = 1,
) -> None:
    """Draw a picture from a prompt, or one per line of a file. Picture number k is drawn with seed SEED + k."""
    width, height = options.parse_size(size) if size is not None else (None, None)
    options.at_least("--num-inference-steps", num_inference_steps, 1)
    options.at_least("--num-images", num_images, 1)
    options.at_least("--seed", seed, 0, options.LARGEST_SEED)
    options.check_guidance(guidance_scale)
    prompts = choose_prompts(prompt, prompts_file)
    paths = choose_paths(output, len(prompts), num_images, folder=prompts_file is not None)
    job = Job(
        wanted=list(zip([text for text in prompts for _ in range(num_images)], paths)),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        settings={
            **options.given(height=height, width=width),
            **options.given(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale),
        },
    )
    draw(model, job, allow_pickle)


def choose_prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    """The prompts of one run, from the line or from the file."""
    if prompt is not None and prompts_file is not None:
        raise UserError("there are a prompt and a --prompts-file: give only one of them")
    if prompts_file is not None:
        return options.read_prompts(prompts_file)
    if prompt is None:
        raise UserError("there is no prompt: write one, for example `openlance generate t2i 'a red circle'`")
    return [options.check_text("prompt", prompt, "a red circle")]


def choose_paths(output: Path, prompts: int, per_prompt: int, folder: bool) -> list[Path]:
    """One path per picture, checked but not created: out.png, or out-0.png on; 000000.png on, or 000000-0.png on."""
    if folder:
        if output.exists() and not output.is_dir():
            raise UserError(f"-o {output} is a file: with --prompts-file it names a folder, for example -o pictures")
        if output.suffix.lower() in SUFFIXES:
            raise UserError(
                f"-o {output} looks like a file: with --prompts-file it names a folder, for example -o pictures"
            )
        stems = [(output / f"{index:06d}", ".png") for index in range(prompts)]
    else:
        if output.is_dir():
            raise UserError(f"-o {output} is a folder: name a file in it, for example -o {output / 'out.png'}")
        if output.suffix.lower() not in SUFFIXES:
            raise UserError(f"-o {output} is not a picture's name: end it in {', '.join(SUFFIXES)}")
        stems = [(output.with_suffix(""), output.suffix)]
    options.check_writable(output if folder else output.parent)
    parts = [""] if per_prompt == 1 else [f"-{index}" for index in range(per_prompt)]
    return [stem.with_name(f"{stem.name}{part}{suffix}") for stem, suffix in stems for part in parts]


def draw(model: str, job: Job, allow_pickle: bool = False) -> None:
    """Load the model and draw the job in batches; every picture is written whole or not at all."""
    import numpy as np
    from tqdm import tqdm

    import openlance
    from openlance.media import write_image

    pipe = openlance.load(model, allow_pickle=allow_pickle)
    total, start = len(job.wanted), time.perf_counter()
    with tqdm(total=total, unit="picture", delay=2.0, disable=None, leave=False) as bar:
        for first in range(0, total, BATCH):
            batch = job.wanted[first : first + BATCH]
            pictures = pipe.generate([prompt for prompt, _ in batch], seed=job.seed + first, **job.settings)
            for (_, path), picture in zip(batch, pictures):
                write_image(path, np.asarray(picture.convert("RGB")))
            bar.update(len(batch))
    seconds, (_, path), (_, last) = time.perf_counter() - start, job.wanted[0], job.wanted[-1]
    where = str(path) if total == 1 else f"{total} pictures, {path} to {last.name}"
    typer.echo(f"{where}  (seed {job.seed}, {seconds:.1f} s)")
