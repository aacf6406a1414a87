"""Every task of Lance as a template of segments: the only file that knows what the tasks are.

System prompts are the released ones (released code and paper, appendix); a model that was trained with others brings
its own table (`SystemPrompts`), so a template never tests which model it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openlance.errors import UserError
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


def first_and_last(
    prompt: str, first: Any, last: Any, size: Size, clip: Any = None, prompts: SystemPrompts = RELEASED
) -> Segments:
    """A clip between two pictures. The last one cannot be a given frame of the target: the codec is causal, so latents
    of a clip's last four frames say more than one picture does. It is kept beside the target instead, coded alone as in
    training, at the position of the target's last frame. (The release names such a task and does not contain it.)"""
    ending = keep(last, Role.LAST)
    return [*system(prompts.video.format(m="video")), ending, say(prompt), make(size, clip, given=first)]


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


def dialogue(*turns: Segments) -> Segments:
    """Several turns as one sample or request: all but the last have become context, and the last brings the system
    turn. A later turn that looks at or edits an earlier picture shows it anew, as it would alone."""
    *earlier, last = turns
    past = [s.as_context() for turn in earlier for s in turn if s.role is not Role.SYSTEM]
    priors = [s for s in last if s.role is Role.SYSTEM]
    return [*priors, *past, *(s for s in last if s.role is not Role.SYSTEM)]


TASKS = {
    "t2i": text_to_visual,
    "t2v": text_to_visual,
    "i2v": image_to_video,
    "flf2v": first_and_last,
    "image_edit": edit,
    "video_edit": edit,
    "image_idip": subject_driven,
    "video_idip": subject_driven,
    "x2t_image": understand,
    "x2t_video": understand,
}


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What goes into a task and what comes out: "image", "video" or "text"; an empty `reads` means the prompt alone.
    With `keeps_size` a visual target has the height and width of its input, and its frames if that is a video."""

    reads: str = ""
    makes: str
    keeps_size: bool = False


ENDS = {
    "t2i": Ends(makes="image"),
    "t2v": Ends(makes="video"),
    "i2v": Ends(reads="image", makes="video", keeps_size=True),
    "flf2v": Ends(reads="image", makes="video", keeps_size=True),
    "image_edit": Ends(reads="image", makes="image", keeps_size=True),
    "video_edit": Ends(reads="video", makes="video", keeps_size=True),
    "image_idip": Ends(reads="image", makes="image"),
    "video_idip": Ends(reads="image", makes="video"),
    "x2t_image": Ends(reads="image", makes="text"),
    "x2t_video": Ends(reads="video", makes="text"),
}

# Every template behind one signature: prompt, media (each as the ViT and as the VAE sees it), size of a visual target,
# what fills the target (None leaves a hole), system prompts.
CALLS = {
    text_to_visual: lambda text, media, size, fill, p: text_to_visual(text, size, fill, p),
    image_to_video: lambda text, media, size, fill, p: image_to_video(text, media[0][1], size, fill, p),
    first_and_last: lambda text, media, size, fill, p: first_and_last(text, media[0][1], media[-1][1], size, fill, p),
    understand: lambda text, media, size, fill, p: understand([seen for seen, _ in media], text, fill, p),
    edit: lambda text, media, size, fill, p: edit(text, media, size, fill, prompts=p),
    subject_driven: lambda text, media, size, fill, p: subject_driven(text, media, size, fill, prompts=p),
}


def request(
    task: str,
    prompt: str,
    media: list[tuple[Any, Any]],
    size: Size,
    fill: Any = None,
    prompts: SystemPrompts = RELEASED,
) -> Segments:
    """A task by its name, as segments; arguments as in `CALLS`. UserError if the media do not fit the task."""
    if task not in TASKS:
        raise UserError(f"the task {task!r} is unknown: use one of {', '.join(TASKS)}")
    reads = ENDS[task].reads
    if bool(media) != bool(reads):
        wanted = f"give it at least one {reads}" if reads else "leave them out"
        raise UserError(f"the task {task} got {len(media)} pictures or clips to read: {wanted}")
    return CALLS[TASKS[task]](prompt, media, size, fill, prompts)
