"""Every task of Lance as a template of segments, and the one table of tasks: what else a task is stands in its row.

A template gets the prompt, the media of the user turn and the target; how all of that is worded is a `PromptStyle`, a
value that a checkpoint brings along, so a template never asks which model it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

from openlance.config.model import Size
from openlance.config.sampling import ASKED, EXACT, USUALLY_LAST, PromptStyle
from openlance.errors import UserError
from openlance.sequence.segment import Kind, Region, Role, Segment, Segments


class Views(NamedTuple):
    """An image or video as the ViT sees it and as the VAE keeps it. Templates ask for what they need by name, so what
    makes a view only when it is asked for will do as well (`media.transform`)."""

    seen: Any
    kept: Any


# What stands in a user turn: an image or video in its two views, or a segment as it is (a text that is only read).
Part: TypeAlias = Any
Media: TypeAlias = Sequence[Part]
Template: TypeAlias = Callable[[str, Media, Size, Any], Segments]


def system(text: str) -> Segments:
    """Make the system turn, or none for an empty text."""
    return [Segment(Kind.TEXT, Role.SYSTEM, text)] if text else []


def say(text: str) -> Segment:
    """Make a prompt."""
    return Segment(Kind.TEXT, Role.PROMPT, text)


def reply(text: str | None = None) -> Segment:
    """Make a text target; empty without a text."""
    return Segment(Kind.TEXT, Role.TARGET, text)


def look(clip: Any, role: Role = Role.REFERENCE) -> Segment:
    """Show what an image or video means (ViT)."""
    return Segment(Kind.PATCHES, role, clip)


def keep(clip: Any, role: Role = Role.REFERENCE) -> Segment:
    """Show how an image or video looks (VAE)."""
    return Segment(Kind.LATENTS, role, clip)


def make(size: Size, clip: Any = None, given: Any = None) -> Segment:
    """Make a visual target of a size in pixels; empty without a video."""
    return Segment(Kind.LATENTS, Role.TARGET, clip, size, given)


def kind_of(frames: int) -> str:
    """Say what so many frames are, "image" or "video"."""
    return "image" if frames == 1 else "video"


def _user(prompt: str, media: Media, *shown: Callable[[Any], Segment]) -> Segments:
    """The user turn: each image or video by the blocks that show it, segments as they are, then the prompt, if any."""
    blocks = [[part] if isinstance(part, Segment) else [show(part) for show in shown] for part in media]
    return [segment for block in blocks for segment in block] + ([say(prompt)] if prompt else [])


def _first(media: Media, at: int = 0) -> Any:
    """The VAE's view of one of the media."""
    return [part for part in media if not isinstance(part, Segment)][at].kept


def text_to_visual(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Make an image (one frame) or a video from words."""
    return [*_user(prompt, media), make(size, fill)]


def image_to_video(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Make a video that begins with an image, which fills its first frame."""
    return [*_user(prompt, media), make(size, fill, given=_first(media))]


def first_and_last(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Make a video between two images.

    The last one cannot be a given frame of the target: the VAE is causal, so latents of a video's last four frames say
    more than one image does. It is kept beside the target instead, coded alone as in training, at the position of the
    target's last frame. (The release names such a task and does not contain it.)
    """
    ending = keep(_first(media, -1), Role.LAST)
    return [ending, *_user(prompt, media), make(size, fill, given=_first(media))]


def understand(prompt: str, media: Media, size: Size, fill: str | None = None) -> Segments:
    """Answer a question about images and videos; an empty one asks for a description."""
    return [*_user(prompt, media, lambda view: look(view.seen)), reply(fill)]


def _both(role: Role) -> tuple[Callable[[Any], Segment], Callable[[Any], Segment]]:
    return lambda view: look(view.seen, role), lambda view: keep(view.kept, role)


def edit(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Change images or videos as told: each source as the ViT sees it, then as the VAE keeps it."""
    return [*_user(prompt, media, *_both(Role.SOURCE)), make(size, fill)]


def subject_driven(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Show the given subjects in a new scene."""
    return [*_user(prompt, media, *_both(Role.REFERENCE)), make(size, fill)]


def edit_part(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Change a region of an image or video as told: an edit in which all else is given, clean at every time.

    Which region is said of the target afterwards (`within`); until then it is everywhere, and nothing is given.
    """
    *user, target = edit(prompt, media, size, fill)
    return [*user, replace(target, given=_first(media, -1), region=Region())]


def fill_part(prompt: str, media: Media, size: Size, fill: Any = None) -> Segments:
    """Draw the region of an image or video that is not there yet, such as what is beyond its borders or its ends. What
    is there is given as in `edit_part`; a source there is none, for what is unknown has no looks."""
    return [*_user(prompt, media), replace(make(size, fill, given=_first(media)), region=Region())]


def within(request: Segments, region: Region) -> Segments:
    """Give the target of a request or sample a region."""
    return [replace(s, region=region) if s.role is Role.TARGET else s for s in request]


@dataclass(frozen=True)
class TaskSpec:
    """All that the project knows of a task.

    Args:
        name: Of the command line, of recipes, and of checkpoints that say what they were trained for.
        title: What it does, for people.
        template: Its segments.
        makes: "image", "video" or "text".
        columns: Dataset type of its training tables (`data.columns`).
        prompt: Text of a `PromptStyle` that stands in front.
        reads: "image" or "video", what it is given beside words; empty for words alone.
        keeps_size: A visual target has the height and width of its input, and its frames if that is a video.
        in_part: It is about a region of its input, which its samples and requests say beside words and media.
    """

    name: str
    title: str
    template: Template
    makes: str
    columns: str
    prompt: str
    reads: str = ""
    keeps_size: bool = False
    in_part: bool = False

    @property
    def kind(self) -> str:
        """ "image" or "video": what it makes, or reads where it makes a text."""
        return self.reads if self.makes == "text" else self.makes

    @property
    def sized_by_source(self) -> bool:
        """Whether frames, height and width of the target are those of its input."""
        return self.keeps_size and self.reads == self.makes

    @property
    def takes(self) -> tuple[str, ...]:
        """Fields of `config.sampling.ASKED` that it has a use for."""
        uses = {
            "num_frames": self.makes == "video" and not self.sized_by_source,
            "height": self.makes != "text" and not self.keeps_size,
            "width": self.makes != "text" and not self.keeps_size,
            "resolution": bool(self.reads), "sampling": self.makes != "text", "seed": True,
            "max_new_tokens": self.makes == "text",
        }  # fmt: skip
        return tuple(name for name in ASKED if uses[name])

    @property
    def shown(self) -> bool:
        """Whether its prompt says what is to be seen, so that a fuller one can stand in its place."""
        return self.prompt in ("image", "video")


# name, title, template, makes, columns, prompt, reads, keeps_size, in_part
_SPECS = (
    TaskSpec("t2i", "make an image from words", text_to_visual, "image", "text2image_general", "image"),
    TaskSpec("t2v", "make a video from words", text_to_visual, "video", "text2video_general", "video"),
    TaskSpec("i2v", "make a video that begins with an image", image_to_video, "video", "text2video_general", "video",
             reads="image", keeps_size=True),
    TaskSpec("flf2v", "make a video between two images", first_and_last, "video", "text2video_general", "video",
             reads="image", keeps_size=True),
    TaskSpec("image_edit", "change an image as told", edit, "image", "image2image", "edit",
             reads="image", keeps_size=True),
    TaskSpec("video_edit", "change a video as told", edit, "video", "video2video", "edit",
             reads="video", keeps_size=True),
    TaskSpec("image_idip", "show given subjects in a new image", subject_driven, "image", "image2image", "subject",
             reads="image"),
    TaskSpec("video_idip", "show given subjects in a new video", subject_driven, "video", "image2video", "subject",
             reads="image"),
    TaskSpec("image_inpaint", "change a region of an image as told", edit_part, "image", "image2image", "edit",
             reads="image", keeps_size=True, in_part=True),
    TaskSpec("video_inpaint", "change a region of a video as told", edit_part, "video", "video2video", "edit",
             reads="video", keeps_size=True, in_part=True),
    TaskSpec("outpaint", "draw what is beyond the borders of an image", fill_part, "image", "image2image", "image",
             reads="image", keeps_size=True, in_part=True),
    TaskSpec("extend", "make what comes before or after a video", fill_part, "video", "video2video", "video",
             reads="video", keeps_size=True, in_part=True),
    TaskSpec("x2t_image", "answer questions about images, or describe them", understand, "text", "x2t_general",
             "question", reads="image"),
    TaskSpec("x2t_video", "answer questions about videos, or describe them", understand, "text", "x2t_general",
             "question", reads="video"),
)  # fmt: skip
TASKS = {spec.name: spec for spec in _SPECS}
# What people call some of them.
ALSO = {
    "edit": "image_edit", "subject": "image_idip", "video_subject": "video_idip", "vqa": "x2t_image",
    "caption": "x2t_image", "video_vqa": "x2t_video", "video_caption": "x2t_video",
}  # fmt: skip


def spec_of(task: str) -> TaskSpec:
    """Find the row of a task, also by the name of one of its sources, TASK@NAME; UserError if there is none."""
    return _named(task.partition("@")[0])


def _named(task: str) -> TaskSpec:
    if task not in TASKS:
        raise UserError(f"the task {task!r} is unknown: use one of {', '.join(TASKS)}")
    return TASKS[task]


def task_name(said: str) -> str:
    """Find the name of a task by what people call it; UserError if there is none."""
    return _named(ALSO.get(said, said)).name


def source_name(said: str) -> str:
    """Find the name of a source of training, TASK or TASK@NAME, by what people call its task; UserError if there is
    none."""
    task, mark, name = said.partition("@")
    return task_name(task) + mark + name


def the_task(template: Template, kind: str) -> TaskSpec:
    """Find the task of a template that makes a kind, or that reads it where it makes a text."""
    return next(spec for spec in _SPECS if spec.template is template and spec.kind == kind)


def prior(spec: TaskSpec, style: PromptStyle, *, last: str = USUALLY_LAST, caption: int | None = None) -> Segments:
    """Make the system turn of a task.

    Args:
        spec: The task.
        style: How it is worded.
        last: See `PromptStyle.prior`.
        caption: Which of the descriptions is asked for; None where none is.
    """
    if caption is None:
        return system(style.prior(spec.prompt, spec.kind, last))
    return system(style.captions[caption % len(style.captions)].format(m=spec.kind))


def outline(spec: TaskSpec) -> Segments:
    """The segments of a task, with a placeholder for each of its media."""
    blank = SimpleNamespace(pixels=SimpleNamespace(shape=(1, 8, 8, 3)))
    return spec.template("x", [Views(blank, blank)] * bool(spec.reads), (1 if spec.makes == "image" else 5, 8, 8), None)


def task_of(segments: Segments) -> TaskSpec | None:
    """The task whose template puts such segments together; None for what is none alone, such as a dialogue."""

    def shape(some: Segments) -> set[Any]:
        words = (Role.SYSTEM, Role.PROMPT)
        return {(s.kind, s.role, s.given is not None, s.given is not None and s.region is not None,
                 s.role is Role.TARGET and s.size is not None and s.size[0] > 1)
                for s in some if s.role not in words}  # fmt: skip

    return next((spec for spec in _SPECS if shape(outline(spec)) == shape(segments)), None)


# What a model that has no prompts for descriptions is asked instead.
DESCRIBE = "describe the picture"
# Asks for the box of something, in the form of Qwen2.5-VL, whose words it has been trained with.
LOCATE = "locate {}"


def request(
    task: str | TaskSpec,
    prompt: str,
    media: Media,
    size: Size,
    fill: Any = None,
    style: PromptStyle = EXACT,
    *,
    said: str | None = None,
    caption: int = 0,
) -> Segments:
    """Put a request or a training sample together; the two differ in `fill` alone.

    Args:
        task: A task or its name.
        prompt: What to do; empty for a description.
        media: `Views` in the order of the user turn.
        size: Frames, height and width in pixels of a visual target.
        fill: What fills the target: a video, latents or a text; None leaves it empty.
        style: How it is worded.
        said: A system prompt of its own, for a model that has one.
        caption: Which prompt asks for a description.

    Raises:
        UserError: For an unknown task, or media that do not fit it.
    """
    spec = spec_of(task) if isinstance(task, str) else task
    if bool(media) != bool(spec.reads):
        wanted = f"give it at least one {spec.reads}" if spec.reads else "leave them out"
        raise UserError(f"the task {spec.name} got {len(media)} images or videos to read: {wanted}")
    prompt = prompt.strip() if style.strips else prompt
    describes = spec.makes == "text" and not prompt
    front = prior(spec, style, caption=caption if describes else None)
    if said is not None and getattr(style, spec.prompt):
        front = [Segment(Kind.TEXT, Role.SYSTEM, said)]
    if describes and not front:
        prompt = DESCRIBE
    return [*front, *spec.template(prompt, media, size, fill)]


def dialogue(*turns: Segments) -> Segments:
    """Join several turns to one sample or request: all but the last have become context, and the last brings the system
    turn. A later turn that looks at or edits an earlier image shows it anew, as it would alone."""
    *earlier, last = turns
    past = [s.as_context() for turn in earlier for s in turn if s.role is not Role.SYSTEM]
    priors = [s for s in last if s.role is Role.SYSTEM]
    return [*priors, *past, *(s for s in last if s.role is not Role.SYSTEM)]
