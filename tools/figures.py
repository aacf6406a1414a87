"""Draw the figures of the docs: `python tools/figures.py`.

docs/images/nano.png are prompts and what nano drew for them, nothing picked, the seeds being 0, 1, 2 and so on;
few-passes.png the same beside what it draws in two passes. The SVG
figures are read from the rows that the code packs, from `visible` and from the recipes, so they say what the code does;
tests/docs/test_figures.py holds the committed files to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

import openlance
from openlance.cli.explain import media_of, without_weights
from openlance.config.train import recipe
from openlance.sequence.explain import Explanation, explain
from openlance.sequence.segment import LATENTS, TEXT, Rows, dense_mask
from openlance.sequence.tasks import spec_of
from openlance.sequence.view import STYLE, svg
from openlance.text.tokenizer import SequenceCodec

PROMPTS = [
    "a red circle left of a blue square",
    "a yellow triangle above a purple ring",
    "three orange circles",
    "four blue squares",
    "a striped green star",
    "an outlined purple circle on a grey background",
    "a small cyan triangle below a large orange square",
    'the text "A7"',
]
SIDE, ZOOM, COLUMNS, LABEL = 64, 3, 4, 40  # pixels of a picture, enlargement, pictures per line, height of a label
INK, PAPER = (40, 40, 40), (255, 255, 255)
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text with line ends, so that no line is wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def sheet(pictures: list[Image.Image], labels: list[str]) -> Image.Image:
    """Pictures in a grid, each with its prompt below."""
    side, gap, font = SIDE * ZOOM, 12, ImageFont.load_default(13)
    lines = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (side + gap) + gap, lines * (side + LABEL + gap) + gap), PAPER)
    for number, (picture, label) in enumerate(zip(pictures, labels)):
        x, y = gap + number % COLUMNS * (side + gap), gap + number // COLUMNS * (side + LABEL + gap)
        page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        ImageDraw.Draw(page).text((x, y + side + 4), wrapped(label, side, font), INK, font)
    return page


def read(
    task: str, prompt: str, side: int = SIDE, frames: int = 9, *, shift: bool = True, answer: str = ""
) -> Explanation:
    """What the rows of a request of nano say."""
    config, front, words = without_weights("nano", None)
    spec = spec_of(task)
    clips = media_of([], spec.reads, 1, frames, (side, side))
    if answer:
        segments = front.sample(spec, prompt, clips, answer)
    else:
        segments = front.request(spec, prompt, clips, asked=(frames, side, side))
    text = partial(words.backend.decode, skip_special_tokens=False)
    return explain(segments, SequenceCodec(words, config), replace(config.position, shift=shift), text)


def figure(width: float, height: float, title: str, parts: Iterator[str]) -> str:
    """An SVG in the colors of the drawings of `explain`, light and dark."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" class="openlance-sequence" role="img"'
    return "\n".join([
        f'{head} width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">',
         f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>",
        f'<rect width="{width:g}" height="{height:g}" rx="14" fill="var(--card)"/>', *parts, "</svg>\n",
    ])  # fmt: skip


def words(x: float, y: float, text: str, style: str = "", fill: str = "") -> str:
    look = f' style="fill:var(--{fill})"' if fill else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}"{look}>{escape(text)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" {more}/>'


def color(rows: Rows, row: int) -> str:
    kind = int(rows.kind[row])
    return "var(--text)" if kind == TEXT else "var(--latents)" if kind == LATENTS else "var(--patches)"


def masks() -> str:
    """The mask of four tasks, token by token: a cell is colored where its query (down) may look at its key (along)."""
    shown = [
        ("t2i, an image from words", read("t2i", "a red circle", 32)),
        ("image_edit", read("image_edit", "make it blue", 32)),
        ("i2v, nine frames from an image", read("i2v", "the circle moves up", 32)),
        ("x2t_image, with its answer", read("x2t_image", "what is it?", 32, answer="a red circle")),
    ]
    side, gap = 400, 36

    def parts() -> Iterator[str]:
        for n, (title, found) in enumerate(shown):
            left, top = 44 + n % 2 * (side + gap), 54 + n // 2 * (side + gap + 34)
            rows, cell = found.rows, side / found.tokens
            yield words(left, top - 14, f"{title}: {found.tokens} tokens", "name")
            for query, line in enumerate(dense_mask(rows).tolist()):
                seen = [(k, (color(rows, k), bool(rows.denoise[k]))) for k, value in enumerate(line) if value]
                for (fill, noisy), run in groupby(seen, lambda pair: pair[1]):
                    keys = [k for k, _ in run]
                    look = 'opacity="0.55"' if noisy else ""
                    yield box(
                        left + cell * keys[0], top + cell * query, cell * (keys[-1] + 1 - keys[0]), cell, fill, look
                    )
            yield f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="var(--line)"/>'
        y = 54 + 2 * (side + gap + 34) - 24
        for x, fill, text in ((44, "text", "text"), (120, "patches", "ViT patches"), (236, "latents", "latents, clean"),
                              (370, "latents", "latents that are denoised")):  # fmt: skip
            yield box(x, y - 11, 18, 13, f"var(--{fill})", 'opacity="0.55"' if "denoised" in text else "")
            yield words(x + 24, y, text)

    return figure(44 + 2 * side + gap + 28, 54 + 2 * (side + gap + 34), "Attention masks of four tasks", parts())


def streams() -> str:
    """Which expert each token of an edit passes, and where tokens of both meet."""
    found = read("image_edit", "make it blue", 32)
    rows, left, width = found.rows, 150.0, 760.0
    cell = width / found.tokens

    def tokens(top: float, chosen: Callable[[int], bool]) -> Iterator[str]:
        for n in range(len(rows)):
            if chosen(n):
                noisy = 'opacity="0.55"' if bool(rows.denoise[n]) else ""
                yield box(left + cell * n, top, cell * 0.86, 26, color(rows, n), noisy)

    def experts(top: float, does: str) -> Iterator[str]:
        for generates, name, stream in ((False, "understanding expert", "und"), (True, "generation expert", "gen")):
            yield words(left - 14, top + 18, name, "soft end", stream)
            yield box(left - 4, top - 5, width + 8, 36, "none", f'rx="7" stroke="var(--{stream})" stroke-width="1.5"')
            yield from tokens(top, lambda n, generates=generates: bool(rows.is_latent[n]) == generates)
            yield words(left + width + 14, top + 18, does, "soft")
            top += 44

    def parts() -> Iterator[str]:
        yield words(28, 36, f"One layer, {found.tokens} tokens of an edit", "title")
        yield words(left - 14, 76, "tokens", "soft end")
        yield from tokens(58, lambda n: True)
        yield from experts(108, "norm, q k v, q/k norm")
        yield box(left - 4, 204, width + 8, 34, "var(--line)", 'rx="7"')
        yield words(left + width / 2, 226, "one attention over all tokens, under one mask", "name middle")
        yield from experts(256, "output, norm, MLP")
        latents = int(rows.is_latent.sum())
        said = f"{len(rows) - latents} tokens take the understanding expert (text, ViT patches, markers), "
        yield words(left, 366, f"{said}{latents} the generation expert (latents, clean or noisy).", "soft")

    return figure(1080, 388, "The two streams of a layer", parts())


def mape() -> str:
    """Positions of three tasks along time, before and after the modality shift, token by token."""
    shown = [
        ("image_edit", "make it blue"), ("i2v", "the circle moves up"), ("image_idip", "the circle on white"),
    ]  # fmt: skip
    levels, high, left, width = [0, 10, 20, 30, 40, 60, 80, 1000, 2000], 26.0, 90.0, 860.0

    def at(top: float, t: float) -> float:
        """Evenly between ticks, so that 1000 and 2000 fit beside text."""
        upper = next((n for n, level in enumerate(levels) if level >= t), len(levels) - 1)
        low, up = levels[max(upper - 1, 0)], levels[upper]
        share = (t - low) / (up - low) if up > low else 0.0
        return top + high * (len(levels) - 1 - (max(upper - 1, 0) + share))

    def parts() -> Iterator[str]:
        yield words(28, 36, "Position t of every token: before MaPE (violet) and after it", "title")
        for n, (task, prompt) in enumerate(shown):
            top = 84 + n * (high * len(levels) + 56)
            before, after = (read(task, prompt, 32, shift=shift).rows for shift in (False, True))
            cell = width / len(after)
            yield words(left, top - 14, f'{task} "{prompt}"', "name")
            for level in levels:
                yield words(left - 10, at(top, level) + 4, str(level), "soft end")
                yield f'<path d="M{left} {at(top, level):.1f}h{width}" stroke="var(--line)"/>'
            for row in range(len(after)):
                x = left + cell * row
                if not bool((before.position[row] == after.position[row]).all()):
                    y = at(top, int(before.position[row, 0]))
                    yield box(x, y - 1.5, cell * 0.8, 3, "var(--moved)", 'opacity="0.7"')
                yield box(x, at(top, int(after.position[row, 0])) - 3, cell * 0.86, 6, color(after, row))
        bottom = 84 + len(shown) * (high * len(levels) + 56) - 20
        said = "Tokens in their order. Gray: text, markers; green: ViT patches; orange: latents. The t axis is uneven."
        yield words(left, bottom, said, "soft")

    return figure(980, 84 + len(shown) * (high * len(levels) + 56), "Modality-aware positions", parts())


def stages() -> str:
    """What samples the paper's stages are made of."""
    found = [stage for stage in recipe("3b") if stage.name != "rl"]
    tasks = list(dict.fromkeys(task for stage in found for task in stage.mixture))
    hues = dict(zip(tasks, "#2b8f86 #5aa9a0 #b7791f #8c8375 #d39a2e #8a4fd0 #a37bd6 #59657a #8592a6".split()))
    left, top, width, high = 96.0, 66.0, 820.0, 34.0

    def parts() -> Iterator[str]:
        yield words(28, 36, "Share of samples by task, in the stages of the paper", "title")
        for n, stage in enumerate(found):
            y, x, total = top + n * (high + 26), left, sum(stage.mixture.values())
            yield words(left - 14, y + 22, stage.name, "name end")
            for task, ratio in stage.mixture.items():
                share = width * ratio / total
                yield box(x, y, share - 1.5, high, hues[task])
                if share > 30:
                    place = f'x="{x + share / 2:.1f}" y="{y + 22:.1f}" class="middle" style="fill:#fff"'
                    yield f"<text {place}>{ratio / total:.0%}</text>"
                x += share
            tokens = f"{stage.pack_tokens[0]:,} to {stage.pack_tokens[1]:,} tokens a pack"
            yield words(left, y + high + 14, f"{stage.steps:,} steps, rate {stage.lr:g}, {tokens}", "soft")
        for n, task in enumerate(tasks):
            x, y = left + n % 5 * 164, top + len(found) * (high + 26) + 20 + n // 5 * 24
            yield box(x, y - 11, 18, 13, hues[task])
            yield words(x + 24, y, task)

    return figure(960, top + len(found) * (high + 26) + 64, "Mixtures of the training stages", parts())


FIGURES: dict[str, Callable[[], str]] = {
    "image_edit.svg": lambda: svg(read("image_edit", "make it blue"), "image_edit with nano"),
    "t2i.svg": lambda: svg(read("t2i", "a red circle left of a blue square"), "t2i with nano"),
    "i2v.svg": lambda: svg(read("i2v", "the circle moves up"), "i2v with nano, 9 frames"),
    "x2t_image.svg": lambda: svg(read("x2t_image", "what is it?", answer="a red circle"), "x2t_image, a sample"),
    "mask.svg": masks, "streams.svg": streams, "mape.svg": mape, "stages.svg": stages,
}  # fmt: skip


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
    pipe = openlance.load("nano")
    usual, few = (pipe.generate(PROMPTS, height=SIDE, width=SIDE, seed=0, distilled=few) for few in (False, True))
    sheet(usual, PROMPTS).save(IMAGES / "nano.png")
    pairs = [picture for pair in zip(usual, few, strict=True) for picture in pair]
    sheet(pairs, [label for prompt in PROMPTS for label in (prompt, "in two passes")]).save(IMAGES / "few-passes.png")
    print(*sorted(IMAGES.iterdir()), sep="\n")


if __name__ == "__main__":
    main()
