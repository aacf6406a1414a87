"""`openlance bench drift --turns 10 --figure drift.svg`: edits in a row, without and with a region.

The same from Python: `toyworld.suites.drift.drift(openlance.load("nano"), Series(starts=16, turns=10))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from openlance.cli import options
from openlance.config.sampling import LARGEST_SEED
from openlance.errors import UserError


def drift(
    turns: Annotated[int, typer.Option("--turns", min=1, max=1000, help="Edits in a row.")] = 10,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images to begin with.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Same seed, same requests and noise.")
    ] = 0,
    model: options.Model = "nano",
    lora: options.Adapters = None,
    size: options.Size = "64x64",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images edited together.")] = 16,
    num_inference_steps: options.Steps = None,
    json_file: options.JsonFile = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Write a plot there, an .svg file.")] = None,
) -> None:
    """Edit one thing many times in a row, and measure what becomes of everything else, without and with a region."""
    width, height = options.parse_size(size or "64x64")
    options.check_json(json_file)
    options.check_json(figure, "--figure")
    if figure is not None and figure.suffix.lower() != ".svg":
        raise UserError(f"--figure {figure} is not an .svg file's name: give for example drift.svg")

    import openlance
    from toyworld.suites.drift import Series, write_figure
    from toyworld.suites.drift import drift as measure

    pipe: Any = options.adapted(openlance.load(model), lora)
    settings = options.given(num_inference_steps=num_inference_steps)
    series = Series(
        starts=samples, turns=turns, seed=seed, height=height, width=width, batch=batch, settings=settings
    )  # fmt: skip
    with options.progress(2 * samples * turns, "edit") as bar:
        found = measure(pipe, series, bar.update)
    if json_file is not None:
        options.write_json(found, json_file)
    if figure is not None:
        write_figure(found, figure)
    names = ("PSNR", "RMS", "equal", "kept")
    head = ["edits", *(f"{name}, {way}" for way in found for name in names)]
    rows = [
        [str(turn + 1), *(f"{value:.3g}" for rows in found.values() for value in rows[turn].values())]
        for turn in range(turns)
    ]
    for line in options.columns([head, *rows], right=range(len(head))):
        typer.echo(line)
