"""`openlance convert downloads/Lance_3B lance-3b --to openlance`: the same checkpoint in another layout.

    openlance convert downloads/Lance_3B lance-int8 --quantize int8       # half the size, loads as any other

The same from Python: `openlance.runtime.conversion.write(out, gather(find("downloads/Lance_3B")), "openlance")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from openlance.cli import options

app = typer.Typer(add_completion=False)


@app.command()
def convert(
    source: Annotated[str, Argument(help="A checkpoint folder in any layout, or a shipped model.")],
    output: Annotated[Path, Argument(help="A new folder.")],
    to: options.Form = "openlance",
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16.  \\[default: unchanged]")] = None,
    quantize: Annotated[
        str | None, Option("--quantize", "--quantise", help="Quantize the experts: int8, fp8 or int4.")
    ] = None,
    shards: options.Shards = 1,
    base: Annotated[Path | None, Option(help="A folder that has what is missing, such as the VAE of a run.")] = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write a checkpoint in another layout; every tensor is checked by name, shape and value."""
    options.check_writable(output.parent)
    from openlance.checkpoint.hub import find_model
    from openlance.inference.inputs import dtype_of
    from openlance.runtime.conversion import gather, write

    files, wanted = find_model(source, base=base), dtype_of(dtype)
    write(output, gather(files, wanted, quantise=quantize, allow_pickle=allow_pickle), to, shards=shards)
    typer.echo(f"{output}\ntry: openlance inspect {output}")
