"""Everything that a checkpoint does: openlance's own methods, and the manners of diffusers and transformers.

pipe = openlance.load("nano")  # or LancePipeline.from_pretrained("nano"), which is the same
pipe.generate("a red circle left of a blue square", seed=7)[0].save("out.png")
pipe.ask("out.png", "how many squares are there?")

pipe("a red circle left of a blue square", num_inference_steps=10, generator=torch.Generator().manual_seed(7)).images[0]
pipe("make the circle green", image="out.png").images[0]
pipe("the circle moves up", image="out.png", num_frames=17).frames[0]

inputs = pipe.processor(text="how many squares are there?", images="out.png")
pipe.processor.batch_decode(pipe.generate(**inputs, streamer=streamer))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openlance.config import values
from openlance.config.sampling import MOST_RESULTS
from openlance.config.values import NUMBER_TYPES
from openlance.errors import UserError
from openlance.inference.engine import Engine
from openlance.inference.given import Given
from openlance.inference.inputs import Medium, a_function, asked_size, is_many, listed, starts
from openlance.inference.methods import Methods
from openlance.inference.output import OUTPUT, OUTPUTS, LanceOutput
from openlance.inference.processor import Processor
from openlance.inference.words import answer_ids
from openlance.runtime.offload import parse_memory
from openlance.sequence import tasks
from openlance.sequence.segment import Segments
from openlance.vae.lazy import channels_first, channels_last

StepEnd = Callable[["LancePipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


def load(model: str | Path = "nano", *, base: str | Path | None = None, **options: Any) -> LancePipeline:
    """See `openlance.load`. base: a folder with what `model` lacks, such as the VAE of a trainer's output."""
    from openlance.checkpoint.hub import find_model

    values.no_others(options, inspect.getfullargspec(Engine.__init__).kwonlyargs)
    return LancePipeline(find_model(model, base=base), **options)


class LancePipeline(Methods):
    """A checkpoint at work. `generate`, `edit`, `animate`, `subject`, `ask` and `caption` are openlance's own (see
    `Methods`); a call is diffusers', and `generate` with the inputs of `processor` is transformers'."""

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "nano", *, torch_dtype: torch.dtype | str | None = None, **options: Any
    ) -> LancePipeline:
        """A shipped model, a folder of any form, or owner/name on the hub. torch_dtype: a dtype or "auto", the model's
        own; options: of `openlance.load`."""
        if torch_dtype is not None:
            options["dtype"] = torch_dtype
        return load(model, **options)

    @property
    def processor(self) -> Processor:
        """transformers' processor: questions and media in, the inputs of `generate` out, and ids back to text."""
        return Processor(self)

    # Where things are and how much memory they take.

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
        self.move(device, dtype)
        return self

    def enable_model_cpu_offload(self, memory: str | int | None = None) -> None:
        """Keep on the device only the part that works; memory: a budget such as "12GB", which may put more away."""
        budget = parse_memory(memory)
        self.parts.take_turns = memory is None
        if memory is not None:
            self.parts.memory = budget
        self.parts.move()

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
            self.front.request(spec, text, media, asked=asked)
            for text, media in zip(texts, given.media(len(texts)), strict=True)
        ]
        requests = [r for r in requests for _ in range(count)]
        sampling = self.sampling(
            requests, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **settings
        )
        after = None if callback_on_step_end is None else self._step_end(callback_on_step_end, requests)
        with self.turn:
            seeds = starts(None, generator, len(requests))
            latents = self.fill_latents(requests, sampling, seeds, after_step=after)
            return self._output(latents, spec.makes, output_type)

    def _step_end(self, callback: StepEnd, requests: list[Segments]) -> Callable[[int, float, Tensor], Tensor | None]:
        """diffusers' callback as the sampler's: packed rows to latents of equal size, and back."""
        sizes = {r[-1].size for r in requests}
        if len(sizes) > 1:
            raise UserError("callback_on_step_end needs results of one size: give inputs of one size")
        grid = self.codec.latent_grid(sizes.pop())  # type: ignore[arg-type]

        def after_step(step: int, t: float, x: Tensor) -> Tensor | None:
            latents = channels_first(x.reshape(len(requests), *grid, -1))
            changed = changed_latents(callback(self, step, t, {"latents": latents}), latents)
            return None if changed is None else channels_last(changed).reshape(x.shape)

        return after_step

    def _output(self, latents: list[Tensor], makes: str, output_type: str) -> LanceOutput:
        name = "images" if makes == "image" else "frames"
        if output_type == "latent":
            return LanceOutput(**{name: torch.stack([channels_first(z) for z in latents])})
        clips = self.decode_latents(latents)
        return LanceOutput(**{name: OUTPUT[output_type](clips, makes)})

    # Words.

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        requests: list[Segments] | None = None,
        input_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Pictures for one prompt or several (see `Methods.generate`); or, called as `generate(**processor(text=...,
        images=...))`, the (B, L + new) token ids of answers (see `words.answer_ids`)."""
        if requests is None and input_ids is None:
            return super().generate(prompt, **options)  # type: ignore[arg-type]
        if prompt is not None:
            raise UserError("a prompt draws pictures and a processor's inputs give token ids: give one of the two")
        return answer_ids(self, requests, input_ids, **options)  # type: ignore[arg-type]


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
