"""The model under test in its forms, part by part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from openlance.checkpoint.formats import find
from openlance.config.model import Quirks
from openlance.inference.prefix import PrefixStore
from openlance.media.clip import Clip
from openlance.model.lance import Lance
from openlance.runtime.components import Components
from openlance.runtime.media_encoder import features, latents, pixels_of
from openlance.runtime.offload import Plan
from openlance.sequence.pack import Pack, pack
from openlance.sequence.segment import Segments
from openlance.text.tokenizer import SequenceCodec, Tokenizer
from openlance.vae.frames import channels_last, to_signed
from openlance.vae.tiling import Tiling

# What may be on while the numbers stay the same: ways to spend less time or memory.
WAYS = ("compile", "offload", "tiling", "prefix", "batch")


class Form(NamedTuple):
    """One run of the released code.

    Attributes:
        prefix: How the names of its tensors begin in a file of half precision.
        dtype: Of weights and activations.
        rounded: Whether the rotary frequencies are, as a cast to bfloat16 leaves them.
    """

    prefix: str
    dtype: torch.dtype
    rounded: bool


RELEASED, UNROUNDED = Form("", torch.bfloat16, True), Form("unrounded.", torch.bfloat16, False)
ROUNDED, PLAIN = Form("float32_rounded.", torch.float32, True), Form("float32.", torch.float32, False)
FORMS = (RELEASED, UNROUNDED, ROUNDED, PLAIN)


class Parts:
    """Tokenizer, decoder, ViT and VAE of a folder of released names in one form, each read when it is first needed.

    `of` gives the same in another form.
    """

    def __init__(self, weights: Path, tokenizer: Path, ways: Collection[str] = (), form: Form = PLAIN) -> None:
        """Find the files. ways: of `WAYS`, what is on while media are made and questions answered."""
        self.ways, self.form = ways, form
        self.store = PrefixStore(limit=1 << 16) if "prefix" in ways else None
        self.copies = 2 if "batch" in ways else 1  # of each request, in one batch
        files = find(weights)
        # The vectors come from the released sampler, whatever quirks the folder may ask for.
        self.config = replace(files.config, quirks=Quirks(rounded_frequencies=form.rounded))
        self.tokenizer = Tokenizer.from_folder(tokenizer)
        self.codec = SequenceCodec(self.tokenizer, self.config)
        files = replace(files, config=self.config)
        self._open = partial(Components, files, device=torch.device("cpu"), dtype=form.dtype)
        self.components = self._open()
        self.of = cache(lambda other: self if other is form else Parts(weights, tokenizer, ways, other))

    @property
    def lance(self) -> Lance:
        """The decoder."""
        return self.components.lance("und", "gen")

    @cached_property
    def runner(self) -> Lance:
        """The decoder of whole runs; with "offload" its weights visit layer by layer."""
        if "offload" not in self.ways:
            return self.lance
        streamed = self._open()
        streamed.plan = Plan(streamed=("und", "gen", "ends"))
        return streamed.lance("und", "gen")

    def pack(self, samples: list[Segments], shift: bool = True) -> Pack:
        """Pack samples. shift: whether positions get the modality shift."""
        return pack(samples, self.codec, replace(self.config.position, shift=shift))

    @torch.no_grad()
    def features(self, clips: list[Clip]) -> list[Tensor]:
        """Encode what clips mean: (T, Y, X, D) of each, from one pass of the ViT."""
        return features(self.components.vit(), clips) if clips else []

    @torch.no_grad()
    def moments(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Encode how a clip looks: mean and log-variance (T, Y, X, C); frames beyond 1 + 4k are cut (released code)."""
        vae, frames = self.components.vae(), self.config.vae.whole_frames(clip.frames)
        mean = latents(vae, [clip], Tiling() if "tiling" in self.ways else None)[0]
        return mean, channels_last(vae.encode(to_signed(pixels_of(clip)[:frames]))[1])
