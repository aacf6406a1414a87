"""`openlance init 3b --random -o lance-random`: a checkpoint with true names and shapes and random weights.

For tests of loading, memory and speed; what it draws is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options
from openlance.errors import UserError

PRESETS = ("3b", "nano")
app = typer.Typer()


@app.command()
def init(
    preset: Annotated[str, typer.Argument(help="3b or nano.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder.", show_default=False)],
    random: Annotated[
        bool, typer.Option("--random", help="Random weights (there are no others to begin with).")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "bfloat16",
    shards: Annotated[int, typer.Option("--shards", help="Files of the decoder.")] = 1,
    parts: Annotated[str, typer.Option("--parts", help="Which parts to write.")] = "decoder,vit,vae",
    seed: Annotated[int, typer.Option("--seed", min=0, max=options.LARGEST_SEED, help="Seed of the weights.")] = 0,
    form: Annotated[str, typer.Option("--to", help="openlance, released or diffusers.")] = "openlance",
) -> None:
    """Write a checkpoint folder with random weights. The tokenizer is nano's; 3b takes 15 GB of disk in bfloat16."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}: use one of {', '.join(PRESETS)}")
    if not random:
        raise UserError(
            "weights to begin with can only be random: add --random; trained ones come from `openlance download`"
        )
    wanted = [part.strip() for part in parts.split(",") if part.strip()]
    if not wanted or set(wanted) - {"decoder", "vit", "vae"}:
        raise UserError(f"--parts {parts!r} is not a list of parts: use decoder, vit and vae, separated by commas")
    options.at_least("--shards", shards, 1)
    name = options.dtype_name(dtype)
    options.check_writable(output.parent)

    import torch

    from openlance.checkpoint.formats import folder_of
    from openlance.config.model import ModelConfig, nano
    from openlance.runtime.conversion import random_checkpoint, write

    config = ModelConfig() if preset == "3b" else nano()
    checkpoint = random_checkpoint(
        config, getattr(torch, name or ""), beside=folder_of("nano"), seed=seed, parts=wanted,
        preferences=preset == "nano",
    )  # fmt: skip
    write(output, checkpoint, form, shards=shards)
    typer.echo(f"{output}\ntry: openlance inspect {output}")
