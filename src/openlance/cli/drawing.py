"""What the commands that generate share: prompts, names of the files, and the loop from one to the other; and the one
that edits, `openlance edit in.png "make the circle blue" -o out.png`: what is in the file decides what is made.

The same from Python: `openlance.load("nano").edit("in.png", "make the circle blue")[0].save("out.png")`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.config.sampling import Sampling, later_seed
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.media import Clip

app = typer.Typer(add_completion=False)

BATCH = 8  # generated between two writes; on two cores eight images take less than four times one
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CLIPS = (".mp4", ".webp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where prompts come from and where results go."""

    output: Annotated[
        Path | None,
        Option("-o", "--output", help="File; with --prompts-file a folder.  \\[default: out.png or out.mp4; out]"),
    ] = None
    prompts_file: Annotated[Path | None, Option(help="Text file, a prompt per line; results are 000000 ...")] = None

    def prompts(self, prompt: str | None, example: str) -> list[str]:
        """The texts of one run, from the line or from the file; `example` is what to type where there is none."""
        if prompt is not None and self.prompts_file is not None:
            raise UserError("there are a prompt and a --prompts-file: give only one of them")
        if self.prompts_file is not None:
            return options.read_prompts(self.prompts_file)
        if prompt is None:
            raise UserError(f"there is no prompt: write one, for example `openlance {example}`")
        return [options.check_text("prompt", prompt, "a red circle")]


def choose_paths(
    output: Path | None, prompts: int, per_prompt: int = 1, *, folder: bool = False, suffixes: Sequence[str] = PICTURES
) -> list[Path]:
    """One path per result, checked but not created: out.png, or out-0.png on; 000000.png on, or 000000-0.png on."""
    output = output or Path("out" if folder else f"out{suffixes[0]}")
    if folder:
        if (output.exists() and not output.is_dir()) or output.suffix.lower() in PICTURES + CLIPS:
            raise UserError(f"-o {output} is a file's name: with --prompts-file it names a folder, such as -o results")
        stems = [(output / f"{index:06d}", suffixes[0]) for index in range(prompts)]
    else:
        if output.is_dir():
            raise UserError(f"-o {output} is a folder: name a file in it, for example -o {output / 'out'}{suffixes[0]}")
        if output.suffix.lower() not in suffixes:
            what = "an image" if suffixes is PICTURES else "a video"
            raise UserError(f"-o {output} is not {what}'s name: end it in {', '.join(suffixes)}")
        stems = [(output.with_suffix(""), output.suffix)]
    options.check_writable(output if folder else output.parent)
    parts = [""] if per_prompt == 1 else [f"-{index}" for index in range(per_prompt)]
    return [stem.with_name(f"{stem.name}{part}{suffix}") for stem, suffix in stems for part in parts]


def draw(
    task: str,
    method: str,
    prompts: list[str],
    media: Mapping[str, Any],
    files: Files,
    how: options.Denoising,
    checkpoint: options.Checkpoint,
    *,
    prompt_name: str = "prompt",
    per_prompt: int = 1,
    beside: Mapping[str, Any] = {},
    **more: Any,
) -> None:
    """Load the model and generate in batches; every file is written whole or not at all. The processes of a torchrun
    generate together.

    Args:
        task: Its name.
        method: Name of the pipeline's method that generates: lists in, list out.
        prompts: One per result, or per `per_prompt` results.
        media: What every prompt is about, by the method's keywords.
        files: Where the results go.
        how: What the user said of the sampling.
        checkpoint: The model.
        prompt_name: The method's keyword for the prompts.
        per_prompt: How many results each prompt has.
        beside: What goes with every prompt and is no media, by the method's keywords.
        **more: Settings beside those of `how`.
    """
    from openlance.sequence.tasks import spec_of

    spec = spec_of(task)
    settings, enhance = how.settings() | more, how.enhance()  # before the model is loaded
    paths = choose_paths(
        files.output, len(prompts), per_prompt, folder=files.prompts_file is not None,
        suffixes=PICTURES if spec.makes == "image" else CLIPS,
    )  # fmt: skip
    from openlance.inference.inputs import asked_size, seed_of
    from openlance.media import write_media
    from openlance.media.inputs import as_clip

    asked = asked_size(*(settings.get(name) for name in ("num_frames", "height", "width")))
    seed = seed_of(-1 if how.seed is None else how.seed)
    pipe = checkpoint.load()
    pipe.metadata = how.metadata
    pipe.enable_parallelism()
    seed, leads = pipe.processes.agreed(seed), pipe.processes.leads
    start, total = time.perf_counter(), len(paths)
    if enhance is not None:
        prompts = rewritten(pipe, task, prompts, list(media.values()), enhance, asked)
    inputs = [text for text in prompts for _ in range(per_prompt)]
    settings = {"progress": total <= BATCH and leads and options.is_terminal(sys.stderr)} | settings
    bar, verdicts = options.progress(total, "file", show=total > BATCH and leads), list[Any]()
    with options.no_empty_folders(paths[0].parent), bar:
        for first in range(0, total, BATCH):
            texts = inputs[first : first + BATCH]
            given = {name: [one] * len(texts) for name, one in (*media.items(), *beside.items())} | {prompt_name: texts}
            made = getattr(pipe, method)(**given, seed=later_seed(seed, first), **settings)
            if not leads:
                continue
            if first == 0:  # only now is it clear that what was asked for can be done
                checkpoint.warn(pipe, task)
            for path, result in zip(paths[first:], made):
                clip = as_clip(result)
                write_media(path, clip)
                verdicts.append(getattr(result, "verdict", None))
                if beside and clip.made is not None and clip.made.region:  # who asked for a region is told
                    typer.echo(f"note: {path.name}: {clip.made.region}", err=True)
            bar.update(len(made))
    pipe.disable_parallelism()
    if leads:
        where = str(paths[0]) if total == 1 else f"{total} files, {paths[0]} to {paths[-1].name}"
        typer.echo(f"{where}  (seed {seed}, {time.perf_counter() - start:.1f} s)")
        for path, verdict in zip(paths, verdicts):
            if verdict is not None:
                typer.echo(f"{path.name}: {verdict}")


def rewritten(
    pipe: LancePipeline, task: str, prompts: list[str], media: Sequence[Any], enhance: Any, asked: Any
) -> list[str]:
    """Rewrite all prompts before the first result is generated."""
    from openlance.inference.enhance import rewriter
    from openlance.inference.inputs import clips_of
    from openlance.sequence.segment import prompt_in

    rewrite, texts = rewriter(pipe, enhance), list[str]()
    assert rewrite is not None
    clips = [clip for medium in media for clip in clips_of(medium)]
    with options.progress(len(prompts), "prompt", show=pipe.processes.leads) as bar:
        for prompt in prompts:
            texts.append(prompt_in(rewrite(pipe.front.request(task, prompt, clips, asked=asked))))
            bar.update()
    return texts


@app.command()
@options.grouped
def edit(
    source: Annotated[Path, Argument(help="An image or a video.")],
    instruction: Annotated[str | None, Argument(help="What to change.")] = None,
    image_guidance_scale: Annotated[
        float | None, Option(min=0, help="Strength of the source; 1: off.  \\[default: the model's]")
    ] = None,
    mask: Annotated[
        Path | None, Option(help="Image, white where the source may change; for a video also one with as many frames.")
    ] = None,
    region: Annotated[
        list[str] | None, Option(help="auto, LEFT,TOP,RIGHT,BOTTOM in pixels, or 'the circle'; repeat for more.")
    ] = None,
    strength: Annotated[
        float | None, Option(min=0, max=1, help="Share of the steps, from the source with noise in it.  \\[default: 1]")
    ] = None,
    *,
    files: Files,
    denoising: options.Denoising,
    checkpoint: options.Checkpoint,
) -> None:
    """Edit an image or a video as instructed; the result has its size and length.

    With a mask or a region, all else is the source's own pixels.
    """
    more = options.given(image_guidance_scale=image_guidance_scale, strength=strength)
    Sampling(**more)  # says what is wrong with it
    prompts = files.prompts(instruction, f"edit {quote(str(source))} 'make the circle blue'")
    media = options.read_media(source)
    beside = _regions(media, mask, region)
    from openlance.sequence import tasks

    task, given = tasks.the_task(tasks.edit, tasks.kind_of(media.frames)).name, {"source": media}
    draw(task, "edit", prompts, given, files, denoising, checkpoint, prompt_name="instruction", beside=beside, **more)


def _regions(source: Clip, mask: Path | None, said: list[str] | None) -> dict[str, Any]:
    """What goes with each edit; UserError, before a model is loaded, if it does not fit the source."""
    if mask is None and not said:
        return {}
    from openlance.inference.regions import Asked
    from openlance.media.region import is_box, read_box, read_mask, typed

    size = source.frames, source.height, source.width
    regions = [typed(one) for one in said or ()]
    region: Any = regions[0] if len(regions) == 1 else regions or None
    Asked.of(mask, region)
    for box in filter(is_box, regions):
        read_box(box, size)
    return {"region": region} if mask is None else {"mask": read_mask(mask, size)}
