"""The page, put together and into an application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, Router

from openlance.serve.failures import Failure
from openlance.serve.serving import Serving
from openlance.serve.studio import create, dialogue, gallery, look
from openlance.serve.studio.calls import MOST_MEDIA
from openlance.serve.studio.login import Login
from openlance.serve.studio.memory import Talk, results
from openlance.serve.studio.parts import EVENT, Shared
from openlance.serve.studio.running import Desk, kept

PATH = "/studio"
SMALL = 256  # pixels: smaller images are shown with their pixels


def mount(app: FastAPI, loading: str) -> None:
    """Put the Studio into an application of `serve.app`.

    Args:
        app: The application; nothing of the Studio runs before its lifespan begins.
        loading: The lines of Python that load its model as `pipe`.
    """
    serving: Serving = app.state.serving

    @app.get("/", include_in_schema=False)
    @app.get(PATH, include_in_schema=False)  # what the page names is relative to the folder
    async def front() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(look.ICON, media_type="image/svg+xml")

    blocks = page(serving, loading)
    gr.mount_gradio_app(
        app, blocks, PATH, footer_links=[], run_history=False, ssr_mode=False, show_error=False,
        enable_monitoring=False, max_file_size=1, pwa=False, mcp_server=False, theme=look.theme(), css_paths=[look.CSS],
    )  # fmt: skip
    _close(blocks)
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    inner = Router([Route("/files", _files(serving), methods=["POST"]), Mount("/", mounted.app)])
    mounted.app = Login(inner, f"{PATH}/", serving)


def _files(serving: Serving) -> Callable[[Request], Awaitable[Response]]:
    """The route of what people bring along: it is read within the server's limits, and kept as it was read. A mistake
    is part of the answer: browsers take another status for a defect of the page."""

    async def bring(request: Request) -> Response:
        names, wrong = list[str](), ""
        try:
            fields = await request.form(max_files=MOST_MEDIA, max_fields=MOST_MEDIA)
            for sent in fields.getlist("file"):
                if isinstance(sent, str):
                    raise Failure("input: send files", code="invalid_value", param="input")
                names.append(await serving.off_loop(kept, serving, await serving.clip(sent, "input")))
        except (Failure, HTTPException) as error:
            wrong = str(getattr(error, "detail", error))
        return JSONResponse({"names": names, "wrong": wrong})

    return bring


def _close(blocks: gr.Blocks) -> None:
    """Keep gradio from reading files or addresses that a page names; mounted, it does not check them (6.31: only an
    app that was launched has its paths checked, and addresses are always fetched)."""
    blocks.has_launched = True

    async def refused(named: Any) -> str:
        raise gr.Error("files come in by their own route", print_exception=False)

    block: Any
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = refused


def page(serving: Serving, loading: str) -> gr.Blocks:
    """All tabs."""
    d = serving.pipe.defaults
    desk = Desk(serving)
    with gr.Blocks(title="openlance Studio", analytics_enabled=False) as blocks:
        gr.HTML(look.head(serving.config.name))
        memory = gr.BrowserState([], storage_key="openlance-results", secret="openlance")
        with gr.Tabs() as tabs:
            shared = Shared(desk=desk, loading=loading, memory=memory, tabs=tabs, zoom=max(d.height, d.width) < SMALL)
            with gr.Tab("Dialogue", id="dialogue"):
                talk = dialogue.build(shared)
            with gr.Tab("Create", id="create", elem_id="create-tab"):
                making = create.build(shared)
            with gr.Tab("Gallery", id="gallery") as third:
                hall = gallery.build(shared)
        _connect(blocks, third, talk, making, hall)

        def leave(request: gr.Request) -> None:
            desk.leave(request.session_hash)

        blocks.unload(leave)
    blocks.queue(default_concurrency_limit=None, max_size=4 * serving.config.queued, api_open=False)
    return blocks


def _connect(blocks: Any, third: Any, talk: dialogue.Dialogue, making: create.Create, hall: gallery.Gallery) -> None:
    """What goes from one tab to another."""
    shared = talk.shared
    memory, tabs = shared.memory, shared.tabs

    def begun(name: str, state: Any, remembered: Any) -> dict[Any, Any]:
        return making.choose(name) | talk.show(Talk.read(state), memory=remembered) | hall.show(remembered, "")

    def act(state: Any, remembered: Any, chosen: str, event: gr.EventData) -> dict[Any, Any]:
        one = next((one for one in hall.found(remembered) if one.file == chosen), None)
        if one is None:
            return hall.show(remembered, "")
        if event.do == "use":
            return making.fill(one.call) | {tabs: gr.update(selected="create")}
        if event.do == "talk":
            return talk.take(state, remembered, one.file) | {tabs: gr.update(selected="dialogue")}
        left = [each.model_dump(mode="json") for each in results(remembered) if each.file != chosen]
        return {memory: left} | hall.show(left, "")

    fitted = [making.text, making.examples, making.strip, making.paint]
    fitted += [*making.boxes.values(), *making.others.values()]
    blocks.load(begun, [making.task, talk.state, memory], [*fitted, *talk.shown, *hall.shown], **EVENT)
    third.select(hall.show, [memory, hall.chosen], hall.shown, **EVENT)
    both = [*making.filled, *talk.shown, *hall.shown, tabs, memory]
    hall.detail.click(act, [talk.state, memory, hall.chosen], both, **EVENT)
