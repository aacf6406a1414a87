"""Everything that a checkpoint does: openlance's own methods, and the interfaces of diffusers and transformers.

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

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openlance.config import values
from openlance.config.sampling import MOST_RESULTS, Sampling
from openlance.config.values import NUMBER_TYPES
from openlance.errors import UserError
from openlance.inference import interfaces
from openlance.inference.checking import checked
from openlance.inference.inputs import AnyDevice, Settings, a_function, asked_size, is_many, listed, seeds_in, starts
from openlance.inference.methods import Methods
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput
from openlance.runtime.offload import parse_memory
from openlance.sequence import tasks
from openlance.sequence.segment import Segments, prompt_in
from openlance.vae.frames import channels_first

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openlance.inference.enhance import Enhancer
    from openlance.inference.story import Story

TQDM = ("desc", "leave", "position", "ncols", "colour", "file", "unit", "mininterval", "ascii", "dynamic_ncols")
StepEnd = Callable[["LancePipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class LancePipeline(Methods):
    """A checkpoint at work. `generate`, `edit`, `animate`, `subject`, `ask` and `caption` are openlance's own (see
    `Methods`); a call is diffusers', and `generate` with the inputs of `processor` is transformers'."""

    _bar: Mapping[str, Any] = {"disable": True}  # of calls, as tqdm takes it

    def save_pretrained(self, folder: str | Path, *, form: str = "openlance") -> None:
        """Write the checkpoint into a new folder, from which `from_pretrained` reads the same, quantization included.

        Args:
            folder: New or empty.
            form: "openlance", "released" or "diffusers".

        Raises:
            UserError: If an adapter is loaded, or the folder is there already.
        """
        from openlance.runtime.conversion import gather, write

        out = values.path_of("the folder", folder)
        with self.turn:
            if self.parts.adapters:
                raise UserError("an adapter is loaded, which is a folder of its own: call unload_lora_weights() first")
            files, leave = self.parts.fetched(), self.parts.allow_pickle
            found = gather(files, quantize=self.parts.quantization, allow_pickle=leave)
            write(out, found, form, show=not self._bar["disable"])

    @property
    def components(self) -> dict[str, Any]:
        """The components by name, for which all of them are read: transformer, vae, vision_tower, tokenizer, processor
        and scheduler."""
        with self.turn:
            parts = {"transformer": self.lance("und", "gen"), "vision_tower": self.vit(), "vae": self.vae()}
            return parts | {"tokenizer": self.tokenizer, "processor": self.processor, "scheduler": self.scheduler}

    @property
    def scheduler(self) -> interfaces.Scheduler:
        """How this pipeline denoises where a call does not say. Set it to a name, ours or diffusers', or to a scheduler
        of diffusers: `pipe.scheduler = "UniPCMultistepScheduler"`."""
        usual = self.defaults.sampling_for(())
        return interfaces.Scheduler(usual.solver, usual.shift)

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        self.defaults = self.defaults.denoising(**interfaces.solver_settings(value))

    def set_progress_bar_config(self, *, disable: bool = False, **config: Any) -> None:
        """Choose whether calls show a bar, which they do not at first.

        Args:
            disable: Whether they do not.
            **config: Further options of tqdm.
        """
        values.no_others(config, TQDM)
        self._bar = {"disable": values.flag("disable", disable)} | config

    @property
    def processor(self) -> interfaces.Processor:
        """transformers' processor: questions and media in, the inputs of `generate` out, and ids back to text."""
        return interfaces.Processor(self)

    # Where things are and how much memory they take.

    def to(
        self, *where: AnyDevice | torch.dtype, device: AnyDevice | None = None, dtype: torch.dtype | str | None = None
    ) -> LancePipeline:
        """Go on with another device or dtype, or both. UserError if there is none."""
        for place in where:
            if place is None or isinstance(place, torch.dtype) or (isinstance(place, str) and place in NUMBER_TYPES):
                dtype = place if dtype is None else dtype
            else:
                device = place if device is None else device
        self.move(device, dtype)
        return self

    def enable_model_cpu_offload(
        self, memory: str | int | None = None, *, gpu_id: int | None = None, device: AnyDevice | None = None
    ) -> None:
        """Keep on the device only the component that works.

        Args:
            memory: A budget such as "12GB" instead, which offloads as much as it takes.
            gpu_id: Go on with this GPU.
            device: Likewise.
        """
        budget = parse_memory(memory)
        if gpu_id is not None or device is not None:
            self.move(device if gpu_id is None else gpu_id)
        self.parts.offload = memory is None
        if memory is not None:
            self.parts.memory = budget
        self.parts.move()

    # Pictures and clips.

    def story(self, lines: Sequence[str], *, image: MediaInput | None = None, **how: Any) -> Story:
        """Make several results in one call, images, videos and texts in turn.

        Args:
            lines: What comes next, in free words: "draw a red circle", "describe the picture", "make it blue".
            image: An image or video to begin with.
            **how: Of `Dialogue`: seed (of result k it is seed + k), history, height, width, check, think, fields of
                `Sampling` ...

        Raises:
            UserError: On bad input.
        """
        from openlance.inference.story import tell

        return tell(self, lines, image, **how)

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: MediaInput | Sequence[MediaInput] | None = None,
        last_image: MediaInput | Sequence[MediaInput] | None = None,
        video: MediaInput | Sequence[MediaInput] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = interfaces.TENSORS,
        subject: MediaInput | Sequence[MediaInput] | None = None,
        enhance: bool | str | Enhancer | None = None,
        mask_image: MediaInput | Sequence[MediaInput] | None = None,
        think: bool = False,
        check: int | None = None,
        **settings: Unpack[Settings],
    ) -> interfaces.LanceOutput:
        """Draw, animate or change.

        What is given decides: nothing but words, an `image` to edit (or to begin a video of `num_frames` with, and with
        a `last_image` to end it on), a `video` to edit (also as a list of its frames), or a `subject` to place in a new
        scene; with `num_frames` above 1 a video. Lists pair up with a list of prompts, and so do the batches that
        output_type "np" and "pt" give.

        Args:
            negative_prompt: What guidance leads away from, in the place of no words at all.
            latents: The noise to begin with, (B, C, T, Y, X), instead of the generator's.
            return_dict: False gives a tuple.
            callback_on_step_end: f(pipe, step, t, {"latents": (B, C, T, Y, X)}) may give other latents back, and end
                the call early with `pipe.interrupt = True`.
            enhance: Who rewrites the prompts first: True for the checkpoint itself, an `Enhancer`, or its address. The
                output has what was drawn as `revised_prompts`.
            mask_image: White where the `image` or `video` may change (`media.region.read_mask`), resized to it.
            think: As of `inputs.How`, as `check`: of a generator only the seed counts then. The output has `verdicts`.
            **settings: Further fields of `Sampling`.

        Raises:
            UserError: On bad input.
        """
        a_function("callback_on_step_end", callback_on_step_end, 4, "lambda pipe, step, t, tensors: tensors")
        seen = interfaces.check_tensors(callback_on_step_end_tensor_inputs)
        named, texts = values.flag("return_dict", return_dict), listed(prompt, "prompt", "a red circle")
        asked = asked_size(num_frames, height, width)
        count = values.whole("num_images_per_prompt", num_images_per_prompt, 1, MOST_RESULTS)
        media = {"image": image, "video": video, "subject": subject, "last_image": last_image}
        given = interfaces.Given.of(texts, is_many(prompt), media)
        spec = given.task(tasks.kind_of(asked[0] or 1))
        requests = [r for r in given.requests(self.front, spec, asked, mask_image) for _ in range(count)]
        negatives = self.negatives(negative_prompt, len(given.texts), count)
        sampling = self.sampling(
            requests, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale, **settings,
        )  # fmt: skip
        grids = [self.codec.latent_grid(r[-1].size) for r in requests]  # type: ignore[arg-type]
        interfaces.check_output(output_type, grids)
        noise = None if latents is None else interfaces.starting_noise(latents, grids, self.config.latent_channels)
        after = None if callback_on_step_end is None else interfaces.step_ends(callback_on_step_end, self, seen, grids)
        seeds = [] if noise is not None else starts(None, generator, len(requests))
        most, as_latents = interfaces.draws(check, seeds, output_type), output_type == "latent"
        requests = self._rewritten(requests, enhance, think)
        revised = [prompt_in(request) for request in requests[::count]] if enhance else None
        made = self._made(requests, sampling, seeds, most, as_latents, noise, negatives, after)
        value: Any = torch.stack(made) if as_latents else interfaces.output(made, output_type, spec.makes)
        verdicts = [clip.verdict for clip in made] if most else None
        kind = "images" if spec.makes == "image" else "frames"
        output = interfaces.LanceOutput(**{kind: value}, revised_prompts=revised, verdicts=verdicts)
        return output if named else output.to_tuple()  # type: ignore[return-value]

    def _made(
        self, requests: list[Segments], sampling: Sampling, seeds: list[Any], most: int, as_latents: bool,
        noise: list[Tensor] | None, negatives: Sequence[str], after: Any,
    ) -> list[Any]:  # fmt: skip
        """Videos of a call, or latents (C, T, Y, X); at most so many draws of each, 0 without a look at it."""
        from tqdm import tqdm

        told = seeds_in(seeds)
        with self.turn, interfaces.running() as run, tqdm(total=sampling.steps * (most or 1), **self._bar) as bar:

            def fill(which: Sequence[int], seeds: Sequence[Any]) -> list[Tensor]:
                more: Any = {"noise": noise, "stops": run.ended, "negatives": [negatives[n] for n in which]}
                more["after_step"] = None if after is None else after(which)
                return self.fill_latents([requests[n] for n in which], sampling, seeds, lambda *_: bar.update(), **more)

            def make(which: Sequence[int], seeds: Sequence[Any]) -> list[Clip]:
                some, against = [requests[n] for n in which], [negatives[n] for n in which]
                known = seeds if most else told
                return self.signed(self.decode_latents(fill(which, seeds), some), some, sampling, known, against)

            each = range(len(requests))
            if as_latents:
                return [channels_first(z) for z in fill(each, seeds)]
            if not most:
                return make(each, seeds)
            return checked(self, requests, [int(seed) for seed in told if seed is not None], most, make, run.ended)

    @property
    def interrupt(self) -> bool:
        """Whether the call that this thread makes is to end after the step that runs; a callback sets it."""
        run = interfaces.RUN.get()
        return run is not None and run.stopped

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        run = interfaces.RUN.get()
        if run is None:
            raise UserError("no call is running that could be interrupted: set interrupt inside callback_on_step_end")
        run.stopped = values.flag("interrupt", value)

    _interrupt = interrupt  # where diffusers' examples set it
