"""From a call to its result: through the queue, with what is to be seen on the way."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from openlance.media import Clip
from openlance.sequence.segment import Segments
from openlance.serve import media
from openlance.serve.serving import Serving
from openlance.serve.studio.calls import Call
from openlance.serve.worker import Begun, Item, Partial, Piece, Step


@dataclass(kw_only=True)
class Progress:
    """How far a call is.

    Attributes:
        call: With its seed.
        done: Steps that are finished, of `total`; total is 0 while it waits.
        preview: What it is expected to become, as a data URL.
        answer: As far as it is written.
        file: Of the finished result, in the store.
        verdict: What the model found at the result, where it was asked to check.
        seconds: It took.
        notices: What was done otherwise than one might expect.
    """

    call: Call
    begun: bool = False
    done: int = 0
    total: int = 0
    preview: str = ""
    answer: str = ""
    file: str = ""
    verdict: str = ""
    seconds: float = 0.0
    finished: bool = False
    notices: list[str] = field(default_factory=list)


class Desk:
    """The queue as the page uses it: what each session has in it can be stopped."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.items: dict[str, list[Item]] = {}

    async def run(
        self, session: str, calls: Sequence[Call], past: Sequence[Segments] = ()
    ) -> AsyncGenerator[list[Progress], None]:
        """Do calls together; yields how far they are, at last with their results. Raises their failure."""
        serving = self.serving
        prepared = [await serving.off_loop(call.prepared, serving, past) for call in calls]
        items = [one for each in prepared for one in each.items]
        states = [
            Progress(call=call.settled(item), notices=each.notices)
            for call, item, each in zip(calls, items, prepared, strict=True)
        ]
        began, mine = time.perf_counter(), self.items.setdefault(session, [])
        mine += items
        try:
            async with aclosing(serving.listen(items)) as heard:
                yield states
                async for n, what in heard:
                    await self._heed(states[n], what)
                    states[n].seconds = time.perf_counter() - began
                    yield states
        finally:
            for item in items:
                mine.remove(item)
            if not mine:
                self.items.pop(session, None)

    async def _heed(self, state: Progress, what: Any) -> None:
        if isinstance(what, Begun):
            state.begun = True
        elif isinstance(what, Step):
            state.done, state.total = what.done, what.total
        elif isinstance(what, Partial):
            state.preview = await self.serving.off_loop(_preview, what.clip)
        elif isinstance(what, Piece):
            state.answer += what.text
        elif isinstance(what, Clip):
            state.verdict = "" if what.verdict is None else str(what.verdict)
            state.file, state.finished = await self.serving.off_loop(kept, self.serving, what), True
        elif isinstance(what, str):
            state.answer, state.finished = str(what), True

    def stop(self, session: str) -> None:
        """Stop what a session has in the queue, at its next step."""
        self.serving.worker.cancel(list(self.items.get(session, ())))

    def leave(self, page: str | None) -> None:
        """A page was closed: nobody waits for what its tabs have in the queue."""
        for session in [name for name in self.items if name.partition("/")[0] == page]:
            self.stop(session)


def kept(serving: Serving, clip: Clip) -> str:
    """The name of a new file of the store with this in it, and with how it was made."""
    form = "png" if clip.frames == 1 else "mp4"
    with serving.metrics.phase("encode"):
        return serving.store.keep(media.encoded(clip, form), form)


def _preview(clip: Clip) -> str:
    """The image, or the middle of the video, as a data URL."""
    middle = clip.pixels[clip.frames // 2][None]
    return media.data_url(media.encoded(clip.with_pixels(middle)), "png")
