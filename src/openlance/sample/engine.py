"""A checkpoint folder at work: its parts, read when first needed, and the filling of holes in lists of segments.

What people call (`generate`, `edit`, `ask` ...) is one floor of this: `sample.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.model.crew import Crew
from openlance.model.folder import known, read_json
from openlance.model.forms import Files, find
from openlance.model.grids import SequenceCodec
from openlance.model.lance import Lance
from openlance.model.offload import Work, parse_memory
from openlance.model.parts import Parts, usual_dtype
from openlance.model.tiled import Tiling, decode_tiled, encode_tiled
from openlance.model.vae_lazy import LazyVAE
from openlance.sample.guidance import Sampling
from openlance.sample.inputs import RELEASED_BUCKETS, Fit
from openlance.sample.prefix import PrefixStore
from openlance.sample.text import Decoding, decode
from openlance.sample.visual import Encode, See, denoise
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segment, Segments
from openlance.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from openlance.model.vit import ViT

# Pixels of one frame of all results that the codec decodes together: many small pictures at once, large ones in turn.
DECODED = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a checkpoint prefers when the caller says nothing; `generation_config.json` of its folder.

    sampling: how it denoises; sampling_with: fields that differ where a request has a segment of a role.
    tasks: what it was trained for, names of `sequence.tasks.TASKS`. history: earlier turns that a dialogue shows it.
    buckets: see `Fit`. batch: pictures made together; of clips fewer, by their latent frames.
    """

    height: int = 768
    width: int = 768
    num_frames: int = 49
    sampling: Sampling = field(default_factory=Sampling)
    sampling_with: dict[Role, dict[str, Any]] = field(default_factory=dict)
    prompts: tasks.SystemPrompts = tasks.RELEASED
    tasks: tuple[str, ...] = tuple(tasks.TASKS)
    buckets: dict[str, str] = field(default_factory=RELEASED_BUCKETS.copy)
    history: int = 0
    batch: int = 16

    @classmethod
    def read(cls, path: Path) -> Defaults:
        if not path.is_file():
            return cls()
        found = read_json(path)
        if "height" not in found:  # not ours: transformers writes a file of this name too
            return cls()
        try:
            sampling = Sampling(**known(Sampling, found.get("sampling", {})))
            prompts = tasks.SystemPrompts(**known(tasks.SystemPrompts, found.get("system_prompts", {})))
            changed = found.get("sampling_with", {})
            differs = {Role[name.upper()]: known(Sampling, given) for name, given in changed.items()}
            made = cls(
                **{"buckets": {}} | known(cls, found)
                | {"sampling": sampling, "sampling_with": differs, "prompts": prompts}
            )  # fmt: skip
            for given in differs.values():
                replace(sampling, **given)
            fits = min(made.height, made.width, made.num_frames, made.batch) > 0
        except (KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise UserError(f"{path} holds values that cannot be: restore the file, or delete it")
        return made


class Engine:
    """Parts are read when a task first needs them: a question reads neither the generation expert nor the VAE, a
    picture no ViT."""

    def __init__(
        self,
        folder: str | Path | Files,
        *,
        tokenizer: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        allow_pickle: bool = False,
        memory: str | int | None = None,
    ) -> None:
        """device: a GPU where there is one. dtype: float32, or bfloat16 for large models, as released. memory: a budget
        such as "12GB", which is kept by moving parts in and out; "auto" or None: what is free."""
        files = folder if isinstance(folder, Files) else find(folder)
        self.folder, self.config = files.root, files.config
        self.device = device_of(device)
        self.dtype = dtype or usual_dtype(files)
        self.parts = Parts(
            files,
            device=self.device,
            dtype=self.dtype,
            allow_pickle=allow_pickle,
            memory=parse_memory(memory),
            say=memory is not None,
        )
        self.tokenizer = Tokenizer.from_folder(tokenizer or files.tokenizer)
        self.codec = SequenceCodec(self.tokenizer, self.config)
        self.defaults = Defaults.read(files.tokenizer / "generation_config.json")
        self.tiling: Tiling | None = None  # of the codec
        self.prefixes = PrefixStore()  # give it a limit, and conditions of earlier calls need not run again
        self.crew: Crew | None = None  # processes that share every picture and clip
        self._clips = False  # whether the request at hand is about clips, for which the release has a checkpoint

    # Parts, each read when it is first needed.

    def lance(self, *streams: str) -> Lance:
        """The decoder with at least these streams."""
        return self.parts.lance(*streams, clips=self._clips)

    def quantise(self, kind: str = "int8") -> None:
        """Hold the experts' weights in few bits from now on: int8, fp8 or int4 (see `model.quant`), adapters merged.
        UserError for an unknown kind."""
        from openlance.model.quant import recipe

        recipe(kind)
        self.parts.few_bits = kind
        self.parts.leave("lance")

    def enable_parallelism(self) -> None:
        """Draw together with the other processes of this torchrun, each of which has to make the same calls with the
        same seeds (see `model.crew`); without effect where there are none."""
        self.crew = Crew.join(self.device)
        if self.crew is not None and self.crew.device != self.device:
            self.move(self.crew.device)

    def move(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """From now on elsewhere or in another dtype; what was kept of earlier calls belongs to the old ones."""
        self.device, self.dtype = device or self.device, dtype or self.dtype
        self.parts.move(self.device, self.dtype)
        self.prefixes.clear()

    def load_lora_weights(self, folder: str | Path, weight: float = 1.0) -> None:
        """Add an adapter in PEFT's format to the decoder (see `model.lora`), at `weight` times its strength; several
        add up. UserError if it is none; one that does not fit the decoder is noticed when that is first needed."""
        from openlance.model.lora import read_adapter

        self.parts.adapters.append(read_adapter(folder, weight))
        self.parts.leave("lance")

    def unload_lora_weights(self) -> None:
        """Go back to the checkpoint's own weights."""
        self.parts.adapters.clear()
        self.parts.leave("lance")

    def vit(self) -> ViT:
        return self.parts.vit(self._clips)

    def vae(self) -> LazyVAE:
        """The codec; each half is read at its first use."""
        return self.parts.vae()

    def _begin(self, requests: list[Segments], *streams: str, branches: int = 1) -> tuple[See, Encode]:
        """Settle where everything goes for these requests, each in so many guidance branches, then read their media,
        before the decoder comes: the two need not be in memory together."""
        media = [s for r in requests for s in r if s.kind is not Kind.TEXT]
        made = [s for s in media if s.kind is Kind.LATENTS and s.role is Role.TARGET]
        sizes = [(s, s.size) for s in media if s.size is not None]
        self._clips = any(size[0] > 1 for _, size in sizes)
        cut = {Kind.LATENTS: self.codec.latent_grid, Kind.PATCHES: self.codec.patch_grid}
        cells = [(s.role, int(np.prod(cut[s.kind](size)))) for s, size in sizes]
        noisy = branches * sum(n for role, n in cells if role is Role.TARGET)
        context = branches * sum(n for role, n in cells if role is not Role.TARGET)  # words are few beside them
        frames = [size[1] * size[2] for s, size in sizes if s.role is Role.TARGET]
        pixels = max(*frames, min(sum(frames), DECODED), 0) if frames else 0
        work = Work(rows=max(noisy, context), context=context, pixels=pixels, moving=self._clips)
        kinds = {s.kind for s in media}
        guests = [name for kind, name in ((Kind.PATCHES, "vit"), (Kind.LATENTS, "vae")) if kind in kinds]
        self.parts.prepare(*streams, guests=guests, clips=self._clips, work=work)
        if made:
            self.vae()  # says now, not after minutes, that it is missing or may not be read
        seen = [s for s in media if s.kind is Kind.PATCHES and s.value is not None]
        kept = [s for s in media if s.kind is Kind.LATENTS and s.value is not None and s.role is not Role.TARGET]
        kept += [replace(s, value=s.given, given=None) for s in media if s.given is not None]
        recall = self.prefixes.remember
        return _ahead(recall(self.see, f"seen {self._clips}"), seen), _ahead(recall(self.encode, "kept"), kept)

    def sampling(self, requests: Sequence[Segments] = (), **settings: Any) -> Sampling:
        """How the checkpoint denoises such requests, with these fields of `Sampling` changed; None changes nothing."""
        unknown = sorted(settings.keys() - Sampling.__dataclass_fields__.keys())
        if unknown:
            raise UserError(f"there is no option {unknown[0]!r}: use one of {', '.join(vars(Sampling()))}")
        fields, roles = dict[str, Any](), {s.role for r in requests for s in r}
        for role, given in self.defaults.sampling_with.items():
            fields |= given if role in roles else {}
        return replace(self.defaults.sampling, **fields | {k: v for k, v in settings.items() if v is not None})

    # Media to model space.

    @cached_property
    def fit(self) -> Fit:
        d = self.defaults
        return Fit(config=self.config, usual=(d.height, d.width), buckets=d.buckets)

    @torch.inference_mode()
    def see(self, segments: list[Segment]) -> list[Tensor]:
        """ViT features (n, D) of PATCHES segments; a clip that several share runs once."""
        from openlance.model.vit import cell_grid, normalise

        clips = {id(s.value): s.value for s in segments}
        cells = self.vit()([normalise(pixels_of(clip)) for clip in clips.values()])
        counts = [int(np.prod(cell_grid(self.config.vit, clip.pixels.shape[:3]))) for clip in clips.values()]
        found = dict(zip(clips, cells.split(counts), strict=True))
        self.parts.done("vit")
        return [found[id(s.value)] for s in segments]

    @torch.inference_mode()
    def encode(self, segments: list[Segment]) -> list[Tensor]:
        """Clean latents (N, C) of LATENTS segments: the mean of the codec, or latents that are already there."""
        from openlance.model.vae import channels_last, to_signed

        found = []
        for s in segments:
            if isinstance(s.value, Tensor):
                found.append(s.value.flatten(0, 2).to(self.device))
            else:
                pixels = to_signed(pixels_of(s.value)).to(self.device, self.dtype)
                mean = self._mean(pixels)
                found.append(channels_last(mean).flatten(0, 2).float())
        self.parts.done("vae")
        return found

    def _mean(self, pixels_CFHW: Tensor) -> Tensor:
        vae = self.vae()
        if self.tiling is None:
            return vae.encode(pixels_CFHW)[0]
        return encode_tiled(lambda x: vae.encode(x)[0], pixels_CFHW, self.config.vae.stride, self.tiling)

    @torch.inference_mode()
    def decode_latents(self, latents: list[Tensor]) -> list[Clip]:
        """(T, Y, X, C) each -> clips."""
        from openlance.model.vae import channels_first, to_uint8

        stride = self.config.vae.stride
        some = max(DECODED // (latents[0].shape[1] * latents[0].shape[2] * stride**2), 1) if latents else 1
        alike = len({z.shape for z in latents}) == 1
        runs = [torch.stack(latents[n : n + some]) for n in range(0, len(latents), some)] if alike else None
        clips = []
        for z in runs or [z[None] for z in latents]:
            z = channels_first(z).to(self.device, self.dtype)
            vae = self.vae()
            steps = vae.decode_steps(z)
            if self.tiling is not None:
                steps = decode_tiled(vae.decode_steps, z, stride, self.tiling)
            # Frames leave the device as bytes as soon as they are there: what a long clip takes does not grow with it.
            frames = [torch.stack([to_uint8(p) for p in pixels]).cpu().numpy() for pixels in steps]
            clips += [Clip(pixels) for pixels in np.concatenate(frames, axis=1)]
        self.parts.done("vae")
        return clips

    # Filling holes.

    def fill_latents(
        self,
        requests: list[Segments],
        sampling: Sampling,
        seeds: list[int | torch.Generator],
        on_step: Callable[[int, float, Tensor], None] | None = None,
        after_step: Callable[[int, float, Tensor], Tensor | None] | None = None,
        on_pass: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """The visual target of each request, as latents (T, Y, X, C); the callbacks are those of `denoise`."""
        if self.crew is not None:  # what nobody chose has to be the same everywhere
            seeds = self.crew.agreed(seeds) if all(isinstance(s, int) for s in seeds) else seeds
        see, encode = self._begin(requests, "und", "gen", branches=sampling.branches)
        return denoise(
            self.lance("und", "gen"), self.codec, requests, sampling,
            see=see, encode=encode, seeds=seeds, on_step=on_step, after_step=after_step, on_pass=on_pass,
            store=self.prefixes, crew=self.crew,
        )  # fmt: skip

    def fill_visual(
        self,
        requests: list[Segments],
        sampling: Sampling,
        seeds: list[int | torch.Generator],
        on_step: Callable[[int, float, Tensor], None] | None = None,
    ) -> list[Clip]:
        """The visual target of each request."""
        return self.decode_latents(self.fill_latents(requests, sampling, seeds, on_step))

    def fill_ids(
        self,
        requests: list[Segments],
        decoding: Decoding,
        generator: torch.Generator | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """The text target of each request, as token ids without the closing one."""
        drawn = any(s.kind is Kind.LATENTS for r in requests for s in r)
        streams = ("und", "gen") if drawn else ("und",)
        see, encode = self._begin(requests, *streams)
        ids, _ = decode(
            self.lance(*streams), self.codec, requests, decoding,
            vocabulary=len(self.tokenizer), see=see, encode=encode, generator=generator, on_token=on_token,
            store=self.prefixes,
        )  # fmt: skip
        return ids

    def fill_text(
        self,
        requests: list[Segments],
        decoding: Decoding,
        generator: torch.Generator | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """The text target of each request."""
        return [self.tokenizer.text(ids).strip() for ids in self.fill_ids(requests, decoding, generator, on_token)]


def device_of(name: torch.device | str | None) -> torch.device:
    """A device by its name, by default a GPU where there is one. UserError if it does not exist here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"the device {str(name)!r} cannot be used ({said}): use cpu, or leave it out") from None
    return device


def _ahead(read: See | Encode, segments: list[Segment]) -> See | Encode:
    """`read` that knows the answers for these segments already."""
    distinct = list({id(s.value): s for s in segments}.values())
    known = dict(zip((id(s.value) for s in distinct), read(distinct), strict=True)) if distinct else {}

    def look_up(some: list[Segment]) -> list[Tensor]:
        return [known[id(s.value)] if id(s.value) in known else read([s])[0] for s in some]

    return look_up


def pixels_of(clip: Clip) -> Tensor:
    """uint8 (T, H, W, 3); read-only or mirrored views are copied, because torch has no such tensors."""
    return torch.from_numpy(np.require(clip.pixels, requirements=("C", "W")))
