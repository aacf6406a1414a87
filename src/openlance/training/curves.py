"""A plot of what a run logs: losses of its stages one after the other, or what its rounds of rewards came to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from openlance.media.files import atomic_path
from openlance.training.files import read_log

LOSSES = ("text", "flow", "dense", "critic")
PHASES = {"rollouts": "rollout", "rewards": "reward", "updates": "update"}
COLORS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")
WIDTH, HEIGHT, MARGIN, POINTS = 760, 360, 50, 100

Line = Sequence[tuple[float, float]]  # (step, value)


def write_curves(logs: Sequence[Path], out: Path) -> None:
    """Write what one log or several in a row say over their steps as an SVG: losses; of a stage with rewards these, the
    expected best of several results, how far results of a request are apart, and where the time went.

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
    names = list(dict.fromkeys(name for row in rows for name in row))
    rewards = [name for name in names if "reward" in name and not name.endswith("seconds")]
    plots = [[*(f"{name} loss" for name in LOSSES), "apart"]]  # that of `training.matching`
    if rewards:
        rows = [with_shares(row) for row in rows]
        best = [name for name in names if name.startswith("pass@") and "/" not in name]
        plots = [rewards, best, ["spread", "diversity", "mute"], [f"share of {name}" for name in PHASES]]
    lines = [{name: line_of(rows, name.removesuffix(" loss")) for name in plot} for plot in plots]
    told = [{name: line for name, line in plot.items() if line} for plot in lines]
    with atomic_path(out) as path:
        path.write_text(drawing([plot for plot in told if plot], rows[-1]["step"], not rewards), "utf-8")


def with_shares(row: Mapping[str, float]) -> dict[str, float]:
    """Add the shares of a round's time that its phases took, where these are told."""
    told = {f"share of {name}": row[f"{phase}_seconds"] for name, phase in PHASES.items() if f"{phase}_seconds" in row}
    whole = sum(told.values())
    return dict(row) | {name: seconds / whole for name, seconds in told.items() if whole}


def line_of(rows: Sequence[Mapping[str, float]], name: str) -> Line:
    """Return (step, mean) of the rows that have a value, in at most `POINTS` pieces."""
    told = [(row["step"], row[name]) for row in rows if name in row]
    pieces = [piece for piece in np.array_split(np.arange(len(told)), min(POINTS, len(told) or 1)) if len(piece)]
    return [(told[piece[-1]][0], float(np.mean([told[n][1] for n in piece]))) for piece in pieces]


def drawing(plots: Sequence[Mapping[str, Line]], last: float, logarithmic: bool = False) -> str:
    """Return lines as an SVG, plots above each other, from step 0 to the last; logarithmic ones have values above 0
    alone."""
    size = f'width="{WIDTH}" height="{HEIGHT * len(plots)}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for n, lines in enumerate(plots):
        parts += [f'<g transform="translate(0 {n * HEIGHT})">', *plotted(lines, last, logarithmic), "</g>"]
    return "\n".join([*parts, "</svg>"])


def plotted(lines: Mapping[str, Line], last: float, logarithmic: bool) -> Iterator[str]:
    """Yield what one plot consists of."""
    values = [value for line in lines.values() for _, value in line]
    low, high = (0.02, 4.0) if logarithmic else (min([*values, 0.0]), max([*values, 0.01]))
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4) if logarithmic else rounded(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = math.log if logarithmic else float

    def place(step: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        share = (scale(min(max(value, low), high)) - scale(low)) / (scale(high) - scale(low))
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share:.1f}"

    for value in ticks:
        x, y = place(0, value).split(",")
        yield f'<line x1="{x}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#e5e7eb"/>'
        yield f'<text x="{MARGIN - 8}" y="{y}" font-size="11" text-anchor="end">{value:g}</text>'
    left, above = float(MARGIN), 18
    for (name, line), color in zip(lines.items(), COLORS * len(lines)):
        spots = " ".join(place(*point) for point in line if point[1] > 0 or not logarithmic)
        yield f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{spots}"/>'
        if left > MARGIN and left + 7.2 * len(name) > WIDTH:
            left, above = float(MARGIN), above + 15
        yield f'<text x="{left:.0f}" y="{above}" font-size="13" fill="{color}">{name}</text>'
        left += 24 + 7.2 * len(name)
    yield f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 18}" font-size="12" text-anchor="end">step {last:.0f}</text>'


def rounded(low: float, high: float) -> list[float]:
    """Return round values from below `low` to above `high`, four to nine."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * n for n in (1, 2, 5, 10) if (high - low) / (size * n) <= 8)
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step) + 1)]
