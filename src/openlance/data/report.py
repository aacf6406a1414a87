"""What was found, before anything is trained: per source how much is used and what is left out, in which shares, how
many tokens and packs an epoch has, and the first samples in words.

    report = look({"t2i": open_source("pictures", "t2i")}, stage, codec)
    print(report.text())          # also .as_data(), and .page() as HTML with the images
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from openlance.config.sampling import EXACT, PromptStyle
from openlance.config.train import Stage
from openlance.data.census import Census
from openlance.data.front import Fit
from openlance.data.mixture import Mixture
from openlance.data.source import BrokenRow, Row, Sample, Source
from openlance.data.stream import length_of
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import collected
from openlance.sequence.segment import Kind, Role, Segment
from openlance.text.tokenizer import SequenceCodec

LOOKED_AT, TOLD = 8, 3  # samples whose tokens are counted, and that are told in words
LONGEST = 60  # characters of a text in a line


@dataclass
class Entry:
    """One source.

    Args:
        task: What it is for.
        source: Its name.
        census: What is in it; None where it has no end.
        share: Of the samples of the run.
        lengths: Tokens of the samples that were looked at.
        samples: These samples.
        broken: Why rows that were looked at cannot be used, by place.
        notices: What was shortened or skipped when their media were read.
        clips: What is taken of videos.
        mark: Tells one state of the data from another; empty where nothing does.
    """

    task: str
    source: str
    census: Census | None
    share: float
    lengths: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    clips: str = ""
    mark: str = ""

    @property
    def tokens(self) -> float | None:
        """Tokens of an epoch, from the mean of what was looked at; None where nobody can tell."""
        used = None if self.census is None else self.census.used
        return None if used is None or not self.lengths else used * sum(self.lengths) / len(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All sources of a stage."""

    entries: Sequence[Entry]
    stage: Stage

    def text(self) -> str:
        """A table, and under each source what is left out and the first samples."""
        lines = [f"{'task':<11}{'used':>9} of {'seen':<9}{'share':>6}{'tokens/epoch':>14}{'packs':>7}  source"]
        for e in self.entries:
            packs = "-" if e.tokens is None else f"{e.tokens / self.stage.pack_tokens[1]:.1f}"
            tokens = "-" if e.tokens is None else f"{e.tokens:,.0f}"
            used, seen = _counts(e.census)
            lines.append(f"{e.task:<11}{used:>9} of {seen:<9}{e.share:>6.0%}{tokens:>14}{packs:>7}  {e.source}")
            lines += [f"  {line}" for line in self._about(e)]
            lines += [f"  {n}  {in_words(s)}" for n, s in enumerate(e.samples[:TOLD], start=1)]
        return "\n".join(lines)

    def _about(self, e: Entry) -> list[str]:
        longest = self.stage.max_sample_tokens
        long = sum(n > longest for n in e.lengths)
        return [
            *(e.census.lines + e.census.notes if e.census is not None else ()),
            *([f"{long} of {len(e.lengths)} looked at are longer than {longest} tokens: left out"] if long else ()),
            *(f"broken: {place}: {why}" for place, why in list(e.broken.items())[:TOLD]),
            *([f"clips: {e.clips}"] if e.clips else ()),
            *e.notices[:1],
        ]

    def as_data(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "stage": self.stage.name, "pack_tokens": list(self.stage.pack_tokens),
            "sources": [
                {"task": e.task, "source": e.source, "mark": e.mark, "share": e.share,
                 "looked_at": len(e.lengths) + len(e.broken),
                 "tokens": e.tokens, "packs": e.tokens and e.tokens / self.stage.pack_tokens[1], "broken": e.broken,
                 "too_long": sum(n > self.stage.max_sample_tokens for n in e.lengths), "notices": e.notices,
                 "samples": [{"id": s.id, "text": in_words(s)} for s in e.samples[:TOLD]]}
                | (e.census.as_data() if e.census is not None else {"seen": None, "used": None})
                for e in self.entries
            ],
        }  # fmt: skip

    def page(self) -> str:
        """One HTML file with the samples as they will be trained on."""
        from html import escape

        parts = [f"<pre>{escape(self.text())}</pre>"]
        for e in self.entries:
            parts.append(f"<h2>{escape(e.task)}: {escape(e.source)}</h2><div class=sheet>")
            for s in e.samples:
                kept = {segment.role for segment in s.segments if segment.kind is Kind.LATENTS}
                shown = "".join(
                    _shown(segment) for segment in s.segments
                    if segment.role is not Role.SYSTEM and not (segment.kind is Kind.PATCHES and segment.role in kept)
                )  # fmt: skip
                parts.append(f"<figure>{shown}<figcaption>{escape(s.id)}</figcaption></figure>")
            parts.append("</div>")
        return PAGE.format(body="\n".join(parts))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What was found</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
pre {{ background: #f4f4f2; padding: 1rem; overflow-x: auto }}
.sheet {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }}
figure {{ margin: 0; padding: .75rem; border: 1px solid #ddd; border-radius: 6px; overflow-wrap: anywhere }}
img {{ max-width: 100%; max-height: 12rem; margin: 0 .3rem .3rem 0; vertical-align: top }}
img.made {{ outline: 3px solid #2a7a4b }}
p {{ margin: .3rem 0 }} p.made {{ color: #2a7a4b; font-weight: 600 }}
figcaption {{ color: #666; font-size: 12px }}
</style>
{body}
</html>
"""


def look(
    sources: Mapping[str, Source], stage: Stage, codec: SequenceCodec, style: PromptStyle = EXACT, *,
    most: int = LOOKED_AT,
) -> Report:  # fmt: skip
    """Look at what a stage would read.

    Args:
        sources: By task.
        stage: Gives shares, sizes and the budget of packs.
        codec: Of the model.
        style: How samples are worded.
        most: Samples of each source that are decoded.
    """
    shares, fit = Mixture(stage.mixture, stage.seed).shares, Fit.at(stage, 0, codec.config, style)
    entries = []
    for task, source in sources.items():
        entry = Entry(task, str(source), getattr(source, "census", None), shares.get(task, 0.0))
        for n, row in enumerate(islice(_spread(source, most), most)):
            try:
                with collected() as said:
                    sample = source.sample(row, fit, np.random.default_rng(n))
                entry.lengths.append(length_of(sample.segments, codec, stage.draws))
            except (BrokenRow, UserError) as error:
                broken = error if isinstance(error, BrokenRow) else BrokenRow(row.place, error)
                entry.broken[broken.place] = broken.reason
            else:
                entry.samples.append(sample)
                entry.notices += [line for line in said if line not in entry.notices]
        entry.mark = getattr(source, "mark", "")
        if any(s.size is not None and s.size[0] > 1 for one in entry.samples for s in one.segments):
            entry.clips = getattr(getattr(source, "layout", None), "rule", lambda _: "")(stage.max_frames)
        entries.append(entry)
    return Report(entries=entries, stage=stage)


def _spread(source: Source, most: int) -> Iterator[Row]:
    """The first rows of a source, and others from all over it."""
    parts = source.parts(0, None)
    chosen = (
        sorted({0, *np.linspace(0, len(parts) - 1, min(most, len(parts)), dtype=int).tolist()}) if len(parts) else []
    )
    for at in chosen:
        rows, share = source.rows(parts[at]), max(most // len(chosen), TOLD if at == 0 else 1)
        if isinstance(rows, Sequence):
            first = range(min(TOLD, len(rows))) if at == 0 else ()
            even = np.linspace(0, len(rows) - 1, min(share, len(rows)), dtype=int).tolist()
            yield from (rows[n] for n in sorted({*first, *even}))
        else:
            yield from islice(rows, share)


def _counts(census: Census | None) -> tuple[str, str]:
    if census is None:
        return "endless", "endless"
    return ("?" if census.used is None else f"{census.used:,}"), ("?" if census.seen is None else f"{census.seen:,}")


def in_words(sample: Sample) -> str:
    """A sample on one line: what is read, an arrow before what is to be made, its texts cut."""
    words = list[str]()
    kept = {s.role for s in sample.segments if s.kind is Kind.LATENTS}
    for s in sample.segments:
        if s.role is Role.SYSTEM or (s.kind is Kind.PATCHES and s.role in kept):  # the ViT's view of what the VAE keeps
            continue
        words += ["->"] if s.role is Role.TARGET else []
        words.append(_brief(s.text) if s.kind is Kind.TEXT else f"[{_seen(s)}]")
    return " ".join(words)


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."}"'


def _seen(s: Segment) -> str:
    frames, height, width = s.size or (1, 0, 0)
    return f"image {width}x{height}" if frames == 1 else f"video {width}x{height}, {frames} frames"


def _shown(s: Segment) -> str:
    from html import escape

    made = " class=made" if s.role is Role.TARGET else ""
    if s.kind is Kind.TEXT:
        return f"<p{made}>{escape(s.text)}</p>"
    if not isinstance(s.value, Clip):
        return f"<p{made}>[{escape(_seen(s))}, encoded]</p>"
    frames = sorted({0, s.value.frames // 2, s.value.frames - 1})
    return "".join(f'<img{made} alt="{escape(_seen(s))}" src="{_picture(s.value.pixels[n])}">' for n in frames)


def _picture(pixels: np.ndarray) -> str:
    import base64
    import io

    from PIL import Image

    out, image = io.BytesIO(), Image.fromarray(pixels)
    image.thumbnail((320, 320))
    image.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
