"""One object for everything a model can do: fill the holes of a list of segments.

pipe = openlance.load("nano")
pipe.generate("a red circle left of a blue square", seed=7)[0].save("out.png")
pipe.ask("out.png", "how many squares are there?")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.model.folder import known, load_lance, read_config, read_json
from openlance.model.grids import SequenceCodec
from openlance.model.lance import Lance
from openlance.model.vae_lazy import LazyVAE
from openlance.sample.guidance import Sampling
from openlance.sample.text import Decoding, decode
from openlance.sample.visual import denoise
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Segment, Segments
from openlance.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

    from openlance.model.vit import ViT

ImageLike = Any  # a path, a PIL image, a uint8 array (H, W, 3) or a Clip


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a checkpoint prefers when the caller says nothing; `generation_config.json` of its folder."""

    height: int = 768
    width: int = 768
    sampling: Sampling = field(default_factory=Sampling)
    prompts: tasks.SystemPrompts = tasks.RELEASED
    batch: int = 16  # requests that run together

    @classmethod
    def read(cls, path: Path) -> Defaults:
        if not path.is_file():
            return cls()
        found = read_json(path)
        sampling = Sampling(**known(Sampling, found.get("sampling", {})))
        prompts = tasks.SystemPrompts(**known(tasks.SystemPrompts, found.get("system_prompts", {})))
        return cls(**known(cls, found) | {"sampling": sampling, "prompts": prompts})


class Pipeline:
    """A checkpoint folder at work. Parts are read when a task first needs them: a question reads neither the
    generation expert nor the VAE, a picture no ViT."""

    def __init__(
        self,
        folder: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        allow_pickle: bool = False,
    ) -> None:
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.allow_pickle = allow_pickle
        self.config: ModelConfig = read_config(self.folder)
        self.tokenizer = Tokenizer.from_folder(tokenizer or self.folder)
        self.codec = SequenceCodec(self.tokenizer, self.config)
        self.defaults = Defaults.read(self.folder / "generation_config.json")
        self._parts: dict[str, Any] = {}

    # Parts, each read once.

    def _part(self, name: str, read: Callable[[], Any]) -> Any:
        if name not in self._parts:
            self._parts[name] = read()
        return self._parts[name]

    def lance(self, *streams: str) -> Lance:
        """The decoder with at least these streams."""
        held = self._parts.get("lance")
        if held is None or not set(streams) <= set(held.norm):
            self._parts["lance"] = load_lance(
                self.folder / "model.safetensors", self.config, streams=streams, **self._loading()
            )
        return self._parts["lance"]

    def vit(self) -> ViT:
        from openlance.model.vit import ViT

        path = self.folder / "vit.safetensors"
        return self._part("vit", lambda: ViT.load(path, self.config.vit, **self._loading()).eval())

    def vae(self) -> LazyVAE:
        """The codec; each half is read at its first use."""
        # The released codec is a pickle; a folder of ours holds the same tensors as safetensors.
        names = ("vae.safetensors", "Wan2.2_VAE.pth")
        path = next((p for p in (self.folder / name for name in names) if p.is_file()), self.folder / names[0])
        return self._part("vae", lambda: LazyVAE(path, self.config.vae, **self._loading()))

    def _loading(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device, "allow_pickle": self.allow_pickle}

    # Media to model space.

    @torch.inference_mode()
    def see(self, segments: list[Segment]) -> list[Tensor]:
        """ViT features (n, D) of PATCHES segments; a clip that several share runs once."""
        from openlance.model.vit import cell_grid, normalise

        clips = {id(s.value): s.value for s in segments}
        cells = self.vit()([normalise(pixels_of(clip)) for clip in clips.values()])
        counts = [int(np.prod(cell_grid(self.config.vit, clip.pixels.shape[:3]))) for clip in clips.values()]
        found = dict(zip(clips, cells.split(counts), strict=True))
        return [found[id(s.value)] for s in segments]

    @torch.inference_mode()
    def encode(self, segments: list[Segment]) -> list[Tensor]:
        """Clean latents (N, C) of LATENTS segments: the mean of the codec, or latents that are already there."""
        from openlance.model.vae import channels_last, to_signed

        found = []
        for s in segments:
            if isinstance(s.value, Tensor):
                found.append(s.value.flatten(0, 2))
            else:
                pixels = to_signed(pixels_of(s.value)).to(self.device, self.dtype)
                mean, _ = self.vae().encode(pixels)
                found.append(channels_last(mean).flatten(0, 2).float())
        return found

    @torch.inference_mode()
    def decode_latents(self, latents: list[Tensor]) -> list[Clip]:
        """(T, Y, X, C) each -> clips."""
        from openlance.model.vae import channels_first, to_uint8

        whole = [torch.stack(latents)] if len({z.shape for z in latents}) == 1 else [z[None] for z in latents]
        decoded = (self.vae().decode(channels_first(z).to(self.device, self.dtype)) for z in whole)
        return [Clip(to_uint8(p).cpu().numpy()) for batch in decoded for p in batch]

    # Filling holes.

    def fill_visual(
        self,
        requests: list[Segments],
        sampling: Sampling,
        seeds: list[int | torch.Generator],
        on_step: Callable[[int, float, Tensor], None] | None = None,
    ) -> list[Clip]:
        """The visual target of each request."""
        latents = denoise(
            self.lance("und", "gen"), self.codec, requests, sampling,
            see=self.see, encode=self.encode, seeds=seeds, on_step=on_step,
        )  # fmt: skip
        return self.decode_latents(latents)

    def fill_text(
        self,
        requests: list[Segments],
        decoding: Decoding,
        generator: torch.Generator | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """The text target of each request."""
        drawn = any(s.kind is Kind.LATENTS for r in requests for s in r)
        ids, _ = decode(
            self.lance(*(("und", "gen") if drawn else ("und",))), self.codec, requests, decoding,
            vocabulary=len(self.tokenizer), see=self.see, encode=self.encode, generator=generator, on_token=on_token,
        )  # fmt: skip
        return [self.tokenizer.text(i).strip() for i in ids]

    # What people call.

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_images: int = 1,
        progress: bool = False,
        **sampling: Any,
    ) -> list[Image]:
        """Pictures for one prompt or several, `num_images` of each, prompt after prompt.

        height, width: pixels, multiples of the codec's stride. seed: the first picture's; picture k gets seed + k, so
        that each can be made again alone. Further keywords are fields of `Sampling`. UserError on bad input.
        """
        from PIL import Image

        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        s = self._sampling(num_inference_steps, guidance_scale, sampling)
        d = self.defaults
        size = (1, d.height if height is None else height, d.width if width is None else width)
        self.codec.latent_grid(size)
        if num_images < 1:
            raise UserError(f"{num_images} images are none: use --num-images 1 or more")
        for text in prompts:
            if not isinstance(text, str) or not text.strip():
                raise UserError('the prompt is empty: say what to draw, for example "a red circle"')
        wanted = [text for text in prompts for _ in range(num_images)]
        first = int(torch.randint(2**31, ()).item()) if seed is None else seed
        seeds: list[int | torch.Generator] = [generator or first + k for k in range(len(wanted))]
        requests = [tasks.text_to_visual(text, size, prompts=self.defaults.prompts) for text in wanted]
        clips: list[Clip] = []
        with _bar(progress, len(wanted) * s.num_inference_steps) as bar:
            for at in range(0, len(requests), self.defaults.batch):
                part = slice(at, at + self.defaults.batch)
                count = len(requests[part])
                clips += self.fill_visual(requests[part], s, seeds[part], lambda *_, n=count: bar.update(n))
        return [Image.fromarray(clip.pixels[0]) for clip in clips]

    def _sampling(self, steps: int | None, guidance: float | None, more: dict[str, Any]) -> Sampling:
        said = {"num_inference_steps": steps, "guidance_scale": guidance, **more}
        unknown = sorted(more.keys() - Sampling.__dataclass_fields__.keys())
        if unknown:
            raise UserError(f"generate() has no option {unknown[0]!r}: use one of {', '.join(vars(Sampling()))}")
        return replace(self.defaults.sampling, **{k: v for k, v in said.items() if v is not None})

    def ask(
        self,
        image: ImageLike | Sequence[ImageLike],
        question: str | Sequence[str],
        *,
        max_new_tokens: int = 96,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: Callable[[str], None] | None = None,
    ) -> Any:
        """The answer to a question about a picture; lists of equal length give a list of answers in one batch.

        stream(piece) is called with the text as it comes (one question only).
        """
        several = isinstance(question, (list, tuple))
        questions: list[str] = list(question) if several else [question]  # type: ignore[list-item]
        images = list(image) if several else [image]
        if len(images) != len(questions):
            raise UserError(f"{len(images)} images and {len(questions)} questions do not pair up: give as many of each")
        if max_new_tokens < 1:
            raise UserError(f"{max_new_tokens} new tokens leave no room for an answer: use --max-new-tokens 1 or more")
        clips = [self.fit_patches(as_clip(i)) for i in images]
        requests = [
            tasks.understand([c], q.strip(), prompts=self.defaults.prompts)
            for c, q in zip(clips, questions, strict=True)
        ]
        d = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if stream is not None and several:
            raise UserError("answers to several questions cannot be streamed: ask one at a time or leave `stream` out")
        shown = _Shown(self.tokenizer, stream) if stream is not None else None
        on_token = shown.add if shown is not None else None
        answers: list[str] = []
        size = 4 * self.defaults.batch
        for at in range(0, len(requests), size):
            answers += self.fill_text(requests[at : at + size], d, generator, on_token)
        if shown is not None:
            shown.up_to(answers[0])
        return answers if several else answers[0]

    def caption(self, image: ImageLike | Sequence[ImageLike], **options: Any) -> Any:
        """A description of a picture; options as for `ask`."""
        question = "" if self.defaults.prompts.captions[0] else "describe the picture"
        several = isinstance(image, (list, tuple))
        return self.ask(image, [question] * len(image) if several else question, **options)

    def fit_patches(self, clip: Clip) -> Clip:
        """A picture that the ViT can cut: one whose sides do not fit is resized to the nearest sizes that do."""
        from openlance.media.buckets import resize

        usual = self.defaults.height, self.defaults.width
        size = fitting_size(clip.height, clip.width, self.config.vit.stride, usual)
        return clip.with_pixels(resize(clip.pixels, *size))


def fitting_size(height: int, width: int, stride: int, usual: tuple[int, int]) -> tuple[int, int]:
    """The nearest (height, width) that a ViT of a stride can cut, of at most four times the area of the usual size."""
    scale = min(1.0, (4 * usual[0] * usual[1] / (height * width)) ** 0.5)
    return max(round(height * scale / stride), 1) * stride, max(round(width * scale / stride), 1) * stride


def as_clip(image: ImageLike) -> Clip:
    """A picture in any of the usual forms as a clip of one frame."""
    if isinstance(image, Clip):
        return image
    if isinstance(image, (str, Path)):
        from openlance.media.image import read_image

        return read_image(image)
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"a picture is uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}: convert it first")
    return Clip(pixels[None])


def pixels_of(clip: Clip) -> Tensor:
    """uint8 (T, H, W, 3); read-only or mirrored views are copied, because torch has no such tensors."""
    return torch.from_numpy(np.require(clip.pixels, requirements=("C", "W")))


class _Shown:
    """Hands an answer on piece by piece, so that the pieces join to the stripped answer."""

    def __init__(self, tokenizer: Tokenizer, stream: Callable[[str], None]) -> None:
        self.tokenizer, self.stream = tokenizer, stream
        self.ids: list[int] = []
        self.length = 0

    def add(self, _: int, token: int) -> None:
        self.ids.append(token)
        # Characters of several bytes may be incomplete, and blanks may turn out to be the last ones: both wait.
        self.up_to(re.sub(r"[\s\ufffd]+\Z", "", self.tokenizer.text(self.ids).lstrip()))

    def up_to(self, text: str) -> None:
        if len(text) > self.length:
            self.stream(text[self.length :])
            self.length = len(text)


def _bar(show: bool, total: int):
    from tqdm import tqdm

    return tqdm(total=total, disable=not show, unit="step", leave=False, delay=1.0)
