"""A request or sample as one image: its splits in a row, what each is and does, and the mask.

    svg(explain(segments, codec, config, text), "image_edit with nano")

The text is a whole SVG without scripts, fonts or addresses, readable on light and dark pages. Like `explain` it decides
nothing: all of it is read from the rows, and the mask from `visible`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from random import Random
from xml.sax.saxutils import escape
from zlib import crc32

import torch

from openlance.sequence import segment as values
from openlance.sequence.explain import Ends, Explanation, Split
from openlance.sequence.segment import LATENTS, PATCH, PROMPT, REFERENCE, SOURCE, TARGET, TEMPLATE, TEXT, visible

NAMES = {
    TEMPLATE: "text", PROMPT: "prompt", PATCH: "ViT patches", SOURCE: "source latents", TARGET: "target latents",
    REFERENCE: "reference latents", values.LAST: "last frame",
}  # fmt: skip
EXPERTS = {"und": "understanding", "gen": "generation"}
LEGEND = {
    "text": "text", "patches": "ViT patches: what an image or video means", "latents": "VAE latents: how it looks",
    "noise": "latents that are denoised; nobody else sees them",
}  # fmt: skip

LEFT, RIGHT, TOP = 124, 28, 84  # margins in pixels
NARROW, WIDE = 112, 260  # of a split
BAR, LINE = 60, 19  # heights
MASK, STEPS = 330, 24  # side of the mask; most rows of a split that are looked at
TIMES = 160  # height of the chart of positions
LEAST = 940  # width of the picture

DARK = """--card:#171a20;--line:#323844;--ink:#e8ebf0;--soft:#98a2b3;--text:#59657a;--patches:#2f9488;
--latents:#bd8424;--und:#5fcdbf;--gen:#f0b656;--moved:#c09bf2"""
STYLE = (
    f"""
.openlance-sequence{{--card:#ffffff;--line:#e2e5ea;--ink:#1d2430;--soft:#687385;--text:#c9d1dc;--patches:#58c4b6;
--latents:#f3b54a;--und:#2b8f86;--gen:#b7791f;--moved:#8a4fd0;font-family:ui-sans-serif,system-ui,-apple-system,
"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-size:12px}}
@media (prefers-color-scheme:dark){{.openlance-sequence{{{DARK}}}}}
.dark .openlance-sequence{{{DARK}}}
""".strip()
    + """
.openlance-sequence text{fill:var(--ink)}.openlance-sequence .soft{fill:var(--soft)}
.openlance-sequence .mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:11px;white-space:pre}
.openlance-sequence .title{font-size:17px;font-weight:650}.openlance-sequence .name{font-weight:650}
.openlance-sequence .count{font-size:19px;font-weight:650;text-anchor:middle}
.openlance-sequence .middle{text-anchor:middle}.openlance-sequence .end{text-anchor:end}
.openlance-sequence .moved{fill:var(--moved)}
"""
)


def svg(found: Explanation, title: str = "") -> str:
    """Draw a sequence.

    Args:
        found: What `explain` says of it.
        title: What stands above.

    Returns:
        The text of an SVG file, also to stand inside a page as it is; a class `dark` above it there makes it dark.
    """
    widths = _widths(found.splits)
    edges = [LEFT + sum(widths[:n]) for n in range(len(widths) + 1)]
    width = max(edges[-1] + RIGHT, LEAST)
    table, bottom = _table(found, edges)
    top = bottom + 46
    count = f"{len(found.splits)} splits, {found.tokens:,} tokens"
    title = title or "A sequence"
    height = top + MASK + 34
    said = "; ".join(f"{n} {_name(found, s)}, {s.tokens} tokens" for n, s in enumerate(found.splits, start=1))
    drawn = "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" class="openlance-sequence" role="img" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{_safe(title)}</title><desc>{_safe(said)}</desc>", f"<style>{STYLE}</style>", _pattern(),
        f'<rect width="{width}" height="{height}" rx="14" fill="var(--card)"/>',
        _words(28, 38, _cut(title, width - 60, 9), "title"), _words(28, 59, count, "soft"),
        *(_bar(found, n, edges[n], widths[n]) for n in range(len(widths))), *table,
        *_mask(found, widths, top), *_times(found, widths, LEFT + MASK + 88, top),
        *_legend(found, LEFT + MASK + 88, top + TIMES + 46), "</svg>\n",
    ])  # fmt: skip
    # Of several pictures in one page, one that is hidden must not take the pattern of the others along.
    return drawn.replace("openlance-noise", f"openlance-noise-{crc32(drawn.encode()):08x}")


def _widths(splits: list[Split]) -> list[int]:
    """By the square root of the tokens, so that few can be read beside many; together at least a page wide."""
    usual = [min(NARROW + 5 * math.isqrt(split.tokens), WIDE) for split in splits]
    stretch = max((LEAST - LEFT - RIGHT) / sum(usual), 1.0)
    return [round(width * min(stretch, 2.5)) for width in usual]


def _kind(found: Explanation, split: Split) -> str:
    here = found.rows.kind[split.first : split.last + 1]
    return "latents" if bool((here == LATENTS).any()) else "text" if bool((here == TEXT).all()) else "patches"


def _name(found: Explanation, split: Split) -> str:
    code = int(found.rows.code[split.first])
    return "answer" if split.loss.startswith("next token") else NAMES[code]


def _bar(found: Explanation, n: int, x: int, width: int) -> str:
    """A split as a block; the part of it that is denoised is covered with noise."""
    split, kind, inner = found.splits[n], _kind(found, found.splits[n]), width - 6
    here = slice(split.first, split.last + 1)
    latents, moved = int(found.rows.is_latent[here].sum()), int(found.rows.denoise[here].sum())
    noise = inner * moved / latents if latents else 0.0
    shape = f'y="{TOP}" height="{BAR}" rx="8"'
    parts = [f'<rect x="{x}" width="{inner}" {shape} fill="var(--{kind})"/>']
    if moved:
        start, round_ = x + inner - noise, "a8 8 0 0 1"
        left = f"M{x + 8} {TOP + BAR}{round_} -8 -8v{16 - BAR}{round_} 8 -8" if moved == latents else (
            f"M{start:.1f} {TOP + BAR}V{TOP}")  # fmt: skip
        path = f"{left}H{x + inner - 8}{round_} 8 8v{BAR - 16}{round_} -8 8z"
        parts.append(f'<path d="{path}" fill="url(#openlance-noise)"/>')
    if 0 < moved < latents:
        parts.append(_words(x + 8, TOP + BAR - 8, "given"))
    parts += [
        _words(x + 8, TOP + 16, str(n + 1), "name"), _words(x + inner / 2, TOP + 38, f"{split.tokens:,}", "count"),
        f"<title>{_safe(f'{_name(found, split)}, rows {split.first} to {split.last}: {split.content}')}</title>",
    ]  # fmt: skip
    return f"<g>{''.join(parts)}</g>"


def _table(found: Explanation, edges: list[int]) -> tuple[list[str], int]:
    """What stands below the blocks, line by line, and where it ends."""
    y, made = TOP + BAR + 22, list[str]()

    def line(label: str, cell: Callable[[Split], str], style: str = "") -> None:
        nonlocal y
        made.append(_words(LEFT - 14, y, label, "soft end"))
        for split, x, after in zip(found.splits, edges, edges[1:]):
            letter = 6.7 if "mono" in style else 6.4
            made.append(_words(x + 2, y, _cut(cell(split), after - x - 8, letter), style))
        y += LINE

    def places(axis: int, ends: Callable[[Split], Ends]) -> Callable[[Split], str]:
        return lambda s: _span(*(end[axis] for end in ends(s)))

    def before(axis: int) -> Callable[[Split], str]:
        at, now = places(axis, lambda s: s.index), places(axis, lambda s: s.shifted)
        return lambda s: "" if at(s) == now(s) else at(s)

    line("", lambda s: _name(found, s), "name")
    line("", lambda s: s.content, "mono soft")
    made += _experts(found, edges, y)
    y += 30
    line("attends", lambda s: s.attends)
    line("later tokens", lambda s: "see it" if s.later else "do not see it")
    line("flow time", lambda s: {"-": "–", "0": "0, clean", "t": "t, noisy"}.get(s.time, s.time))
    line("loss", lambda s: "–" if s.loss == "-" else s.loss)
    y += 8
    for axis, name in enumerate("thw"):
        line(name if axis else "position t", places(axis, lambda s: s.shifted), "mono")
    for axis, name in enumerate("thw"):
        if any(map(before(axis), found.splits)):
            line(f"{name} before MaPE", before(axis), "mono moved")
    return made, y - LINE


def _experts(found: Explanation, edges: list[int], y: int) -> Iterator[str]:
    """A bracket below the splits of each expert."""
    yield _words(LEFT - 14, y + 10, "expert", "soft end")
    for stream, run in groupby(range(len(found.splits)), lambda n: found.splits[n].stream):
        held = list(run)
        x, end = edges[held[0]], edges[held[-1] + 1] - 6
        yield f'<rect x="{x}" y="{y - 8}" width="{end - x}" height="3" rx="1.5" fill="var(--{stream})"/>'
        yield _words(x + 2, y + 10, _cut(EXPERTS[stream], end - x, 7), "", f"fill:var(--{stream})")


def _mask(found: Explanation, widths: list[int], top: int) -> Iterator[str]:
    """A square, queries down and keys along, sides as in the row of blocks."""
    scale = MASK / sum(widths)
    edges = [scale * sum(widths[:n]) for n in range(len(widths) + 1)]
    yield _words(LEFT, top - 14, "mask: which tokens (down) may look at which (along)", "soft")
    yield f'<rect x="{LEFT}" y="{top}" width="{MASK}" height="{MASK}" fill="none" stroke="var(--line)"/>'
    for n, (a, b) in enumerate(zip(edges, edges[1:])):
        middle = (a + b) / 2
        yield _words(LEFT - 10, top + middle + 4, str(n + 1), "soft end")
        yield _words(LEFT + middle, top + MASK + 17, str(n + 1), "soft middle")
        if n:
            yield (
                f'<path d="M{LEFT} {top + a:.1f}h{MASK}M{LEFT + a:.1f} {top}v{MASK}" stroke="var(--line)" fill="none"/>'
            )
    for q, query in enumerate(found.splits):
        for k, key in enumerate(found.splits):
            shape = _block(found, query, key, edges[q : q + 2], edges[k : k + 2])
            if shape:
                noisy = "noise" if bool(found.rows.denoise[key.first : key.last + 1].any()) else ""
                fill = f"var(--{_kind(found, key)})"
                place = f'<path transform="translate({LEFT} {top})" d="{shape}" '
                yield f'{place}fill="{fill}"/>' + (f'{place}fill="url(#openlance-noise)"/>' if noisy else "")


def _times(found: Explanation, widths: list[int], x: int, top: int) -> Iterator[str]:
    """How positions go along the sequence: the time of each split, and dashed where it was before MaPE. Its axis is
    that of log(1 + t), for text counts in ones and media may stand at thousands."""
    right = max(LEFT + sum(widths), LEAST - RIGHT)
    scale = (right - x) / sum(widths)
    most = max(end[0] for split in found.splits for end in (*split.index, *split.shifted))
    up = TIMES / math.log1p(max(most, 1)) * 0.94

    def at(t: int) -> float:
        return top + TIMES - up * math.log1p(t)

    yield _words(x, top - 14, "position t along the sequence" + "; dashed: before MaPE" * _shifts(found), "soft")
    for tick in (0, 10, 100, 1000, 10_000):
        if tick <= most:
            yield _words(x - 8, at(tick) + 4, f"{tick}", "soft end")
            yield f'<path d="M{x} {at(tick):.1f}H{right}" stroke="var(--line)" fill="none"/>'
    edge = float(x)
    for split, width in zip(found.splits, widths):
        ends = (edge + 2, edge + scale * width - 2)
        for line, look in ((split.index, 'stroke="var(--moved)" stroke-width="2" stroke-dasharray="3 4"'),
                           (split.shifted, f'stroke="var(--{_kind(found, split)})" stroke-width="5"')):  # fmt: skip
            if line is split.shifted or split.index != split.shifted:
                path = f"M{ends[0]:.1f} {at(line[0][0]):.1f}L{ends[1]:.1f} {at(line[1][0]):.1f}"
                yield f'<path d="{path}" fill="none" stroke-linecap="round" {look}/>'
        edge += scale * width


def _shifts(found: Explanation) -> bool:
    return any(split.index != split.shifted for split in found.splits)


def _block(found: Explanation, query: Split, key: Split, down: list[float], along: list[float]) -> str:
    """The cells of one block that may be looked at, as a path: of a few of its rows and columns, evenly spread."""
    rows = found.rows
    q, k = (_spread(split) for split in (query, key))
    seen = visible(rows.at(q[:, None]), rows.at(k[None, :]))
    y, x, high, wide = down[0], along[0], down[1] - down[0], along[1] - along[0]
    if bool(seen.all()):
        return _box(x, y, wide, high)
    path = ""
    for n, line in enumerate(seen.tolist()):
        column = 0
        for value, run in groupby(line):
            length = len(list(run))
            if value:
                path += _box(x + wide * column / len(k), y + high * n / len(q), wide * length / len(k), high / len(q))
            column += length
    return path


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"


def _spread(split: Split) -> torch.Tensor:
    return torch.linspace(split.first, split.last, min(split.tokens, STEPS)).round().long()


def _legend(found: Explanation, x: int, top: int) -> Iterator[str]:
    """What the colors mean, of those that are there."""
    there = {_kind(found, split) for split in found.splits}
    there |= {"noise"} if bool(found.rows.denoise.any()) else set()
    y = top + 12
    for name in (name for name in LEGEND if name in there):
        fill = "latents" if name == "noise" else name
        yield f'<rect x="{x}" y="{y - 11}" width="26" height="15" rx="4" fill="var(--{fill})"/>'
        if name == "noise":
            yield f'<rect x="{x}" y="{y - 11}" width="26" height="15" rx="4" fill="url(#openlance-noise)"/>'
        yield _words(x + 36, y, LEGEND[name])
        y += 26
    yield _words(x, y + 4, "the numbers in the blocks are tokens", "soft")


def _pattern() -> str:
    """Noise: dots in places that look random and are always the same."""
    place = Random(3).uniform
    dots = (f'<circle cx="{place(1, 59):.1f}" cy="{place(1, 59):.1f}" r="{place(0.5, 1.3):.2f}"/>' for _ in range(210))
    return (
        '<defs><pattern id="openlance-noise" width="60" height="60" patternUnits="userSpaceOnUse">'
        f'<g fill="var(--ink)" fill-opacity="0.33">{"".join(dots)}</g></pattern></defs>'
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _words(x: float, y: float, text: str, style: str = "", more: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    look = f' style="{more}"' if more else ""
    return f'<text x="{x:g}" y="{y:g}"{kind}{look}>{_safe(text)}</text>' if text else ""


def _cut(text: str, width: float, letter: float) -> str:
    """Text that fits so many pixels, its middle left out; line ends visible."""
    shown, most = text.replace("\n", "⏎"), max(int(width / letter), 4)
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[len(shown) - (most - 1) // 2 :]}"


def _safe(text: str) -> str:
    """Text inside XML; what XML cannot hold is a box."""
    return escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))
