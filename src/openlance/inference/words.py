"""transformers' `generate`: the inputs of a processor in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from openlance.config import values
from openlance.config.sampling import Decoding
from openlance.errors import UserError
from openlance.inference.engine import Engine
from openlance.inference.processor import Processor
from openlance.sequence.segment import Segment, Segments

# Options of transformers' `generate` that ask for what is always so here.
IDLE = ("attention_mask", "pad_token_id", "eos_token_id", "use_cache")


class Streamer(Protocol):
    """What transformers' streamers offer: `put` gets the ids of the request, then each new one; then `end`."""

    def put(self, value: Tensor) -> None: ...
    def end(self) -> None: ...


@torch.inference_mode()
def answer_ids(
    engine: Engine,
    requests: list[Segments],
    input_ids: Tensor | None = None,
    *,
    max_new_tokens: int = 96,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] | str = (),
    generator: torch.Generator | None = None,
    streamer: Streamer | None = None,
    **more: Any,
) -> Tensor:
    """(B, L + new) token ids: those of the request in front, as transformers gives them, then the answer, filled up
    with the padding id; a text of `stop` that ends one is its end. more: options of transformers that change nothing
    here (`IDLE`). UserError on bad input."""
    values.no_others(more, IDLE)
    check_requests(requests, input_ids, generator, streamer)
    if streamer is not None and len(requests) > 1:
        raise UserError("answers to several questions cannot be streamed: ask one at a time")
    processor = Processor(engine)
    if input_ids is None:
        input_ids = processor.ids(requests)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    on_token = None if streamer is None else (lambda _, token: streamer.put(torch.tensor([token])))
    d = Decoding(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        repetition_penalty=repetition_penalty, stop=stop,  # type: ignore[arg-type]  # converted
    )  # fmt: skip
    drawn = do_sample is not None and values.flag("do_sample", do_sample)
    d = d if drawn else replace(d, temperature=0.0)
    answers = engine.fill_ids(requests, d, generator, on_token)
    if streamer is not None:
        streamer.end()
    return torch.cat([input_ids, processor.padded(answers, left=False).to(input_ids)], dim=1)


def check_requests(requests: Any, input_ids: Any, generator: Any, streamer: Any) -> None:
    """UserError unless these are requests and ids of a processor, a generator and a streamer, or None."""
    made = "call it as generate(**processor(text=..., images=...))"
    if not (isinstance(requests, list) and requests and all(is_request(r) for r in requests)):
        raise UserError(f"requests is {values.brief(requests)}: {made}")
    if input_ids is not None and not (isinstance(input_ids, Tensor) and input_ids.shape[:-1] == (len(requests),)):
        raise UserError(f"input_ids is {values.brief(input_ids)}: {made}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator is {values.brief(generator)}: expected a torch.Generator")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise UserError(f"streamer is {values.brief(streamer)}: expected an object with put and end, as transformers'")


def is_request(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(segment, Segment) for segment in value)
