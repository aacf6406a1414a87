"""transformers' side of questions: a processor (text and media in, inputs of `generate` out, ids back to text) and what
`generate` does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from openlance.config.sampling import Decoding
from openlance.config.values import brief, flag, no_others
from openlance.errors import UserError
from openlance.inference.engine import Engine
from openlance.inference.inputs import clips_of, is_many, question_about, questions, videos_of
from openlance.media.inputs import Medium, as_picture
from openlance.sequence.pack import pack
from openlance.sequence.segment import Segment, Segments

if TYPE_CHECKING:
    from transformers.feature_extraction_utils import BatchFeature

PADDING = "<|endoftext|>"  # the release's
# Options of transformers' processors that ask for what is always so here.
IDLE = ("return_tensors", "padding", "add_special_tokens", "skip_special_tokens", "clean_up_tokenization_spaces")


class Processor:
    """Holds an engine's tokenizer and sizes; also what streamers call their tokenizer, since it decodes ids."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pad_token_id = engine.tokenizer.special(PADDING)

    def __call__(
        self,
        text: str | Sequence[str],
        images: Medium | Sequence[Medium] | None = None,
        videos: Medium | Sequence[Medium] | None = None,
        **more: Any,
    ) -> BatchFeature:
        """Make the inputs of `generate`.

        Args:
            text: A question, or several.
            images: What one question is about (several as a list), or a list with that of each question.
            videos: Clips in the place of images.
            **more: transformers' options of tensors, which change nothing here (`IDLE`).

        Returns:
            `input_ids` (B, L) and `requests`; `.to(device)` moves the tensors.

        Raises:
            UserError: If questions and media do not pair up.
        """
        from transformers.feature_extraction_utils import BatchFeature

        no_others(more, IDLE)
        texts = questions(text)
        if (images is None) == (videos is None):
            raise UserError("a question needs images or videos, and not both: give one of them")
        media: Any = images if images is not None else videos
        groups = list(media) if is_many(text) and is_many(media) else [media]
        if len(groups) != len(texts):
            raise UserError(f"{len(groups)} inputs and {len(texts)} questions do not pair up: give as many of each")
        requests = []
        for group, question in zip(groups, texts, strict=True):
            clips = clips_of(group, as_picture) if images is not None else videos_of(group)
            requests.append(self.engine.front.request(question_about(clips), question.strip(), clips))
        return BatchFeature({"requests": requests, "input_ids": self.ids(requests)})

    def ids(self, requests: list[Segments]) -> Tensor:
        """Give (B, L) ids of the rendered requests up to where the answer begins, padded on the left."""
        packed = pack(requests, self.engine.codec, self.engine.config.position)
        rows = packed.rows.token.split(packed.lengths)
        return self.padded([row.tolist() for row in rows], left=True)

    def padded(self, rows: list[list[int]], *, left: bool) -> Tensor:
        longest = max((len(row) for row in rows), default=0)
        pads = [[self.pad_token_id] * (longest - len(row)) for row in rows]
        pairs = zip(pads, rows, strict=True)
        return torch.tensor([pad + row if left else row + pad for pad, row in pairs]).reshape(len(rows), longest)

    def decode(self, ids: Any, **more: Any) -> str:
        """Give the text of ids without special tokens, whatever transformers' options in `more` say."""
        no_others(more, IDLE)
        flat = ids.tolist() if hasattr(ids, "tolist") else ids
        flat = [flat] if isinstance(flat, int) else flat
        if not is_many(flat) or not all(isinstance(i, int) and 0 <= i < 2**32 for i in flat):
            raise UserError(f"the ids are {brief(ids)}: expected one row of those that `generate` gives")
        return self.engine.tokenizer.text(list(flat))

    def batch_decode(self, ids: Tensor | Sequence[Any], **more: Any) -> list[str]:
        """Give the texts of rows of ids; see `decode`."""
        if not is_many(ids) and getattr(ids, "ndim", 0) != 2:
            raise UserError(f"the ids are {brief(ids)}: expected the rows that `generate` gives")
        return [self.decode(row, **more) for row in ids]


# Options of transformers' `generate` that ask for what is always so here.
IDLE_IN_GENERATE = ("attention_mask", "pad_token_id", "eos_token_id", "use_cache")


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
    do_sample: bool = False,
    generator: torch.Generator | None = None,
    streamer: Streamer | None = None,
    **more: Any,
) -> Tensor:
    """Answer as transformers' `generate` does.

    Args:
        engine: Whose answers these are.
        requests: What a processor gave.
        input_ids: Likewise.
        do_sample: Whether tokens are drawn.
        generator: For that.
        streamer: Gets the ids of the request, and those of the answer as they come.
        **more: Fields of `Decoding`, of which `stop` are texts that end an answer, which stay in it; and options of
            transformers that change nothing here (`IDLE_IN_GENERATE`).

    Returns:
        (B, L + new) token ids: those of the request in front, then the answer, filled up with the padding id.

    Raises:
        UserError: On bad input.
    """
    fields = Decoding.__dataclass_fields__
    no_others(more, (*fields, *IDLE_IN_GENERATE))
    made = "call it as generate(**processor(text=..., images=...))"
    if not (isinstance(requests, list) and requests and all(map(is_request, requests))):
        raise UserError(f"requests is {brief(requests)}: {made}")
    if input_ids is not None and not (isinstance(input_ids, Tensor) and input_ids.shape[:-1] == (len(requests),)):
        raise UserError(f"input_ids is {brief(input_ids)}: {made}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator is {brief(generator)}: expected a torch.Generator")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise UserError(f"streamer is {brief(streamer)}: expected an object with put and end, as transformers'")
    if streamer is not None and len(requests) > 1:
        raise UserError("answers to several questions cannot be streamed: ask one at a time")
    processor = Processor(engine)
    if input_ids is None:
        input_ids = processor.ids(requests)
    d = Decoding(**{"max_new_tokens": 96, "temperature": 1.0} | {k: v for k, v in more.items() if k in fields})
    if do_sample is None or not flag("do_sample", do_sample):
        d = replace(d, temperature=0.0)
    if streamer is None:
        answers = engine.fill_ids(requests, d, generator)
    else:
        streamer.put(input_ids.cpu())
        answers = engine.fill_ids(requests, d, generator, lambda _, token: streamer.put(torch.tensor([token])))
        streamer.end()
    return torch.cat([input_ids, processor.padded(answers, left=False).to(input_ids)], dim=1)


def is_request(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(segment, Segment) for segment in value)
