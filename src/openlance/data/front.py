"""The front: words and media become segments here, for every caller. A training sample is a request whose target is
filled; what both have before the target comes out of the same lines.

    front = Front(transform=MediaTransform(config), style=RELEASED_RUN)
    front.request("image_edit", "make it blue", [clip])
    front.sample("image_edit", "make it blue", [clip], fill=blue)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openlance.config.model import ModelConfig, Size
from openlance.config.sampling import EXACT, PromptStyle
from openlance.config.train import Stage
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import collected
from openlance.media.transform import ClipViews, MediaTransform
from openlance.sequence.segment import CONDITIONS, WORDS, Kind, Role, Segments, drop
from openlance.sequence.tasks import TaskSpec, Views, request, spec_of

if TYPE_CHECKING:
    from openlance.data.cache import Cache

# Frames, height, width of a target image or video as the caller wants them; None leaves one to the input or the model.
Asked = tuple[int | None, int | None, int | None]
Clips = Sequence[Clip]
ANY: Asked = (None, None, None)
NO_SIZE: Size = (1, 1, 1)  # where the target is a text


class Shown(NamedTuple):
    """What a training sample shows.

    Args:
        views: Of the media that are read, whatever has `seen` and `kept`.
        size: Of the target: frames, height and width in pixels.
        fill: What fills it.
    """

    views: Sequence[Any]
    size: Size
    fill: Any


@dataclass(frozen=True, kw_only=True)
class Front:
    """Puts requests and samples together.

    Args:
        transform: How media are cut.
        style: How requests are worded.
        num_frames: Length of videos where neither the caller nor the input says one.
    """

    transform: MediaTransform
    style: PromptStyle = EXACT
    num_frames: int = 49

    def request(
        self, task: str | TaskSpec, prompt: str, media: Clips = (), *, asked: Asked = ANY, said: str | None = None
    ) -> Segments:
        """Build a request, whose target is empty.

        Args:
            task: A task or its name.
            prompt: What to do; a question; empty for a description.
            media: What is read, in order; a task for images reads the first frame of each.
            asked: Size of the target: frames, height and width in pixels.
            said: A system prompt of its own, for a model that has one.

        Raises:
            UserError: If the media do not fit the task, or the model cannot make the size.
        """
        spec, clips = _read(task, media)
        if spec.makes == "text":
            return request(spec, prompt, self._views(spec, clips), NO_SIZE, None, self.style, said=said)
        views, size = self._sized(spec, clips, asked)
        if size[0] > 1 and asked[0] not in (None, size[0]):
            said = f"num_frames is {asked[0]}, but the result has {size[0]}, as its input has"
            raise UserError(f"{said}: leave num_frames out, or cut the input")
        self.transform.config.vae.check(size)
        least = self.transform.config.vae.temporal_stride + 1
        if views and spec.keeps_size and size[0] < least and spec.makes != spec.reads:
            said = f"num_frames is {size[0]}, which holds the given image alone"
            raise UserError(f"{said}: ask for more, such as num_frames={least}")
        return request(spec, prompt, views, size, None, self.style, said=said)

    def fitted(self, task: str | TaskSpec, clip: Clip, asked: Asked = ANY) -> Clip:
        """Cut a video as `request` cuts a source of its size, for what goes with one pixel by pixel."""
        spec, clips = _read(task, [clip])
        with collected():  # the source has said it
            return self._sized(spec, clips, asked)[0][-1].kept

    def sample(
        self, task: str | TaskSpec, prompt: str, media: Clips, fill: Clip | str, *, said: str | None = None
    ) -> Segments:
        """Build a training sample; arguments as `request`, and what fills the target: an image, a video or a text.

        A video for a task that begins or ends with images may come without them: they are its own first and last frame.
        """
        return self.worded(task, prompt, self.shown(task, media, fill), said=said)

    def shown(self, task: str | TaskSpec, media: Clips, fill: Clip | str) -> Shown:
        """Cut the media of a training sample; arguments as `sample`."""
        spec, clips = _read(task, media)
        if isinstance(fill, str):
            return Shown(self._views(spec, clips), NO_SIZE, fill)
        views: Sequence[ClipViews | Views]
        if spec.keeps_size and clips:
            if spec.makes == spec.reads and any(clip.frames == 1 for clip in clips) and fill.frames > 1:
                raise UserError(
                    f"a source is one image and what is made of it {fill.frames} frames: give a video of each"
                )
            # What moves is cut to one length first: frames that are left out then are the same of all.
            frames = min([clip.frames for clip in clips if clip.frames > 1] + [fill.frames])
            *clips, fill = (clip.with_pixels(clip.pixels[:frames]) for clip in (*clips, fill))
            target = self.transform.trimmed(fill)
            views, (_, height, width) = self._sized(spec, clips, (target.frames, None, None))
            target = self.transform.views(target, spec.makes, (height, width)).kept
        else:
            target, views = self.transform.views(fill, spec.makes).kept, self._views(spec, clips)
            if spec.reads and not clips:
                ends = [target.with_pixels(target.pixels[at][None]) for at in (0, -1)]
                views = [Views(end, end) for end in ends]
        return Shown(views, (target.frames, target.height, target.width), target)

    def worded(self, task: str | TaskSpec, prompt: str, shown: Shown, *, said: str | None = None) -> Segments:
        """Put words around what is shown; arguments as `sample`."""
        return request(task, prompt, shown.views, shown.size, shown.fill, self.style, said=said)

    def _views(self, spec: TaskSpec, clips: list[Clip]) -> list[ClipViews]:
        return [self.transform.views(clip, spec.makes) for clip in clips]

    def _sized(self, spec: TaskSpec, clips: list[Clip], asked: Asked) -> tuple[list[ClipViews], Size]:
        """Return the views, and the size of the target: that of the last source of an edit, that of the first image of
        a video, or the one that is asked for; what nobody says is the model's."""
        views, frames, own = self._views(spec, clips), asked[0], self.transform.usual
        if spec.keeps_size:
            kept = views[-1 if spec.sized_by_source else 0].kept
            own, frames = (kept.height, kept.width), kept.frames if spec.sized_by_source else frames
        height, width = (usual if n is None else n for n, usual in zip(asked[1:], own))
        if spec.keeps_size and (asked[1:] != (None, None) or not spec.sized_by_source):
            views = [v if v.kept.pixels.shape[1:3] == (height, width) else v.sized(height, width) for v in views]
        frames = self.num_frames if frames is None else frames
        return views, (1 if spec.makes == "image" else frames, height, width)


def _read(task: str | TaskSpec, media: Clips) -> tuple[TaskSpec, list[Clip]]:
    """A task for images reads one frame of each of its media; one that makes a text reads whatever it is shown."""
    spec = spec_of(task) if isinstance(task, str) else task
    if spec.reads == "image" and spec.makes != "text":
        return spec, [clip if clip.frames == 1 else clip.with_pixels(clip.pixels[:1]) for clip in media]
    return spec, list(media)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How rows become samples at one point of a stage.

    Args:
        front: Makes segments of words and media.
        drop_text: Share of the samples that lose their prompt.
        drop_all: Share of those that lose prompt and media.
        jitter: Of sources that compose scenes: the widest placement jitter of what words leave open, from canonical (0)
            to free (1).
        sides: Of the same sources: shortest and longest side in pixels.
        cache: Where encodings of earlier epochs are.
    """

    front: Front = field(default_factory=lambda: Front(transform=MediaTransform(ModelConfig())))
    drop_text: float = 0.0
    drop_all: float = 0.0
    jitter: float = 1.0
    sides: tuple[int, int] = (64, 64)
    cache: Cache | None = field(default=None, repr=False)

    @property
    def max_frames(self) -> int:
        """The longest video."""
        return self.front.transform.max_frames or 1 << 30

    @classmethod
    def at(
        cls, stage: Stage, step: int, config: ModelConfig, style: PromptStyle = EXACT, cache: Cache | None = None
    ) -> Fit:
        """Return the fit of a step of a stage, for a model.

        What is only read is cut as what is made from it would be; media of questions as videos (released: images to
        describe have the ViT's size of videos).
        """
        (low, high), along = stage.spread, min(step / stage.steps, 1.0)
        r = stage.resolution(step)
        bases = {"image": r.image, "video": r.video, "text": r.video}
        transform = MediaTransform(config, bases=bases, max_frames=stage.max_frames)
        return cls(
            front=Front(transform=transform, style=style), drop_text=stage.drop_text, drop_all=stage.drop_all,
            jitter=low + (high - low) * along, sides=stage.sides, cache=cache,
        )  # fmt: skip

    def dropped(self, segments: Segments, rng: np.random.Generator) -> Segments:
        """Drop conditions at random, for guidance. An answer in text keeps its question: only images and videos are
        guided."""
        chance = rng.random()
        if not any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments):
            return segments
        if chance < self.drop_text:
            return drop(segments, WORDS)
        return drop(segments, CONDITIONS) if chance < self.drop_text + self.drop_all else segments
