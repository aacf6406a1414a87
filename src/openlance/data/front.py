"""The front: words and media become segments here, for every caller. A training sample is a request whose target is
filled; what both have before the target comes out of the same lines.

    front = Front(transform=MediaTransform(config), style=RELEASED_RUN)
    front.request("image_edit", "make it blue", [clip])
    front.sample("image_edit", "make it blue", [clip], fill=blue)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openlance.config.sampling import EXACT, PromptStyle
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.transform import ClipViews, MediaTransform
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import Size, TaskSpec, Views, request, spec_of

# Frames, height, width of a visual target as the caller wants them; None leaves one to the input or to the model.
Asked = tuple[int | None, int | None, int | None]
ANY: Asked = (None, None, None)
NO_SIZE: Size = (1, 1, 1)  # where no visual target is made


@dataclass(frozen=True, kw_only=True)
class Front:
    """Puts requests and samples together.

    Args:
        transform: How media are cut.
        style: How requests are worded.
        num_frames: Length of clips where neither the caller nor the input says one.
    """

    transform: MediaTransform
    style: PromptStyle = EXACT
    num_frames: int = 49

    def request(
        self,
        task: str | TaskSpec,
        prompt: str,
        media: Sequence[Clip] = (),
        *,
        asked: Asked = ANY,
        said: str | None = None,
    ) -> Segments:
        """Build a request, its target a hole.

        Args:
            task: A task or its name.
            prompt: What to do; a question; empty for a description.
            media: What is read, in order; of a picture's task the first frame of each.
            asked: Size of what is made.
            said: A system prompt of its own, for a model that has one.

        Raises:
            UserError: If the media do not fit the task, or the model cannot make the size.
        """
        spec = spec_of(task) if isinstance(task, str) else task
        clips = _read(spec, media)
        if spec.makes == "text":
            return self._put(spec, prompt, self._views(spec, clips), NO_SIZE, None, said)
        views, size = self._sized(spec, clips, asked)
        if size[0] > 1 and asked[0] not in (None, size[0]):
            raise UserError(
                f"num_frames is {asked[0]}, but what is made has {size[0]}, as its input has: leave num_frames out, or "
                f"cut the input"
            )
        self.transform.vae.check(size)
        if views and spec.keeps_size and size[0] <= self.transform.vae.temporal_stride and spec.makes != spec.reads:
            least = self.transform.vae.temporal_stride + 1
            raise UserError(f"{size[0]} frames are the given picture alone: use --num-frames {least} or more")
        return self._put(spec, prompt, views, size, None, said)

    def sample(
        self, task: str | TaskSpec, prompt: str, media: Sequence[Clip], fill: Clip | str, *, said: str | None = None
    ) -> Segments:
        """Build a training sample; arguments as `request`, and what fills the target: a clip or a text.

        A clip for a task that begins or ends with pictures may come without them: they are its own first and last
        frame.
        """
        spec = spec_of(task) if isinstance(task, str) else task
        clips = _read(spec, media)
        if isinstance(fill, str):
            return self._put(spec, prompt, self._views(spec, clips), NO_SIZE, fill, said)
        views: Sequence[ClipViews | Views]
        if spec.keeps_size and clips:
            target = self.transform.trimmed(fill)
            frames = min([clip.frames for clip in clips if clip.frames > 1] + [target.frames])
            clips = [clip.with_pixels(clip.pixels[:frames]) for clip in clips]
            views, (_, height, width) = self._sized(spec, clips, (frames, None, None))
            target = self.transform.views(target.with_pixels(target.pixels[:frames]), spec.makes, (height, width)).kept
        else:
            target, views = self.transform.views(fill, spec.makes).kept, self._views(spec, clips)
            if spec.reads and not clips:
                ends = [target.with_pixels(target.pixels[at][None]) for at in (0, -1)]
                views = [Views(end, end) for end in ends]
        return self._put(spec, prompt, views, target.pixels.shape[:3], target, said)

    def _views(self, spec: TaskSpec, clips: list[Clip]) -> list[ClipViews]:
        return [self.transform.views(clip, spec.makes) for clip in clips]

    def _sized(self, spec: TaskSpec, clips: list[Clip], asked: Asked) -> tuple[list[ClipViews], Size]:
        """The views, and the size of the target: that of the last source of an edit, that of the first picture of a
        clip, or the one that is asked for; what nobody says is the model's."""
        views, frames = self._views(spec, clips), self.num_frames if asked[0] is None else asked[0]
        if not spec.keeps_size:
            height, width = (usual if n is None else n for n, usual in zip(asked[1:], self.transform.usual))
            return views, (1 if spec.makes == "image" else frames, height, width)
        kept = views[-1 if spec.sized_by_source else 0].kept
        height, width = (own if n is None else n for n, own in zip(asked[1:], (kept.height, kept.width)))
        if asked[1:] != (None, None) or not spec.sized_by_source:
            views = [v if v.kept.pixels.shape[1:3] == (height, width) else v.sized(height, width) for v in views]
        if spec.sized_by_source:
            frames = kept.frames
        return views, (1 if spec.makes == "image" else frames, height, width)

    def _put(self, spec: TaskSpec, prompt: str, views: Any, size: Size, fill: Any, said: str | None) -> Segments:
        return request(spec, prompt, views, size, fill, self.style, said=said)


def _read(spec: TaskSpec, media: Sequence[Clip]) -> list[Clip]:
    """A picture's task reads one frame of each of its media; one that makes a text reads whatever it is shown."""
    if spec.reads == "image" and spec.makes != "text":
        return [clip if clip.frames == 1 else clip.with_pixels(clip.pixels[:1]) for clip in media]
    return list(media)
