"""`openlance init 3b --random -o lance-random`: a checkpoint with true names and shapes and random weights.

For tests of loading, memory and speed; what it generates is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.errors import UserError

PRESETS = ("3b", "nano")
PARTS = ("decoder", "vit", "vae")
app = typer.Typer(add_completion=False)


@app.command()
def init(
    preset: Annotated[str, Argument(help="3b or nano.")],
    output: Annotated[Path, Option("-o", "--output", help="A new folder.")],
    random: Annotated[bool, Option("--random", help="Random weights (required: there are no others).")] = False,
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    shards: options.Shards = 1,
    parts: Annotated[str, Option(help="Which parts to write, with commas.")] = ",".join(PARTS),
    seed: Annotated[int, Option(min=0, max=options.LARGEST_SEED, help="Seed of the weights.")] = 0,
    form: options.Form = "openlance",
) -> None:
    """Write a checkpoint folder with random weights. The tokenizer is nano's; 3b takes 15 GB of disk in bfloat16."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}: use one of {', '.join(PRESETS)}")
    if not random:
        raise UserError(
            "weights to begin with can only be random: add --random; trained ones come from `openlance download`"
        )
    wanted = [part.strip() for part in parts.split(",") if part.strip()]
    if not wanted or set(wanted) - set(PARTS):
        raise UserError(f"--parts {parts!r} is not a list of parts: use decoder, vit and vae, separated by commas")
    options.check_writable(output.parent)

    import torch

    from openlance.checkpoint.hub import folder_of
    from openlance.config.model import ModelConfig
    from openlance.config.presets import nano
    from openlance.inference.inputs import dtype_of
    from openlance.runtime.conversion import random_checkpoint, write

    config, number = (ModelConfig() if preset == "3b" else nano()), dtype_of(dtype) or torch.bfloat16
    checkpoint = random_checkpoint(
        config, number, beside=folder_of("nano"), seed=seed, parts=wanted, preferences=preset == "nano"
    )
    write(output, checkpoint, form, shards=shards)
    typer.echo(f"{output}\ntry: openlance inspect {output}")
