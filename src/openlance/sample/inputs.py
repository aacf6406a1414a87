"""What people hand in: how media and words pair up, and what a seed, a size or a count may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from openlance.config.values import convert
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.inputs import Medium, as_clip, as_picture

__all__ = [
    "Medium", "as_clip", "as_picture", "check_texts", "grouped", "is_many", "listed", "paired", "random_seed",
    "seed_of", "starts", "videos_of", "whole",
]  # fmt: skip

LARGEST_SEED = 2**64 - 1  # what torch's generators accept


def is_many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def videos_of(medium: Any) -> list[Clip]:
    """One clip, or several: a list of pictures is the frames of one."""
    if not is_many(medium):
        return [as_clip(medium)]
    clips = [as_clip(m) for m in medium]
    return [as_clip(medium)] if all(clip.frames == 1 for clip in clips) else clips


def paired(media: Medium | Sequence[Medium], texts: str | Sequence[str]) -> list[tuple[Medium, str]]:
    """One medium per text; a single one of either goes with all of the other. UserError if the numbers differ.

    Only a list is several media: a tuple may be one item."""
    count = len(media) if isinstance(media, list) else len(texts) if is_many(texts) else 1
    found = media if isinstance(media, list) else [media] * count
    said = list(texts) if is_many(texts) else [texts] * count
    return list(zip(*_equally_many(found, said), strict=True))


def grouped(media: Medium | Sequence, texts: str | Sequence[str]) -> list[tuple[list[Clip], str]]:
    """Several media per text: a list of them for one text, a list of such lists for a list of texts."""
    groups = list(media) if is_many(texts) and isinstance(media, list) else [media]
    found, said = _equally_many(groups, list(texts) if is_many(texts) else [texts])
    if any(is_many(g) and not g for g in found):
        raise UserError("there is no picture or clip to go with the text: give at least one")
    return [([as_clip(m) for m in (g if is_many(g) else [g])], text) for g, text in zip(found, said, strict=True)]


def _equally_many(media: list, texts: list) -> tuple[list, list]:
    if len(media) != len(texts):
        raise UserError(f"{len(media)} images and {len(texts)} texts do not pair up: give as many of each")
    return media, texts


def check_texts(texts: Sequence[str], name: str, example: str) -> None:
    """UserError unless these are texts, at least one of them, and none is blank."""
    if not texts:
        raise UserError(f"there is no {name}: give at least one, for example {example!r}")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"the {name} is {text!r}: expected a text, for example {example!r}")
        if not text.strip():
            raise UserError(f"the {name} is empty: write one, for example {example!r}")


def listed(texts: Any, name: str, example: str) -> list[str]:
    """A text or several as a list, checked as `check_texts` does."""
    found = list(texts) if is_many(texts) else [texts]
    check_texts(found, name, example)
    return found


def whole(name: str, value: Any, least: int = 1) -> int | None:
    """A whole number of any type that means one; None stays. UserError for anything else, or less than `least`."""
    if value is None:
        return None
    try:
        number = convert(int, value, name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if number < least:
        raise UserError(f"{name} must be at least {least}, got {number}")
    return number


def seed_of(value: Any) -> int:
    """A seed in any form that has one meaning: an integer of any type, or its digits; -1 draws one.

    Raises:
        UserError: For anything else, or a number outside of -1 to 2**64 - 1.
    """
    expected = "expected a whole number from -1 (random) to 2**64 - 1"
    try:
        seed = int(value) if isinstance(value, str) else value.__index__()
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"seed is {value!r}: {expected}") from None
    if isinstance(value, bool) or not -1 <= seed <= LARGEST_SEED:
        raise UserError(f"seed is {value!r}: {expected}")
    return random_seed() if seed == -1 else seed


def random_seed() -> int:
    return int(torch.randint(2**31, ()).item())


def starts(seed: Any, generator: Any, count: int) -> list[int | torch.Generator]:
    """Where the noise of each of so many results comes from: seed, seed + 1 ..., one generator for all in turn, or one
    generator each. UserError for anything else."""
    if generator is None:
        first = random_seed() if seed is None else seed_of(seed)
        return [(first + k) % (LARGEST_SEED + 1) for k in range(count)]
    found = list(generator) if is_many(generator) else [generator] * count
    if seed is not None:
        raise UserError("there are a seed and a generator: give only one of them")
    if not all(isinstance(g, torch.Generator) for g in found):
        raise UserError(f"generator is {generator!r}: expected a torch.Generator, or a list with one for each result")
    if len(found) != count:
        raise UserError(f"there are {len(found)} generators for {count} results: give one, or one each")
    return found
