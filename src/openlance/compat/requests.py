"""One entry of the release's input files as a request, with its media at the sizes that the release would take.

Two quirks are left out on purpose (`docs/howto/official-inputs.md`): conditions are the VAE's mean instead of a draw
around it, and the noise of an entry does not depend on how many processes share the work.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openlance.compat.inputs import Entry
from openlance.compat.interleave import elements, request
from openlance.config.sampling import GenerationConfig
from openlance.errors import UserError
from openlance.inference.engine import Engine
from openlance.inference.enhance import Enhancer, rewriter
from openlance.inference.inputs import draws
from openlance.media.inputs import as_clip, as_image
from openlance.media.transform import BUCKET_STRIDE, LARGER, MediaTransform, resolution
from openlance.sequence.segment import Kind, Role, Segment, Segments
from openlance.sequence.tasks import TaskSpec, spec_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """How all entries of a run are made.

    Args:
        task: a key of `tasks.TASKS`; preset: of `media.transform.RESOLUTIONS`, for what is read; None lets the model's
            own sizes decide.
        size: (frames, height, width) of what is made, where no input decides it.
        settings: fields of `Sampling` that the checkpoint does not decide.
        seed: of the starting noise, the same for every entry (released code).
        root: the folder of the input file, where relative paths may begin.
        enhance: who rewrites the prompts first (see `enhance.rewriter`).
        think, check: as of `inputs.How`.
    """

    task: str
    size: tuple[int, int, int]
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = GenerationConfig.seed
    max_new_tokens: int = GenerationConfig.max_new_tokens
    root: Path = Path()
    enhance: bool | str | Enhancer | None = None
    think: bool = False
    check: int | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            resolution(self.preset)
        if self.spec.makes == "text" and self.enhance:
            raise UserError(f"{self.task} draws nothing, so no prompt is rewritten: run it with enhance=None")
        if self.spec.makes == "text" and (self.think or self.check is not None):
            raise UserError(
                f"{self.task} draws nothing that could be thought about or checked: leave think and check out"
            )
        draws(self.check, None)

    @property
    def spec(self) -> TaskSpec:
        return spec_of(self.task)


def size_for(engine: Engine, asked: GenerationConfig) -> tuple[int, int, int]:
    """Frames, height and width of what is made.

    What is asked for, unless a frame of it has more than four times the area of the model's usual image (`LARGER`, as
    for what is read). Then it counts as said of the release's model: it is made in the same ratio with the usual area,
    and frames beyond the usual ones are to these as they were to the release's.
    """
    usual, vae, released = engine.defaults, engine.config.vae, GenerationConfig()
    scale = ((usual.height * usual.width) / (asked.height * asked.width)) ** 0.5
    if scale >= LARGER**-0.5:
        return asked.num_frames, asked.height, asked.width
    share = (usual.num_frames - 1) / (released.num_frames - 1)
    frames = max(min(asked.num_frames, usual.num_frames), vae.whole_frames(1 + round((asked.num_frames - 1) * share)))
    height, width = (max(round(side * scale / vae.stride), 1) * vae.stride for side in (asked.height, asked.width))
    return frames, height, width


def find_file(element: Any, root: Path) -> Path:
    """A path of an entry: as it is, or below the folder of the input file or one above it, since the release's files
    count from the top of its repository. UserError if there is no such file."""
    if not isinstance(element, str) or not element:
        raise UserError(f"an image or video is given by its path, not by {element!r}")
    try:
        path = Path(element).expanduser()
        above = (root, *root.absolute().parents)
        places = [path] if path.is_absolute() else [path, *(folder / path for folder in above)]
        found = next((place for place in places if place.is_file()), None)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, or of nobody's home
        raise UserError(f"{element[:60]!r} is no path: {error}") from None
    if found is None:
        raise UserError(f"there is no file {element}, neither here nor above {root}")
    return found


def build(engine: Engine, entry: Entry, job: Job) -> tuple[Segments, str]:
    """The request of an entry, and its prompt as it was used; UserError if a file is missing or a size cannot be."""
    if entry.error:
        raise UserError(entry.error)
    data, style = entry.data, engine.defaults.style
    # The release draws one of its caption prompts; here the entry decides, so that a second run draws the same.
    caption = random.Random(f"{job.seed}/{entry.key}").randrange(len(style.captions))
    found = request(job.task, data, _views(engine, job), size=job.size, caption=caption, style=style)
    for segment in found:
        if segment.kind is Kind.LATENTS and segment.size is not None:
            if engine.codec.latent_grid(segment.size)[0] == 1 and segment.given is not None:
                said = f"num_frames is {segment.size[0]}, which holds the given image alone"
                raise UserError(f"{said}: ask for more, such as num_frames=5")
    if (rewrite := rewriter(engine, job.enhance)) is None:
        return [_empty(s) for s in found], prompt_of(data)
    drawn = rewrite(found)
    return drawn, "".join(s.text for s in drawn if s.kind is Kind.TEXT and s.role is not Role.SYSTEM)


def _empty(segment: Segment) -> Segment:
    """Entries carry the right answer where one is known; it is what the model is to say."""
    return replace(segment, value=None) if segment.role is Role.TARGET else segment


def _views(engine: Engine, job: Job) -> Callable[[Any, str], Any]:
    """Reads a medium and cuts it, each view only if the task has a use for it."""
    transform = engine.front.transform
    if job.preset is not None:
        transform = replace(transform, bases={job.spec.makes: _bases(engine.defaults, transform, job.preset)})

    def views(element: Any, kind: str) -> Any:
        path = find_file(element, job.root)
        return transform.views(as_image(path) if kind == "image" else as_clip(path), job.spec.makes)

    return views


def _bases(d: GenerationConfig, transform: MediaTransform, preset: str) -> tuple[int, int]:
    """The base sizes of a preset; for a model of smaller strides shrunk as its usual image is against the
    release's."""
    vae, vit = resolution(preset)
    if transform.config.vae.stride >= BUCKET_STRIDE:
        return vae, vit
    released = GenerationConfig()
    scale = ((d.height * d.width) / (released.height * released.width)) ** 0.5
    strides = transform.config.vae.stride, transform.config.vit.stride
    return max(round(vae * scale), 2 * strides[0]), max(round(vit * scale), 2 * strides[1])


def prompt_of(data: Any) -> str:
    """The texts of an entry as the release records them: one after the other; of a dialogue the question."""
    texts = [e.value for e in elements(data) if e.kind == "text"]
    return "".join(text if isinstance(text, str) else text[1] for text in texts)


def media_of(data: Any) -> tuple[str, str] | None:
    """(kind, path) of the first image or video of an entry, as the entry says it."""
    return next(((e.kind, e.value) for e in elements(data) if e.kind != "text"), None)
