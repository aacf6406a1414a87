"""`/v1/chat/completions`: questions, images and videos in a conversation.

What the last message is about is what it shows, or the newest image or video before it, a drawn one too. `modalities`
say what comes of it; with several the words decide, by the rule of `openlance chat`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from openlance.inference.turns import Heard, newest, ordered, retold, table, wanted
from openlance.media import Clip
from openlance.sequence import tasks
from openlance.serve import media
from openlance.serve.answers import Completion
from openlance.serve.bodies import ChatBody, Message, read
from openlance.serve.failures import Failure, about
from openlance.serve.openapi import answers, json_of
from openlance.serve.serving import Prepared, Serving, answer, checked, comment, event, stream
from openlance.serve.worker import Piece, Step

ANSWERS = answers(Completion, "text/event-stream")


def routes(serving: Serving) -> APIRouter:
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions", openapi_extra=json_of(ChatBody), responses=ANSWERS)
    async def completions(request: Request) -> Response:
        body = await read(request, ChatBody, serving.config.name)
        prepared, spec = await serving.off_loop(_prepared, serving, body)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": serving.config.name}
        if body.stream:
            lines = _chunks(serving, body, spec, prepared, head, serving.listen(prepared.items))
            return StreamingResponse(stream(lines), media_type="text/event-stream")
        results = await serving.results(request, prepared.items)
        return await serving.off_loop(_completion, serving, body, prepared, head, results)

    return router


def _completion(
    serving: Serving, body: ChatBody, prepared: Prepared, head: dict[str, Any], results: list[Any]
) -> Response:
    choices, out = list[dict[str, Any]](), 0
    for n, result in enumerate(results):
        content, reason, words = _content(serving, body, result)
        message = {"role": "assistant", **content, "refusal": None}
        choice = {"index": n, "message": message, "finish_reason": reason, "logprobs": None}
        choices.append(choice | (checked(result) if isinstance(result, Clip) else {}))
        out += words
    said = head | {"object": "chat.completion", "choices": choices, "usage": _usage(prepared, out)}
    return answer(said | prepared.told)


def _content(serving: Serving, body: ChatBody, result: Any) -> tuple[dict[str, Any], str, int]:
    """What a message holds, why it ended, and its tokens."""
    if not isinstance(result, Clip):
        return {"content": str(result)}, result.finish_reason, len(serving.pipe.codec.ids(result))
    form, name = ("png", "image_url") if result.frames == 1 else ("mp4", "video_url")
    with serving.metrics.phase("encode"):
        url = media.data_url(media.encoded(result, form), form)
    parts = [{"type": name, name: {"url": url}}]
    if body.media == "content":
        return {"content": parts}, "stop", 0
    return {"content": "", "images" if result.frames == 1 else "videos": parts}, "stop", 0


def _usage(prepared: Prepared, words: int) -> dict[str, Any]:
    going_in, out = prepared.words + prepared.cells, words + prepared.made * len(prepared.items)
    return {"prompt_tokens": going_in, "completion_tokens": out, "total_tokens": going_in + out}


async def _chunks(
    serving: Serving, body: ChatBody, spec: tasks.TaskSpec, prepared: Prepared, head: dict[str, Any],
    heard: AsyncGenerator[tuple[int, Any], None],
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    options, out = body.stream_options, 0
    usage = {"usage": None} if options is not None and options.include_usage else {}
    more = {} if spec.makes == "text" else {"modality": spec.makes}

    def chunk(number: int, delta: dict[str, Any], reason: str | None = None, **found: Any) -> bytes:
        choice = {"index": number, "delta": delta, "finish_reason": reason, "logprobs": None} | found
        return event(head | {"object": "chat.completion.chunk", "choices": [choice]} | usage | more)

    for n in range(body.n):
        yield chunk(n, {"role": "assistant", "content": ""})
    async with aclosing(heard):
        async for n, what in heard:
            if isinstance(what, Step):
                yield comment(f"step {what.done} of {what.total}")
            elif isinstance(what, Piece):
                yield chunk(n, {"content": what.text})
            elif isinstance(what, (str, Clip)):
                content, reason, words = await serving.off_loop(_content, serving, body, what)
                out += words
                if isinstance(what, Clip):
                    yield await serving.off_loop(chunk, n, content)
                yield chunk(n, {}, reason, **(checked(what) if isinstance(what, Clip) else {}))
    if usage:
        yield event(head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(prepared, out)})
    yield event("[DONE]")


# Preparation, in a thread.


def _prepared(serving: Serving, body: ChatBody) -> tuple[Prepared, tasks.TaskSpec]:
    said, turns = _conversation(serving, body)
    said = body.system_prompt if body.system_prompt is not None else said
    *before, now = turns
    with about("messages"):
        last = wanted(now.text, table(before), shown=now.shown, modalities=body.modalities)
        history = serving.pipe.defaults.history
        past = newest(retold(serving.pipe.front, before), history) if history else []
    if last.spec.makes == "text":
        prepared = serving.answering(
            last.text, last.clips, body.decoding, seed=body.seed, count=body.n, said=said, past=past
        )
        if (kind := ordered(now.text)) is not None:
            said = f'this makes text alone: for {kind}s add "{kind}" to "modalities"'
            prepared = replace(prepared, notices=[*prepared.notices, said])
        return prepared, last.spec
    frames = body.frames(serving.pipe.config.vae.temporal_stride) if last.spec.makes == "video" else None
    if last.spec.sized_by_source:
        frames = None
    prepared = serving.drawing(
        last.spec, last.text, last.clips, body, num_frames=frames, count=body.n, said=said, past=past, where="messages"
    )
    return prepared, last.spec


def _conversation(serving: Serving, body: ChatBody) -> tuple[str | None, list[Heard]]:
    """The system prompt, and the turns; the last one has no answer."""
    said, turns = list[str](), list[Heard]()
    sent = sum(part.type != "text" for message in body.messages for part in message.parts)
    if sent > serving.config.media:
        too_many = f"messages: {sent} images and videos, and at most {serving.config.media} are read"
        raise Failure(too_many, code="invalid_value", param="messages")
    for n, message in enumerate(body.messages):
        text, clips = _parts(serving, message, n)
        if message.role in ("system", "developer"):
            said.append(text)
        elif message.role == "user":
            if turns and turns[-1].answer is None and not turns[-1].made:  # two messages of one turn
                turns[-1].text = f"{turns[-1].text}\n{text}".strip()
                turns[-1].shown += clips
            else:
                turns.append(Heard(text=text, shown=clips))
        else:
            turns = turns or [Heard()]
            turns[-1].made += clips
            if text or not clips:
                turns[-1].answer = (turns[-1].answer or "") + text
    if body.messages[-1].role != "user":
        raise Failure("messages: the last one has to be the user's", code="invalid_value", param="messages")
    return "\n".join(said) or None, turns


def _parts(serving: Serving, message: Message, n: int) -> tuple[str, list[Clip]]:
    """The text of a message and its media."""
    texts, clips = list[str](), list[Clip]()
    held = {"content": message.said, "images": message.images, "videos": message.videos}
    for where, part in ((f"messages.{n}.{name}.{k}", p) for name, some in held.items() for k, p in enumerate(some)):
        if part.type == "text":
            texts.append(part.text or "")
            continue
        sent = part.image_url or part.video_url
        url = (part.file or {}).get("file_data") if sent is None else sent.url
        if not isinstance(url, str):
            message_ = f"{where}: a part of type {part.type} needs its {part.type}"
            raise Failure(message_, code="missing_required_parameter", param=where)
        clips.append(media.read(url, serving.config, where))
    return "\n".join(texts), clips
