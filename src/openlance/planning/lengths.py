"""Stand-ins that have a length or a size and nothing else: what plans count tokens with."""

from __future__ import annotations

import numpy as np

from openlance.config.model import ModelConfig
from openlance.media.clip import Clip
from openlance.text.tokenizer import SequenceCodec

CHARACTERS = 4  # per token of English text


class Lengths:
    """In place of a tokenizer."""

    im_start = im_end = vision_start = vision_end = visual_pad = 0

    def ids(self, text: str) -> list[int]:
        return [0] * -(-len(text) // CHARACTERS)


def ruler(config: ModelConfig) -> SequenceCodec:
    """A codec that only measures."""
    return SequenceCodec(Lengths(), config)  # type: ignore[arg-type]


def text(tokens: int) -> str:
    """A text of so many tokens."""
    return "x" * (CHARACTERS * tokens)


def placeholder(frames: int, height: int, width: int) -> Clip:
    """A clip of a size that takes no memory."""
    return Clip(np.broadcast_to(np.uint8(0), (frames, height, width, 3)))
