"""Every task of Lance as a template of segments: the only file that knows what the tasks are.

System prompts are the released ones (released code and paper, appendix); a model that was trained with others brings
its own table (`SystemPrompts`), so a template never tests which model it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openlance.sequence.segment import Kind, Role, Segment, Segments

Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SystemPrompts:
    """The task prior in front of a request. `{m}` becomes "image" or "video"; an empty text leaves the turn empty."""

    image: str = (
        "Describe the {m} by detailing the color, quantity, text, shape, size, texture, spatial relationships of the"
        " objects and background:"
    )
    video: str = (
        "Describe the {m} by detailing the color, quantity, visible text, shape, size, texture, spatial relationships"
        " and motion/camera movements of the objects and background:"
    )
    edit: str = (
        "Describe the key features of the input {m} (color, shape, size, texture, objects, background), then explain"
        " how the user’s text instruction should alter or modify the {m}. Generate a new {m} that meets the user’s"
        " requirements while maintaining consistency with the original input where appropriate."
    )
    subject: str = (
        "Describe the key features of the input image (color, shape, size, texture, objects, background, style), then"
        " incorporate the user’s text description to generate a new {m} that satisfies the user’s requirements while"
        " preserving the essential identity and object or style information from the reference input."
    )
    question: str = "View the {m} attentively and provide a suitable answer to the posed question."
    captions: tuple[str, ...] = (
        "Generate a detailed and accurate description of the {m}, including all the key moments and visual details.",
        "Write an in-depth depiction of the {m}, covering all its aspects.",
        "Write an exhaustive depiction of the given {m}, capturing its essence and key moments.",
        "Describe the key features of the input {m}, including color, shape, size, texture, objects, background.",
    )


RELEASED = SystemPrompts()
# For a model trained without task priors: the system turn is left out and the segments alone say what to do.
NO_PRIOR = SystemPrompts(image="", video="", edit="", subject="", question="", captions=("",))


def system(text: str) -> Segments:
    """The system turn, or none for an empty text."""
    return [Segment(Kind.TEXT, Role.SYSTEM, text)] if text else []


def say(text: str) -> Segment:
    return Segment(Kind.TEXT, Role.PROMPT, text)


def reply(text: str | None = None) -> Segment:
    return Segment(Kind.TEXT, Role.TARGET, text)


def look(clip: Any, role: Role = Role.REFERENCE) -> Segment:
    """What it means (ViT)."""
    return Segment(Kind.PATCHES, role, clip)


def keep(clip: Any, role: Role = Role.REFERENCE) -> Segment:
    """How it looks (VAE)."""
    return Segment(Kind.LATENTS, role, clip)


def make(size: Size, clip: Any = None, given: Any = None) -> Segment:
    return Segment(Kind.LATENTS, Role.TARGET, clip, size, given)


def kind_of(frames: int) -> str:
    return "image" if frames == 1 else "video"


def text_to_visual(prompt: str, size: Size, clip: Any = None, prompts: SystemPrompts = RELEASED) -> Segments:
    """Text to image (one frame) and text to video."""
    text = prompts.image if size[0] == 1 else prompts.video
    return [*system(text.format(m=kind_of(size[0]))), say(prompt), make(size, clip)]


def image_to_video(
    prompt: str, first: Any, size: Size, clip: Any = None, prompts: SystemPrompts = RELEASED
) -> Segments:
    return [*system(prompts.video.format(m="video")), say(prompt), make(size, clip, given=first)]


def understand(
    media: list[Any], question: str, answer: str | None = None, prompts: SystemPrompts = RELEASED
) -> Segments:
    """Questions about images and clips; an empty question is a caption."""
    frames = max((clip.pixels.shape[0] for clip in media), default=1)
    prior = system((prompts.question if question else prompts.captions[0]).format(m=kind_of(frames)))
    return [*prior, *(look(clip) for clip in media), *([say(question)] if question else []), reply(answer)]


def _views(media: list[tuple[Any, Any]], role: Role) -> Segments:
    return [segment for seen, kept in media for segment in (look(seen, role), keep(kept, role))]


def edit(
    prompt: str,
    sources: list[tuple[Any, Any]],
    size: Size,
    clip: Any = None,
    *,
    medium: str | None = None,
    prompts: SystemPrompts = RELEASED,
) -> Segments:
    """Edit pictures or clips. Each source is (as the ViT sees it, as the VAE sees it).

    `medium` is the word in the system prompt; the release takes the kind of the last listed input, even "text".
    """
    prior = system(prompts.edit.format(m=medium or kind_of(size[0])))
    return [*prior, *_views(sources, Role.SOURCE), say(prompt), make(size, clip)]


def subject_driven(
    prompt: str,
    subjects: list[tuple[Any, Any]],
    size: Size,
    clip: Any = None,
    *,
    medium: str | None = None,
    prompts: SystemPrompts = RELEASED,
) -> Segments:
    """Draw the given subjects in a new scene; arguments as in `edit`."""
    prior = system(prompts.subject.format(m=medium or kind_of(size[0])))
    return [*prior, *_views(subjects, Role.REFERENCE), say(prompt), make(size, clip)]


TASKS = {
    "t2i": text_to_visual,
    "t2v": text_to_visual,
    "i2v": image_to_video,
    "image_edit": edit,
    "video_edit": edit,
    "image_idip": subject_driven,
    "video_idip": subject_driven,
    "x2t_image": understand,
    "x2t_video": understand,
}
