"""A plot of the losses of a recipe, stage after stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openlance.media.files import atomic_path
from openlance.training.files import read_log

COLORS = {"text": "#2563eb", "flow": "#dc2626", "dense": "#16a34a"}
WIDTH, HEIGHT, MARGIN = 760, 360, 50


def write_curves(logs: Sequence[Path], out: Path) -> None:
    """Write the losses over the steps of one log or several in a row as an SVG.

    Args:
        logs: Paths of log.jsonl; those that are missing are skipped.
        out: The picture, logarithmic, each point the mean of a hundredth of the run; none for less than two steps.
    """
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
