"""What the tabs share."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import gradio as gr

from openlance.serve.failures import failure_of
from openlance.serve.serving import Serving
from openlance.serve.studio import look
from openlance.serve.studio.running import Desk

log = logging.getLogger(__name__)
# Of every event: the page shows its own progress, nothing is offered to programs, and the server's queue is the limit.
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The page.

    Args:
        desk: The queue.
        loading: The lines of Python that load the model as `pipe`.
        memory: What the browser remembers of its results.
        tabs: All tabs, to go to one of them.
        zoom: Whether the model's images are so small that their pixels are drawn large.
    """

    desk: Desk
    loading: str
    memory: Any
    tabs: Any
    zoom: bool

    @property
    def serving(self) -> Serving:
        return self.desk.serving


def inputs(name: str, visible: bool = True) -> tuple[Any, Any]:
    """The media that go in: their names in the store, and what shows them and takes more."""
    names = gr.State([])
    strip = gr.HTML(look.inputs([]), js_on_load=look.CLICKS, visible=visible, elem_id=name)
    strip.click(_changed, names, [names, strip], **EVENT)
    return names, strip


def _changed(names: list[str], event: gr.EventData) -> tuple[list[str], str]:
    if event.do == "remove":
        found, wrong = [name for name in names if name != event.at], ""
    else:
        found, wrong = [*names, *event.names], event.wrong
    return found, look.inputs(found, wrong)


def told(error: Exception) -> str:
    """A failure as the server says it, in one sentence."""
    failure = failure_of(error)
    if failure.code == "cancelled":
        return '<p class="note" role="status">Stopped.</p>'
    if failure.status >= 500:
        log.error("the page could not do what it was asked", exc_info=error)
    return look.mistake(str(failure))


def session(request: gr.Request, tab: str) -> str:
    """By which the items of one tab of one page are found again."""
    return f"{request.session_hash}/{tab}"
