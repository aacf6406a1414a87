"""The packs of the steps of a run, which are the same however many processes share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from openlance.config.sampling import EXACT, PromptStyle
from openlance.config.train import Stage
from openlance.data.source import Reading, Sample, Source
from openlance.data.stream import Stream
from openlance.errors import UserError
from openlance.text.tokenizer import SequenceCodec


class Lanes(AbstractContextManager, Iterator[list[Sample]]):
    """Iterates over the packs of one process, `stage.accumulate` for each step.

    Each pack of a step has a lane of its own: the stream of one of as many processes as there are packs in a step. So
    one process with accumulate=2 reads what two processes read, and a run goes on with another number of them. Pack n
    of a step, on process r of p, is lane n * p + r.

    Args:
        sources: By task.
        stage: As of `Stream`; and how many packs a step has.
        codec: Of the model.
        style: How samples are worded.
        reading: How sources are read, by which process of how many.
    """

    def __init__(
        self, sources: Mapping[str, Source], stage: Stage, codec: SequenceCodec, *, style: PromptStyle = EXACT,
        reading: Reading,
    ) -> None:  # fmt: skip
        self.world, self.streams, self._turn = reading.world * stage.accumulate, list[Stream](), 0
        for n in range(stage.accumulate):
            own = replace(reading, rank=n * reading.world + reading.rank, world=self.world)
            like = self.streams[0] if self.streams else None
            alone = replace(stage, accumulate=1)
            self.streams.append(Stream(sources, alone, codec, style=style, reading=own, like=like))

    def __next__(self) -> list[Sample]:
        turn, self._turn = self._turn, (self._turn + 1) % len(self.streams)
        return next(self.streams[turn])

    def state_dict(self) -> dict[str, Any]:
        """Return the position between two steps, by lane, as plain data."""
        return {str(stream.reading.rank): stream.state_dict() for stream in self.streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where states were taken, those of all processes together; UserError if a step had another number of
        packs."""
        if state.keys() != {str(lane) for lane in range(self.world)}:
            said = f"a step had {len(state)} packs, and has {self.world} now"
            fix = "go on with as many (processes times accumulate)"
            raise UserError(f"{said}: {fix}, or begin a new run from an exported model")
        for stream in self.streams:
            stream.load_state_dict(state[str(stream.reading.rank)])
        self._turn = 0

    def __exit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.close()
