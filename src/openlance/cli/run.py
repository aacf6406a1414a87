"""`openlance run requests.json --task video_edit --resolution video_480p -o results`: the release's own input files.

Every JSON form of the release, its task names, presets and defaults; the release's names of the options work as well.
Started by `torchrun`, or with `--processes`, the entries are shared among the processes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.compat.inputs import Entry
    from openlance.compat.requests import Job

SOME_FAILED = 3  # exit code
LAUNCHED = "OPENLANCE_LAUNCHED"  # set in the processes that --processes starts

# Each option under our name and under the release's.
Input = Annotated[Path, typer.Argument(help="JSON or JSON lines, in a form of the release.", show_default=False)]
Task = Annotated[str, typer.Option("--task", "--TASK_NAME", help="t2i, t2v, i2v, image_edit, x2t_video ...")]
Output = Annotated[Path, typer.Option("-o", "--output", "--SAVE_PATH_GEN", help="Folder.")]
Model = Annotated[str, typer.Option("--model", "--MODEL_PATH", help="A preset or a folder with weights.")]
Resolution = Annotated[str | None, typer.Option("--resolution", "--RESOLUTION", help="Preset for what is read.")]
Height = Annotated[int | None, typer.Option("--height", "--VIDEO_HEIGHT", help="Pixels of what is made.")]
Width = Annotated[int | None, typer.Option("--width", "--VIDEO_WIDTH", help="Pixels of what is made.")]
Frames = Annotated[int | None, typer.Option("--num-frames", "--NUM_FRAMES", help="Of a video that is made.")]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", "--VALIDATION_NUM_TIMESTEPS", help="Steps.")]
Shift = Annotated[float | None, typer.Option("--shift", "--VALIDATION_TIMESTEP_SHIFT", help="Of the times.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", "--CFG_TEXT_SCALE", help="1 is none.")]
Seed = Annotated[int, typer.Option("--seed", "--VALIDATION_DATA_SEED", help="Of the noise of every entry.")]
Solver = Annotated[str | None, typer.Option("--solver", help="euler, dpm++ or unipc.")]
Cache = Annotated[float | None, typer.Option("--step-cache", help="Share of change below which a step is reused.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Fuse the steps first; with CUDA graphs on a GPU.")]
Enhance = Annotated[bool, typer.Option("--enhance-prompt", help="Rewrite prompts on a server first.")]
Url = Annotated[str, typer.Option("--enhance-url", envvar="LANCE_REWRITE_BASE_URL", help="OpenAI-compatible.")]
Writer = Annotated[str, typer.Option("--enhance-model", envvar="LANCE_REWRITE_MODEL_NAME", help="Its model.")]
Processes = Annotated[int, typer.Option("--processes", help="Share the entries among so many processes.")]

MOST_PROCESSES = 1024
WAIT = timedelta(days=30)  # for the slowest process, once the others are done
app = typer.Typer()


@app.command()
def run(
    file: Input,
    task: Task,
    output: Output = Path("results"),
    model: Model = "nano",
    resolution: Resolution = None,
    height: Height = None,
    width: Width = None,
    num_frames: Frames = None,
    num_inference_steps: Steps = None,
    shift: Shift = None,
    guidance_scale: Guidance = None,
    seed: Seed = 42,
    solver: Solver = None,
    step_cache: Cache = None,
    compile: Compiled = False,
    max_new_tokens: options.NewTokens = 256,
    enhance_prompt: Enhance = False,
    enhance_url: Url = "http://localhost:8000/v1",
    enhance_model: Writer = "default",
    processes: Processes = 1,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Run an input file of the release. A run that was stopped goes on where it was; entries that cannot run are named
    at the end, with exit code 3."""
    size = (num_frames, height, width)
    for option, value, most in (
        ("--num-frames", num_frames, options.LONGEST), ("--height", height, options.LARGEST_SIDE),
        ("--width", width, options.LARGEST_SIDE), ("--processes", processes, MOST_PROCESSES),
        ("--num-inference-steps", num_inference_steps, options.MOST_STEPS),
    ):  # fmt: skip
        options.at_least(option, value, 1, most)
    options.check_tokens(max_new_tokens)
    options.at_least("--seed", seed, -1, options.LARGEST_SEED)
    options.check_guidance(guidance_scale)
    options.check_writable(output)
    from openlance.compat.inputs import read_entries
    from openlance.media import transform
    from openlance.sequence.tasks import spec_of

    spec_of(task)
    if resolution is not None:
        transform.resolution(resolution)
    entries = read_entries(file)
    if processes > 1 and "RANK" not in os.environ:
        return launch(processes, output)

    import openlance
    from openlance.compat.requests import Job, default_preset
    from openlance.inference.enhance import Enhancer
    from openlance.model.crew import join

    key = os.environ.get("LANCE_REWRITE_API_KEY") or os.environ.get("OPENAI_API_KEY", "")
    enhancer = Enhancer(url=enhance_url, model=enhance_model, key=key) if enhance_prompt else None
    rank, world, device = join(timeout=WAIT)
    seed = agreed_seed(output, rank, world) if seed == -1 else seed
    pipe: Any = openlance.load(model, allow_pickle=allow_pickle, device=device)
    d = pipe.defaults
    usual = (d.num_frames, d.height, d.width)
    settings = options.given(
        num_inference_steps=num_inference_steps, shift=shift, guidance_scale=guidance_scale, solver=solver,
        step_cache=step_cache, compile=compile or None,
    )  # fmt: skip
    pipe.sampling(**settings)  # says now what is wrong with them
    job = Job(
        task=task, size=tuple(said or default for said, default in zip(size, usual)),  # type: ignore[arg-type]
        preset=resolution or default_preset(d), settings=settings, seed=seed, max_new_tokens=max_new_tokens,
        root=file.parent, enhancer=enhancer,
    )  # fmt: skip
    failures = share(pipe, entries, job, output, model, rank, world)
    if failures is not None:
        report(failures, len(entries), output, job)


def drawn_seed(output: Path) -> int:
    """A random seed; that of the run in the folder, where there is one to go on with."""
    from openlance.config.values import read_json

    settings = output / ".run" / "settings.json"
    before = read_json(settings).get("seed") if settings.is_file() else None
    return before if isinstance(before, int) else secrets.randbelow(2**31)


def agreed_seed(output: Path, rank: int, world: int) -> int:
    """The same drawn seed in all processes."""
    said = [drawn_seed(output) if rank == 0 else 0]
    if world > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(said, src=0)
    return said[0]


def say_what_was_cut(output: Path, most: int) -> None:
    """One line on stderr for answers that ended at their limit."""
    results = json.loads((output / "result.json").read_text(encoding="utf-8"))
    cut = sum(row.get("finish_reason") == "length" for row in results)
    if cut:
        what = f"{cut} answers were" if cut > 1 else "1 answer was"
        typer.echo(f"note: {what} cut at {most} tokens: raise --max-new-tokens, and choose another -o", err=True)


def share(
    pipe: Any, entries: list[Entry], job: Job, output: Path, model: str, rank: int, world: int
) -> list[tuple[str, str]] | None:
    """Run this process's entries; on rank 0 write the tables and give (key, reason) of all that failed."""
    from tqdm import tqdm

    from openlance.compat.running import Record, run, settings_of

    record = Record(output, settings_of(job, model), rank)
    mine = entries[rank::world]
    with tqdm(total=len(mine), unit="entry", delay=2.0, disable=None if rank == 0 else True) as bar:
        failed = [(f.key, f.why) for f in run(pipe, mine, job, record, bar.update)]
    if world > 1:
        import torch.distributed as dist

        from openlance.model.crew import leave

        everywhere: list[Any] = [None] * world
        dist.all_gather_object(everywhere, failed)
        leave()
        failed = [failure for some in everywhere for failure in some]
    if rank:
        return None
    record.finish(entries)
    return failed


def report(failures: list[tuple[str, str]], total: int, output: Path, job: Job) -> None:
    """Say what was made and what could not be; exit code 3 if anything could not."""
    say_what_was_cut(output, job.max_new_tokens)
    for key, why in failures:
        print(f"error: entry {key!r}: {' '.join(why.split())}", file=sys.stderr)
    typer.echo(f"{output}: {total - len(failures)} of {total} entries  (seed {job.seed})")
    if os.environ.get(LAUNCHED):
        options.write_json(failures, output / ".run" / "failed.json")
    elif failures:
        raise typer.Exit(SOME_FAILED)


def launch(processes: int, output: Path) -> None:
    """The same command once per process, under torchrun on this machine."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    line += ["-m", "openlance.cli.main", *options.COMMAND_LINE.get()]
    done = subprocess.run(line, env={**os.environ, LAUNCHED: "1"}, check=False)
    if done.returncode:
        raise UserError(f"a process of {processes} stopped with code {done.returncode}: see its message above")
    if json.loads((output / ".run" / "failed.json").read_text(encoding="utf-8")):
        raise typer.Exit(SOME_FAILED)
