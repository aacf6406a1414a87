"""What becomes of the same held-out prompts over the rounds: `pictures.svg` in the folder of a run, a row for a round.

The images themselves are in `pictures/`, as ROUND-NUMBER.png; of a video its first, middle and last frame.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from openlance.media.files import atomic_path
from openlance.rl.rewards import Drawn

SHOWN = 8  # prompts
SIDE, GAP, LABEL, LINES = 128, 8, 84, 3  # pixels of an image, between two, left of a row; lines above a column


def add_round(folder: Path, number: int, drawn: Sequence[Drawn]) -> None:
    """Keep the images of a round, and write the sheet of all rounds anew.

    Args:
        folder: Of the run.
        number: Of the round; 0 is before the first.
        drawn: A result of each prompt, the same prompts every time.
    """
    from PIL import Image

    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    for n, one in enumerate(drawn):
        with atomic_path(place / f"{number:06d}-{n + 1}.png") as path:
            Image.fromarray(np.concatenate(one.stills(), axis=1)).save(path, format="PNG")
    with atomic_path(folder / "pictures.svg") as path:
        path.write_text(sheet(place, [one.prompt for one in drawn]), encoding="utf-8")


def sheet(place: Path, prompts: Sequence[str]) -> str:
    """Return an SVG of the images in a folder: a column for a prompt, a row for a round."""
    files: dict[int, list[Path]] = {}
    for path in sorted(place.glob("*-*.png")):
        files.setdefault(int(path.stem.partition("-")[0]), []).append(path)
    shown = {number: [thumbnail(path) for path in paths[: len(prompts)]] for number, paths in files.items()}
    widest = max((width for row in shown.values() for _, width in row), default=SIDE)
    top, step = LINES * 15 + 12, widest + GAP
    width, height = LABEL + len(prompts) * step, top + len(shown) * (SIDE + GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for n, prompt in enumerate(prompts):
        lines = textwrap.wrap(prompt, widest // 7, max_lines=LINES, placeholder=" ...") or [""]
        spans = "".join(f'<tspan x="{LABEL + n * step}" dy="15">{escape(line)}</tspan>' for line in lines)
        parts.append(f'<text y="2" font-size="12">{spans}<title>{escape(prompt)}</title></text>')
    for y, (number, row) in enumerate(shown.items()):
        at = top + y * (SIDE + GAP)
        said = f"round {number}" if number else "before"
        parts.append(f'<text x="8" y="{at + SIDE // 2}" font-size="13">{said}</text>')
        for n, (data, wide) in enumerate(row):
            box = f'x="{LABEL + n * step}" y="{at}" width="{wide}" height="{SIDE}"'
            parts.append(f'<image {box} href="data:image/jpeg;base64,{data}" style="image-rendering: pixelated"/>')
            parts.append(f'<rect {box} fill="none" stroke="#d1d5db"/>')  # white images end somewhere too
    return "\n".join([*parts, "</svg>\n"])


def thumbnail(path: Path) -> tuple[str, int]:
    """Return an image as base64 of a JPEG of at most `SIDE` rows, and the width at which it is shown."""
    from PIL import Image

    with Image.open(path) as image:
        wide = max(round(SIDE * image.width / image.height), 1)
        small = image if image.height <= SIDE else image.resize((wide, SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.convert("RGB").save(out, format="JPEG", quality=95, subsampling=0)
    return base64.b64encode(out.getvalue()).decode("ascii"), wide
