"""`openlance bench quality --setting solver=dpm++ --setting num_inference_steps=12`: what a cheaper setting costs.

The same from Python: `toyworld.suites.quality.compare(openlance.load("nano"), Comparison(setting={...}))`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from openlance.cli import options
from openlance.config.sampling import LARGEST_SEED
from openlance.errors import UserError


def quality(
    setting: Annotated[
        list[str], typer.Option("--setting", help="NAME=VALUE, a field of Sampling; may be repeated.")
    ] = [],  # noqa: B006 - typer wants a list
    reference: Annotated[
        list[str],
        typer.Option(
            "--reference", help="NAME=VALUE of the exact side.  \\[default: Euler, 30 steps, guidance at each of them]"
        ),
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option("--samples", min=1, help="Pictures on each side.")] = 64,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Same seed, same prompts and noise.")
    ] = 0,
    model: options.Model = "nano",
    lora: options.Adapters = None,
    size: options.Size = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures drawn together.")] = 16,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Compare a setting with the exact one on the same prompts and seeds: PSNR, SSIM, distance of latents, energy of
    high frequencies, the world's judge, and seconds."""
    changed, exact = parse_settings(setting), parse_settings(reference)
    if not changed:
        raise UserError("there is nothing to compare: name a setting, for example --setting num_inference_steps=10")
    shape = options.parse_size(size) if size is not None else None
    options.check_json(json_file)

    import openlance
    from toyworld.suites.quality import REFERENCE, Comparison, compare

    pipe: Any = options.adapted(openlance.load(model), lora)
    width, height = shape or (pipe.defaults.width, pipe.defaults.height)
    comparison = Comparison(
        setting=changed, reference={**REFERENCE, **exact}, samples=samples, seed=seed, height=height, width=width,
        batch=batch,
    )  # fmt: skip
    pipe.sampling(**{**comparison.reference, **changed})  # says now what is wrong with them
    from tqdm import tqdm

    with tqdm(total=2 * samples, unit="picture", delay=2.0, leave=False) as bar:
        found = compare(pipe, comparison, bar.update)
    if json_file is not None:
        options.write_json(found, json_file)
    show(found, f"{model}, {width}x{height}, {samples} pictures, seed {seed}")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["solver=dpm++", "interval=[0.4, 1]"]` -> values: JSON where it is JSON, else the text itself."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip() or not text.strip():
            raise UserError(f"{pair!r} is not NAME=VALUE: write for example --setting num_inference_steps=10")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text.strip()
        found[name.strip().replace("-", "_")] = tuple(value) if isinstance(value, list) else value
    return found


def show(found: dict[str, Any], title: str) -> None:
    """One table: the measure, the exact side, the setting."""
    from rich.console import Console
    from rich.table import Table

    said = ", ".join(f"{name}={value}" for name, value in found["setting"].items())
    table = Table(title=f"{said}: {title}", title_justify="left")
    for name in ("", "exact", "setting", ""):
        table.add_column(name, justify="right" if name else "left")
    judge, seconds = found["judge"], found["seconds"]
    table.add_row("PSNR, dB", "", f"{found['psnr']:.2f}", "higher is nearer")
    table.add_row("SSIM", "", f"{found['ssim']:.4f}", "1 is equal")
    table.add_row("distance of latents", "", f"{found['latent_distance']:.4f}", "0 is equal, 4 opposite")
    table.add_row("high-frequency energy", "1", f"{found['high_frequency']:.3f}", "below 1 is blurred")
    low, high = (100 * x for x in judge["ci95"])
    between = f"{100 * judge['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
    table.add_row("right, world's judge", f"{judge['reference']:.3f}", f"{judge['setting']:.3f}", between)
    passes = found["passes"]
    fewer = f"{passes['ratio']:.2f} times fewer"
    table.add_row("passes per picture", f"{passes['reference']:.1f}", f"{passes['setting']:.1f}", fewer)
    faster = f"{seconds['ratio']:.2f} times as fast"
    table.add_row("seconds per picture", f"{seconds['reference']:.3f}", f"{seconds['setting']:.3f}", faster)
    Console().print(table)
