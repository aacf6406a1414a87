"""`openlance encode pictures/ -o latents --model nano`: VAE latents and ViT features ahead of time, for training.

The same command goes on where a stopped run was; `openlance train` reads the folder as it reads the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.errors import UserError

app = typer.Typer(add_completion=False)


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

        def is_encoded(s: Segment) -> bool:
            return self.vit or s.kind is not Kind.PATCHES

        class Encoder:
            probe = probed(latents(pipe.vae(), [PROBE])[0])

            def __call__(self, sample: Sample) -> Sample:
                encoded = iter(pipe.media([list(filter(is_encoded, sample.segments))], targets=True)[0])
                kept = [next(encoded) if is_encoded(s) else s for s in sample.segments]
                return Sample([on_cpu(s) for s in kept], sample.id, sample.labels)

        return Encoder()


@app.command()
def encode(
    source: Annotated[str, Argument(help="A folder, *.parquet or *.tar files, hf:NAME, or world.")],
    output: Annotated[Path, Option("-o", "--output", help="Folder for the encoded shards.")],
    model: options.Model = "nano",
    task: Annotated[str, Option(help="Task that the samples are for.")] = "t2i",
    type: Annotated[str | None, Option(help="Dataset type.  \\[default: the task's]")] = None,
    columns: Annotated[list[str] | None, Option("--column", help="Rename a column, OURS=THEIRS; repeatable.")] = None,
    stage: Annotated[
        str | None, Option(help="Use the last resolution of SCALE/NAME.  \\[default: sft of the model's scale]")
    ] = None,
    samples: Annotated[int, Option(min=1, help="Samples to draw from the procedural world.")] = 1024,
    seed: Annotated[int, Option(min=0, help="Seed of the procedural world.")] = 0,
    vit: Annotated[bool, Option(help="Encode ViT features too; without, keep the pixels that the ViT sees.")] = True,
    workers: Annotated[int, Option(min=0, help="Worker processes; 0: work in this one.")] = 0,
    ray: Annotated[str | None, Option(help="Ray cluster: its address, auto, or local.")] = None,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
    shard_rows: Annotated[int, Option(min=1, help="Rows per shard.")] = 64,
    max_broken: options.MaxBroken = 0.001,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Encode media into VAE latents and ViT features ahead of training. Shards whose source is unchanged are kept."""
    from openlance.data.encoded import Job
    from openlance.data.encoded import encode as encode_all
    from openlance.data.open import open_source
    from openlance.data.source import Endless

    spec = {"path": source} | options.given(type=type, columns=_mapping(columns) or None)
    found, fit = open_source(spec, task), _fit(model, stage)
    options.check_writable(output)
    job = Job(
        source=found.drawn(samples, seed) if isinstance(found, Endless) else found, fit=fit,
        make=MakeEncoder(model, vit, device, allow_pickle), out=output, rows=shard_rows,
        about={"task": task, "model": model, "vit": vit, "seed": seed, "stage": stage} | spec, max_broken=max_broken,
    )  # fmt: skip
    total: dict[str, Any] = {"rows": 0, "made": 0, "broken": []}
    with options.no_empty_folders(output), options.progress(None, "part") as bar:
        for total in encode_all(job, workers, ray, gpus=float(device.startswith("cuda"))):
            bar.total = total["of"]
            bar.update()
    for place, reason in total["broken"]:
        typer.echo(f"skipped {place}: {reason}", err=True)
    kept = total["rows"] - len(total["broken"])
    typer.echo(f"{output}  ({kept} samples, {total['made']} new shards, {len(total['broken'])} rows skipped)")


def _mapping(columns: list[str] | None) -> dict[str, str]:
    for column in columns or []:
        if not all(column.partition("=")):
            raise UserError(f"--column {column!r} is not OURS=THEIRS: write for example --column caption=title")
    return dict(column.split("=", 1) for column in columns or [])


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
