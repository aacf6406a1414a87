"""What the routes share: requests become items of the queue here, and items become results or events."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from openlance.config.sampling import Decoding, later_seed
from openlance.errors import UserError
from openlance.inference.checking import Search
from openlance.inference.enhance import thinker
from openlance.inference.inputs import draws, listed, question_about, random_seed, seed_of
from openlance.inference.lance_pipeline import LancePipeline
from openlance.inference.regions import Asked, placed
from openlance.inference.turns import plain
from openlance.media import Clip, collected, notice
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segments, source_in
from openlance.serve import media
from openlance.serve.bodies import DrawingBody
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure, about, failure_of
from openlance.serve.metrics import Metrics
from openlance.serve.store import Store
from openlance.serve.worker import Item, Queue, follow

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a request comes to.

    Args:
        items: One for each result.
        notices: What was left out of its media.
        words: Tokens of text that go in.
        cells: Tokens of images that go in.
        made: Tokens of each image or video that comes out.
    """

    items: list[Item]
    notices: list[str] = field(default_factory=list)
    words: int = 0
    cells: int = 0
    made: int = 0

    @property
    def told(self) -> dict[str, Any]:
        """What an answer says of the notices."""
        return {"notices": self.notices} if self.notices else {}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The parts of a server."""

    pipe: LancePipeline
    config: ServeConfig
    metrics: Metrics
    worker: Queue
    store: Store
    pool: ThreadPoolExecutor

    async def off_loop(self, call: Callable[..., T], *args: Any) -> T:
        """Do something heavy in a thread of its own pool, so that it waits for nothing that the framework does."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, copy_context().run, call, *args)

    async def clip(self, sent: UploadFile | str, param: str, *, whole: bool = False) -> Clip:
        """A medium that was sent; whole: with all of its frames."""
        data = sent if isinstance(sent, str) else await sent.read()
        with self.metrics.phase("read"):
            return await self.off_loop(media.read, data, self.config, param, whole)

    async def mask(self, sent: UploadFile | str, about: Clip) -> np.ndarray:
        """A mask that was sent with an image, True where it may change."""
        data = sent if isinstance(sent, str) else await sent.read()
        return await self.off_loop(media.mask, data, about, self.config)

    # Preparation, in a thread.

    def drawing(
        self,
        spec: tasks.TaskSpec,
        text: str,
        clips: Sequence[Clip],
        body: DrawingBody,
        *,
        num_frames: int | None = None,
        count: int = 1,
        partials: int = 0,
        said: str | None = None,
        past: Sequence[Segments] = (),
        where: str = "prompt",
        mask: Any = None,
        region: Any = None,
    ) -> Prepared:
        """The items of so many images or videos, at most `partials` previews each; `where` the words stand; `mask` and
        `region` of the last video, as in `Methods.edit`. Failure if they cannot be made."""
        pipe = self.pipe
        with about(where):
            listed(text, "prompt", "a red circle")
            pipe.codec.ids(text)
        asked = body.asked(num_frames)
        long = "seconds" if getattr(body, "seconds", None) is not None else "num_frames"
        self._check_size(asked, long)
        with about("size"), collected() as notices:
            turn = self._request(spec, text, clips, asked=asked, said=said)
        if turn[-1].size is not None and asked[1:] != (None, None):  # the other side may be that of what is given
            self._check_size((asked[0], *turn[-1].size[1:]), long)
        with about("region" if mask is None else "mask"):
            wanted = Asked.of(mask, region)
            if source_in(turn) is not None:
                self.worker.admit(count)  # before the model is asked where it is
                [turn] = placed(pipe, [turn], clips[-1:], [wanted])
            elif mask is not None or region is not None:
                raise UserError("it says where what is given may change, and nothing is changed here: leave it out")
        with about("check"):
            most = draws(body.check, None)
        with about("think"):
            thinker(pipe, body.think)
        how = pipe.sampling([turn], **body.sampling)
        with about("negative_prompt"):
            (negative,) = pipe.negatives(body.negative_prompt, 1)
            how.leads_away([negative])
            pipe.codec.ids(negative)
        if negative and how.guidance_scale <= 1:
            message = f"negative_prompt does nothing at a guidance_scale of {how.guidance_scale:g}: give one above 1"
            raise Failure(message, code="invalid_value", param="negative_prompt")
        first = random_seed() if body.seed is None else seed_of(body.seed)
        request, partials = tasks.dialogue(*past, turn), min(partials, max(how.steps - 1, 0))
        words, cells, made = self._counted(request)
        items = [
            Item(
                request=request, how=how, seed=seed, cells=cells + made, negative=negative, partials=partials,
                think=body.think, search=Search(request=turn, seed=seed, most=most) if most else None,
            )
            for seed in (later_seed(first, k) for k in range(count))
        ]  # fmt: skip
        return Prepared(items=items, notices=notices, words=words, cells=cells, made=made)

    def answering(
        self,
        text: str,
        clips: Sequence[Clip],
        how: Decoding,
        *,
        seed: int | None = None,
        count: int = 1,
        said: str | None = None,
        past: Sequence[Segments] = (),
    ) -> Prepared:
        """The items of so many answers, about media if there are any. Failure if there can be none."""
        with about("messages"), collected() as notices:
            if clips:
                turn = self._request(question_about(clips), text, clips, said=said)
            else:
                listed(text, "message", "what is a circle?")
                turn = plain(text, said=said or "")
            request = tasks.dialogue(*past, turn)
            words, cells, _ = self._counted(request)
        first = random_seed() if seed is None else seed_of(seed)
        items = [Item(request=request, how=how, seed=later_seed(first, k), cells=cells + 1) for k in range(count)]
        return Prepared(items=items, notices=notices, words=words, cells=cells)

    def _request(
        self, spec: tasks.TaskSpec, text: str, clips: Sequence[Clip], *, said: str | None, **more: Any
    ) -> Segments:
        """A request, with notices of what this model does not know."""
        turn = self.pipe.front.request(spec, text, clips, said=said, **more)
        if not self.pipe.defaults.knows(spec.name):
            notice(f"this model was not trained for {spec.name}: expect little")
        if said and not any(s.role is Role.SYSTEM and s.value == said for s in turn):
            notice("this model was trained without system prompts: yours has no effect")
        return turn

    def _check_size(self, asked: tuple[int | None, int | None, int | None], long: str) -> None:
        """Failure for more than this server makes; long: the name of what says how long a video is."""
        d = self.pipe.defaults
        most = self.config.larger * d.height * d.width
        if (asked[1] or d.height) * (asked[2] or d.width) > most:
            message = f"size: more than the {most} pixels that this server makes, such as {d.width}x{d.height}"
            raise Failure(message, code="invalid_value", param="size")
        if (asked[0] or 1) > self.config.num_frames:
            message = f"{long}: more than the {self.config.num_frames} frames that this server makes"
            raise Failure(message, code="invalid_value", param=long)
        with about(long):
            self.pipe.config.vae.check((asked[0] or 1, d.height, d.width))

    def _counted(self, request: Segments) -> tuple[int, int, int]:
        """Tokens of text and of images that go in, and of the image that comes out."""
        codec, words, cells, made = self.pipe.codec, 0, 0, 0
        for s in request:
            if s.kind is Kind.TEXT:
                words += len(codec.ids(s.text))
                continue
            grid = codec.latent_grid if s.kind is Kind.LATENTS else codec.patch_grid
            count = math.prod(grid(s.size))  # type: ignore[arg-type]
            made, cells = (count, cells) if s.role is Role.TARGET else (made, cells + count)
        return words, cells, made

    # Results.

    async def results(self, request: Request, items: Sequence[Item]) -> list[Any]:
        """Queue items and wait for all of them. A client that leaves takes its items along."""
        self.worker.put(items)
        watch = asyncio.ensure_future(self._watch(request, items))
        try:
            return await asyncio.gather(*(asyncio.wrap_future(item.result) for item in items))
        finally:
            watch.cancel()
            self.worker.cancel(items)

    async def _watch(self, request: Request, items: Sequence[Item]) -> None:
        """Cancel items when the client is gone."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.worker.cancel(items)

    def listen(self, items: Sequence[Item]) -> AsyncGenerator[tuple[int, Any], None]:
        """Queue items; the number of one and what happens to it: events of the worker, at last its result. Raises its
        failure. Whoever stops listening cancels them."""
        return _opened(follow(self.worker, items))


async def _opened(heard: AsyncGenerator[tuple[int, Any], None]) -> AsyncGenerator[tuple[int, Any], None]:
    async with aclosing(heard):
        async for number, event in heard:
            yield number, event.result() if isinstance(event, Future) else event


def checked(clip: Clip) -> dict[str, Any]:
    """What an answer says of a result at which the model has looked."""
    return {} if clip.verdict is None else {"check": clip.verdict.as_data()}


def answer(data: Any) -> Response:
    """JSON of any size, put together off the loop."""
    return Response(json.dumps(data, ensure_ascii=False), media_type="application/json")


async def stream(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events, of which a failure is the last one."""
    try:
        async with aclosing(lines):
            async for line in lines:
                yield line
    except Exception as error:  # noqa: BLE001  the status is sent already: the client hears of it here
        yield event(failure_of(error).body)


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that clients pass over, and that keeps the connection open."""
    return f": {text}\n\n".encode()
