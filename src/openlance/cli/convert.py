"""`openlance convert downloads/Lance_3B lance-3b --to openlance`: the same checkpoint in another form.

    openlance convert downloads/Lance_3B lance-int8 --quantise int8       # half the size, loads as any other

The same from Python: `openlance.runtime.conversion.write(out, gather(find("downloads/Lance_3B")), "openlance")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options

app = typer.Typer()


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="A checkpoint folder of any form, or a shipped model.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="openlance, released or diffusers.")] = "openlance",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.  \\[default: as it is]")
    ] = None,
    quantise: Annotated[
        str | None, typer.Option("--quantise", help="Experts in few bits: int8, fp8 or int4.", show_default=False)
    ] = None,
    shards: Annotated[int, typer.Option("--shards", help="Files of the decoder.")] = 1,
    base: Annotated[
        Path | None, typer.Option("--base", help="A folder that has what is missing, such as the codec of a run.")
    ] = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write a checkpoint in another form; every tensor is checked by name, shape and value on its way."""
    wanted = options.dtype_name(dtype)
    options.at_least("--shards", shards, 1)
    options.check_writable(output.parent)

    import torch

    from openlance.checkpoint.hub import find_model
    from openlance.runtime.conversion import gather, write

    files = find_model(source, base=base)
    number = getattr(torch, wanted) if wanted else None
    checkpoint = gather(files, number, quantize=quantise, allow_pickle=allow_pickle)
    write(output, checkpoint, to, shards=shards)
    typer.echo(f"{output}\ntry: openlance inspect {output}")
