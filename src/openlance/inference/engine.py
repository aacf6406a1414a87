"""A checkpoint folder at work: its components, read when first needed, and the filling of targets in lists of segments.

What people call (`generate`, `edit`, `ask` ...) is one floor of this: `inference.lance_pipeline`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from openlance.checkpoint.formats import Files, find
from openlance.config.sampling import DISTILLED_FOR, LARGEST_SIDE, Decoding, Sampling
from openlance.config.values import brief, flag, number, unknown, whole
from openlance.config.versions import versions
from openlance.data.front import Front
from openlance.errors import UserError
from openlance.inference.inputs import AnyDevice, device_of, dtype_of, is_many, seed_of, seeds_in
from openlance.inference.prefix import PrefixStore
from openlance.inference.text import Answer, OnToken, decode, likelihoods, stopping, up_to_stop
from openlance.inference.visual import OnStep, denoise
from openlance.media.clip import Clip, Provenance
from openlance.media.region import blended
from openlance.media.transform import MediaTransform
from openlance.model.lance import Lance
from openlance.model.lora import Adapter, read_adapter
from openlance.runtime.components import Components, LazyVAE, usual_dtype
from openlance.runtime.distributed import Distributed, Shared
from openlance.runtime.media_encoder import DECODED, REMEMBERED, MediaEncoder, decoded
from openlance.runtime.offload import Work, parse_memory
from openlance.sequence.segment import (
    REGION,
    VIDEO,
    Kind,
    Role,
    Segments,
    any_video,
    given_in,
    prompt_in,
    region_in,
    roles_of,
    source_in,
)
from openlance.sequence.tasks import edit_part, kind_of, task_of, the_task
from openlance.text.tokenizer import SequenceCodec, Tokenizer
from openlance.vae.tiling import Tiling

if TYPE_CHECKING:
    from openlance.model.vit import ViT

ROLES = (*(role.name.lower() for role in Role), REGION, VIDEO)
VERSION = versions("openlance").get("openlance", "")

Seeds = Sequence[int | Generator]


class Engine:
    """A checkpoint whose components are read when a task first needs them: a question reads neither the generation
    expert nor the VAE, an image no ViT.

    An engine may be called from any number of threads. What a request needs travels with it, and what cannot run at
    once (there is one device, and memory for one request's components) waits in line, so that every result is that of
    the same call alone.
    """

    def __init__(
        self,
        folder: str | Path | Files,
        *,
        tokenizer: str | Path | None = None,
        device: AnyDevice | None = None,
        dtype: torch.dtype | str | None = None,
        allow_pickle: bool = False,
        memory: str | int | None = None,
        metadata: bool = True,
    ) -> None:
        """Open a checkpoint.

        Args:
            folder: Of any form.
            tokenizer: Its folder, if it is another.
            device: By default a GPU where there is one.
            dtype: Also by name; by default float32, or bfloat16 for large models, as released.
            allow_pickle: Whether weights may be read from pickles.
            memory: A budget such as "12GB", which is kept by offloading; "auto" or None: what is free.
            metadata: Whether results say how they were made (`media.clip.Provenance`).

        Raises:
            UserError: If the folder is no checkpoint, or an argument makes no sense.
        """
        files = folder if isinstance(folder, Files) else find(folder)
        self.folder, self.config = files.root, files.config
        self.device = device_of(device)
        self.dtype = dtype_of(dtype) or usual_dtype(files)
        budget, say = None if memory is None else parse_memory(memory), memory is not None
        self.parts = Components(
            files, device=self.device, dtype=self.dtype, allow_pickle=allow_pickle, memory=budget, say=say
        )
        self.adapters = dict[str, Adapter]()  # by name; those in use are `parts.adapters`
        self.tokenizer = Tokenizer.from_folder(files.tokenizer if tokenizer is None else tokenizer)
        self.codec = SequenceCodec(self.tokenizer, self.config)
        self.defaults = files.defaults
        for field, by_role, known in (
            ("sampling_with", self.defaults.sampling_with, ROLES), ("distilled", self.defaults.distilled, DISTILLED_FOR)
        ):  # fmt: skip
            for role in by_role:
                if role.lower() not in known:
                    raise UserError(f"{field} of {files.root} names the role {role!r}: use one of {', '.join(known)}")
        self.media = MediaEncoder(self.parts.vit, self.parts.vae)
        self.prefixes = PrefixStore()  # give it a limit, and conditions of earlier calls need not run again
        self.metadata = flag("metadata", metadata)
        self.processes = Distributed()  # that share every image and video
        self.shared: Shared | None = None  # ... and how
        self.turn = threading.RLock()  # held by the request that runs

    # Components, each read when it is first needed.

    def lance(self, *streams: str, clips: bool = False) -> Lance:
        """Give the decoder with at least these streams, for images or for videos."""
        return self.parts.lance(*streams, clips=clips)

    def vit(self, clips: bool = False) -> ViT:
        return self.parts.vit(clips)

    @property
    def vae(self) -> VAESettings:
        """The VAE when it is called, and its settings: `vae.enable_tiling()`, `vae.disable_tiling()`."""
        return VAESettings(self)

    def quantize(self, kind: str = "int8") -> None:
        """Quantize the experts' weights from now on, adapters merged.

        Args:
            kind: "int8", "fp8" or "int4" (see `runtime.quantization`).

        Raises:
            UserError: If the kind is unknown.
        """
        from openlance.runtime.quantization import recipe

        recipe(kind)
        with self.turn:
            self.parts.quantization = kind
            self.parts.leave("lance")

    quantise = quantize  # its former name

    def enable_parallelism(self) -> None:
        """Draw together with the other processes of this torchrun, each of which has to make the same calls with the
        same seeds (see `runtime.distributed`); without effect where there are none."""
        self.processes = Distributed.join()
        self.shared = Shared.among(self.processes)
        own = self.processes.device
        if self.shared is not None and own.type == self.device.type and own != self.device:
            self.move(own)

    def disable_parallelism(self) -> None:
        """Part from the other processes; every one has to."""
        self.shared = None
        self.processes.leave()
        self.processes = Distributed()

    def move(self, device: AnyDevice | None = None, dtype: torch.dtype | str | None = None) -> None:
        """Go on elsewhere or in another dtype; what was kept of earlier calls belongs to the old ones. UserError if
        there is no such device here."""
        device, dtype = self.device if device is None else device_of(device), dtype_of(dtype) or self.dtype
        with self.turn:
            self.device, self.dtype = device, dtype
            self.parts.move(self.device, self.dtype)
            self.prefixes.clear()
            self.media.memory.clear()

    def load_lora_weights(self, folder: str | Path, weight: float = 1.0, *, adapter_name: str | None = None) -> None:
        """Add an adapter of PEFT, kohya or diffusers to the decoder (see `model.lora`); several add up.

        Args:
            folder: Of the adapter, or its file.
            weight: Factor of its strength.
            adapter_name: For `set_adapters`; that of its folder by default.

        Raises:
            UserError: If it is none, or the name is taken; one that does not fit the decoder is noticed when that is
                first needed.
        """
        adapter = read_adapter(folder, weight)
        with self.turn:
            name = adapter_name or adapter.name.rpartition(":")[0]
            if adapter_name is None and name in self.adapters:
                name = f"{name} {len(self.adapters) + 1}"
            if name in self.adapters:
                raise UserError(f"an adapter called {name!r} is loaded already: give another adapter_name")
            self.adapters[name] = adapter
            self._use([*self.parts.adapters, adapter])

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Use these of the loaded adapters and no others, as in diffusers.

        Args:
            adapter_names: What they are called.
            adapter_weights: Factor of the strength of each, or one for all; 1 by default.

        Raises:
            UserError: For a name that is not loaded, or another number of weights.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given: Any = adapter_weights
        weights = list(given) if is_many(given) else [given] * len(names)
        if len(weights) != len(names):
            raise UserError(f"there are {len(names)} adapters and {len(weights)} weights: expected one of each")
        for name in names:
            if name not in self.adapters:
                raise UserError(unknown("adapter", name, list(self.adapters)))
        chosen = [number("adapter_weights", 1.0 if weight is None else weight) for weight in weights]
        with self.turn:
            self._use([replace(self.adapters[n], weight=w) for n, w in zip(names, chosen, strict=True)])

    def unload_lora_weights(self) -> None:
        """Go back to the checkpoint's own weights."""
        with self.turn:
            self.adapters.clear()
            self._use([])

    def _use(self, adapters: list[Adapter]) -> None:
        self.parts.adapters = adapters
        self.parts.leave("lance")

    # Requests.

    @cached_property
    def front(self) -> Front:
        """Puts requests together as this checkpoint wants them."""
        d = self.defaults
        transform = MediaTransform(self.config, bases=d.buckets, usual=(d.height, d.width))
        return Front(transform=transform, style=d.style, num_frames=d.num_frames)

    def sampling(self, requests: Sequence[Segments] = (), **settings: Any) -> Sampling:
        """Give how the checkpoint denoises such requests, with these fields of `Sampling` changed; None changes
        nothing."""
        how = self.defaults.sampling_for(roles_of(requests), **settings)
        if how.strength < 1 and any(source_in(r) is None for r in requests):
            said = f"strength is {how.strength:g}, but there is no source of an edit to begin from"
            raise UserError(f"{said}: leave strength out", param="strength")
        return how

    def negatives(self, texts: Any, count: int, each: int = 1) -> list[str]:
        """Give what guidance leads away from in each of `each` results of so many prompts, empty where nobody says.

        Args:
            texts: A text for all, or one for each prompt; None is none.
            count: Prompts.
            each: Results of a prompt.

        Raises:
            UserError: If these are no texts, or there are too many or few.
        """
        strips = self.front.style.strips
        said = list(texts) if is_many(texts) else ["" if texts is None else texts] * count
        for text in said:
            if not isinstance(text, str):
                raise UserError(f"the negative_prompt is {brief(text)}: expected a text, for example 'blurry'")
        if len(said) != count:
            raise UserError(f"{len(said)} negative prompts and {count} prompts do not pair up: give as many of each")
        found = [(text.strip() if strips else text) if text.strip() else "" for text in said]
        return [text for text in found for _ in range(each)]

    def encode(self, requests: Sequence[Segments]) -> list[Segments]:
        """Give the same requests with their media in model space (see `runtime.media_encoder`)."""
        media = [s for r in requests for s in r if s.kind is not Kind.TEXT]
        if all(s.value is None and s.given is None for s in media):
            return list(requests)  # drawn from words alone
        with self.turn:
            self.media.remembers = REMEMBERED if self.prefixes.limit else 0
            encoded = self.media(requests)
            self.parts.done("vit")
            self.parts.done("vae")
        return encoded

    def held(self, request: Segments) -> Segments:
        """Give the request the form in which the checkpoint has learned regions. One that was trained for it knows what
        stays from the first step on (`tasks.edit_part`); others see it noised as the rest is (`visual.Line`)."""
        source, target = source_in(request), request[-1]
        if source is None or target.size is None or not region_in(request).is_part or given_in(request) is not None:
            return request
        spec = the_task(edit_part, kind_of(target.size[0]))
        return [*request[:-1], replace(target, given=source)] if spec.name in self.defaults.tasks else request

    def _settle(self, requests: list[Segments], *streams: str, branches: int = 1) -> bool:
        """Settle where everything goes for these requests, each in so many guidance branches: their media are encoded
        before the decoder comes, since the two need not be in memory together. Returns whether they are about videos.
        """
        media = [s for r in requests for s in r if s.kind is not Kind.TEXT]
        sizes = [(s, s.size) for s in media if s.size is not None]
        clips = any_video(requests)
        cut = {Kind.LATENTS: self.codec.latent_grid, Kind.PATCHES: self.codec.patch_grid}
        cells = [(s.role, int(np.prod(cut[s.kind](size)))) for s, size in sizes]
        noisy = branches * sum(n for role, n in cells if role is Role.TARGET)
        context = branches * sum(n for role, n in cells if role is not Role.TARGET)  # words are few beside them
        frames = [size[1] * size[2] for s, size in sizes if s.role is Role.TARGET]
        pixels = max(*frames, min(sum(frames), DECODED), 0) if frames else 0
        work = Work(rows=max(noisy, context), context=context, pixels=pixels, moving=clips)
        kinds = {s.kind for s in media}
        auxiliary = [name for kind, name in ((Kind.PATCHES, "vit"), (Kind.LATENTS, "vae")) if kind in kinds]
        self.parts.prepare(*streams, auxiliary=auxiliary, clips=clips, work=work)
        if any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in media):
            self.vae()  # says now, not after minutes, that it is missing or may not be read
        return clips

    # Filling targets.

    def fill_latents(
        self, requests: list[Segments], sampling: Sampling, seeds: Seeds, on_step: OnStep | None = None, **more: Any
    ) -> list[Tensor]:
        """Fill the visual target of each request.

        Args:
            requests: Each ends with an empty visual target.
            sampling: How.
            seeds: Of the noise of each; none where `noise` is given.
            on_step: See `denoise`.
            **more: Further arguments of `denoise`: after_step, on_pass, noise, negatives, stops, wanted.

        Returns:
            Latents (T, Y, X, C) of each.

        Raises:
            UserError: For distilled guidance that the checkpoint does not have, or beside a negative prompt.
        """
        sampling.leads_away(more.get("negatives", ()))
        seeds = [seed if isinstance(seed, Generator) else seed_of(seed) for seed in seeds]
        with self.turn:
            # What nobody chose has to be the same everywhere.
            if self.shared is not None and seeds and all(isinstance(s, int) for s in seeds):
                seeds = self.processes.agreed(seeds)
            requests = [self.held(request) for request in requests]
            clips = self._settle(requests, "und", "gen", branches=sampling.branches)
            encoded = self.encode(requests)
            more |= {"seeds": seeds, "on_step": on_step, "store": self.prefixes, "shared": self.shared}
            model = self.lance("und", "gen", clips=clips)
            more |= {"distilled": self.parts.distilled(clips)} if sampling.distilled else {}
            return denoise(model, self.codec, encoded, sampling, **more)

    @torch.inference_mode()
    def decode_latents(self, latents: list[Tensor], requests: Sequence[Segments] = ()) -> list[Clip]:
        """Decode latents (T, Y, X, C) each; of requests with regions, outside of them is what the source shows."""
        with self.turn:
            clips = decoded(self.vae(), latents, self.media.tiling, self.dtype)
            self.parts.done("vae")
        stride = self.config.vae.stride
        return [_within(*pair, stride) for pair in zip(clips, requests, strict=True)] if requests else clips

    def fill_visual(
        self, requests: list[Segments], sampling: Sampling, seeds: Seeds, on_step: OnStep | None = None, **more: Any
    ) -> list[Clip]:
        """Fill the visual target of each request as `fill_latents` does, and decode it."""
        told = seeds_in(seeds)
        with self.turn:
            clips = self.decode_latents(self.fill_latents(requests, sampling, seeds, on_step, **more), requests)
            return self.signed(clips, requests, sampling, told, more.get("negatives", ()))

    def signed(
        self, clips: list[Clip], requests: list[Segments], sampling: Sampling, seeds: Sequence[int | None] = (),
        negatives: Sequence[str] = (),
    ) -> list[Clip]:  # fmt: skip
        """Give videos with a record of their making, unless `metadata` is off; arguments as they were denoised."""
        if not self.metadata:
            return clips
        files, quantization = self.parts.files, self.parts.quantization
        same: dict[str, Any] = {
            "openlance": VERSION,
            "model": files.repo or files.root.absolute().name,
            "model_hash": self.parts.fingerprint(any_video(requests)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "lora": tuple(adapter.name for adapter in self.parts.adapters),
            "settings": asdict(sampling) | ({"quantization": quantization} if quantization else {}),
        }
        signed = list[Clip]()
        for k, (clip, request) in enumerate(zip(clips, requests, strict=True)):
            task = task_of(request)
            made = Provenance(
                task=task.name if task is not None else "",
                prompt=prompt_in(request),
                negative_prompt=negatives[k] if negatives else "",
                region=region_in(request).said,
                seed=seeds[k] if seeds else None,
                width=clip.width, height=clip.height, num_frames=clip.frames, **same,
            )  # fmt: skip
            signed.append(replace(clip, made=made))
        return signed

    def fill_ids(
        self, requests: list[Segments], d: Decoding, generator: Generator | None = None, on_token: OnToken | None = None
    ) -> list[list[int]]:
        """Fill the text target of each request.

        Args:
            requests: Each ends with an empty text target.
            d: How.
            generator: For answers that are drawn.
            on_token: See `text.decode`.

        Returns:
            Token ids of each without the closing one.
        """
        drawn = any(s.kind is Kind.LATENTS for r in requests for s in r)
        streams = ("und", "gen") if drawn else ("und",)
        with self.turn:
            clips = self._settle(requests, *streams)
            encoded = self.encode(requests)
            ids, _ = decode(
                self.lance(*streams, clips=clips), self.codec, encoded, d, vocabulary=len(self.tokenizer),
                generator=generator, on_token=on_token, store=self.prefixes, ended=stopping(self.tokenizer, d.stop),
            )  # fmt: skip
        return ids

    def likelihoods(self, requests: list[Segments]) -> list[float]:
        """Say how likely the filled text target of each request is as its answer, as logarithms of probabilities."""
        with self.turn:
            clips = self._settle(requests, "und")
            model = self.lance("und", clips=clips)
            encoded = self.encode(requests)
            return likelihoods(model, self.codec, encoded, vocabulary=len(self.tokenizer))

    def fill_text(
        self, requests: list[Segments], d: Decoding, generator: Generator | None = None, on_token: OnToken | None = None
    ) -> list[Answer]:
        """Fill the text target of each request as `fill_ids` does, with text."""
        answers = []
        for ids in self.fill_ids(requests, d, generator, on_token):
            text, ended = up_to_stop(self.tokenizer.text(ids), d.stop)
            # One that was closed has room for the closing token.
            answers.append(Answer(text.strip(), "length" if len(ids) >= d.max_new_tokens and not ended else "stop"))
        return answers


def _within(clip: Clip, request: Segments, cell: int) -> Clip:
    """A decoded target, the source's own pixels outside of its region. From what is edited it goes over to what was
    made; where nothing was, all is what was made."""
    region, given, edited = region_in(request), given_in(request), source_in(request)
    source = edited if given is None else given
    if region.inside is None or not region.is_part or not isinstance(source, Clip):
        return clip
    return clip.with_pixels(blended(source.pixels, clip.pixels, region.inside, cell if edited is not None else 1))


class VAESettings:
    """What is at `pipe.vae`: its settings and, when it is called, the VAE itself, each half read at its first use."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.config = engine, engine.config.vae

    def __call__(self) -> LazyVAE:
        return self.engine.parts.vae()

    def enable_tiling(self, tile: int = Tiling.tile, overlap: int = Tiling.overlap) -> None:
        """Decode and encode large images piece by piece.

        Args:
            tile: Side of a piece in latent cells, from 1 on.
            overlap: Latent cells that neighbors share, from 0 on.
        """
        tile, overlap = whole("tile", tile, 1, LARGEST_SIDE), whole("overlap", overlap, 0, LARGEST_SIDE)
        self.engine.media.tiling = Tiling(tile=tile, overlap=overlap)

    def disable_tiling(self) -> None:
        self.engine.media.tiling = None
