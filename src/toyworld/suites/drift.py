"""Drift: many edits in a row of one thing, and what becomes of everything that no edit names.

    drift(openlance.load("nano"), Series(starts=16, turns=10))     # rows by turn, without and with a region

Every turn edits what the turn before made: one thing gets another colour. Outside of the cells of that thing and their
neighbors, each picture is compared with the first one: PSNR, the root of the mean squared difference, and whether every
other thing is where it was and looks as it did (the judge of the world).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from openlance.eval.suite import generator
from openlance.media.files import atomic_path
from openlance.media.region import box_mask
from toyworld.edit_places import at
from toyworld.facts import Fact
from toyworld.judge import judge
from toyworld.judge_edits import psnr
from toyworld.questions import clear_names
from toyworld.render import pixel_box, render
from toyworld.scene import Object, Scene, clashes, pick, sample_scene
from toyworld.vocabulary import COLORS
from toyworld.words import noun_phrase

_SUITE = 30  # number of the suite: it sets the requests
CELL = 8  # pixels of nano's latents
LARGEST_PSNR = 100.0  # decibels, written where two pictures are equal
LINES = {"without": ("#c2571a", "without a region"), "with": ("#1f6f8b", "with a region")}
WIDTH, HEIGHT, LEFT, TOP, GAP, WIDE, TALL = 760, 300, 56, 44, 88, 290, 210

Results = dict[str, list[dict[str, float]]]


class Editor(Protocol):
    """What is looked at; `openlance.load(...)` returns one."""

    def edit(
        self, source: list[Image.Image], instruction: list[str], /, *, seed: int, region: Any, **settings: Any
    ) -> list[Image.Image]:
        """One picture per pair."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """starts: pictures to begin with; turns: edits in a row of each; batch: pictures edited together; settings: fields
    of `Sampling`."""

    starts: int = 16
    turns: int = 10
    seed: int = 0
    height: int = 64
    width: int = 64
    batch: int = 16
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """A scene, the shape that every turn recolours, and the colours in turn."""

    scene: Scene
    thing: Object
    name: str
    colors: tuple[str, ...]

    @property
    def others(self) -> tuple[Fact, ...]:
        return tuple(at(o) for o in self.scene.objects if o is not self.thing)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The cells of the thing and their neighbors, in pixels."""
        x0, y0, x1, y1 = pixel_box(self.thing, height, width)
        low = [max(int(v // CELL) - 1, 0) * CELL for v in (x0, y0)]
        right, bottom = (
            min(-(-int(v) // CELL) + 1, side // CELL) * CELL for v, side in ((x1, width), (y1, height))
        )  # fmt: skip
        return low[0], low[1], right, bottom


def starts(series: Series) -> list[Start]:
    """Scenes of two things or more, one of them named by its shape alone: always the same for a seed."""
    rng, found = generator(_SUITE, 0, series), list[Start]()
    while len(found) < series.starts:
        scene = sample_scene(rng, placement="free", category="mixed", aspect=series.width / series.height)
        named = [o for o, thing in clear_names(scene) if thing.color is None and thing.fill is None and not thing.size]
        if len(scene.objects) < 2 or scene.text is not None or not named:
            continue
        thing, colors = pick(rng, named), list[str]()
        while len(colors) < series.turns:
            color = pick(rng, list(COLORS))
            if color != (colors[-1] if colors else thing.color) and not clashes(color, scene.background):
                colors.append(color)
        name = noun_phrase(replace(clear_names(scene)[0][1], shape=thing.shape, color=None), article="the")
        found.append(Start(scene=scene, thing=thing, name=name, colors=tuple(colors)))
    return found


def drift(model: Editor, series: Series, on_done: Callable[[int], Any] = lambda n: None) -> Results:
    """Edit every start so many times in a row, without and with a region.

    Returns:
        For both, a row per turn: "psnr" and "rms" (levels of 0 to 255) outside, the share of pictures that are "equal"
        there, and of those whose other things all are as they were ("kept").
    """
    some, size = starts(series), (series.height, series.width)
    first = [render(start.scene, *size) for start in some]
    inside = [box_mask([tuple(map(float, start.box(*size)))], (1, *size))[0] for start in some]  # type: ignore[list-item]
    found: Results = {}
    for way in LINES:
        now, rows = [Image.fromarray(pixels) for pixels in first], list[dict[str, float]]()
        for turn in range(series.turns):
            told = [f"make {start.name} {start.colors[turn]}" for start in some]
            made = list[Image.Image]()
            for n in range(0, len(some), series.batch):
                mine = slice(n, n + series.batch)
                places: Any = [start.box(*size) for start in some[mine]] if way == "with" else "none"
                seed = series.seed + 10_000 * (turn + 1) + n
                made += model.edit(now[mine], told[mine], seed=seed, region=places, **dict(series.settings or {}))
                on_done(len(made[mine]))
            now = made
            rows.append(_measured(some, first, inside, [np.asarray(image.convert("RGB")) for image in now]))
        found[way] = rows
    return found


def _measured(
    some: list[Start], first: list[np.ndarray], inside: list[np.ndarray], now: list[np.ndarray]
) -> dict[str, float]:
    pairs = [(a[~m], b[~m]) for a, b, m in zip(first, now, inside, strict=True)]
    squares = [float(((a.astype(np.float64) - b) ** 2).mean()) for a, b in pairs]
    kept = [all(judge(pixels, start.others).values()) for pixels, start in zip(now, some, strict=True)]
    return {
        "psnr": float(np.mean([min(psnr(a, b), LARGEST_PSNR) for a, b in pairs])),
        "rms": float(np.sqrt(np.mean(squares))), "equal": float(np.mean([s == 0 for s in squares])),
        "kept": float(np.mean(kept)),
    }  # fmt: skip


def write_figure(results: Results, out: Path) -> None:
    """Write both by turn as an SVG: how far pixels outside have drifted, how many pictures keep all other things."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    most = max(max(row["rms"] for row in rows) for rows in results.values()) * 1.1 or 1.0
    panels = (("rms", most, "what no edit names: RMS difference, levels"), ("kept", 1.0, "other things kept: share"))
    for n, panel in enumerate(panels):
        parts += _panel(results, LEFT + n * (WIDE + GAP), *panel)
    for k, way in enumerate(results):
        color, said = LINES[way]
        parts.append(_text(LEFT + 8, TOP + 14 + 16 * k, said, f'fill="{color}"'))
    with atomic_path(out) as path:
        path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(results: Results, left: float, name: str, top: float, title: str) -> list[str]:
    """One value of both by turn."""
    parts, turns = [_text(left, 22, title)], len(next(iter(results.values())))
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + TALL * (1 - share)
        parts.append(f'<line x1="{left:.0f}" y1="{y:.1f}" x2="{left + WIDE:.0f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(_text(left - 6, y + 4, f"{top * share:.3g}", 'text-anchor="end"'))
    for way, rows in results.items():
        places = [
            (left + WIDE * i / max(turns - 1, 1), TOP + TALL * (1 - row[name] / top)) for i, row in enumerate(rows)
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{LINES[way][0]}" stroke-width="2" points="{line}"/>')
    for turn, x in ((1, left), (turns, left + WIDE)):
        parts.append(_text(x, HEIGHT - 26, str(turn), 'text-anchor="middle"'))
    return [*parts, _text(left + WIDE / 2, HEIGHT - 8, "edits", 'text-anchor="middle"')]


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" {more}>{text}</text>'
