"""The sides of other libraries: of diffusers' calls (what is given and the task that it makes, schedulers, steps, what
comes back), and of transformers' questions (a processor, and what `generate` does with its inputs)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from openlance.config import values
from openlance.config.sampling import Decoding
from openlance.data.front import Asked, Front
from openlance.errors import UserError
from openlance.inference import inputs
from openlance.inference.engine import Engine
from openlance.inference.inputs import clips_of, is_many, question_about, questions, seeds_in, videos_of
from openlance.inference.regions import masked
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput, as_image
from openlance.media.region import read_mask
from openlance.sequence import tasks
from openlance.sequence.pack import pack
from openlance.sequence.segment import Segment, Segments, region_in, source_in
from openlance.vae.frames import channels_first, channels_last

if TYPE_CHECKING:
    from transformers.feature_extraction_utils import BatchFeature

# diffusers.

# What diffusers calls our solvers.
SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": "euler", "DPMSolverMultistepScheduler": "dpm++",
    "UniPCMultistepScheduler": "unipc",
}  # fmt: skip


@dataclass(frozen=True)
class Scheduler:
    """What is at `pipe.scheduler`: how a pipeline denoises where a call does not say; fields of `Sampling`."""

    solver: str
    shift: float

    @property
    def config(self) -> dict[str, Any]:
        """What diffusers' schedulers read, for `from_config`."""
        return {
            "_class_name": next(name for name, solver in SCHEDULERS.items() if solver == self.solver),
            "shift": self.shift, "flow_shift": self.shift, "use_flow_sigmas": True,
            "prediction_type": "flow_prediction", "num_train_timesteps": 1000,
        }  # fmt: skip


def solver_settings(value: Any) -> dict[str, Any]:
    """Give the fields of `Sampling` that a scheduler means.

    Args:
        value: A name of ours or of diffusers, a `Scheduler`, or an object or class of diffusers, whose shift counts
            where it is one of flows.

    Raises:
        UserError: For anything else.
    """
    if isinstance(value, Scheduler):
        return {"solver": value.solver, "shift": value.shift}
    name = value if isinstance(value, str) else (value if isinstance(value, type) else type(value)).__name__
    solver = SCHEDULERS.get(name, name if name in SCHEDULERS.values() else None)
    if solver is None:
        raise UserError(f"the scheduler is {values.brief(value)}: use one of {', '.join(SCHEDULERS)}, or its name")
    config = getattr(value, "config", None)
    config = config if isinstance(config, Mapping) else {}
    shift = config.get("shift") if solver == "euler" else config.get("use_flow_sigmas") and config.get("flow_shift")
    return {"solver": solver} | ({"shift": shift} if shift else {})


@dataclass(frozen=True)
class Given:
    """The prompts of a call and its media by the name of their argument; several: lists of media pair up with those."""

    texts: list[str]
    several: bool
    media: Mapping[str, Any]

    @classmethod
    def of(cls, texts: list[str], several: bool, media: Mapping[str, Any]) -> Given:
        """Take in what was handed in, batches that a call gave as "np" or "pt" taken apart: one prompt goes with all of
        a batch."""
        given = {name: value for name, value in media.items() if value is not None}
        split = {name: _unbatched(value, 5 if name == "video" else 4) for name, value in given.items()}
        counts = {len(split[name]) for name, value in given.items() if split[name] is not value}
        if not several and counts and counts != {1}:
            texts, several = texts * max(counts), True
        return cls(texts, several, split)

    def task(self, makes: str) -> tasks.TaskSpec:
        """Give the task that reads what is given and makes a kind; UserError if two inputs exclude each other."""
        there, last = [name for name in self.media if name != "last_image"], "last_image" in self.media
        if len(there) > 1:
            raise UserError(f"{' and '.join(there)} are given: give one of them, as a list if several")
        if last and (there != ["image"] or makes == "image"):
            raise UserError("last_image ends a video that an image begins: give image and num_frames with it")
        if there == ["video"]:
            return tasks.the_task(tasks.edit, "video")
        if there == ["image"]:
            moving = tasks.first_and_last if last else tasks.image_to_video
            return tasks.the_task(tasks.edit if makes == "image" else moving, makes)
        return tasks.the_task(tasks.subject_driven if there else tasks.text_to_visual, makes)

    def clips(self) -> list[list[Clip]]:
        """Read what goes with each of the prompts."""
        count = len(self.texts)
        found: list[list[Clip]] = [[] for _ in range(count)]
        for name, value in self.media.items():
            each = list(value) if self.several and is_many(value) else [value] * count
            if len(each) != count:
                raise UserError(f"{len(each)} inputs and {count} prompts do not pair up: give as many of each")
            for clips, item in zip(found, each, strict=True):
                clips += videos_of(item) if name == "video" else clips_of(item, as_image)
        return found

    def requests(self, front: Front, spec: tasks.TaskSpec, asked: Asked, masks: Any) -> list[Segments]:
        """Give the request of each prompt, those of edits with regions, white in masks: one for all, or one each.
        UserError for masks of something else, or that do not fit."""
        each = list(zip(self.texts, self.clips(), strict=True))
        made = [front.request(spec, text, clips, asked=asked) for text, clips in each]
        if masks is None:
            return made
        if any(source_in(request) is None for request in made):
            raise UserError("mask_image says what of an image or video may change: give that as image or video")
        split = _unbatched(masks, 5 if "video" in self.media else 4)
        batch = split is not masks or (self.several and is_many(split))
        found = list(split) if batch and len(split) != 1 else [split[0] if batch else split] * len(made)
        if len(found) != len(made):
            raise UserError(f"{len(found)} masks and {len(made)} prompts do not pair up: give one, or one each")
        for n, (mask, (_, (*_, clip))) in enumerate(zip(found, each, strict=True)):
            inside = read_mask(mask, (clip.frames, clip.height, clip.width), resized=True)
            made[n] = tasks.within(made[n], masked(front, made[n], clip, inside, "a mask"))
        if len({region_in(request).is_part for request in made}) > 1:
            raise UserError("some of the masks are white everywhere, which is no region: call without a mask for these")
        return made


def _unbatched(value: Any, dimensions: int) -> Any:
    """The items of an array or tensor with so many dimensions, anything else as it is."""
    return list(value) if getattr(value, "ndim", None) == dimensions and hasattr(value, "shape") else value


Grid: TypeAlias = tuple[int, int, int]
TENSORS = ("latents",)  # what a callback may see and change


@dataclass
class Run:
    """A call in progress, known to the thread that makes it alone: `stopped` in the middle of it ends it early."""

    stopped: bool = False

    def ended(self) -> bool:
        return self.stopped


RUN: ContextVar[Run | None] = ContextVar("RUN", default=None)


@contextmanager
def running() -> Iterator[Run]:
    token = RUN.set(run := Run())
    try:
        yield run
    finally:
        RUN.reset(token)


def starting_noise(latents: Any, grids: Sequence[Grid], channels: int) -> list[Tensor]:
    """Give (N, C) of each result from (B, C, T, Y, X). UserError if it is of another kind or shape."""
    if len(set(grids)) > 1:
        raise UserError("latents need results of one size: give inputs of one size, or height and width")
    shape = (len(grids), channels, *grids[0])
    expected = f"expected a tensor of floating-point numbers of the shape {shape}"
    if not isinstance(latents, Tensor):
        raise UserError(f"latents is {values.brief(latents)}: {expected}")
    if latents.shape != shape or not latents.is_floating_point():
        raise UserError(f"latents is a tensor of {latents.dtype} of the shape {tuple(latents.shape)}: {expected}")
    if not latents.isfinite().all():
        raise UserError(f"latents has infinities or NaN in it: {expected}, such as torch.randn gives")
    return list(channels_last(latents).flatten(1, 3).float())


def check_tensors(names: Any) -> tuple[str, ...]:
    """Give the names of what a callback wants to see. UserError if there is no such thing."""
    found = TENSORS if names is None else names
    if not isinstance(found, (list, tuple)) or not all(isinstance(n, str) and n in TENSORS for n in found):
        raise UserError(f"callback_on_step_end_tensor_inputs is {values.brief(names)}: use {list(TENSORS)}")
    return tuple(found)


def step_ends(
    callback: Callable[..., Any], pipe: Any, names: Sequence[str], grids: Sequence[Grid]
) -> Callable[[Sequence[int]], Callable[[int, float, Tensor], Tensor | None]]:
    """Turn diffusers' callback into the sampler's, for any of the results: packed rows to latents of equal size, and
    back. UserError if the sizes differ."""
    if len(set(grids)) > 1:
        raise UserError("callback_on_step_end needs results of one size: give inputs of one size")

    def of(which: Sequence[int]) -> Callable[[int, float, Tensor], Tensor | None]:
        def after_step(step: int, t: float, x: Tensor) -> Tensor | None:
            latents = channels_first(x.reshape(len(which), *grids[0], -1))
            changed = changed_latents(callback(pipe, step, t, dict.fromkeys(names, latents)), latents)
            return None if changed is None else channels_last(changed).reshape(x.shape)

        return after_step

    return of


def changed_latents(answer: Any, latents: Tensor) -> Tensor | None:
    """Give what a callback wants in the place of the latents; None for nothing. UserError if it is of another kind."""
    if answer is None:
        return None
    expected = 'expected None, or {"latents": ...} with a tensor of the shape ' + f"{tuple(latents.shape)}"
    if not isinstance(answer, Mapping):
        raise UserError(f"callback_on_step_end gave {values.brief(answer)} back: {expected}")
    changed = answer.get("latents")
    if changed is not None and not (isinstance(changed, Tensor) and changed.shape == latents.shape):
        what = f"a tensor of the shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else values.brief(changed)
        raise UserError(f"callback_on_step_end gave {what} back as latents: {expected}")
    return changed


OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass
class LanceOutput:
    """What a call made. It behaves as diffusers' outputs do, without the seconds that it takes to import them.

    Attributes:
        images: "pil": images. "np" and "pt": float32 in [0, 1], (B, H, W, 3) and (B, 3, H, W). "latent":
            (B, C, T, Y, X). None where videos were made.
        frames: Of videos. "pil": a list of images each. "np" and "pt": (B, T, H, W, 3) and (B, T, 3, H, W).
        revised_prompts: The text that was drawn of each prompt, where they were rewritten.
        verdicts: What the model found at each result (`media.clip.Verdict`), where it was asked to check.
    """

    images: Any = None
    frames: Any = None
    revised_prompts: list[str] | None = None
    verdicts: list[Any] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Give what was made, and after it rewritten prompts and verdicts if there are any."""
        return tuple(value for _, value in self.items())

    def __getitem__(self, key: int | slice | str) -> Any:
        """By name, or as in `to_tuple`."""
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.to_tuple())

    def keys(self) -> list[str]:
        """Names of what was made."""
        return [name for name, _ in self.items()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of what was made."""
        return [(name, value) for name, value in vars(self).items() if value is not None]


def output(clips: list[Clip], output_type: str, makes: str) -> Any:
    """Give results in one of the forms "pil", "np" and "pt", images without their axis of frames."""
    first = makes != tasks.kind_of(2)
    if output_type == "pil":
        return [clip.images()[0] if first else clip.images() for clip in clips]
    pixels = np.stack([clip.pixels[0] if first else clip.pixels for clip in clips]).astype(np.float32) / 255
    return pixels if output_type == "np" else torch.from_numpy(pixels).movedim(-1, -3)


def draws(check: Any, seeds: Sequence[int | torch.Generator], output_type: Any) -> int:
    """As `inputs.draws`, of a call that may begin with a generator, of which the seed counts, or with noise of its own
    and no seed. UserError if no seed is known, or there will be no pixels to look at."""
    most = inputs.draws(check, None)
    if most and output_type == "latent":
        raise UserError('check looks at pixels: ask for another output_type than "latent"')
    if most and (not seeds or None in seeds_in(seeds)):
        said = "give a generator for each result, from which nothing was drawn yet, and no latents"
        raise UserError(f"check draws again with other seeds: {said}")
    return most


def check_output(output_type: Any, sizes: Sequence[Any]) -> None:
    """Raise a UserError unless it is a form of output, and one that results of these sizes can have together."""
    if not isinstance(output_type, str) or output_type not in OUTPUTS:
        raise UserError(f"output_type {values.brief(output_type)} is unknown: use one of {', '.join(OUTPUTS)}")
    if output_type != OUTPUTS[0] and len(set(sizes)) > 1:
        raise UserError('results of several sizes do not stack: use output_type="pil", or give height and width')


# transformers.

PADDING = "<|endoftext|>"  # the release's
# Options of transformers' processors that ask for what is always so here.
IDLE = ("return_tensors", "padding", "add_special_tokens", "skip_special_tokens", "clean_up_tokenization_spaces")


class Processor:
    """Holds an engine's tokenizer and sizes; also what streamers call their tokenizer, since it decodes ids."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pad_token_id = engine.tokenizer.special(PADDING)

    def __call__(
        self,
        text: str | Sequence[str],
        images: MediaInput | Sequence[MediaInput] | None = None,
        videos: MediaInput | Sequence[MediaInput] | None = None,
        **more: Any,
    ) -> BatchFeature:
        """Make the inputs of `generate`.

        Args:
            text: A question, or several.
            images: What one question is about (several as a list), or a list with that of each question.
            videos: Videos in the place of images.
            **more: transformers' options of tensors, which change nothing here (`IDLE`).

        Returns:
            `input_ids` (B, L) and `requests`; `.to(device)` moves the tensors.

        Raises:
            UserError: If questions and media do not pair up.
        """
        from transformers.feature_extraction_utils import BatchFeature

        values.no_others(more, IDLE)
        texts = questions(text)
        if (images is None) == (videos is None):
            raise UserError("a question needs images or videos, and not both: give one of them")
        media: Any = images if images is not None else videos
        groups = list(media) if is_many(text) and is_many(media) else [media]
        if len(groups) != len(texts):
            raise UserError(f"{len(groups)} inputs and {len(texts)} questions do not pair up: give as many of each")
        requests = []
        for group, question in zip(groups, texts, strict=True):
            clips = clips_of(group, as_image) if images is not None else videos_of(group)
            requests.append(self.engine.front.request(question_about(clips), question.strip(), clips))
        return BatchFeature({"requests": requests, "input_ids": self.ids(requests)})

    def ids(self, requests: list[Segments]) -> Tensor:
        """Give (B, L) ids of the rendered requests up to where the answer begins, padded on the left."""
        packed = pack(requests, self.engine.codec, self.engine.config.position)
        rows = packed.rows.token.split(packed.lengths)
        return self.padded([row.tolist() for row in rows], left=True)

    def padded(self, rows: list[list[int]], *, left: bool) -> Tensor:
        longest = max((len(row) for row in rows), default=0)
        pads = [[self.pad_token_id] * (longest - len(row)) for row in rows]
        pairs = zip(pads, rows, strict=True)
        return torch.tensor([pad + row if left else row + pad for pad, row in pairs]).reshape(len(rows), longest)

    def decode(self, ids: Any, **more: Any) -> str:
        """Give the text of ids without special tokens, whatever transformers' options in `more` say."""
        values.no_others(more, IDLE)
        flat = ids.tolist() if hasattr(ids, "tolist") else ids
        flat = [flat] if isinstance(flat, int) else flat
        if not is_many(flat) or not all(isinstance(i, int) and 0 <= i < 2**32 for i in flat):
            raise UserError(f"the ids are {values.brief(ids)}: expected one row of those that `generate` gives")
        return self.engine.tokenizer.text(list(flat))

    def batch_decode(self, ids: Tensor | Sequence[Any], **more: Any) -> list[str]:
        """Give the texts of rows of ids; see `decode`."""
        if not is_many(ids) and getattr(ids, "ndim", 0) != 2:
            raise UserError(f"the ids are {values.brief(ids)}: expected the rows that `generate` gives")
        return [self.decode(row, **more) for row in ids]


# Options of transformers' `generate` that ask for what is always so here.
IDLE_IN_GENERATE = ("attention_mask", "pad_token_id", "eos_token_id", "use_cache")


class Streamer(Protocol):
    """What transformers' streamers offer: `put` gets the ids of the request, then each new one; then `end`."""

    def put(self, value: Tensor) -> None: ...
    def end(self) -> None: ...


@torch.inference_mode()
def answer_ids(
    engine: Engine,
    requests: list[Segments],
    input_ids: Tensor | None = None,
    *,
    do_sample: bool = False,
    generator: torch.Generator | None = None,
    streamer: Streamer | None = None,
    **more: Any,
) -> Tensor:
    """Answer as transformers' `generate` does.

    Args:
        engine: Whose answers these are.
        requests: What a processor gave.
        input_ids: Likewise.
        do_sample: Whether tokens are drawn.
        generator: For that.
        streamer: Gets the ids of the request, and those of the answer as they come.
        **more: Fields of `Decoding`, of which `stop` are texts that end an answer, which stay in it; and options of
            transformers that change nothing here (`IDLE_IN_GENERATE`).

    Returns:
        (B, L + new) token ids: those of the request in front, then the answer, filled up with the padding id.

    Raises:
        UserError: On bad input.
    """
    fields = Decoding.__dataclass_fields__
    values.no_others(more, (*fields, *IDLE_IN_GENERATE))
    made = "call it as generate(**processor(text=..., images=...))"
    if not (isinstance(requests, list) and requests and all(map(_is_request, requests))):
        raise UserError(f"requests is {values.brief(requests)}: {made}")
    if input_ids is not None and not (isinstance(input_ids, Tensor) and input_ids.shape[:-1] == (len(requests),)):
        raise UserError(f"input_ids is {values.brief(input_ids)}: {made}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator is {values.brief(generator)}: expected a torch.Generator")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise UserError(f"streamer is {values.brief(streamer)}: expected an object with put and end, as transformers'")
    if streamer is not None and len(requests) > 1:
        raise UserError("answers to several questions cannot be streamed: ask one at a time")
    processor = Processor(engine)
    if input_ids is None:
        input_ids = processor.ids(requests)
    d = Decoding(**{"max_new_tokens": 96, "temperature": 1.0} | {k: v for k, v in more.items() if k in fields})
    if do_sample is None or not values.flag("do_sample", do_sample):
        d = replace(d, temperature=0.0)
    if streamer is None:
        answers = engine.fill_ids(requests, d, generator)
    else:
        streamer.put(input_ids.cpu())
        answers = engine.fill_ids(requests, d, generator, lambda _, token: streamer.put(torch.tensor([token])))
        streamer.end()
    return torch.cat([input_ids, processor.padded(answers, left=False).to(input_ids)], dim=1)


def _is_request(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(segment, Segment) for segment in value)
