"""`openlance encode pictures/ -o latents --model nano`: VAE latents and ViT features ahead of time, for training.

The same command goes on where a stopped run was; `openlance train` reads the folder as it reads the source.
"""

from __future__ import annotations

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
    from openlance.training.results import Drawing

app = typer.Typer(add_completion=False)


class Encoder:
    """Encodes samples, by a model that is loaded in whichever process makes this."""

    def __init__(self, model: str, vit: bool, device: str, allow_pickle: bool, drawing: Drawing | None) -> None:
        import openlance
        from openlance.data.encoded import PROBE, probed
        from openlance.runtime.media_encoder import latents
        from openlance.training.results import Drawer

        self.pipe, self.vit = openlance.load(model, device=device, allow_pickle=allow_pickle), vit
        self.probe = probed(latents(self.pipe.vae(), [PROBE])[0])
        self.draw = None if drawing is None else Drawer(self.pipe, drawing)

    def __call__(self, samples: list[Sample]) -> list[Sample]:
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
    seed: Annotated[int, Option(min=0, help="Seed of the procedural world.")] = 0,
    drawn: Annotated[
        bool, Option("--drawn", help="Targets are what the model draws for the samples, with guidance.")
    ] = False,
    rewards: Annotated[
        str, Option(help="With --drawn: leave results empty that these refuse, such as ocr or world=letters.")
    ] = "",
    least: Annotated[float, Option(help="Total of the rewards from which a result is kept.")] = 1.0,
    vit: Annotated[bool, Option(help="Encode ViT features too; without, keep the pixels that the ViT sees.")] = True,
    workers: Annotated[int, Option(min=0, help="Worker processes; 0: work in this one.")] = 0,
    ray: Annotated[str | None, Option(help="Ray cluster: its address, auto, or local.")] = None,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
    shard_rows: Annotated[int, Option(min=1, help="Rows per shard.")] = 64,
    max_broken: options.MaxBroken = 0.001,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Encode media into VAE latents and ViT features ahead of training. Shards whose source is unchanged are kept."""
    from openlance.data import encoded
    from openlance.data.open import as_mapping, open_source
    from openlance.data.source import Endless
    from openlance.errors import UserError

    if rewards and not drawn:
        raise UserError("rewards judge what is drawn, and nothing is", fix={"drawn": True})
    spec = as_mapping(source) | options.given(type=type, columns=options.mapping(columns) or None, caption=caption)
    prompts = drawn and list(spec) == ["path"] and _prompts(source, task)
    found, fit = prompts or open_source(spec, task), _fit(model, stage)
    drawing = _drawing(model, stage, task, seed, rewards, least) if drawn else None
    options.check_writable(output)
    job = encoded.Job(
        source=found.drawn(samples, seed) if isinstance(found, Endless) else found, fit=fit,
        make=partial(Encoder, model, vit, device, allow_pickle, drawing), out=output, rows=shard_rows,
        about={"task": task, "model": model, "vit": vit, "seed": seed, "stage": stage}
        | spec | _drawn_by(model, task, drawing),
        content=_content(model, vit, fit), max_broken=max_broken,
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


def _content(model: str, vit: bool, fit: Any) -> str:
    """What latents and features depend on beside the data: weights by a hash, sizes and words as they stand."""
    from openlance.checkpoint.formats import find_model
    from openlance.checkpoint.tensors import fingerprint

    files = find_model(model)
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


def _fit(model: str, stage: str | None) -> Fit:
    """How media are resized: as at the end of a stage."""
    from openlance.config.sampling import GenerationConfig
    from openlance.data.front import Fit

    files, chosen = chosen_stage(model, stage)
    style = GenerationConfig.read(files.tokenizer).style
    return replace(Fit.at(chosen, chosen.steps - 1, files.config, style), drop_text=0.0, drop_all=0.0)


def _prompts(source: str, task: str) -> Source | None:
    """A file of prompts, where the task takes no more."""
    from openlance.rl.prompts import PromptSource, holds_prompts
    from openlance.sequence.tasks import spec_of

    spec = spec_of(task)
    return PromptSource(Path(source), spec.name) if holds_prompts(source) and not spec.reads else None


def _drawing(model: str, stage: str | None, task: str, seed: int, rewards: str, least: float) -> Drawing:
    """How targets are drawn: as a pack of the stage would be."""
    from openlance.training.results import Drawing

    like = chosen_stage(model, stage)[1]
    made = Drawing(seed=seed, rewards=rewards, least=least, rows=like.pack_tokens[1], dtype=like.dtype)
    made.check(task)
    return made


def _drawn_by(model: str, task: str, drawing: Drawing | None) -> dict[str, Any]:
    """What shards say of what is drawn."""
    from openlance.checkpoint.formats import find_model
    from openlance.sequence.tasks import spec_of
    from openlance.training.results import DRAWN, REWARDS, artist

    if drawing is None:
        return {}
    by = artist(find_model(model), spec_of(task).kind == "video")
    return {DRAWN: by, REWARDS: drawing.rewards, "least": drawing.least}
