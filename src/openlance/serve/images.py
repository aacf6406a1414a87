"""`/v1/images/generations` and `/v1/images/edits`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from openlance.media import Clip
from openlance.sequence import tasks
from openlance.serve import media
from openlance.serve.answers import Images, ImageUsage
from openlance.serve.bodies import ImageBody, ImageEditBody, read
from openlance.serve.failures import Failure
from openlance.serve.openapi import answers, form_of, json_of
from openlance.serve.serving import Prepared, Serving, answer, checked, comment, event, stream
from openlance.serve.worker import Partial, Step

IMAGE_TYPES = [media.MIME[form] for form in ("png", "jpeg", "webp")]
ANSWERS = answers(Images, "text/event-stream")


def routes(serving: Serving) -> APIRouter:
    router = APIRouter(tags=["images"])

    @router.post("/v1/images/generations", openapi_extra=json_of(ImageBody), responses=ANSWERS)
    async def generations(request: Request) -> Response:
        body = await read(request, ImageBody, serving.config.name)
        return await _answer(serving, request, body, "image_generation", tasks.text_to_visual, [])

    @router.post("/v1/images/edits", openapi_extra=form_of(ImageEditBody), responses=ANSWERS)
    async def edits(request: Request) -> Response:
        body = await read(request, ImageEditBody, serving.config.name)
        sent = [*(("image", one) for one in body.image), *(("url", one) for one in body.url)]
        if not sent:
            raise Failure("image: send at least one", code="missing_required_parameter", param="image")
        clips = [await serving.clip(one, param) for param, one in sent]
        if any(clip.frames > 1 for clip in clips):
            message = "image: send images; /v1/videos/edits takes videos"
            raise Failure(message, code="invalid_value", param="image")
        mask = None if body.mask is None else await serving.mask(body.mask, clips[0])
        if mask is not None:  # which is the first one's (OpenAI's): it is what is changed, and that is read last
            clips = [*clips[1:], clips[0]]
        return await _answer(serving, request, body, "image_edit", tasks.edit, clips, mask, body.region)

    @router.get("/files/{name}", response_class=Response, responses=answers(None, *IMAGE_TYPES))
    def file(name: str) -> Response:
        path = serving.store.path(name)
        return FileResponse(path, media_type=media.MIME[path.suffix[1:]])

    return router


async def _answer(
    serving: Serving,
    request: Request,
    body: ImageBody,
    kind: str,
    template: tasks.Template,
    clips: list[Clip],
    mask: np.ndarray | None = None,
    region: Any = None,
) -> Response:
    if body.stream and body.n > 1:
        raise Failure("n: a stream brings one image", code="invalid_value", param="n")
    if body.stream and body.response_format == "url":
        raise Failure("response_format: a stream brings b64_json", code="invalid_value", param="response_format")
    partials = body.partial_images if body.stream else 0
    spec = tasks.the_task(template, "image")
    prepared = await serving.off_loop(
        lambda: serving.drawing(
            spec, body.prompt, clips, body, count=body.n, partials=partials, mask=mask, region=region
        )
    )
    if body.stream:
        lines = _events(serving, body, kind, prepared, serving.listen(prepared.items))
        return StreamingResponse(stream(lines), media_type="text/event-stream")
    made = await serving.results(request, prepared.items)
    base = str(request.base_url)

    def finished() -> Response:
        found = []
        for item, clip in zip(prepared.items, made, strict=True):
            data = media.encoded(clip, body.output_format, body.output_compression)
            if body.response_format == "url":
                shown = {"url": f"{base}files/{serving.store.keep(data, body.output_format)}"}
            else:
                shown = {"b64_json": media.base64_of(data)}
            found.append(shown | {"seed": item.seed_of(clip)} | checked(clip))
        said = _said(body, made[0]) | {"data": found, "usage": usage(prepared)}
        return answer({"created": int(time.time())} | said | prepared.told)

    with serving.metrics.phase("encode"):
        return await serving.off_loop(finished)


def _said(body: ImageBody, clip: Clip) -> dict[str, Any]:
    return {
        "size": f"{clip.width}x{clip.height}", "quality": "auto", "background": "opaque",
        "output_format": body.output_format,
    }  # fmt: skip


def usage(prepared: Prepared) -> ImageUsage:
    """Tokens of a request, as OpenAI counts those of images."""
    going_in, out = prepared.words + prepared.cells, prepared.made * len(prepared.items)
    return {
        "input_tokens": going_in, "output_tokens": out, "total_tokens": going_in + out,
        "input_tokens_details": {"text_tokens": prepared.words, "image_tokens": prepared.cells},
    }  # fmt: skip


async def _events(
    serving: Serving, body: ImageBody, kind: str, prepared: Prepared, heard: AsyncGenerator[tuple[int, Any], None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(heard):
        async for _, what in heard:
            if isinstance(what, Step):
                yield comment(f"step {what.done} of {what.total}")
            elif isinstance(what, (Partial, Clip)):
                yield await serving.off_loop(_event, body, kind, prepared, what)


def _event(body: ImageBody, kind: str, prepared: Prepared, what: Partial | Clip) -> bytes:
    clip = what.clip if isinstance(what, Partial) else what
    data = media.base64_of(media.encoded(clip, body.output_format, body.output_compression))
    said = {"b64_json": data, "created_at": int(time.time())} | _said(body, clip)
    if isinstance(what, Partial):
        name = f"{kind}.partial_image"
        said["partial_image_index"] = what.index
    else:
        name = f"{kind}.completed"
        said |= {"usage": usage(prepared), "seed": prepared.items[0].seed_of(clip)} | checked(clip) | prepared.told
    return event({"type": name} | said, name)
