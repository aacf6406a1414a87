"""What people hand in: how media and words pair up, and what a seed, a size, a count, a device or a dtype may be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from openlance.config import values
from openlance.config.sampling import LARGEST_SEED, LARGEST_SIDE, LONGEST, later_seed
from openlance.config.values import NUMBER_TYPES, brief, convert
from openlance.data.front import Asked
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput, as_clip, as_image

if TYPE_CHECKING:
    from openlance.inference.enhance import Enhancer

__all__ = [
    "MediaInput", "a_function", "as_clip", "as_image", "asked_size", "check_texts", "clips_of", "grouped", "is_many",
    "listed", "paired", "random_seed", "seed_of", "starts", "videos_of", "whole",
]  # fmt: skip


class Settings(TypedDict, total=False):
    """Fields of `Sampling` that diffusers has no names for."""

    shift: float | None
    interval: tuple[float, float] | None
    renorm: str | None
    renorm_min: float | None
    cached: bool | None
    solver: str | None
    step_cache: float | None
    compile: bool | None


class How(Settings, total=False):
    """What every method that draws takes beside its media and words; None means the checkpoint's own.

    seed: Random if left out, or -1. generator: One for all, or one each. progress: Whether to show a bar.
    negative_prompt: What guidance leads away from, one or one each. enhance: Who rewrites the prompts first, see
    `enhance.rewriter`. The rest are fields of `Sampling`.
    """

    seed: int | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    progress: bool
    negative_prompt: str | Sequence[str] | None
    enhance: bool | str | Enhancer | None
    num_inference_steps: int | None
    guidance_scale: float | None
    image_guidance_scale: float | None


class Words(TypedDict, total=False):
    """Fields of `Decoding`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: str | Sequence[str]


def is_many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def videos_of(medium: Any) -> list[Clip]:
    """One clip, or several: a list of pictures is the frames of one."""
    if not is_many(medium):
        return [as_clip(medium)]
    clips = [as_clip(m) for m in medium]
    return [as_clip(medium)] if all(clip.frames == 1 for clip in clips) else clips


def paired(media: MediaInput | Sequence[MediaInput], texts: str | Sequence[str]) -> list[tuple[MediaInput, str]]:
    """One medium per text; a single one of either goes with all of the other. UserError if the numbers differ.

    Only a list is several media: a tuple may be one item."""
    if isinstance(media, list) and not media:
        raise UserError(NOTHING)
    count = len(media) if isinstance(media, list) else len(texts) if is_many(texts) else 1
    found = media if isinstance(media, list) else [media] * count
    said = list(texts) if is_many(texts) else [texts] * count
    return list(zip(*_equally_many(found, said), strict=True))


def grouped(media: MediaInput | Sequence, texts: str | Sequence[str]) -> list[tuple[list[Clip], str]]:
    """Several media per text: a list of them for one text, a list of such lists for a list of texts."""
    groups = list(media) if is_many(texts) and isinstance(media, list) else [media]
    found, said = _equally_many(groups, list(texts) if is_many(texts) else [texts])
    return [(clips_of(g), text) for g, text in zip(found, said, strict=True)]


NOTHING = "there is no picture or clip to go with the text: give at least one"


def clips_of(group: Any, read: Callable[[Any], Clip] = as_clip) -> list[Clip]:
    """One medium or several that belong together, each as a clip. UserError if there is none."""
    if is_many(group) and not group:
        raise UserError(NOTHING)
    return [read(medium) for medium in (group if is_many(group) else [group])]


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
            raise UserError(f"the {name} is {brief(text)}: expected a text, for example {example!r}")
        if not text.strip():
            raise UserError(f"the {name} is empty: write one, for example {example!r}")


def listed(texts: Any, name: str, example: str) -> list[str]:
    """A text or several as a list, checked as `check_texts` does."""
    found = list(texts) if is_many(texts) else [texts]
    check_texts(found, name, example)
    return found


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int | None:
    """A whole number of any type that means one; None stays. UserError for anything else, or one out of range."""
    return None if value is None else values.whole(name, value, least, most)


def asked_size(num_frames: Any, height: Any, width: Any) -> Asked:
    """Frames, height and width that are asked for, None where nobody says. UserError for what is no such number."""
    sides = whole("height", height, 1, LARGEST_SIDE), whole("width", width, 1, LARGEST_SIDE)
    return whole("num_frames", num_frames, 1, LONGEST), *sides


def a_function(name: str, value: Any, arguments: int, example: str) -> None:
    """UserError unless a value can be called with so many arguments; None (left out) is fine."""
    if value is None:
        return
    try:
        if not callable(value):
            raise TypeError("it cannot be called")
        inspect.signature(value).bind(*[None] * arguments)
    except TypeError as error:
        raise UserError(f"{name} is {brief(value)} ({error}): expected a function, for example {example}") from None
    except ValueError:
        return  # one of C, which does not say what it takes


def seed_of(value: Any) -> int:
    """A seed in any form that has one meaning: a whole number of any type, or its digits; -1 draws one.

    Raises:
        UserError: For anything else, or a number outside of -1 to 2**64 - 1.
    """
    expected = "expected a whole number from -1 (random) to 2**64 - 1"
    try:
        seed = convert(int, value, "seed")
    except ValueError:
        raise UserError(f"seed is {brief(value)}: {expected}") from None
    if not -1 <= seed <= LARGEST_SEED:
        raise UserError(f"seed is {brief(value)}: {expected}")
    return random_seed() if seed == -1 else seed


def random_seed() -> int:
    return int(torch.randint(2**31, ()).item())


def starts(seed: Any, generator: Any, count: int) -> list[int | torch.Generator]:
    """Where the noise of each of so many results comes from: seed, seed + 1 ..., one generator for all in turn, or one
    generator each. UserError for anything else."""
    if generator is None:
        first = random_seed() if seed is None else seed_of(seed)
        return [later_seed(first, k) for k in range(count)]
    found = list(generator) if is_many(generator) else [generator] * count
    if seed is not None:
        raise UserError("there are a seed and a generator: give only one of them")
    if not all(isinstance(g, torch.Generator) for g in found):
        raise UserError(
            f"generator is {brief(generator)}: expected a torch.Generator, or a list with one for each result"
        )
    if len(found) != count:
        raise UserError(f"there are {len(found)} generators for {count} results: give one, or one each")
    return found


def seeds_in(starts: Sequence[int | torch.Generator]) -> list[int | None]:
    """What stands for each of these in a record: a seed, also that of a generator from which nothing was drawn yet."""
    found, used = list[int | None](), list[torch.Generator]()
    for start in starts:
        if isinstance(start, torch.Generator):
            fresh = torch.Generator(start.device).manual_seed(start.initial_seed()).get_state()
            known = start not in used and torch.equal(start.get_state(), fresh)
            used.append(start)
            found.append(start.initial_seed() if known else None)
        else:
            found.append(start)
    return found


def device_of(name: torch.device | str | int | None) -> torch.device:
    """A device by its name, by default a GPU where there is one. UserError if it does not exist here."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if isinstance(name, bool) or not isinstance(name, (str, int, torch.device)):
            raise TypeError("expected a name such as cpu or cuda")
        device = torch.device(name)
        if device.type == "meta":
            raise TypeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, AttributeError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0][:120] or type(error).__name__
        raise UserError(f"the device {brief(name)} cannot be used ({said}): use cpu, or leave it out") from None
    return device


def dtype_of(value: Any) -> torch.dtype | None:
    """A type of number by its name, or of torch or numpy; None for None and "auto", which are the model's own.

    Raises:
        UserError: If it is none in which a model computes.
    """
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    name = value if isinstance(value, (str, torch.dtype)) else getattr(value, "__name__", getattr(value, "name", None))
    short = str(name).removeprefix("torch.")
    if name is None or short not in NUMBER_TYPES:
        raise UserError(f"{brief(value)} is no type of number to compute in: use float32, bfloat16 or float16")
    return getattr(torch, NUMBER_TYPES[short])
