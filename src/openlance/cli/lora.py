"""Commands about LoRA adapters, in the forms of PEFT, kohya and ComfyUI, and diffusers:

    openlance lora inspect runs/mine                                    # rank, alpha, layers, whether it fits a model
    openlance lora convert runs/mine mine.safetensors --to kohya        # or peft, diffusers; several become one
    openlance lora merge tuned --lora runs/mine:0.8 --lora style        # a checkpoint with the adapters in its weights
    openlance lora extract tuned -o adapter --rank 32                   # what two checkpoints differ by, as an adapter

The same from Python: `model.lora.read_adapter`, `checkpoint.adapters.write_stored` and `runtime.adapters`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def adapters() -> None:
    """Merge, extract, convert and inspect LoRA adapters."""


@app.command()
def inspect(
    adapter: Annotated[str, Argument(help="A folder or a .safetensors file.")],
    model: Annotated[str | None, Option(help="Check that it fits: nano or a checkpoint folder.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what an adapter holds, and whether it fits a model."""
    from openlance.checkpoint.formats import find_model
    from openlance.model.lora import read_adapter
    from openlance.runtime.adapters import about, check_fit

    found = read_adapter(adapter)
    if model is not None:
        check_fit(found, find_model(model))
    said = about(found) | ({} if model is None else {"fits": model})
    if as_json:
        options.print_json(said)
    else:
        typer.echo("\n".join(options.columns([[name, str(value)] for name, value in said.items() if value != ""])))


@app.command()
def convert(
    adapters: Annotated[list[str], Argument(metavar="PATH[:WEIGHT] ... OUTPUT", help="Adapters, and a new place.")],
    to: Annotated[str, Option(help="Form: peft, kohya (ComfyUI's, too) or diffusers.")] = "peft",
) -> None:
    """Write an adapter in another form; several, each with a weight, become one with their ranks added up."""
    from openlance.checkpoint.adapters import write_stored
    from openlance.config.values import one_of
    from openlance.model.lora import read_adapter
    from openlance.runtime.adapters import joined

    *given, last = adapters
    if not given:
        raise UserError(f"{last} alone is not enough: name an adapter, and a new folder or file to write")
    one_of("to", to, ("peft", "kohya", "diffusers"))
    output = new(Path(last))
    found = joined([read_adapter(path, weight) for path, weight in options.weighted(given)], to)
    write_stored(output, found)
    typer.echo(f"{output}\ntry: openlance lora inspect {output}")


@app.command()
def merge(
    output: Annotated[Path, Argument(help="A new folder.")],
    lora: options.Adapters = None,
    model: options.Model = "nano",
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16.  \\[default: the model's]")] = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write a checkpoint whose weights have the adapters of --lora in them."""
    from openlance.checkpoint.formats import find_model
    from openlance.inference.inputs import dtype_of
    from openlance.model.lora import read_adapter
    from openlance.runtime.adapters import merged
    from openlance.runtime.conversion import gather, write

    if not lora:
        raise UserError("nothing to merge: add --lora PATH, with :WEIGHT behind it for less or more of it")
    new(output)
    found = [read_adapter(path, weight) for path, weight in options.weighted(lora)]
    files = find_model(model)
    parts = gather(files, dtype_of(dtype), allow_pickle=allow_pickle)
    write(output, merged(parts, found, files), "openlance")
    typer.echo(f"{output}\ntry: openlance inspect {output}")


@app.command()
def extract(
    tuned: Annotated[str, Argument(help="A fine-tuned checkpoint folder.")],
    output: Annotated[Path, Option("-o", "--output", help="A new folder.")],
    model: Annotated[str, Option(help="What it was tuned from: nano or a checkpoint folder.")] = "nano",
    rank: Annotated[int, Option(min=1, help="Rank of the adapter.")] = 16,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write the difference of two checkpoints as an adapter, as near as its rank allows."""
    from openlance.checkpoint.adapters import write_stored
    from openlance.checkpoint.formats import find_model
    from openlance.runtime.adapters import extracted

    new(output)
    found = extracted(find_model(tuned), find_model(model), rank, allow_pickle=allow_pickle)
    write_stored(output, found.stored)
    if found.left_out:
        names = ", ".join(found.left_out[:5]) + (" ..." if len(found.left_out) > 5 else "")
        typer.echo(
            f"note: {len(found.left_out)} other tensors differ, and an adapter has no place for them: {names}", err=True
        )
    typer.echo(f"{output}  ({found.kept:.1%} of the squared difference of the matrices)")


def new(path: Path) -> Path:
    """The path, if nothing is there and it can be written."""
    if path.exists():
        raise UserError(f"{path} is there already: choose a new name")
    options.check_writable(path.parent)
    return path
