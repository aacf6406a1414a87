"""What people hand in: how media and words pair up, and what a seed, a size, a count, a device or a dtype may be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice, zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import torch

from openlance.config import values
from openlance.config.sampling import LARGEST_SEED, LARGEST_SIDE, LONGEST, MOST_DRAWS, Sampling, later_seed
from openlance.config.values import NUMBER_TYPES, brief, convert
from openlance.data.front import Asked
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput, as_clip
from openlance.sequence import tasks
from openlance.sequence.segment import Segments, any_video

if TYPE_CHECKING:
    from openlance.inference.enhance import Enhancer

AnyDevice: TypeAlias = torch.device | str | int
# Where accelerate would put components on several devices, which is not needed here: the usual device, within `memory`.
USUAL_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
NOTHING = "there is no image or video to go with the text: give at least one"


class Settings(TypedDict, total=False):
    """Fields of `Sampling` that calls take under its names."""

    shift: float | None
    interval: tuple[float, float] | None
    renorm: str | None
    renorm_min: float | None
    cached: bool | None
    solver: str | None
    step_cache: float | None
    compile: bool | None
    strength: float | None


class How(Settings, total=False):
    """What every method that draws takes beside its media and words; None means the checkpoint's own.

    seed: Random if left out, or -1. generator: One for all, or one each. progress: Whether to show a bar; or a
    function, called after each step with the finished steps of all results and their total: what it raises ends the
    call. negative_prompt: What guidance leads away from, one or one each. enhance: Who rewrites the prompts first, see
    `enhance.rewriter`. think: Whether the model describes a result before it draws it, where it was trained to. check:
    Draw until the model finds no fault at a result, at most so often (`docs/howto/checking.md`). The rest are fields of
    `Sampling`.
    """

    seed: int | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    progress: bool | Callable[[int, int], object]
    negative_prompt: str | Sequence[str] | None
    enhance: bool | str | Enhancer | None
    think: bool
    check: int | None
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


def clips_of(group: Any, read: Callable[[Any], Clip] = as_clip) -> list[Clip]:
    """Read one image or video, or several that belong together. UserError if there is none."""
    if is_many(group) and not group:
        raise UserError(NOTHING)
    return [read(item) for item in (group if is_many(group) else [group])]


def videos_of(item: Any) -> list[Clip]:
    """Read one video, or several: a list of images is the frames of one."""
    if not is_many(item):
        return [as_clip(item)]
    clips = [as_clip(m) for m in item]
    return [as_clip(item)] if all(clip.frames == 1 for clip in clips) else clips


def paired(media: MediaInput | Sequence[MediaInput], texts: str | Sequence[str]) -> list[tuple[MediaInput, str]]:
    """Pair each text with one image or video; a single one of either goes with all of the other.

    Only a list is several media: a tuple may be one item. UserError if the numbers differ.
    """
    if isinstance(media, list) and not media:
        raise UserError(NOTHING)
    count = len(media) if isinstance(media, list) else len(texts) if is_many(texts) else 1
    found = media if isinstance(media, list) else [media] * count
    return _equally_many(found, list(texts) if is_many(texts) else [texts] * count)


def grouped(media: MediaInput | Sequence, texts: str | Sequence[str]) -> list[tuple[list[Clip], str]]:
    """Pair each text with several media: a list of them for one text, a list of such lists for a list of texts."""
    groups = list(media) if is_many(texts) and isinstance(media, list) else [media]
    pairs = _equally_many(groups, list(texts) if is_many(texts) else [texts])
    return [(clips_of(group), text) for group, text in pairs]


def _equally_many(media: list, texts: list) -> list[tuple[Any, Any]]:
    if len(media) != len(texts):
        raise UserError(f"{len(media)} images and {len(texts)} texts do not pair up: give as many of each")
    return list(zip(media, texts, strict=True))


def listed(texts: Any, name: str, example: str) -> list[str]:
    """Give a text or several as a list. UserError unless they are texts, at least one of them, and none is blank."""
    found = list(texts) if is_many(texts) else [texts]
    if not found:
        raise UserError(f"there is no {name}: give at least one, for example {example!r}")
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"the {name} is {brief(text)}: expected a text, for example {example!r}")
        if not text.strip():
            raise UserError(f"the {name} is empty: write one, for example {example!r}")
    return found


def questions(texts: Any) -> list[str]:
    """Give a question or several as a list. UserError unless they are texts, which may be empty."""
    found = list(texts) if is_many(texts) else [texts]
    wrong = [text for text in found if not isinstance(text, str)]
    if wrong or not found:
        raise UserError(f"the question is {brief(wrong[0] if wrong else texts)}: expected a text, or several")
    return found


def question_about(clips: Sequence[Clip]) -> tasks.TaskSpec:
    """Give the task of a question, by whether one of its media moves."""
    return tasks.the_task(tasks.understand, tasks.kind_of(max(clip.frames for clip in clips)))


def asked_size(num_frames: Any, height: Any, width: Any) -> Asked:
    """Give the frames, height and width that are asked for, None where nobody says. UserError for what is none."""
    said = (("num_frames", num_frames, LONGEST), ("height", height, LARGEST_SIDE), ("width", width, LARGEST_SIDE))
    frames, rows, columns = (None if v is None else values.whole(name, v, 1, most) for name, v, most in said)
    return frames, rows, columns


def a_function(name: str, value: Any, arguments: int, example: str) -> None:
    """Raise a UserError unless a value can be called with so many arguments; None (left out) is fine."""
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
    """Read a seed in any form that has one meaning: a whole number of any type, or its digits; -1 draws one.

    Raises:
        UserError: For anything else, or a number outside of -1 to 2**64 - 1.
    """
    try:
        seed = convert(int, value, "seed")
        if not -1 <= seed <= LARGEST_SEED:
            raise ValueError("out of range")
    except ValueError:
        said = "expected a whole number from -1 (random) to 2**64 - 1"
        raise UserError(f"seed is {brief(value)}: {said}") from None
    return random_seed() if seed == -1 else seed


def random_seed() -> int:
    return int(torch.randint(2**31, ()).item())


def starts(seed: Any, generator: Any, count: int) -> list[int | torch.Generator]:
    """Give what the noise of each of so many results is drawn from: seed, seed + 1 ..., or a generator.

    Args:
        seed: None is a random one.
        generator: One for all in turn, or one each; None draws from seeds.
        count: Results.

    Raises:
        UserError: For anything else, and for both a seed and a generator.
    """
    if generator is None:
        first = random_seed() if seed is None else seed_of(seed)
        return [later_seed(first, k) for k in range(count)]
    found = list(generator) if is_many(generator) else [generator] * count
    if seed is not None:
        raise UserError("there are a seed and a generator: give only one of them")
    if not all(isinstance(g, torch.Generator) for g in found):
        raise UserError(f"generator is {brief(generator)}: expected a torch.Generator, or a list with one for each")
    if len(found) != count:
        raise UserError(f"there are {len(found)} generators for {count} results: give one, or one each")
    return found


def draws(check: Any, generator: Any) -> int:
    """Give how often a result may be drawn until nothing is wrong with it; 0 where nobody wants that looked at.

    Raises:
        UserError: If it is no such number, or the noise comes from a generator, which has no second draw.
    """
    if check is None:
        return 0
    if generator is not None:
        raise UserError("check draws again with other seeds: give a seed in the place of the generator")
    return values.whole("check", check, 1, MOST_DRAWS)


def seeds_in(starts: Sequence[int | torch.Generator]) -> list[int | None]:
    """Give the seed of each of these for a record, also of a generator from which nothing was drawn yet; else None."""
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


def device_in(device_map: Any) -> Any:
    """Give the device that a map of accelerate names, None for the usual one. UserError for a map over several."""
    if isinstance(device_map, str) and device_map in USUAL_MAPS:
        return None
    if not isinstance(device_map, Mapping):
        return device_map
    places = list({str(place): place for place in device_map.values()}.values())
    if len(places) != 1:
        raise UserError(f"device_map is {brief(device_map)}: a model here is on one device, so name one")
    return places[0]


def device_of(name: AnyDevice | None) -> torch.device:
    """Give a device by its name, by default a GPU where there is one. UserError if it does not exist here."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if isinstance(name, bool) or not isinstance(name, (str, int, torch.device)):
            raise TypeError("expected a name such as cpu or cuda")
        device = torch.device(name)
        if device.type == "meta":
            raise TypeError("it holds no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, AttributeError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0][:120] or type(error).__name__
        raise UserError(f"the device {brief(name)} cannot be used ({said}): use cpu, or leave it out") from None
    return device


def dtype_of(value: Any) -> torch.dtype | None:
    """Give a dtype by its name, or of torch or numpy; None for None and "auto", which are the model's own.

    Raises:
        UserError: If it is none in which a model computes.
    """
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    name = value if isinstance(value, (str, torch.dtype)) else getattr(value, "__name__", getattr(value, "name", None))
    short = str(name).removeprefix("torch.")
    if name is None or short not in NUMBER_TYPES:
        raise UserError(f"{brief(value)} is no dtype to compute in: use float32, bfloat16 or float16")
    return getattr(torch, NUMBER_TYPES[short])


def batches(
    requests: Sequence[Segments], per: int, how: Sequence[Sampling | None] = ()
) -> Iterator[tuple[list[Segments], Any]]:
    """Give at most so many at a time, in order, with how they denoise. What differs in that stays apart, and so does
    what moves from what does not: a release has weights for each."""
    both = zip_longest(requests, how)
    for (_, s), alike in groupby(both, lambda one: (any_video([one[0]]), one[1])):
        while some := list(islice(alike, per)):
            yield [request for request, _ in some], s
