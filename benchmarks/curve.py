"""Scores of the shipped nano against the compute of its backbone, from every result that was ever committed.

    python benchmarks/curve.py --docs      # a dated result; the table and the picture go into docs/nano.md

Reads `*-nano.json` and `*-nano-training.json` of benchmarks/results in the history of this repository, and as they are
now. The scores of one time are of other prompts than those of another where the world changed between them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, put, write_results

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "nano.md", ROOT / "docs" / "images" / "nano-curve.svg"
# What is drawn: a name, the placement, the task and the entry of its scores.
LINES = {
    "images, loose": ("loose", "t2i", "mean"),
    "images, free": ("free", "t2i", "mean"),
    "text, loose": ("loose", "t2i", "text"),
    "questions, free": ("free", "vqa", "mean"),
    "videos, motion": ("free", "t2v", "motion"),
    "edits, asked": ("free", "image_edit", "asked"),
    "edits, kept": ("free", "image_edit", "kept"),
}
COLORS = ("#1f6f8b", "#63a4b8", "#c2571a", "#3c7d3c", "#8a5ba5", "#a38b1f", "#d4bd54")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 360, 50, 16, 150, 44


def git(*line: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *line], capture_output=True, text=True, check=True).stdout


def newest(names: list[str], read: Callable[[str], str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The newest (scores, training) among some files, none if either is missing."""
    pair = [max((n for n in names if n.endswith(end)), default="") for end in ("-nano.json", "-nano-training.json")]
    return [(json.loads(read(pair[0])), json.loads(read(pair[1])))] if all(pair) else []


def versions() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(scores, training) of every commit that changed the scores, then of the working tree."""
    folder = RESULTS.relative_to(ROOT).as_posix()
    found = []
    for commit in git("log", "--reverse", "--format=%H", "--", f"{folder}/*-nano.json").split():
        names = git("ls-tree", "-r", "--name-only", commit, folder).split()
        found += newest(names, lambda name, commit=commit: git("show", f"{commit}:{name}"))
    return found + newest([str(path) for path in RESULTS.iterdir()], lambda name: Path(name).read_text())


def point(scores: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Compute in CPU minutes and the scores of one version, where it was scored in that way."""
    minutes = sum(phase["cpu_minutes"] for phase in training["phases"])
    found: dict[str, Any] = {"date": scores["date"], "cpu_minutes": round(minutes)}
    for row in scores["rows"]:
        for name, (placement, task, entry) in LINES.items():
            if (row["placement"], row["size"]) == (placement, "64x64") and entry in row["scores"].get(task, {}):
                found[name] = row["scores"][task][entry]["mean"]
    return found


def drawing(points: list[dict[str, Any]]) -> str:
    """The lines as SVG."""
    most = max(p["cpu_minutes"] for p in points)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(p: dict[str, Any], name: str) -> tuple[float, float]:
        return LEFT + across * p["cpu_minutes"] / most, TOP + down * (1 - p[name])

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + down * (1 - share)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + across}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.2f}</text>')
    for hours in range(0, int(most // 60) + 1, 4):
        x = LEFT + across * hours * 60 / most
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{hours}</text>')
    middle = LEFT + across / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">CPU hours of the backbone</text>')
    ends = list[float]()
    order = sorted(LINES, key=lambda name: place(points[-1], name)[1] if name in points[-1] else HEIGHT)
    for name in order:
        color = COLORS[list(LINES).index(name)]
        spots = [place(p, name) for p in points if name in p]
        if not spots:
            continue
        parts.append(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in spots)}" fill="none" stroke="{color}" '
            'stroke-width="2"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in spots]
        ends.append(max(spots[-1][1] + 4, ends[-1] + 15 if ends else 0))  # labels do not meet
        parts.append(f'<text x="{LEFT + across + 10}" y="{ends[-1]:.1f}" fill="{color}">{name}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" {style}>'
    return "\n".join([head, *parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="put the table and the picture into docs/nano.md as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    points = list[dict[str, Any]]()
    for scores, training in versions():
        found = point(scores, training)
        if not points or found != points[-1]:
            points.append(found)
    columns = ["date", "CPU minutes", *LINES]
    rows = [[p["date"], p["cpu_minutes"], *(f"{p[name]:.2f}" if name in p else "" for name in LINES)] for p in points]
    table = markdown(columns, rows)
    write_results("curve", {"points": points}, table, args.out)
    if args.docs:
        PICTURE.write_text(drawing(points), encoding="utf-8")
        put(PAGE, "curve", table)


if __name__ == "__main__":
    main()
