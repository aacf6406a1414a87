"""What several commands take: shared options, and checks that say in one sentence what to type instead.

Everything here is checked before a model is loaded, and nothing here imports torch.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlance.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_SIDE = 8192  # pixels; the largest released preset draws 1168
LARGEST_SEED = 2**63 - 1  # what torch's generators accept

Model = Annotated[str, typer.Option("--model", help="A preset or a folder with weights.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same picture; random if left out.")]
Size = Annotated[
    str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels.  \\[default: the model's]", show_default=False)
]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", help="Denoising steps.  \\[default: the model's]")]
Guidance = Annotated[
    float | None, typer.Option("--guidance-scale", help="Strength of the prompt; 1 is none.  \\[default: the model's]")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .pth weights too (tensors only); safetensors need no leave.")
]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (width, height) in pixels."""
    match = re.fullmatch(r"\s*(-?\d{1,9})\s*[xX×]\s*(-?\d{1,9})\s*", text)
    if match is None:
        raise UserError(f"--size {text!r} is not a size: give WIDTHxHEIGHT in pixels, for example --size 96x96")
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise UserError(f"--size {text} is out of range: each side is 1 to {LARGEST_SIDE} pixels, for example 96x96")
    return width, height


def at_least(option: str, value: int | None, least: int, most: int | None = None) -> None:
    """UserError unless a given whole number is in range; None (left out) is fine."""
    if value is not None and value < least:
        raise UserError(f"{option} is {value}: it must be {least} or more")
    if value is not None and most is not None and value > most:
        raise UserError(f"{option} is {value}: it must be {most} or less")


def check_guidance(value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise UserError(f"--guidance-scale is {value}: it must be a finite number of 0 or more, for example 3")


def check_text(name: str, text: str, example: str) -> str:
    """The text without blanks around it; UserError if nothing is left."""
    if not text.strip():
        raise UserError(f"the {name} is empty: write one, for example {example!r}")
    return text.strip()


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 file, blank ones at its end left out; a blank line between two prompts is an error."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: --prompts-file takes a text file with one prompt per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8, one prompt per line"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"line {number} of {path} is empty: write a prompt there or delete the line")
    return [line.strip() for line in lines]


def read_picture(path: Path) -> Image:
    """An upright RGB Pillow image; UserError if the file is missing, unreadable, truncated or too large."""
    from PIL import Image

    from openlance.media import read_image

    return Image.fromarray(read_image(path).pixels[0])


def check_writable(folder: Path) -> None:
    """UserError unless files can be written in the folder, or it can be made; nothing is created."""
    nearest = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not nearest.is_dir():
        raise UserError(f"cannot write into {folder}: {nearest} is a file; choose another place with -o")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {folder}: permission denied; choose another place with -o")


def given(**options: object) -> dict[str, object]:
    """The options that the user gave; a model fills in the others itself."""
    return {name: value for name, value in options.items() if value is not None}
