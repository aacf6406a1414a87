"""The same engine under the names that diffusers and transformers have taught people.

pipe = LancePipeline.from_pretrained("nano")
pipe("a red circle left of a blue square", num_inference_steps=10, generator=torch.Generator().manual_seed(7)).images[0]
pipe("make the circle green", image="out.png").images[0]
pipe("the circle moves up", image="out.png", num_frames=17).frames[0]

inputs = pipe.processor(text="how many squares are there?", images="out.png")
pipe.processor.batch_decode(pipe.generate(**inputs, streamer=streamer))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openlance.config import values
from openlance.config.sampling import LARGEST_SIDE, MOST_RESULTS, Decoding
from openlance.config.values import NUMBER_TYPES
from openlance.errors import UserError
from openlance.inference.inputs import (
    Medium,
    a_function,
    as_picture,
    asked_size,
    clips_of,
    is_many,
    listed,
    starts,
    videos_of,
)
from openlance.inference.pipeline import Pipeline, load
from openlance.inference.processor import Processor
from openlance.media.clip import Clip
from openlance.runtime.offload import parse_memory
from openlance.sequence import tasks
from openlance.sequence.segment import Segment, Segments
from openlance.vae.lazy import channels_first, channels_last
from openlance.vae.tiling import Tiling

OUTPUTS = ("pil", "np", "pt", "latent")
# Options of transformers' `generate` that ask for what is always so here.
IDLE = ("attention_mask", "pad_token_id", "eos_token_id", "use_cache")

StepEnd = Callable[["LancePipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class Streamer(Protocol):
    """What transformers' streamers offer: `put` gets the ids of the request, then each new one; then `end`."""

    def put(self, value: Tensor) -> None: ...
    def end(self) -> None: ...


@dataclass
class LanceOutput:
    """What a call made, in `images` or, where it is clips, in `frames`; the other one is None.

    "pil": pictures, or a list of pictures per clip. "np" and "pt": float32 in [0, 1], (B, H, W, 3) and (B, 3, H, W);
    of clips (B, T, H, W, 3) and (B, T, 3, H, W). "latent": (B, C, T, Y, X).
    """

    images: Any = None
    frames: Any = None


class Codec:
    """What diffusers' users expect at `pipe.vae`."""

    def __init__(self, engine: Pipeline) -> None:
        self.engine, self.config = engine, engine.config.vae

    def enable_tiling(self, tile: int = Tiling.tile, overlap: int = Tiling.overlap) -> None:
        """Decode and encode large pictures piece by piece; tile, overlap: latent cells."""
        self.engine.tiling = Tiling(
            tile=values.whole("tile", tile, 1, LARGEST_SIDE), overlap=values.whole("overlap", overlap, 0, LARGEST_SIDE)
        )

    def disable_tiling(self) -> None:
        self.engine.tiling = None


class LancePipeline:
    """diffusers' manners over one `Pipeline`, which `engine` gives access to."""

    def __init__(self, engine: Pipeline) -> None:
        self.engine, self.processor = engine, Processor(engine)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "nano", *, torch_dtype: torch.dtype | str | None = None, **options: Any
    ) -> LancePipeline:
        """A shipped model, a folder of any form, or owner/name on the hub. torch_dtype: a dtype or "auto", the model's
        own; options: of `openlance.load`."""
        if torch_dtype is not None:
            options["dtype"] = torch_dtype
        return cls(load(model, **options))

    # Where things are and how much memory they take.

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    @property
    def vae(self) -> Codec:
        """The codec's settings: `enable_tiling()`, `disable_tiling()`."""
        return Codec(self.engine)

    def to(
        self,
        *where: torch.device | str | int | torch.dtype,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> LancePipeline:
        """Another device or dtype, or both; parts that were read are read again there. UserError if there is none."""
        for place in where:
            if place is None or isinstance(place, torch.dtype) or (isinstance(place, str) and place in NUMBER_TYPES):
                dtype = place if dtype is None else dtype
            else:
                device = place if device is None else device
        self.engine.move(device, dtype)
        return self

    def enable_model_cpu_offload(self, memory: str | int | None = None) -> None:
        """Keep on the device only the part that works; memory: a budget such as "12GB", which may put more away."""
        budget = parse_memory(memory)
        self.engine.parts.take_turns = memory is None
        if memory is not None:
            self.engine.parts.memory = budget
        self.engine.parts.move()

    def load_lora_weights(self, folder: str | Path, weight: float = 1.0) -> None:
        """Add an adapter in PEFT's format; see `Engine.load_lora_weights`."""
        self.engine.load_lora_weights(folder, weight)

    def unload_lora_weights(self) -> None:
        self.engine.unload_lora_weights()

    # Pictures and clips.

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Medium | Sequence[Medium] | None = None,
        video: Medium | Sequence[Medium] | None = None,
        subject: Medium | Sequence[Medium] | None = None,
        last_image: Medium | Sequence[Medium] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepEnd | None = None,
        **settings: Any,
    ) -> LanceOutput:
        """Draw, animate or change. What is given decides: nothing but words, an `image` to edit (or to begin a clip of
        `num_frames` with, and with a `last_image` to end it on), a `video` to edit (also as a list of its frames), or a
        `subject` to place in a new scene; with `num_frames` above 1 a clip.

        Lists pair up with a list of prompts. callback_on_step_end(pipe, step, t, {"latents": (B, C, T, Y, X)}) may give
        other latents back. settings: further fields of `Sampling`. UserError on bad input.
        """
        if not isinstance(output_type, str) or output_type not in OUTPUTS:
            raise UserError(f"output_type {values.brief(output_type)} is unknown: use one of {', '.join(OUTPUTS)}")
        a_function("callback_on_step_end", callback_on_step_end, 4, "lambda pipe, step, t, tensors: tensors")
        texts = listed(prompt, "prompt", "a red circle")
        asked = asked_size(num_frames, height, width)
        count = values.whole("num_images_per_prompt", num_images_per_prompt, 1, MOST_RESULTS)
        kind = tasks.kind_of(asked[0] or 1)
        given = Given(image=image, video=video, subject=subject, last_image=last_image, several=is_many(prompt))
        spec = given.task(kind)
        requests = [
            self.engine.front.request(spec, text, media, asked=asked)
            for text, media in zip(texts, given.media(len(texts)), strict=True)
        ]
        requests = [r for r in requests for _ in range(count)]
        sampling = self.engine.sampling(
            requests, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **settings
        )
        after = None if callback_on_step_end is None else self._step_end(callback_on_step_end, requests)
        with self.engine.turn:
            seeds = starts(None, generator, len(requests))
            latents = self.engine.fill_latents(requests, sampling, seeds, after_step=after)
            return self._output(latents, spec.makes, output_type)

    def _step_end(self, callback: StepEnd, requests: list[Segments]) -> Callable[[int, float, Tensor], Tensor | None]:
        """diffusers' callback as the sampler's: packed rows to latents of equal size, and back."""
        sizes = {r[-1].size for r in requests}
        if len(sizes) > 1:
            raise UserError("callback_on_step_end needs results of one size: give inputs of one size")
        grid = self.engine.codec.latent_grid(sizes.pop())  # type: ignore[arg-type]

        def after_step(step: int, t: float, x: Tensor) -> Tensor | None:
            latents = channels_first(x.reshape(len(requests), *grid, -1))
            changed = changed_latents(callback(self, step, t, {"latents": latents}), latents)
            return None if changed is None else channels_last(changed).reshape(x.shape)

        return after_step

    def _output(self, latents: list[Tensor], makes: str, output_type: str) -> LanceOutput:
        name = "images" if makes == "image" else "frames"
        if output_type == "latent":
            return LanceOutput(**{name: torch.stack([channels_first(z) for z in latents])})
        clips = self.engine.decode_latents(latents)
        return LanceOutput(**{name: OUTPUT[output_type](clips, makes)})

    # Words.

    @torch.inference_mode()
    def generate(
        self,
        requests: list[Segments],
        input_ids: Tensor | None = None,
        max_new_tokens: int = 96,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        streamer: Streamer | None = None,
        **more: Any,
    ) -> Tensor:
        """(B, L + new) token ids: those of the request in front, as transformers gives them, then the answer, filled up
        with the padding id. Call it as `generate(**processor(text=..., images=...))`. more: options of transformers
        that change nothing here (`IDLE`)."""
        values.no_others(more, IDLE)
        check_requests(requests, input_ids, generator, streamer)
        if streamer is not None and len(requests) > 1:
            raise UserError("answers to several questions cannot be streamed: ask one at a time")
        if input_ids is None:
            input_ids = self.processor.ids(requests)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        on_token = None if streamer is None else (lambda _, token: streamer.put(torch.tensor([token])))
        d = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        drawn = do_sample is not None and values.flag("do_sample", do_sample)
        d = d if drawn else replace(d, temperature=0.0)
        answers = self.engine.fill_ids(requests, d, generator, on_token)
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, self.processor.padded(answers, left=False).to(input_ids)], dim=1)


def changed_latents(answer: Any, latents: Tensor) -> Tensor | None:
    """What a callback wants in the place of the latents; None for nothing. UserError if it is of another kind."""
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


def check_requests(requests: Any, input_ids: Any, generator: Any, streamer: Any) -> None:
    """UserError unless these are requests and ids of a processor, a generator and a streamer, or None."""
    made = "call it as generate(**processor(text=..., images=...))"
    if not (isinstance(requests, list) and requests and all(is_request(r) for r in requests)):
        raise UserError(f"requests is {values.brief(requests)}: {made}")
    if input_ids is not None and not (isinstance(input_ids, Tensor) and input_ids.shape[:-1] == (len(requests),)):
        raise UserError(f"input_ids is {values.brief(input_ids)}: {made}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator is {values.brief(generator)}: expected a torch.Generator")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise UserError(f"streamer is {values.brief(streamer)}: expected an object with put and end, as transformers'")


def is_request(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(segment, Segment) for segment in value)


@dataclass(frozen=True, kw_only=True)
class Given:
    """The media of a call. several: there is a list of prompts, so that lists of media pair up with it."""

    image: Any
    video: Any
    subject: Any
    last_image: Any
    several: bool

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

    def media(self, count: int) -> list[list[Clip]]:
        """What each of so many prompts reads."""
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


def _pictures_of(medium: Any) -> list[Clip]:
    return clips_of(medium, as_picture)


def _pictures(clips: list[Clip], makes: str) -> list[Any]:
    from PIL import Image

    frames = [[Image.fromarray(frame) for frame in clip.pixels] for clip in clips]
    return frames if makes == tasks.kind_of(2) else [pictures[0] for pictures in frames]


def _array(clips: list[Clip], makes: str) -> np.ndarray:
    found = np.stack([clip.pixels for clip in clips]).astype(np.float32) / 255
    return found if makes == tasks.kind_of(2) else found[:, 0]


def _tensor(clips: list[Clip], makes: str) -> Tensor:
    return torch.from_numpy(_array(clips, makes)).movedim(-1, -3)


OUTPUT: dict[str, Callable[[list[Clip], str], Any]] = {"pil": _pictures, "np": _array, "pt": _tensor}
