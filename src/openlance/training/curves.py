"""A plot of what a run logs: losses of its stages one after the other, or the rewards of its rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from openlance.media.files import atomic_path
from openlance.training.files import read_log

LOSSES = ("text", "flow", "dense")
COLORS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")
WIDTH, HEIGHT, MARGIN, POINTS = 760, 360, 50, 100

Line = Sequence[tuple[float, float]]  # (step, value)


def write_curves(logs: Sequence[Path], out: Path) -> None:
    """Write what one log or several in a row say over their steps as an SVG: rewards where there are any, else losses.

    Args:
        logs: Paths of log.jsonl; those that are missing are skipped.
        out: The image, each point the mean of a hundredth of the run; none for less than two steps.
    """
    rows, before = list[dict[str, float]](), 0.0
    for log in logs:
        found = read_log(log) if log.is_file() else []
        rows += [row | {"step": row["step"] + before} for row in found]
        before = rows[-1]["step"] if rows else 0.0
    if len(rows) < 2:
        return
    named = [name for row in rows for name in row if "reward" in name and not name.endswith("seconds")]
    names = tuple(dict.fromkeys(named))
    lines = {name: line_of(rows, name) for name in names or LOSSES}
    with atomic_path(out) as path:
        path.write_text(drawing(lines, rows[-1]["step"], logarithmic=not names), encoding="utf-8")


def line_of(rows: Sequence[Mapping[str, float]], name: str) -> Line:
    """Return (step, mean) of the rows that have a value, in at most `POINTS` pieces."""
    told = [(row["step"], row[name]) for row in rows if name in row]
    pieces = [piece for piece in np.array_split(np.arange(len(told)), min(POINTS, len(told) or 1)) if len(piece)]
    return [(told[piece[-1]][0], float(np.mean([told[n][1] for n in piece]))) for piece in pieces]


def drawing(lines: Mapping[str, Line], last: float, logarithmic: bool = False) -> str:
    """Return lines as an SVG, from step 0 to the last; a logarithmic one has values above 0 alone."""
    values = [value for line in lines.values() for _, value in line]
    low, high = (0.02, 4.0) if logarithmic else (min([*values, 0.0]), max([*values, 0.01]))
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4) if logarithmic else rounded(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = math.log if logarithmic else float

    def place(step: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        share = (scale(min(max(value, low), high)) - scale(low)) / (scale(high) - scale(low))
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share:.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for value in ticks:
        x, y = place(0, value).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y}" font-size="11" text-anchor="end">{value:g}</text>')
    left = float(MARGIN)
    for (name, line), color in zip(lines.items(), COLORS * len(lines)):
        spots = " ".join(place(*point) for point in line if point[1] > 0 or not logarithmic)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{spots}"/>')
        said = f"{name} loss" if logarithmic else name
        parts.append(f'<text x="{left:.0f}" y="24" font-size="13" fill="{color}">{said}</text>')
        left += 24 + 7.2 * len(said)
    parts.append(
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 18}" font-size="12" text-anchor="end">step {last:.0f}</text>'
    )
    return "\n".join([*parts, "</svg>"])


def rounded(low: float, high: float) -> list[float]:
    """Return round values from below `low` to above `high`, four to nine."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * n for n in (1, 2, 5, 10) if (high - low) / (size * n) <= 8)
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step) + 1)]
