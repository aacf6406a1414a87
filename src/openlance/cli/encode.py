"""`openlance encode pictures/ -o latents --model nano`: VAE latents and ViT features ahead of time, for training.
With `--drawn` targets are what the model draws (`training.results`).

The same command goes on where a stopped run was; `openlance train` reads the folder as it reads the source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options

if TYPE_CHECKING:
    from openlance.checkpoint.formats import Files
    from openlance.config.train import Stage
    from openlance.data.front import Fit
    from openlance.data.source import Sample, Source
    from openlance.sequence.segment import Segment
    from openlance.training.results import ResultSettings

app = typer.Typer(add_completion=False)


class Encoder:
    """Encodes samples, by a model that is loaded in whichever process makes this."""

    def __init__(self, model: str, vit: bool, device: str, allow_pickle: bool, results: ResultSettings | None) -> None:
        import openlance
        from openlance.data.encoded import PROBE, probed
        from openlance.runtime.media_encoder import latents
        from openlance.training.results import Drawer

        self.pipe, self.vit = openlance.load(model, device=device, allow_pickle=allow_pickle), vit
        self.probe = probed(latents(self.pipe.vae(), [PROBE])[0])
        self.draw = None if results is None else Drawer(self.pipe, results)

    def __call__(self, samples: Iterable[Sample]) -> list[Sample]:
        return [self._encoded(s) for s in (self.draw(samples) if self.draw is not None else samples)]

    def _encoded(self, sample: Sample) -> Sample:
        from openlance.sequence.segment import Kind

        own = [self.vit or s.kind is not Kind.PATCHES for s in sample.segments]
        encoded = iter(self.pipe.media([list(compress(sample.segments, own))], targets=True)[0])
        kept = [next(encoded) if is_own else s for s, is_own in zip(sample.segments, own)]
        return replace(sample, segments=[_on_cpu(s) for s in kept])


def _on_cpu(s: Segment) -> Segment:
    value, given = (getattr(v, "cpu", lambda v=v: v)() for v in (s.value, s.given))
    return replace(s, value=value, given=given)


@app.command()
def encode(
    source: Annotated[str, Argument(help="A folder or file of data, hf:NAME, or world; prompts with --drawn.")],
    output: Annotated[Path, Option("-o", "--output", help="Folder for the encoded shards.")],
    model: options.Model = "nano",
    task: Annotated[str, Option(callback=options.named, help="Task that the samples are for.")] = "t2i",
    type: Annotated[str | None, Option(help="Dataset type.  \\[default: the task's]")] = None,
    columns: options.Columns = None,
    caption: options.Caption = None,
    stage: Annotated[
        str | None, Option(help="Use the last resolution of SCALE/NAME.  \\[default: sft of the model's scale]")
    ] = None,
    samples: Annotated[int, Option(min=1, help="Samples to draw from the procedural world.")] = 1024,
    seed: Annotated[int, Option(min=0, help="Seed of the procedural world, and of the noise of what is drawn.")] = 0,
    drawn: Annotated[
        bool, Option("--drawn", help="Targets are what the model draws for the samples, with guidance.")
    ] = False,
    rewards: Annotated[
        str, Option(help="With --drawn: leave results empty that these refuse, such as ocr or world=letters.")
    ] = "",
    threshold: Annotated[
        float | None, Option(help="Total of the rewards from which a result is kept.  \\[default: 1]")
    ] = None,
    vit: Annotated[bool, Option(help="Encode ViT features too; without, keep the pixels that the ViT sees.")] = True,
    workers: Annotated[int, Option(min=0, help="Worker processes; 0: work in this one.")] = 0,
    ray: Annotated[str | None, Option(help="Ray cluster: its address, auto, or local.")] = None,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
    shard_rows: Annotated[int, Option(min=1, help="Rows per shard.")] = 64,
    max_broken: options.MaxBroken = 0.001,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Encode media, or draw them, ahead of training: VAE latents and ViT features. Shards whose source is unchanged are
    kept."""
    from openlance.data import encoded
    from openlance.data.open import as_mapping, open_source
    from openlance.data.source import Endless
    from openlance.errors import UserError
    from openlance.training.results import ResultSettings

    if rewards and not drawn:
        raise UserError("rewards judge what is drawn, and nothing is", fix={"drawn": True})
    if threshold is not None and not rewards:
        raise UserError("a threshold is one of rewards, and there are none", fix={"rewards": "ocr"})
    spec = as_mapping(source) | options.given(type=type, columns=options.mapping(columns) or None, caption=caption)
    prompts = drawn and list(spec) == ["path"] and _prompts(source, task)
    found = prompts or open_source(spec, task)
    files, like = chosen_stage(model, stage)
    fit, results = _fit(files, like), None
    if drawn:
        results = ResultSettings(  # as a pack of the stage would be drawn
            seed=seed, rewards=rewards, threshold=1.0 if threshold is None else threshold, rows=like.pack_tokens[1],
            dtype=like.dtype,
        )  # fmt: skip
        results.check(task)
    else:
        _check_drawn(found, source)
    options.check_writable(output)
    job = encoded.Job(
        source=found.drawn(samples, seed) if isinstance(found, Endless) else found, fit=fit,
        make=partial(Encoder, model, vit, device, allow_pickle, results), out=output, rows=shard_rows,
        about={"task": task, "model": model, "vit": vit, "seed": seed, "stage": stage}
        | spec | _drawn_by(files, task, results),
        content=_content(files, vit, fit) + (results.content if rewards and results else ""), max_broken=max_broken,
        refuses=results.refuses if rewards and results else None,
    )  # fmt: skip
    total: dict[str, Any] = {"rows": 0, "made": 0, "broken": [], "refused": 0}
    with options.no_empty_folders(output), options.progress(None, "part") as bar:
        for total in encoded.encode(job, workers, ray, gpus=float(device.startswith("cuda"))):
            bar.total = total["of"]
            bar.update()
    for place, reason in total["broken"]:
        typer.echo(f"skipped {place}: {reason}", err=True)
    kept = total["rows"] - len(total["broken"])
    said = f"{kept} samples, {total['made']} new shards, {len(total['broken'])} rows skipped"
    typer.echo(f"{output}  ({said}, {total['refused']} results refused)" if rewards else f"{output}  ({said})")


def _content(files: Files, vit: bool, fit: Fit) -> str:
    """What latents and features depend on beside the data: weights by a hash, sizes and words as they stand."""
    from openlance.checkpoint.tensors import fingerprint

    weights = [files.vae, *([files.vit] if vit else [])]
    return f"{fingerprint(*(path for path in weights if path.is_file()))} {fit!r}"


def chosen_stage(model: str, stage: str | None) -> tuple[Files, Stage]:
    """The files of a model, and a stage for it: by default the last of the recipe whose VAE has the model's stride."""
    from openlance.checkpoint.formats import find_model
    from openlance.config import train
    from openlance.config.model import VAEConfig

    files = find_model(model)
    usual = "3b/sft" if files.config.vae.stride == VAEConfig().stride else "nano/sft"
    return files, train.stage(stage or usual)


def _fit(files: Files, chosen: Stage) -> Fit:
    """How media are resized: as at the end of a stage."""
    from openlance.data.front import Fit

    return replace(Fit.at(chosen, chosen.steps - 1, files.config, files.defaults.style), drop_text=0.0, drop_all=0.0)


def _prompts(source: str, task: str) -> Source | None:
    """A file of prompts, where the task takes no more: of texts, or of JSON that has nothing else."""
    from openlance.rl.prompts import PromptSource, holds_prompts
    from openlance.sequence.tasks import spec_of

    spec = spec_of(task)
    return PromptSource(Path(source), spec.name) if holds_prompts(source, alone=True) and not spec.reads else None


def _check_drawn(found: Source, source: str) -> None:
    """Raise a UserError for what is encoded already and would lose by whom it was drawn."""
    from openlance.data.encoded import EncodedSource, read_about
    from openlance.errors import UserError
    from openlance.training.results import BY

    if isinstance(found, EncodedSource) and BY in read_about(found.files[0]):
        raise UserError(f"{source} holds what a model drew, as latents already: train on it as it is, or draw anew")


def _drawn_by(files: Files, task: str, results: ResultSettings | None) -> dict[str, Any]:
    """What shards say of what is drawn."""
    from openlance.sequence.tasks import spec_of
    from openlance.training.results import BY, REWARDS, drawn_by

    if results is None:
        return {}
    clips = spec_of(task).kind == "video"
    files = files.completed(files.decoder(clips))
    files.require(files.decoder(clips))
    return {BY: drawn_by(files, clips), REWARDS: results.rewards, "threshold": results.threshold}
