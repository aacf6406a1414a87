"""The tab with what this browser has made: look, download, use again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from openlance.serve.studio import look
from openlance.serve.studio.calls import code
from openlance.serve.studio.memory import Result, kept, results
from openlance.serve.studio.parts import EVENT, Shared

NOTHING = '<div class="studio stage"><p class="empty">What you make is kept here, for this browser alone.</p></div>'
DOES = {"use": "Use these settings", "talk": "Take to the dialogue", "remove": "Remove"}
BUTTONS = "".join(look.button(word, does) for does, word in DOES.items())


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The components of the tab. chosen: the file that is looked at."""

    shared: Shared
    cards: Any
    detail: Any
    script: Any
    chosen: Any

    @property
    def shown(self) -> list[Any]:
        """What `show` changes."""
        return [self.cards, self.detail, self.script, self.chosen]

    def found(self, memory: Any) -> list[Result]:
        return kept(memory, self.shared.serving.store)

    def show(self, memory: Any, chosen: str) -> dict[Any, Any]:
        """Updates that show all results, and one of them large."""
        there = self.found(memory)
        one = next((one for one in there if one.file == chosen), None)
        known = {one.file: one.call for one in results(memory)}
        return {
            self.cards: cards(there, chosen), self.detail: "" if one is None else _large(one, self.shared.zoom),
            self.script: "" if one is None else look.python(code(self.shared.loading, [(one.call, one.file)], known)),
            self.chosen: "" if one is None else one.file,
        }  # fmt: skip

    def pick(self, memory: Any, event: gr.EventData) -> dict[Any, Any]:
        return self.show(memory, event.at)


def cards(found: list[Result], chosen: str) -> str:
    """All results, small."""
    parts = [
        f'<button type="button" data-do="pick" data-at="{one.file}" aria-pressed="{str(one.file == chosen).lower()}">'
        f"{look.thumbnail(one.file, one.call.text)}<span>{look.escape(one.call.text)}</span></button>"
        for one in found
    ]
    return f'<div class="studio cards">{"".join(parts)}</div>' if parts else NOTHING


def _large(one: Result, zoom: bool) -> str:
    head = f"{look.escape(one.call.spec.title)}: <b>{look.escape(one.call.text)}</b>"
    picture = look.shown(one.file, one.call.text, small=zoom)
    does = f'<div class="does">{look.download(one.file)}{BUTTONS}</div>'
    caption = f"<figcaption>{head}<br>{look.facts(one.call)}{look.found(one.verdict)}</figcaption>"
    return f'<div class="studio"><figure>{picture}{caption}</figure>{does}</div>'


def build(shared: Shared) -> Gallery:
    """Put the tab together."""
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            cards_ = gr.HTML(NOTHING, js_on_load=look.CLICKS, elem_id="gallery")
        with gr.Column(scale=4, min_width=300):
            detail = gr.HTML("", js_on_load=look.CLICKS, elem_id="detail")
            script = gr.HTML("", js_on_load=look.CLICKS)
    tab = Gallery(shared=shared, cards=cards_, detail=detail, script=script, chosen=gr.State(""))
    cards_.click(tab.pick, shared.memory, tab.shown, **EVENT)
    return tab
