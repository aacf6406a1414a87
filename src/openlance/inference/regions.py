"""Where an edit may change its source: what a caller says (a mask, boxes, words), or what the model finds by itself.

Every form becomes a `sequence.segment.Region` on the target of the request, in the target's own pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.config.sampling import LARGEST_SIDE, LONGEST, REGIONS
from openlance.config.values import brief, whole
from openlance.config.values import within as in_range
from openlance.data.front import Front
from openlance.errors import UserError
from openlance.inference import auto
from openlance.inference.inputs import is_many
from openlance.inference.locating import box_said, located, seen, size_of
from openlance.media.clip import Clip
from openlance.media.region import box_mask, is_box, read_box, read_mask, widened
from openlance.sequence import tasks
from openlance.sequence.segment import Region, Segments
from openlance.sequence.tasks import within

if TYPE_CHECKING:
    from openlance.inference.methods import Methods

AUTO, NONE = REGIONS
ENDS = ("before", "after")  # room in frames; all other is in pixels


@dataclass(frozen=True, eq=False)
class Asked:
    """What is said of one edit: a mask in any form, or regions; neither is the checkpoint's own way.

    Args:
        mask: See `media.region.read_mask`.
        regions: Each a box, an array with a box for each frame, or words; together they are one region.
        word: "auto" or "none", in the place of both; empty with neither is the checkpoint's own.
    """

    mask: Any = None
    regions: tuple[Any, ...] = ()
    word: str = ""

    @classmethod
    def of(cls, mask: Any, region: Any) -> Asked:
        """Take in what goes with one edit. UserError if that means nothing."""
        if mask is not None and region is not None:
            raise UserError("there are a mask and a region: give one of them")
        if isinstance(region, str) and region in (AUTO, NONE):
            return cls(word=region)
        several = isinstance(region, list) and not is_box(region)
        found = tuple(region) if several else () if region is None else (region,)
        if (several and not found) or not all(is_box(one) or _is_track(one) or _is_name(one) for one in found):
            said = "expected auto, none, a box (left, top, right, bottom) in pixels, words, or a list of the last two"
            raise UserError(f"the region is {brief(region)}: {said}")
        return cls(mask, found)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value not in (AUTO, NONE)


def _is_track(value: Any) -> bool:
    """Whether it is an array with a box for each frame."""
    return getattr(value, "ndim", None) == 2 and value.shape[-1] == 4


def asked(mask: Any, region: Any, count: int, several: bool) -> list[Asked]:
    """Pair masks and regions with edits.

    Args:
        mask: Of all edits, or a list with one for each where there are several edits.
        region: Likewise; of a single edit a list is several regions.
        count: Edits.
        several: Whether edits come as a list.

    Raises:
        UserError: If the numbers differ, or something means nothing.
    """

    def dealt(value: Any, name: str) -> list[Any]:
        if not (several and is_many(value) and not is_box(value)):
            return [value] * count
        if len(value) != count:
            raise UserError(f"{len(value)} {name}s and {count} edits do not pair up: give one for all, or as many")
        return list(value)

    return [Asked.of(*pair) for pair in zip(dealt(mask, "mask"), dealt(region, "region"), strict=True)]


def placed(
    pipe: Methods, requests: Sequence[Segments], clips: Sequence[Clip], wanted: Sequence[Asked]
) -> list[Segments]:
    """Give requests of edits their regions.

    Args:
        pipe: Looks for what is named.
        requests: Without regions.
        clips: The source of each as it was given; masks and boxes are in its pixels.
        wanted: What is said of each.

    Raises:
        UserError: If a mask or box does not fit, or what is named is not found.
    """
    named = [(n, one) for n, asking in enumerate(wanted) for one in asking.regions if _is_name(one)]
    about, names = [requests[n] for n, _ in named], [words for _, words in named]
    there = zip(located(pipe, about, names), seen(pipe, about, names), strict=True)
    found = iter([region if is_there else None for region, is_there in there])
    usual = [pipe.defaults.region.get(tasks.kind_of(size_of(request)[0]), NONE) for request in requests]
    words = [
        one.word or ("" if one.mask is not None or one.regions else own) for one, own in zip(wanted, usual, strict=True)
    ]
    found_by_itself = iter(auto.regions(pipe, [r for r, word in zip(requests, words, strict=True) if word == AUTO]))
    made = list[Segments]()
    for request, clip, asking, word in zip(requests, clips, wanted, words, strict=True):
        if word:
            made.append(within(request, next(found_by_itself)) if word == AUTO else request)
            continue
        parts = [next(found) if _is_name(one) else _boxed(pipe, request, clip, one) for one in asking.regions]
        for one, part in zip(asking.regions, parts, strict=True):
            if part is None:
                raise UserError(f"the model finds no {brief(one)} in it: name it in other words, or give a box or mask")
        if asking.mask is not None:
            inside = read_mask(asking.mask, (clip.frames, clip.height, clip.width))
            parts = [masked(pipe.front, request, clip, inside, "a mask")]
        made.append(within(request, _joined(parts)) if parts else request)  # type: ignore[arg-type]
    return made


def _joined(parts: Sequence[Region]) -> Region:
    inside = np.any([part.inside for part in parts if part.inside is not None], axis=0)
    return Region(inside, ", ".join(part.said for part in parts))


def masked(front: Front, request: Segments, clip: Clip, inside: np.ndarray, said: str) -> Region:
    """Make a region of a mask, bool (T, H, W), in the pixels of a source, which is cut and resized as the source is."""
    _, height, width = size_of(request)
    levels = np.repeat(inside[..., None].astype(np.uint8) * 255, 3, axis=-1)
    spec = tasks.the_task(tasks.edit, tasks.kind_of(size_of(request)[0]))
    cut = front.fitted(spec, clip.with_pixels(levels), (None, height, width)).pixels[..., 0] >= 128
    if not cut.any():
        raise UserError(f"nothing is left of {said} in {width}x{height} pixels: give a larger one")
    return Region(cut, said)


def beyond(pipe: Methods, spec: tasks.TaskSpec, text: str, clip: Clip, said: str, **room: int) -> Segments:
    """Make the request for what lies beyond an image or video.

    Args:
        pipe: The model.
        spec: Task of `tasks.fill_part`.
        text: What is to be seen.
        clip: What is there.
        said: What it is, for people.
        **room: Pixels and frames, see `media.region.widened`.

    Returns:
        The request. Where height or width is no multiple of the VAE's stride, its target is larger at the bottom and on
        the right; `cut_to_size` takes that away.

    Raises:
        UserError: If the checkpoint has not learned it, there is no room, the whole is too large, or no video can have
            that many frames.
    """
    if spec.name not in pipe.defaults.tasks:
        said = f"this checkpoint was not trained to {spec.title}"
        raise UserError(said, expected=f"one whose generation_config.json names {spec.name} among its tasks")
    room = {name: whole(name, value, 0, LONGEST if name in ENDS else LARGEST_SIDE) for name, value in room.items()}
    if not any(room.values()):
        raise UserError(
            f"there is nothing to draw beyond it: give one of {', '.join(room)}, such as {next(iter(room))}=8"
        )
    frames, height, width = size_with(clip, room)
    most = {"frames": (frames, LONGEST), "height": (height, LARGEST_SIDE), "width": (width, LARGEST_SIDE)}
    for name, (value, limit) in most.items():
        in_range(f"the {name} of the whole", value, 1, limit)
    vae = pipe.config.vae
    if (frames - 1) % vae.temporal_stride:
        fewer = (frames - 1) // vae.temporal_stride * vae.temporal_stride + 1
        raise UserError(
            f"the video would have {frames} frames, and it has to be 1 + {vae.temporal_stride} k: ask for {fewer} or "
            f"{fewer + vae.temporal_stride} together"
        )
    more = {"bottom": -height % vae.stride, "right": -width % vae.stride}
    drawn, inside = widened(clip, **room | {name: room.get(name, 0) + pixels for name, pixels in more.items()})
    request = pipe.front.request(spec, text, [drawn])
    _, *sides = size_of(request)
    if sides != [drawn.height, drawn.width]:
        raise UserError(
            f"the whole would have {width}x{height} pixels, and this model draws it in {sides[1]}x{sides[0]} at most: "
            "give a smaller one, or ask for less room"
        )
    return within(request, masked(pipe.front, request, drawn, inside, said))


def size_with(clip: Clip, room: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return frames, height and width of an image or video with the room that is asked for beyond it."""

    def more(*names: str) -> int:
        return sum(whole(name, room.get(name, 0), 0) for name in names)

    return clip.frames + more(*ENDS), clip.height + more("top", "bottom"), clip.width + more("left", "right")


def cut_to_size(clip: Clip, size: tuple[int, int, int]) -> Clip:
    """Take away what was drawn at the bottom and on the right for the VAE's stride alone (`beyond`)."""
    _, height, width = size
    if (clip.height, clip.width) == (height, width):
        return clip
    made = None if clip.made is None else replace(clip.made, height=height, width=width)
    return replace(clip, pixels=clip.pixels[:, :height, :width], made=made)


def _boxed(pipe: Methods, request: Segments, clip: Clip, value: Any) -> Region:
    """The region of a box in the pixels of a source, or of one for each frame."""
    size = clip.frames, clip.height, clip.width
    rows = [value] if is_box(value) else np.asarray(value).tolist()
    if len(rows) not in (1, clip.frames):
        said = f"the region has boxes for {len(rows)} frames and the source {clip.frames}"
        raise UserError(f"{said}: give one box for all, or as many")
    boxes = [read_box(row, size) for row in rows]
    return masked(pipe.front, request, clip, box_mask(boxes, size), box_said(boxes))
