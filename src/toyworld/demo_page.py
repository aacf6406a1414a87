"""The page of `openlance demo`: one HTML file with its pictures and its style inside, without scripts or requests."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openlance.media import Clip
    from toyworld.demo_shows import Shown


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A prompt, the size of its picture as (width, height), and questions with the answer that the prompt implies."""

    prompt: str
    size: tuple[int, int] = (64, 64)
    questions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said to a question (empty: a caption); `expected` is what the prompt implies, or empty."""

    question: str
    text: str
    expected: str
    seconds: float


@dataclass(kw_only=True)
class Card:
    """A drawn picture (Pillow, RGB) with what was asked about it."""

    wish: Wish
    picture: Any
    seconds: float
    answers: list[Answer] = field(default_factory=list)
    holds: bool | None = None  # what the judge of pixels says


def is_right(answer: Answer) -> bool:
    """Whether an answer is the expected one, in any spelling that the benchmark accepts."""
    from toyworld.questions import normalise

    return normalise(answer.text) == normalise(answer.expected)


STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #697180; --line: #e3e6eb; --card: #fff; --page: #f5f6f8;
  --good: #1a7f4b; --bad: #b3541e; --mark: #e6007a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #98a1b0; --line: #2c323c; --card: #1b1f26;
  --page: #12151a; --good: #4cc38a; --bad: #f0985c; --mark: #ff5cab; } }
* { box-sizing: border-box }
body { margin: 0; padding: 2.5rem clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
header { max-width: 70rem; margin: 0 auto 2rem }
h1 { margin: 0 0 .25rem; font-size: 1.75rem; letter-spacing: -.01em }
header p { margin: .25rem 0; color: var(--soft) }
main { max-width: 70rem; margin: 0 auto; display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)) }
article { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  display: flex; flex-direction: column }
figure { margin: 0; height: 16rem; display: grid; place-items: center; background: var(--page);
  border-bottom: 1px solid var(--line) }
.picture { position: relative; height: 13rem; max-width: 90% }
.picture img { height: 100%; display: block; border-radius: 4px }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100% }
.picture rect { fill: none; stroke: var(--mark); stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke-dasharray: 5 3 }
.pair { display: flex; align-items: center; justify-content: center; gap: .6rem; width: 92% }
.pair img { min-width: 0; flex: 1 1 0; max-width: 13rem; max-height: 13rem; border-radius: 4px }
.pair b { color: var(--soft) }
.text { padding: 1rem 1.1rem 1.1rem; flex: 1; display: flex; flex-direction: column }
h2 { margin: 0; font-size: 1.05rem; line-height: 1.35 }
.facts { margin: .15rem 0 .7rem; color: var(--soft); font-size: .85rem }
dl { margin: 0; border-top: 1px solid var(--line) }
dl div { padding: .45rem 0; border-bottom: 1px solid var(--line); display: grid; gap: 0 .75rem;
  grid-template-columns: 1fr auto }
dl div:last-child { border-bottom: 0; padding-bottom: 0 }
dt { color: var(--soft); font-size: .9rem }
dd { margin: 0; grid-column: 1; font-weight: 550; overflow-wrap: anywhere }
time { grid-column: 2; grid-row: 1; color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, monospace; font-weight: 400 }
.good { color: var(--good) } .bad { color: var(--bad) } .box { color: var(--mark) }
"""


def render_page(cards: list[Card], title: str, notes: list[str], shown: Sequence[Shown] = ()) -> str:
    """The whole page as HTML. Everything a model said or a user typed is escaped."""
    body = "\n".join([*(render_card(card) for card in cards), *(render_shown(one) for one in shown)])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>openlance demo: {html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{html.escape(title)} draws, then looks at what it drew</h1>
<p>{html.escape(" · ".join(notes))}</p>
<p>Every picture is sampled from its prompt, then the same model answers questions about it, and goes on with its own
pictures as far as it was trained to. Of an edit only the part that it names is drawn anew, where the model finds one;
what is checked is drawn until the model finds no fault, four times at most.</p>
<p><span class="good">✓</span> and <span class="bad">✗</span>: whether a judge that sees only pixels finds what the
prompt asks for, and whether an answer is what the prompt implies. A dashed frame is the box that the model gave.</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def render_card(card: Card) -> str:
    """One picture with its prompt, size, seconds, and what was asked about it."""
    width, height = card.picture.size
    mark = {True: ' <span class="good">✓</span>', False: ' <span class="bad">✗</span>', None: ""}[card.holds]
    rows = "\n".join(render_answer(answer) for answer in card.answers)
    prompt = html.escape(card.wish.prompt)
    return f"""<article>
<figure><div class="picture"><img src="{data_uri(card.picture)}" alt="{prompt}">{boxes(card)}</div></figure>
<div class="text">
<h2>{prompt}{mark}</h2>
<p class="facts">{width}×{height}, drawn in {card.seconds:.2f} s</p>
<dl>
{rows}
</dl>
</div>
</article>"""


def render_shown(shown: Shown) -> str:
    """A clip, an edit or a scene beside what it was made from, or what was said about it."""
    from openlance.sequence.tasks import TASKS

    mark = {True: ' <span class="good">✓</span>', False: ' <span class="bad">✗</span>', None: ""}[shown.holds]
    said = isinstance(shown.result, str)
    media = shown.given + ([] if isinstance(shown.result, str) else [shown.result])
    last = media[-1]
    pictures = "<b>→</b>".join(f'<img src="{clip_uri(clip)}" alt="{html.escape(shown.show.text)}">' for clip in media)
    length = f", {last.frames} frames" if last.frames > 1 else ""
    facts = f"{TASKS[shown.show.task].title}, {last.width}×{last.height}{length}, {shown.seconds:.2f} s"
    if not isinstance(shown.result, str):
        found = shown.result.verdict
        region = shown.result.made.region if shown.result.made is not None else ""
        facts += f"; changed: {html.escape(region)}" if region else ""
        facts += f"; checked: {html.escape(str(found))}" if found is not None else ""
    answer = f"<dl><div><dd>{html.escape(shown.result)}{mark}</dd></div></dl>" if isinstance(shown.result, str) else ""
    return f"""<article>
<figure><div class="pair">{pictures}</div></figure>
<div class="text">
<h2>{html.escape(shown.show.text)}{"" if said else mark}</h2>
<p class="facts">{facts}</p>
{answer}
</div>
</article>"""


def render_answer(answer: Answer) -> str:
    """A question with the answer, a mark where the right one is known, and the seconds it took."""
    text, mark = html.escape(answer.text), ""
    if answer.expected:
        mark = ' <span class="good">✓</span>' if is_right(answer) else ' <span class="bad">✗</span>'
    if answer.text.startswith(("[", "{")):
        text = f'<code class="box">{text}</code>'
    question = html.escape(answer.question) or "<i>caption</i>"
    return f"<div><dt>{question}</dt><dd>{text}{mark}</dd><time>{answer.seconds:.2f} s</time></div>"


def boxes(card: Card) -> str:
    """The boxes among the answers, drawn over the picture in its own pixel coordinates."""
    from toyworld.questions import parse_box

    width, height = card.picture.size
    found = [box for answer in card.answers if (box := parse_box(answer.text)) is not None]
    rects = "".join(
        f'<rect x="{x1:g}" y="{y1:g}" width="{max(x2 - x1, 0):g}" height="{max(y2 - y1, 0):g}"/>'
        for x1, y1, x2, y2 in found
    )
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{rects}</svg>' if rects else ""


def data_uri(picture: Any) -> str:
    """A Pillow image as a PNG inside the page."""
    memory = io.BytesIO()
    picture.save(memory, format="PNG")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def clip_uri(clip: Clip) -> str:
    """A picture or a clip, which then runs by itself, inside the page."""
    from PIL import Image

    if clip.frames == 1:
        return data_uri(Image.fromarray(clip.pixels[0]))
    from openlance.media.write import encode_animation

    return "data:image/webp;base64," + base64.b64encode(encode_animation(clip)).decode("ascii")
