"""What a call in diffusers' manner is given, and the task that this makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openlance.errors import UserError
from openlance.inference.inputs import as_picture, clips_of, is_many, videos_of
from openlance.media.clip import Clip
from openlance.sequence import tasks


@dataclass(frozen=True, kw_only=True)
class Given:
    """The media of a call and its prompts. several: lists of media pair up with those."""

    image: Any
    video: Any
    subject: Any
    last_image: Any
    texts: list[str]
    several: bool

    @classmethod
    def of(cls, texts: list[str], several: bool, **media: Any) -> Given:
        """What was handed in, batches that a call gave as "np" or "pt" taken apart: one prompt goes with all of a
        batch."""
        split = {name: _unbatched(value, 5 if name == "video" else 4) for name, value in media.items()}
        counts = {len(split[name]) for name, value in media.items() if split[name] is not value}
        if not several and counts and counts != {1}:
            texts, several = texts * max(counts), True
        return cls(texts=texts, several=several, **split)

    def task(self, makes: str) -> tasks.TaskSpec:
        """The task that reads what is given and makes a kind; UserError if two inputs exclude each other."""
        there = [name for name in ("image", "video", "subject") if getattr(self, name) is not None]
        if len(there) > 1:
            raise UserError(f"{' and '.join(there)} are given: give one of them, as a list if several")
        if self.last_image is not None and (there != ["image"] or makes == "image"):
            raise UserError("last_image ends a clip that an image begins: give image and num_frames with it")
        if not there:
            return tasks.the_task(tasks.text_to_visual, makes)
        if self.subject is not None:
            return tasks.the_task(tasks.subject_driven, makes)
        if self.video is not None:
            return tasks.the_task(tasks.edit, "video")
        if makes == "image":
            return tasks.the_task(tasks.edit, "image")
        return tasks.the_task(tasks.image_to_video if self.last_image is None else tasks.first_and_last, makes)

    def media(self) -> list[list[Clip]]:
        """What each of the prompts reads."""
        count = len(self.texts)
        found: list[list[Clip]] = [[] for _ in range(count)]
        for name, read in (("image", _pictures_of), ("subject", _pictures_of), ("last_image", _pictures_of),
                           ("video", videos_of)):  # fmt: skip
            value = getattr(self, name)
            if value is None:
                continue
            each = list(value) if self.several and is_many(value) else [value] * count
            if len(each) != count:
                raise UserError(f"{len(each)} inputs and {count} prompts do not pair up: give as many of each")
            for clips, medium in zip(found, each, strict=True):
                clips += read(medium)
        return found


def _unbatched(value: Any, dimensions: int) -> Any:
    """The items of an array or tensor with so many dimensions, anything else as it is."""
    return list(value) if getattr(value, "ndim", None) == dimensions and hasattr(value, "shape") else value


def _pictures_of(medium: Any) -> list[Clip]:
    return clips_of(medium, as_picture)
