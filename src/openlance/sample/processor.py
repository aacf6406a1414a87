"""transformers' processor for questions: text and media in, inputs of `generate` out, and ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openlance.errors import UserError
from openlance.media.inputs import Medium, as_clip, as_picture
from openlance.sample.engine import Engine
from openlance.sample.inputs import is_many
from openlance.sequence.pack import pack
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import understand

PADDING = "<|endoftext|>"  # the release's


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
        **_: Any,
    ) -> dict[str, Any]:
        """Inputs of `generate`. Lists of questions pair up with lists of media, of which each may be a list itself."""
        several = is_many(text)
        texts = list(text) if several else [text]
        if (images is None) == (videos is None):
            raise UserError("a question needs images or videos, and not both: give one of them")
        media: Any = images if images is not None else videos
        groups = list(media) if several else [media]
        if len(groups) != len(texts):
            raise UserError(f"{len(groups)} inputs and {len(texts)} questions do not pair up: give as many of each")
        read = as_picture if images is not None else as_clip
        requests = []
        for group, question in zip(groups, texts, strict=True):
            clips = [self.engine.fit.seen(read(m), "text") for m in (group if is_many(group) else [group])]
            requests.append(understand(clips, str(question).strip(), prompts=self.engine.defaults.prompts))
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

    def decode(self, ids: Any, **_: Any) -> str:
        """Text of ids without special tokens."""
        flat = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return self.engine.tokenizer.text([flat] if isinstance(flat, int) else flat)

    def batch_decode(self, ids: Tensor, **_: Any) -> list[str]:
        return [self.decode(row) for row in ids]
