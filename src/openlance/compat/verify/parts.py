"""The model under test, part by part, and the media of a case on their way into it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from openlance.checkpoint.formats import find
from openlance.config.model import Faithful
from openlance.inference.prefix import PrefixStore
from openlance.media.clip import Clip
from openlance.model.lance import Lance
from openlance.model.vit import ViT
from openlance.runtime.components import Components
from openlance.runtime.media_encoder import features, pixels_of
from openlance.runtime.offload import Plan
from openlance.sequence.pack import Pack, pack
from openlance.sequence.segment import Segments
from openlance.text.tokenizer import SequenceCodec, Tokenizer
from openlance.vae.lazy import LazyVAE, channels_last, to_signed
from openlance.vae.tiling import Tiling, encode_tiled

CPU = torch.device("cpu")
# What may be on while the numbers stay the same: ways to spend less time or memory.
WAYS = ("compile", "offload", "tiling", "prefix", "batch")


class Parts:
    """Tokenizer, decoder, ViT and VAE of a folder of released names, each read when it is first needed.

    ways: of `WAYS`, what is on while pictures are made and questions answered. dtype: of the weights. rounded: whether
    rotary frequencies are, as a cast to bfloat16 leaves them; those of the float32 vectors were not.
    """

    def __init__(
        self, weights: Path, tokenizer: Path, ways: Collection[str] = (), *, dtype: torch.dtype = torch.float32,
        rounded: bool = False,
    ) -> None:  # fmt: skip
        self.ways = ways
        self.store = PrefixStore(limit=1 << 16) if "prefix" in ways else None
        self.copies = 2 if "batch" in ways else 1  # of each request, in one batch
        files = find(weights)
        # The vectors come from the released sampler, whatever habits the folder may ask for.
        self.config = replace(files.config, faithful=Faithful(rounded_frequencies=rounded))
        self.tokenizer = Tokenizer.from_folder(tokenizer)
        self.codec = SequenceCodec(self.tokenizer, self.config)
        self.open = partial(Components, replace(files, config=self.config), device=CPU, dtype=dtype)
        self.components = self.open()

    @property
    def lance(self) -> Lance:
        return self.components.lance("und", "gen")

    @cached_property
    def runner(self) -> Lance:
        """The decoder that makes pictures and answers; with "offload" its weights visit layer by layer."""
        if "offload" not in self.ways:
            return self.lance
        streamed = self.open()
        streamed.plan = Plan(streamed=("und", "gen", "ends"))
        return streamed.lance("und", "gen")

    @property
    def vit(self) -> ViT:
        return self.components.vit()

    @property
    def vae(self) -> LazyVAE:
        return self.components.vae()

    def pack(self, samples: list[Segments], shift: bool = True) -> Pack:
        return pack(samples, self.codec, replace(self.config.position, shift=shift))

    @torch.no_grad()
    def features(self, clips: list[Clip]) -> list[Tensor]:
        """(T, Y, X, D) of each clip, from one pass of the ViT."""
        return features(self.vit, clips)

    @torch.no_grad()
    def moments(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Normalised mean and log-variance (T, Y, X, C); frames beyond 1 + 4k are cut as the release cuts them."""
        frames = self.config.vae.whole_frames(clip.frames)
        pixels = to_signed(pixels_of(clip)[:frames])
        if "tiling" in self.ways:
            moments = encode_tiled(lambda x: torch.cat(self.vae.encode(x)), pixels, self.config.vae.stride, Tiling())
            mean, logvar = moments.chunk(2)
        else:
            mean, logvar = self.vae.encode(pixels)
        return channels_last(mean), channels_last(logvar)
