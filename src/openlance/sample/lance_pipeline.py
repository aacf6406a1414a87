"""The same engine under the names that diffusers and transformers have taught people.

pipe = LancePipeline.from_pretrained("nano")
pipe("a red circle left of a blue square", num_inference_steps=10, generator=torch.Generator().manual_seed(7)).images[0]
pipe("make the circle green", image="out.png").images[0]
pipe("the circle moves up", image="out.png", num_frames=17).frames[0]

inputs = pipe.processor(text="how many squares are there?", images="out.png")
pipe.processor.batch_decode(pipe.generate(**inputs, streamer=streamer))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openlance.errors import UserError
from openlance.media.buckets import resize
from openlance.media.clip import Clip
from openlance.media.inputs import Medium, as_clip, as_picture
from openlance.model.offload import parse_memory
from openlance.model.tiled import Tiling
from openlance.model.vae import channels_first, channels_last, latent_grid
from openlance.sample.inputs import check_texts, is_many
from openlance.sample.load import load
from openlance.sample.pipeline import Pipeline
from openlance.sample.processor import Processor
from openlance.sample.text import Decoding
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import ENDS, kind_of, request

# (what is read, what is made) -> the task; see `LancePipeline.__call__`.
TASKS = {
    ("", "image"): "t2i", ("", "video"): "t2v", ("image", "image"): "image_edit", ("image", "video"): "i2v",
    ("video", "video"): "video_edit", ("subject", "image"): "image_idip", ("subject", "video"): "video_idip",
}  # fmt: skip
OUTPUTS = ("pil", "np", "pt", "latent")

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
        self.engine.tiling = Tiling(tile=tile, overlap=overlap)

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
        if torch_dtype is not None and torch_dtype != "auto":
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

    def to(self, *where: torch.device | str | torch.dtype) -> LancePipeline:
        """Another device or dtype, or both; parts that were read are read again there."""
        for place in where:
            if isinstance(place, torch.dtype):
                self.engine.move(dtype=place)
            else:
                self.engine.move(torch.device(place))
        return self

    def enable_model_cpu_offload(self, memory: str | int | None = None) -> None:
        """Keep on the device only the part that works; memory: a budget such as "12GB", which may put more away."""
        self.engine.parts.take_turns = memory is None
        if memory is not None:
            self.engine.parts.memory = parse_memory(memory)
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
        `num_frames` with), a `video` to edit, or a `subject` to place in a new scene; with `num_frames` above 1 a clip.

        Lists pair up with a list of prompts. callback_on_step_end(pipe, step, t, {"latents": (B, C, T, Y, X)}) may give
        other latents back. settings: further fields of `Sampling`. UserError on bad input.
        """
        if output_type not in OUTPUTS:
            raise UserError(f"output_type {output_type!r} is unknown: use one of {', '.join(OUTPUTS)}")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        check_texts(texts, "prompt", "a red circle")
        reads, media = _given(image=image, video=video, subject=subject)
        makes = "video" if (num_frames or 1) > 1 or reads == "video" else "image"
        paired = reads and is_many(media) and is_many(prompt)
        media = list(media) if paired else [media] * len(texts)
        if len(media) != len(texts):
            raise UserError(f"{len(media)} inputs and {len(texts)} prompts do not pair up: give as many of each")
        size = (num_frames, height, width)
        if any(n is not None and n < 1 for n in (*size, num_images_per_prompt)):
            raise UserError(f"sizes of {size} and {num_images_per_prompt} pictures make nothing: use 1 or more")
        requests = [self._request(TASKS[reads, makes], t, m, size) for t, m in zip(texts, media, strict=True)]
        requests = [r for r in requests for _ in range(num_images_per_prompt)]
        seeds = _seeds(generator, len(requests))
        sampling = self.engine.sampling(
            requests, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **settings
        )
        after = None if callback_on_step_end is None else self._step_end(callback_on_step_end, requests)
        latents = self.engine.fill_latents(requests, sampling, seeds, after_step=after)
        return self._output(latents, makes, output_type)

    def _request(self, task: str, text: str, medium: Any, asked: tuple[int | None, ...]) -> Segments:
        """One request; sizes that the caller left out are those of the input, or the model's own. An input whose size
        the result has is resized first where another is asked for."""
        engine, ends, d = self.engine, ENDS[task], self.engine.defaults
        clips = [as_picture(m) if ends.reads == "image" else as_clip(m) for m in _listed(medium)]
        if ends.keeps_size:
            clips = [c.with_pixels(resize(c.pixels, asked[1] or c.height, asked[2] or c.width)) for c in clips]
        views = [engine.fit.views(clip, ends.makes) for clip in clips]
        usual = (d.num_frames if ends.makes == "video" else 1, d.height, d.width)
        if ends.keeps_size:
            kept = views[-1][1]
            asked = (kept.frames if kept.frames > 1 else asked[0], kept.height, kept.width)
        frames, height, width = (usual[n] if said is None else said for n, said in enumerate(asked))
        size = (frames, height, width)
        latent_grid(engine.config.vae, size)
        return request(task, text, views, size, None, engine.defaults.prompts)

    def _step_end(self, callback: StepEnd, requests: list[Segments]) -> Callable[[int, float, Tensor], Tensor | None]:
        """diffusers' callback as the sampler's: packed rows to latents of equal size, and back."""
        sizes = {r[-1].size for r in requests}
        if len(sizes) > 1:
            raise UserError("callback_on_step_end needs results of one size: give inputs of one size")
        grid = self.engine.codec.latent_grid(sizes.pop())  # type: ignore[arg-type]

        def after_step(step: int, t: float, x: Tensor) -> Tensor | None:
            latents = channels_first(x.reshape(len(requests), *grid, -1))
            changed = (callback(self, step, t, {"latents": latents}) or {}).get("latents")
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
        **_: Any,
    ) -> Tensor:
        """(B, L + new) token ids: those of the request in front, as transformers gives them, then the answer, filled up
        with the padding id. Call it as `generate(**processor(text=..., images=...))`."""
        if streamer is not None and len(requests) > 1:
            raise UserError("answers to several questions cannot be streamed: ask one at a time")
        if input_ids is None:
            input_ids = self.processor.ids(requests)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        on_token = None if streamer is None else (lambda _, token: streamer.put(torch.tensor([token])))
        d = Decoding(max_new_tokens=max_new_tokens, temperature=temperature if do_sample else 0.0, top_p=top_p)
        answers = self.engine.fill_ids(requests, d, generator, on_token)
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, self.processor.padded(answers, left=False).to(input_ids)], dim=1)


def _given(**media: Any) -> tuple[str, Any]:
    """The one input that is given, by name; UserError if there are two."""
    given = [(name, value) for name, value in media.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(name for name, _ in given)} are given: give one of them, as a list if several")
    return given[0] if given else ("", ())


def _listed(medium: Any) -> list[Any]:
    return list(medium) if is_many(medium) else [medium]


def _seeds(generator: Any, count: int) -> list[int | torch.Generator]:
    """One generator per result, one for all in turn, or random seeds."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != count:
            raise UserError(f"{len(generator)} generators for {count} results: give one, or one each")
        return list(generator)
    if generator is not None:
        return [generator] * count
    return torch.randint(2**31, (count,)).tolist()


def _pictures(clips: list[Clip], makes: str) -> list[Any]:
    from PIL import Image

    frames = [[Image.fromarray(frame) for frame in clip.pixels] for clip in clips]
    return frames if makes == kind_of(2) else [pictures[0] for pictures in frames]


def _array(clips: list[Clip], makes: str) -> np.ndarray:
    found = np.stack([clip.pixels for clip in clips]).astype(np.float32) / 255
    return found if makes == kind_of(2) else found[:, 0]


def _tensor(clips: list[Clip], makes: str) -> Tensor:
    return torch.from_numpy(_array(clips, makes)).movedim(-1, -3)


OUTPUT: dict[str, Callable[[list[Clip], str], Any]] = {"pil": _pictures, "np": _array, "pt": _tensor}
