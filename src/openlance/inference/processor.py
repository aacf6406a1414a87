"""transformers' processor for questions: text and media in, inputs of `generate` out, and ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openlance.config.values import brief, no_others
from openlance.errors import UserError
from openlance.inference.engine import Engine
from openlance.inference.inputs import Medium, as_picture, clips_of, is_many, videos_of
from openlance.sequence.pack import pack
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import kind_of, the_task, understand

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
    ) -> dict[str, Any]:
        """Inputs of `generate`. Lists of questions pair up with lists of media, of which each may be a list itself.

        more: transformers' options of tensors, which change nothing here (`IDLE`).
        """
        no_others(more, IDLE)
        several = is_many(text)
        texts: list[Any] = list(text) if is_many(text) else [text]
        wrong = [said for said in texts if not isinstance(said, str)]
        if wrong or not texts:
            raise UserError(f"the question is {brief(wrong[0] if wrong else text)}: expected a text, or several")
        if (images is None) == (videos is None):
            raise UserError("a question needs images or videos, and not both: give one of them")
        media: Any = images if images is not None else videos
        groups = list(media) if several and is_many(media) else [media]
        if len(groups) != len(texts):
            raise UserError(f"{len(groups)} inputs and {len(texts)} questions do not pair up: give as many of each")
        requests = []
        for group, question in zip(groups, texts, strict=True):
            if images is not None:
                clips = clips_of(group, as_picture)
            else:
                clips = videos_of(group)
            task = the_task(understand, kind_of(max(clip.frames for clip in clips)))
            requests.append(self.engine.front.request(task, question.strip(), clips))
        return {"requests": requests, "input_ids": self.ids(requests)}

    def ids(self, requests: list[Segments]) -> Tensor:
        """(B, L) ids of the rendered requests up to where the answer begins, padded on the left."""
        packed = pack(requests, self.engine.codec, self.engine.config.position)
        rows = packed.rows.token.split(packed.lengths)
        return self.padded([row.tolist() for row in rows], left=True)

    def padded(self, rows: list[list[int]], *, left: bool) -> Tensor:
        longest = max((len(row) for row in rows), default=0)
        pads = [[self.pad_token_id] * (longest - len(row)) for row in rows]
        pairs = zip(pads, rows, strict=True)
        return torch.tensor([pad + row if left else row + pad for pad, row in pairs]).reshape(len(rows), longest)

    def decode(self, ids: Any, **more: Any) -> str:
        """Text of ids without special tokens, whatever transformers' options in `more` say."""
        no_others(more, IDLE)
        flat = ids.tolist() if hasattr(ids, "tolist") else ids
        flat = [flat] if isinstance(flat, int) else flat
        if not is_many(flat) or not all(isinstance(i, int) and 0 <= i < 2**32 for i in flat):
            raise UserError(f"the ids are {brief(ids)}: expected one row of those that `generate` gives")
        return self.engine.tokenizer.text(list(flat))

    def batch_decode(self, ids: Tensor | Sequence[Any], **more: Any) -> list[str]:
        """Texts of rows of ids; see `decode`."""
        if not is_many(ids) and getattr(ids, "ndim", 0) != 2:
            raise UserError(f"the ids are {brief(ids)}: expected the rows that `generate` gives")
        return [self.decode(row, **more) for row in ids]
