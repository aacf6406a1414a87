"""What the commands that draw share: prompts, names of the files, and the loop from one to the other."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.inference.enhance import Enhancer
    from openlance.inference.lance_pipeline import LancePipeline

BATCH = 8  # drawn between two writes; on two cores eight pictures take less than four times one
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CLIPS = (".mp4", ".webp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to draw and where it goes, in the order of the seeds.

    Args:
        task: its name.
        call: the method of a pipeline that draws: lists in, list out.
        inputs: its arguments, a list with one entry per result each: media, then the prompts.
        settings: keywords of its own, beside those of the options.
    """

    task: str
    call: Callable[[LancePipeline], Callable[..., list[Any]]]
    inputs: list[list[Any]]
    paths: list[Path]
    settings: dict[str, Any] = field(default_factory=dict)


def choose_prompts(prompt: str | None, prompts_file: Path | None, example: str) -> list[str]:
    """The texts of one run, from the line or from the file; `example` is what to type where there is none."""
    if prompt is not None and prompts_file is not None:
        raise UserError("there are a prompt and a --prompts-file: give only one of them")
    if prompts_file is not None:
        return options.read_prompts(prompts_file)
    if prompt is None:
        raise UserError(f"there is no prompt: write one, for example `openlance {example}`")
    return [options.check_text("prompt", prompt, "a red circle")]


def choose_paths(
    output: Path, prompts: int, per_prompt: int = 1, *, folder: bool = False, suffixes: tuple[str, ...] = PICTURES
) -> list[Path]:
    """One path per result, checked but not created: out.png, or out-0.png on; 000000.png on, or 000000-0.png on."""
    if folder:
        if (output.exists() and not output.is_dir()) or output.suffix.lower() in PICTURES + CLIPS:
            raise UserError(f"-o {output} is a file's name: with --prompts-file it names a folder, such as -o results")
        stems = [(output / f"{index:06d}", suffixes[0]) for index in range(prompts)]
    else:
        if output.is_dir():
            raise UserError(f"-o {output} is a folder: name a file in it, for example -o {output / 'out'}{suffixes[0]}")
        if output.suffix.lower() not in suffixes:
            what = "picture" if suffixes is PICTURES else "video"
            raise UserError(f"-o {output} is not a {what}'s name: end it in {', '.join(suffixes)}")
        stems = [(output.with_suffix(""), output.suffix)]
    options.check_writable(output if folder else output.parent)
    parts = [""] if per_prompt == 1 else [f"-{index}" for index in range(per_prompt)]
    return [stem.with_name(f"{stem.name}{part}{suffix}") for stem, suffix in stems for part in parts]


def draw(job: Job, how: options.Denoising, checkpoint: options.Checkpoint) -> None:
    """Load the model and draw the job in batches; every file is written whole or not at all. The processes of a
    torchrun draw together."""
    settings, enhance = how.settings() | job.settings, how.enhance()  # before the model is loaded

    from tqdm import tqdm

    from openlance.config.sampling import later_seed
    from openlance.media import write_media
    from openlance.media.inputs import as_clip

    pipe = checkpoint.load()
    pipe.metadata = how.metadata
    pipe.enable_parallelism()
    seed = pipe.processes.agreed(secrets.randbelow(2**31) if how.seed in (None, -1) else how.seed)
    leads = pipe.processes.leads
    start, inputs = time.perf_counter(), rewritten(pipe, job, enhance, settings)
    call, total = job.call(pipe), len(job.paths)
    settings = {"progress": total <= BATCH and leads and options.is_terminal(sys.stderr)} | settings
    quiet = None if total > BATCH and leads else True
    bar = tqdm(total=total, unit="file", delay=2.0, disable=quiet, leave=False)
    with options.no_empty_folders(job.paths[0].parent), bar:
        for first in range(0, total, BATCH):
            part = slice(first, first + BATCH)
            made = call(*(some[part] for some in inputs), seed=later_seed(seed, first), **settings)
            if not leads:
                continue
            if first == 0:  # only now is it clear that what was asked for can be done
                checkpoint.warn(pipe, job.task)
            for path, result in zip(job.paths[part], made):
                write_media(path, as_clip(result))
            bar.update(len(made))
    pipe.disable_parallelism()
    if not leads:
        return
    seconds, path, last = time.perf_counter() - start, job.paths[0], job.paths[-1]
    where = str(path) if total == 1 else f"{total} files, {path} to {last.name}"
    typer.echo(f"{where}  (seed {seed}, {seconds:.1f} s)")


def rewritten(
    pipe: LancePipeline, job: Job, enhance: bool | Enhancer | None, settings: dict[str, Any]
) -> list[list[Any]]:
    """The inputs of a job with its prompts rewritten, where that is wanted: all of them before the first is drawn."""
    from tqdm import tqdm

    from openlance.inference.enhance import rewriter
    from openlance.inference.inputs import asked_size, clips_of
    from openlance.sequence.segment import prompt_in

    rewrite, quiet = rewriter(pipe, enhance), None if pipe.processes.leads else True
    if rewrite is None:
        return job.inputs
    asked = asked_size(*(settings.get(name) for name in ("num_frames", "height", "width")))
    texts = list[str]()
    for *media, text in tqdm(zip(*job.inputs), total=len(job.paths), unit="prompt", delay=2.0, disable=quiet):
        clips = [clip for medium in media for clip in clips_of(medium)]
        texts.append(prompt_in(rewrite(pipe.front.request(job.task, text, clips, asked=asked))))
    return [*job.inputs[:-1], texts]
