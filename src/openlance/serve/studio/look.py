"""How the Studio looks: small pieces of HTML in the colors of gradio's theme, and the few rules that it lacks.

Everything that a person wrote is escaped. A button with `data-do` triggers the `click` of its component with that word
and `data-at`; one with `data-copy` copies the text of the element it names; an input of files sends them to the route
`files` and triggers `click` with their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

from openlance.serve.studio.calls import Call
from openlance.serve.studio.fields import FIELDS
from openlance.serve.studio.running import Progress

CSS = Path(__file__).with_name("page.css")
CLICKS = Path(__file__).with_name("page.js").read_text("utf-8")


def head(model: str) -> str:
    return f'<div class="studio-head"><h1>openlance Studio</h1><span>{escape(model)}</span></div>'


def shown(file: str, text: str, *, small: bool = False) -> str:
    """An image or a video of the store."""
    name, said = escape(f"/files/{file}"), escape(text, quote=True)
    kind = "made small" if small else "made"
    if file.endswith(".mp4"):
        plays = "autoplay loop muted playsinline controls"
        return f'<video class="{kind}" src="{name}" aria-label="{said}" {plays}></video>'
    return f'<img class="{kind}" src="{name}" alt="{said}">'


def thumbnail(file: str, text: str) -> str:
    """The same, still and without controls."""
    if file.endswith(".mp4"):
        name, said = escape(f"/files/{file}"), escape(text, quote=True)
        return f'<video class="made small" src="{name}" aria-label="{said}" muted playsinline></video>'
    return shown(file, text, small=True)


def button(word: str, does: str, at: Any = "", more: str = "") -> str:
    said = f' aria-label="{escape(more, quote=True)}"' if more else ""
    data = f'data-do="{does}" data-at="{escape(str(at), quote=True)}"'
    return f'<button type="button" {data}{said}>{escape(word)}</button>'


def chips(words: Iterable[str], does: str = "example") -> str:
    """Buttons with examples."""
    found = "".join(button(word, does, word) for word in words)
    return f'<div class="studio chips" role="group" aria-label="Examples">{found}</div>' if found else ""


def inputs(names: Iterable[str], wrong: str = "") -> str:
    """The media that go in, each with a button that takes it away, and a way to add more. wrong: why one was not."""
    parts = [f"<figure>{thumbnail(name, 'input')}{button('Remove', 'remove', name)}</figure>" for name in names]
    add = '<label class="attach">Add an image or a video<input type="file" multiple accept="image/*,video/*"></label>'
    return f'<div class="studio inputs">{"".join(parts)}{add}</div>' + (mistake(wrong) if wrong else "")


def brush(file: str, mask: str) -> str:
    """An image or a video on which is painted where it may change; mask: what was painted on it before."""
    if not file:
        return ""
    hint = "Paint where it may change. All else stays as it is."
    painted = f' data-mask="/files/{escape(mask)}"' if mask else ""
    canvas = f'<canvas aria-label="{hint}" role="img"{painted}></canvas>'
    tools = '<label>Brush <input type="range" min="2" max="40" value="12"></label>' + button("Clear", "clear")
    return (
        f'<div class="studio brush"><div class="layers">{shown(file, "what is changed", small=True)}{canvas}</div>'
        f'<div class="does">{tools}</div><p class="note">{hint}</p></div>'
    )


def found(verdict: str) -> str:
    """What the model found at its own result."""
    return f'<p class="note">Checked: {escape(verdict)}</p>' if verdict else ""


def download(file: str, word: str = "Download") -> str:
    path = PurePath(file)
    return f'<a href="/files/{escape(file)}" download="{path.stem[:8]}{path.suffix}">{word}</a>'


def mistake(message: str) -> str:
    """A mistake in one sentence."""
    return f'<div class="studio"><p class="wrong" role="alert">{escape(message)}</p></div>'


def facts(call: Call, seconds: float | None = None) -> str:
    """The settings of a result, in a line."""
    said = [f"{FIELDS[name][0].lower()} {value}" for name, value in call.settings.items() if name in FIELDS]
    said += [f"{seconds:.1f} s"] if seconds is not None else []
    return escape(" · ".join(said))


def stage(state: Progress, zoom: bool, does: str = "") -> str:
    """What is to be seen of a call, from its place in the queue to its result. does: buttons below the result."""
    text, notes = state.call.text, "".join(f'<p class="note">{escape(one)}</p>' for one in state.notices)
    small = zoom and not state.answer
    if state.finished and state.file:
        picture = shown(state.file, text, small=small)
        line = f"<figcaption>{facts(state.call, state.seconds)}{found(state.verdict)}</figcaption>"
        painted = download(state.call.mask, "Mask") if state.call.mask else ""
        does = f'<div class="does">{download(state.file)}{painted}{does}</div>'
        return f"<figure>{picture}{line}{does}{notes}</figure>"
    if state.finished or state.answer:
        seconds = state.seconds if state.finished else None
        line = f'<p class="note">{facts(state.call, seconds)}</p>'
        return f'<div><p class="answer">{escape(state.answer)}</p>{line}{notes}</div>'
    percent = 100 * state.done // state.total if state.total else 0
    waiting = "Beginning" if state.begun else "Waiting in the queue"
    said = f"Step {state.done} of {state.total}" if state.total else waiting
    kind = "made small" if zoom else "made"
    picture = f'<img class="{kind}" src="{state.preview}" alt="preview">' if state.preview else ""
    bar = f'<div class="bar" role="progressbar" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
    return f'<figure aria-busy="true">{picture}{bar}<figcaption>{said}</figcaption></figure>'


def side_by_side(parts: Sequence[str], heads: Sequence[str] = ()) -> str:
    titled = [f"<div><h3>{escape(head)}</h3>{part}</div>" for head, part in zip(heads, parts)] if heads else parts
    return f'<div class="studio stage" aria-live="polite">{"".join(titled)}</div>'


def python(text: str) -> str:
    """A script with a button that copies it."""
    if not text:
        return ""
    copy = '<button type="button" data-copy="script">Copy</button>'
    lines = f'<pre tabindex="0" aria-label="Python"><code class="script">{escape(text)}</code></pre>'
    return f'<div class="studio code">{copy}{lines}</div>'


ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="6" cy="6" r="5" fill="#dc2626"/>
<rect x="7" y="7" width="8" height="8" rx="1" fill="#0d9488"/></svg>"""


def theme() -> Any:
    """gradio's own, calmer, with fonts that come with it."""
    import gradio as gr

    fonts: list[Any] = [gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"]
    mono: list[Any] = [gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "monospace"]
    plain = {
        "block_background_fill": "transparent",
        "block_background_fill_dark": "transparent",
        "block_padding": "0px",
    }
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono).set(
        block_shadow="none", block_border_width="0px", block_title_text_weight="400", **plain
    )
