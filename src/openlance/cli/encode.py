"""`openlance encode pictures/ -o latents --model nano`: VAE latents and ViT features ahead of time, for training.

The same command goes on where a stopped run was; `openlance train` reads the folder as it reads the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from openlance.cli import options
from openlance.errors import UserError

app = typer.Typer()


@dataclass(frozen=True)
class MakeEncoder:
    """Loads the model in whichever process calls it."""

    model: str
    vit: bool
    device: str
    allow_pickle: bool

    def __call__(self) -> Any:
        from dataclasses import replace

        import torch

        import openlance
        from openlance.data.encoded import PROBE, probed
        from openlance.data.source import Sample
        from openlance.runtime.media_encoder import latents
        from openlance.sequence.segment import Kind, Segment

        pipe = openlance.load(self.model, device=self.device, allow_pickle=self.allow_pickle)

        def on_cpu(s: Segment) -> Segment:
            value, given = (v.cpu() if isinstance(v, torch.Tensor) else v for v in (s.value, s.given))
            return replace(s, value=value, given=given)

        vit = self.vit

        class Encoder:
            probe = probed(latents(pipe.vae(), [PROBE])[0])

            def __call__(self, sample: Sample) -> Sample:
                wanted = [s for s in sample.segments if vit or s.kind is not Kind.PATCHES]
                encoded = iter(pipe.media([wanted], targets=True)[0])
                kept = [next(encoded) if vit or s.kind is not Kind.PATCHES else s for s in sample.segments]
                return Sample([on_cpu(s) for s in kept], sample.id, sample.labels)

        return Encoder()


@app.command()
def encode(
    source: Annotated[str, typer.Argument(help="Folder, *.parquet or *.tar files, hf:NAME, or world.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the shards.")],
    model: options.Model = "nano",
    task: Annotated[str, typer.Option(help="Task that the samples are for.")] = "t2i",
    type: Annotated[str | None, typer.Option(help="Dataset type.  \\[default: the task's]", show_default=False)] = None,
    columns: Annotated[list[str] | None, typer.Option("--column", help="OURS=THEIRS, may be repeated.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="SCALE/NAME whose last resolution to use.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many to draw from the world.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of the world.")] = 0,
    vit: Annotated[bool, typer.Option("--vit/--no-vit", help="Features too; without, pixels for the ViT.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Ray cluster: its address, auto, or local.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 64,
    max_broken: Annotated[float, typer.Option(min=0, help="Share of rows below 1, or number.")] = 0.001,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Turn media into latents and features ahead of time. Shards are kept whose part of the source is as it was."""
    from openlance.data.encoded import Job

    spec = {"path": source} | options.given(type=type, columns=_mapping(columns) or None)
    found, fit = _opened(spec, task, samples, seed), _fit(model, stage)
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output} is a file: name a folder, for example -o latents")
    job = Job(
        source=found, fit=fit, make=MakeEncoder(model, vit, device, allow_pickle), out=output, rows=shard_rows,
        about={"task": task, "model": model, "vit": vit, "seed": seed, "stage": stage} | spec,
        max_broken=max_broken,
    )  # fmt: skip
    run(job, workers, ray, device)


def _mapping(columns: list[str] | None) -> dict[str, str]:
    for column in columns or []:
        if not all(column.partition("=")):
            raise UserError(f"--column {column!r} is not OURS=THEIRS: write for example --column caption=title")
    return dict(column.split("=", 1) for column in columns or [])


def _opened(spec: dict[str, Any], task: str, samples: int, seed: int) -> Any:
    from openlance.data.open import open_source
    from openlance.data.source import Endless

    found = open_source(spec, task)
    return found.drawn(samples, seed) if isinstance(found, Endless) else found


def _fit(model: str, stage: str | None) -> Any:
    """How media are resized: as at the end of a stage, by default the last of the recipe whose VAE has the model's
    stride."""
    from dataclasses import replace

    from openlance.checkpoint.formats import find_model
    from openlance.config import train
    from openlance.config.model import VAEConfig
    from openlance.config.sampling import GenerationConfig
    from openlance.data.front import Fit

    files = find_model(model)
    usual = "3b/sft" if files.config.vae.stride == VAEConfig().stride else "nano/sft"
    scale, _, name = (stage or usual).rpartition("/")
    chosen = train.stage(name, scale or "3b")
    style = GenerationConfig.read(files.tokenizer).style
    return replace(Fit.at(chosen, chosen.steps - 1, files.config, style), drop_text=0.0, drop_all=0.0)


def run(job: Any, workers: int, ray: str | None, device: str) -> None:
    """Encode with a bar, then say what lies where; broken rows are named as they come."""
    from tqdm import tqdm

    from openlance.data.encoded import encode as encode_all

    total: dict[str, Any] = {"rows": 0, "made": 0, "broken": []}
    bar = tqdm(unit="part", delay=2.0, disable=None, leave=False)
    with options.no_empty_folders(job.out), bar:
        for total in encode_all(job, workers, ray, gpus=float(device.startswith("cuda"))):
            bar.total, bar.n = total["of"], total["parts"]
            bar.refresh()
    for place, reason in total["broken"]:
        typer.echo(f"skipped {place}: {reason}", err=True)
    kept = total["rows"] - len(total["broken"])
    typer.echo(f"{job.out}  ({kept} samples, {total['made']} new shards, {len(total['broken'])} rows skipped)")
