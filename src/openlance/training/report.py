"""What a run writes for people while it goes: a sheet of pictures and a plot of its losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openlance.media.files import atomic_path

COLORS = {"text": "#2563eb", "flow": "#dc2626", "dense": "#16a34a"}
WIDTH, HEIGHT, MARGIN = 760, 360, 50


def read_log(path: Path) -> list[dict[str, float]]:
    """Rows of a log.jsonl; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_curves(logs: Sequence[Path], out: Path) -> None:
    """Losses over the steps of one log or several in a row as an SVG, logarithmic, each point the mean of a hundredth
    of the run."""
    rows, before = list[dict[str, float]](), 0.0
    for log in logs:
        found = read_log(log) if log.is_file() else []
        rows += [row | {"step": row["step"] + before} for row in found]
        before = rows[-1]["step"] if rows else 0.0
    if len(rows) < 2:
        return
    last = rows[-1]["step"]
    chunks = [c for c in np.array_split(np.arange(len(rows)), min(100, len(rows))) if len(c)]
    lines, low, high = {}, 0.02, 4.0
    for name in COLORS:
        points = [(rows[c[-1]]["step"], float(np.mean([rows[i].get(name, 0.0) for i in c]))) for c in chunks]
        lines[name] = [(s, v) for s, v in points if v > 0]

    def place(step: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        share = (np.log(np.clip(value, low, high)) - np.log(low)) / (np.log(high) - np.log(low))
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share:.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for value in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4):
        x, y = place(0, value).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y}" font-size="11" text-anchor="end">{value}</text>')
    for n, (name, points) in enumerate(lines.items()):
        line = " ".join(place(*p) for p in points)
        parts.append(f'<polyline fill="none" stroke="{COLORS[name]}" stroke-width="1.6" points="{line}"/>')
        parts.append(f'<text x="{MARGIN + 90 * n}" y="24" font-size="13" fill="{COLORS[name]}">{name} loss</text>')
    parts.append(
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 18}" font-size="12" text-anchor="end">step {last:.0f}</text>'
    )
    with atomic_path(out) as path:
        path.write_text("\n".join([*parts, "</svg>"]), encoding="utf-8")


def write_sheet(pictures: list[np.ndarray], out: Path, columns: int = 8, scale: int = 2) -> None:
    """Pictures (H, W, 3) of one size as a grid."""
    from PIL import Image

    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 2) * scale, rows * (height + 2) * scale), (80, 80, 80))
    for n, picture in enumerate(pictures):
        tile = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (n % columns * (width + 2) * scale, n // columns * (height + 2) * scale))
    with atomic_path(out) as path:
        sheet.save(path, format="PNG")
