"""`openlance train nano -o runs/nano`: train a model from scratch; the same command resumes a stopped run."""

from pathlib import Path
from typing import Annotated

import typer

SHEET = (
    "a red circle", "a blue square", "a yellow star on a blue background", "a red circle left of a blue square",
    "a green triangle above an orange ring", "three purple circles", "four white squares", 'the text "A7"',
    "a small cyan cross on a white background", "a striped orange circle", "an outlined blue star on a grey background",
    "a red square and a green circle", "a large yellow ring at the top left", "two orange triangles",
    "a cyan star below a white cross", 'the text "NO"',
)  # fmt: skip
app = typer.Typer(no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train a model from scratch."""


@app.command()
def nano(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; a stopped run goes on in it.")],
    minutes: Annotated[float, typer.Option(help="Stop the backbone after so many minutes, all saved.")] = 1e9,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data and noise.")] = 0,
    joint_steps: Annotated[int, typer.Option(min=1, help="Steps of the joint phase.")] = 550,
    finish_steps: Annotated[int, typer.Option(min=1, help="Steps of the last phase.")] = 1000,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Fuse operations (C++ compiler).")] = True,
) -> None:
    """Train nano: codec, vision tower and backbone, on the procedural world. Pictures and curves appear as it goes."""
    from dataclasses import replace

    from openlance.errors import UserError
    from openlance.train.nano import recipe, train_nano

    if minutes <= 0:
        raise UserError(f"{minutes:g} minutes leave no time to train: use --minutes 1 or more")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: give a folder with -o runs/nano")
    output.mkdir(parents=True, exist_ok=True)
    plan = replace(recipe(joint_steps, finish_steps), seed=seed)
    folder = train_nano(
        output, plan=plan, minutes=minutes, compiled=compiled, show=lambda at: draw(at, output / "samples.png")
    )
    typer.echo(f'{folder}\ntry: openlance generate t2i "a red circle" --model {folder} -o out.png')


def draw(folder: Path, out: Path) -> None:
    """A sheet of the pictures that a checkpoint draws now."""
    import numpy as np

    import openlance
    from openlance.train.report import write_sheet

    write_sheet([np.asarray(picture) for picture in openlance.load(str(folder)).generate(list(SHEET), seed=0)], out)
