"""The page of a report: one HTML file with its images and its style inside, without scripts or requests."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openlance.errors import UserError
from openlance.eval.judging import results_of
from openlance.eval.records import Record
from openlance.eval.report import Evaluated, Section, paired_cells, reasons, recomputed, verdict
from openlance.media import Clip, read_media

SIDE = 192  # pixels of a thumbnail's longer side
SHOWN_FRAMES = 3  # of a video
LARGEST = 16_000_000  # bytes of all thumbnails of a page
WIDE, HIGH = 240, 12  # of a bar's drawing, and what a run adds to its height

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5f6875; --line: #e3e6eb; --card: #fff; --page: #f5f6f8;
  --good: #1a7f4b; --bad: #b3541e; --run0: #2a6fd6; --run1: #d9622b; --run2: #188f6c; --run3: #8a5cc9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #98a1b0; --line: #2c323c; --card: #1b1f26;
  --page: #12151a; --good: #4cc38a; --bad: #f0985c; --run0: #6ea8ff; --run1: #ff9a66; --run2: #4fd1a5;
  --run3: #bd9bf0; } }
* { box-sizing: border-box }
body { margin: 0; padding: 2.5rem clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
header, section { max-width: 76rem; margin: 0 auto 2rem }
h1 { margin: 0 0 .25rem; font-size: 1.75rem; letter-spacing: -.01em }
h2 { margin: 0 0 .2rem; font-size: 1.3rem } h3 { margin: 1.6rem 0 .4rem; font-size: 1rem }
header p, .soft { margin: .2rem 0; color: var(--soft) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.4rem 1.5rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .32rem .9rem .32rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; vertical-align: bottom } th:first-child, td:first-child { text-align: left }
td.text, th.text { text-align: left; white-space: normal }
.scroll :is(th, td):first-child { position: sticky; left: 0; background: var(--card) }
tr.total td { font-weight: 650; border-top: 2px solid var(--line) } tr:last-child td { border-bottom: 0 }
td small { color: var(--soft); font-weight: 400; display: block; line-height: 1.2 }
svg { display: block } svg line { stroke-linecap: round } .axis { stroke: var(--line) } .tick { stroke: var(--soft) }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em }
.run0 { background: var(--run0); stroke: var(--run0); fill: var(--run0) }
.run1 { background: var(--run1); stroke: var(--run1); fill: var(--run1) }
.run2 { background: var(--run2); stroke: var(--run2); fill: var(--run2) }
.run3 { background: var(--run3); stroke: var(--run3); fill: var(--run3) }
.badge { font-size: .82rem; padding: .1rem .55rem; border-radius: 99px; border: 1px solid currentColor;
  margin-left: .5rem; display: inline-block }
.ends { display: flex; justify-content: space-between }
.good { color: var(--good) } .bad { color: var(--bad) }
ul { margin: .3rem 0; padding-left: 1.2rem } li { margin: .1rem 0; color: var(--soft) }
details { margin-top: .4rem } summary { cursor: pointer; padding: .25rem 0 } summary b { font-weight: 600 }
.gallery { display: grid; gap: 1rem; padding: .6rem 0; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) }
figure { margin: 0; min-width: 0 } figure .pair { display: flex; gap: .4rem; align-items: flex-start }
figure img { width: 100%; max-width: 12rem; border-radius: 6px; border: 1px solid var(--line); display: block;
  margin-bottom: .3rem }
figure .pair div { flex: 1 1 0; min-width: 0; max-width: 12rem }
figcaption { font-size: .9rem; line-height: 1.35; margin-bottom: .4rem; overflow-wrap: anywhere }
.mark { font-size: .84rem; font-weight: 600; margin: .2rem 0 } .mark .key { width: .6em; height: .6em }
.why { color: var(--soft); font-size: .84rem; line-height: 1.35; max-height: 5.5em; overflow: auto; display: block;
  overflow-wrap: anywhere }
.wide { grid-column: span 2 } @media (max-width: 32rem) { .wide { grid-column: auto } }
"""


@dataclass
class Thumbnails:
    """Images inside a page, as long as there is room.

    Args:
        room: Bytes that are left.
        left_out: Images for which there was none, or that cannot be read.
    """

    room: int = LARGEST
    left_out: list[str] = field(default_factory=list)

    def __call__(self, clip: Clip) -> str:
        """An image, or some frames of a video beside each other, as the address of an img; empty without room."""
        from PIL import Image

        numbers = np.linspace(0, clip.frames - 1, min(SHOWN_FRAMES, clip.frames)).round().astype(int)
        image = Image.fromarray(np.concatenate([clip.pixels[n] for n in numbers], axis=1))
        image.thumbnail((SIDE * len(numbers), SIDE))
        memory = io.BytesIO()
        image.save(memory, "WEBP", quality=80)
        self.room -= memory.tell()
        if self.room < 0:
            self.left_out.append("no room")
            return ""
        return "data:image/webp;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def page(found: Sequence[Section], title: str = "Scores", gallery: int = 4) -> str:
    """The whole page. Everything that a model, a judge or a user said is escaped.

    Args:
        found: What is reported.
        title: Of the page.
        gallery: Items of every group whose results are shown.
    """
    thumbnails = Thumbnails()
    body = "\n".join(render(one, gallery, thumbnails) for one in found)
    left = (
        f"<p>{len(thumbnails.left_out)} images are left out: the page would be too large.</p>"
        if thumbnails.left_out
        else ""
    )
    runs = " · ".join(dict.fromkeys(escaped(run.name) for one in found for run in one.runs))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escaped(title)}</h1><p>{runs}</p>{left}</header>
{body}
</body>
</html>
"""


def escaped(text: object) -> str:
    return html.escape(str(text))


def render(one: Section, gallery: int, thumbnails: Thumbnails) -> str:
    """One benchmark."""
    parts = [f"<h2>{escaped(one.title)}</h2>", f'<p class="soft">Unit: {escaped(one.unit)}. Intervals: 95 %.</p>']
    parts += [comparable(one, n) for n in range(len(one.runs))]
    parts += ["<h3>Scores</h3>", scores(one)]
    if one.rows:
        parts += ["<h3>Do printed totals follow from their parts?</h3>", listed(recomputed(one))]
    if one.settings:
        rows = [[name, *values] for name, values in one.settings.items()]
        parts += ["<h3>How the runs differ</h3>", table(["", *(run.name for run in one.runs)], rows, text=True)]
    for other, differences in one.pairs:
        head = ["", "difference", "95 %", "p", "items"]
        rows = [paired_cells(one, name, d) for name, d in differences.items()]
        parts += [
            f"<h3>{escaped(other.name)} less {escaped(one.runs[0].name)}, item by item</h3>", table(head, rows),
            '<p class="soft">p: randomization test, not corrected for the number of groups.</p>',
        ]  # fmt: skip
    parts += list(galleries(one, gallery, thumbnails)) if gallery else []
    return f"<section>{''.join(parts)}</section>"


def key(n: int) -> str:
    """The mark of a run's color."""
    return f'<span class="key run{n % 4}"></span>'


def comparable(one: Section, n: int) -> str:
    """How complete a run is, and whether it may stand beside what is printed."""
    run = one.runs[n]
    found, wanted = sum(run.score.found.values()), sum(run.score.expected.values())
    badge = ""
    if one.rows:
        badge = f'<span class="badge {"bad" if run.score.differs else "good"}">{verdict(run.score)}</span>'
    why = listed(reasons(run.score))
    if len(reasons(run.score)) > 6:
        why = f"<details><summary>{len(reasons(run.score))} reasons and notes</summary>{why}</details>"
    return f"<p>{key(n)}<b>{escaped(run.name)}</b>: {found:,} of {wanted:,} results judged{badge}</p>{why}"


def listed(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escaped(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    """A table of plain cells; the row "total" stands apart."""
    kind = ' class="text"' if text else ""
    lines = [f"<tr>{''.join(f'<th{kind}>{escaped(one)}</th>' for one in head)}</tr>"]
    for row in rows:
        mark = ' class="total"' if row[0] == "total" else ""
        lines.append(f"<tr{mark}>{''.join(f'<td{kind}>{escaped(cell)}</td>' for cell in row)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def scores(one: Section) -> str:
    """The numbers of all runs, drawn with their intervals, beside what is printed."""
    names, span = one.names, limits(one)
    head = ["<th></th>", *(f"<th>{key(n)}{escaped(run.name)}</th>" for n, run in enumerate(one.runs))]
    head.append(f"<th>{axis(one, span)}</th>")
    head += [f"<th>{escaped(row.model)}<small><br>printed</small></th>" for row in one.printed]
    lines = [f"<tr>{''.join(head)}</tr>"]
    for name in names:
        row = [f"<td>{escaped(name)}</td>"]
        for run in one.runs:
            ours, official = one.ours(run, name), one.official(run, name)
            below = [] if ours is None or math.isnan(ours.low) else [f"{one.said(ours.low)} to {one.said(ours.high)}"]
            below += [f"official {official}"] if official else []
            shown = "" if ours is None else one.said(ours.value)
            row.append(f"<td>{shown}{''.join(f'<small>{line}</small>' for line in below)}</td>")
        row.append(f"<td>{bars(one, name, span)}</td>")
        for printed in one.printed:
            value = ({**printed.values, **printed.totals}).get(name)
            row.append(f"<td>{'' if value is None else f'{value:g}'}</td>")
        lines.append(f"<tr{' class=total' if name == 'total' else ''}>{''.join(row)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def limits(one: Section) -> tuple[float, float]:
    """Where the axis begins and ends: at all that is shown, with some room, inside the scale."""
    low, high = one.scale
    values = [v for row in one.printed for v in [*row.values.values(), *row.totals.values()]]
    for run in one.runs:
        values += [v for e in run.score.ours.values() for v in (e.value, e.low, e.high) if not math.isnan(v)]
    if not values:
        return low, high
    room = 0.04 * (high - low)
    return max(low, min(values) - room), min(high, max(values) + room)


def axis(one: Section, span: tuple[float, float]) -> str:
    """The ends of the axis."""
    low, high = (f"{value:.3g}" for value in span)
    return f'<div class="ends" style="width:{WIDE}px"><span>{low}</span><span>{high}</span></div>'


def bars(one: Section, name: str, span: tuple[float, float]) -> str:
    """A dot with its interval for every run, and a stroke for every printed row."""
    low, high = span

    def at(value: float) -> float:
        return 5 + (WIDE - 10) * min(max((value - low) / (high - low or 1.0), 0.0), 1.0)

    height = HIGH * len(one.runs) + 8
    drawn = [f'<line class="axis" x1="5" x2="{WIDE - 5}" y1="{height / 2}" y2="{height / 2}" stroke-width="1"/>']
    for row in one.printed:
        value = ({**row.values, **row.totals}).get(name)
        if value is not None:
            said = f"<title>{escaped(row.model)}: {value:g}</title>"
            x = f"{at(value):.1f}"
            drawn.append(
                f'<line class="tick" x1="{x}" x2="{x}" y1="2" y2="{height - 2}" stroke-width="1.5">{said}</line>'
            )
    for n, run in enumerate(one.runs):
        ours, y = one.ours(run, name), 4 + HIGH * (n + 0.5)
        if ours is None:
            continue
        said = f"<title>{escaped(run.name)}: {one.said(ours.value)}</title>"
        if not math.isnan(ours.low):
            x1, x2 = f"{at(ours.low):.1f}", f"{at(ours.high):.1f}"
            drawn.append(f'<line class="run{n % 4}" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}" stroke-width="2"/>')
        drawn.append(f'<circle class="run{n % 4}" cx="{at(ours.value):.1f}" cy="{y}" r="4">{said}</circle>')
    return f'<svg width="{WIDE}" height="{height}" role="img" aria-label="{escaped(name)}">{"".join(drawn)}</svg>'


# Results.


def galleries(one: Section, count: int, thumbnails: Thumbnails) -> Iterator[str]:
    """Some items of every group, evenly spaced, with the results of all runs."""
    first = one.runs[0]
    groups = dict[str, list[Record]]()
    for record in first.records:
        if record.k == 0 or record.place[:2] not in {r.place[:2] for r in groups.get(record.group, [])[-1:]}:
            groups.setdefault(record.group, []).append(record)
    if groups:
        yield "<h3>Results</h3>"
    full = one.scale[1]
    for n, (group, records) in enumerate(groups.items()):
        some = [records[int(k)] for k in np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round())]
        shown = "".join(figure(one, record, full, thumbnails) for record in some)
        words = f"{len(some)} of {len(records)} items" + (", evenly spaced" if len(some) < len(records) else "")
        title = f'<summary><b>{escaped(group)}</b> <span class="soft">{words}</span></summary>'
        yield f'<details{"" if n else " open"}>{title}<div class="gallery">{shown}</div></details>'


def figure(one: Section, asked: Record, full: float, thumbnails: Thumbnails) -> str:
    """One result of an item, by every run; two judges of one image stand below it."""
    places, prompt = dict[Path | None, str](), ""
    for n, run in enumerate(one.runs):
        record = run.places.get(asked.place)
        if record is None:
            continue
        prompt = prompt or run.heading(record)
        if run.folder not in places:
            urls = pictures(run, record, thumbnails)
            places[run.folder] = "".join(f'<img src="{url}" alt="{escaped(prompt)}">' for url in urls if url)
        said = f'<p class="mark">{key(n)}{mark(run, record, full)}</p>'
        why = escaped(run.why(record))
        if why in places[run.folder]:  # of the other judge
            why = ""
        places[run.folder] += said + (f'<span class="why">{why}</span>' if why else "")
    name = escaped(prompt or asked.key)
    wide = ' class="wide"' if len(places) > 1 else ""
    shown = "".join(f"<div>{place}</div>" for place in places.values())
    return f'<figure{wide}><figcaption>{name}</figcaption><div class="pair">{shown}</div></figure>'


def mark(run: Evaluated, record: Record, full: float) -> str:
    """The verdict of a result."""
    if record.place not in run.values:
        return '<span class="bad">not judged</span>'
    value = run.values[record.place]
    if not set(run.values.values()) <= {0.0, full}:
        return f"{value:.3g}"
    return '<span class="good">✓ right</span>' if value else '<span class="bad">✗ wrong</span>'


def pictures(run: Evaluated, record: Record, thumbnails: Thumbnails) -> Iterator[str]:
    """What was given and what was made, as far as it lies in the folder of the run."""
    job = run.jobs.get(record.place[:2])
    if job is None and run.score.benchmark == "vbench":  # whose items have no group of their own
        job = run.jobs.get(("all", record.key))
    if job is None or run.folder is None:
        return
    try:
        for read in job.beside.values():
            yield thumbnails(read_media(read(), "the source"))
        for k, result in results_of(job, run.folder):
            if k == record.k:
                yield thumbnails(result())
    except (UserError, OSError) as error:
        thumbnails.left_out.append(str(error))
