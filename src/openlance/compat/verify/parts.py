"""The model under test, part by part, and the media of a case on their way into it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from openlance.checkpoint.formats import read_config
from openlance.config.model import Faithful
from openlance.inference.prefix import PrefixStore
from openlance.media.clip import Clip
from openlance.model.lance import Lance
from openlance.model.vit import ViT
from openlance.runtime.components import load_lance
from openlance.runtime.media_encoder import features, pixels_of
from openlance.runtime.offload import settle
from openlance.sequence.pack import Pack, pack
from openlance.sequence.segment import Segments
from openlance.text.tokenizer import SequenceCodec, Tokenizer
from openlance.vae.autoencoder import VAE
from openlance.vae.lazy import channels_last, to_signed
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
        self.folder, self.ways, self.dtype, self.rounded = weights, ways, dtype, rounded
        self.store = PrefixStore(limit=1 << 16) if "prefix" in ways else None
        self.copies = 2 if "batch" in ways else 1  # of each request, in one batch
        # The vectors come from the released sampler, whatever habits the folder may ask for.
        self.config = replace(read_config(weights), faithful=Faithful(rounded_frequencies=rounded))
        self.tokenizer = Tokenizer.from_folder(tokenizer)
        self.codec = SequenceCodec(self.tokenizer, self.config)

    @cached_property
    def lance(self) -> Lance:
        return load_lance(self.folder / "model.safetensors", self.config, dtype=self.dtype)

    @cached_property
    def runner(self) -> Lance:
        """The decoder that makes pictures and answers; with "offload" its weights visit layer by layer."""
        if "offload" not in self.ways:
            return self.lance
        lance = load_lance(self.folder / "model.safetensors", self.config, dtype=self.dtype)
        return settle(lance, ("und", "gen", "ends"), CPU)

    @cached_property
    def vit(self) -> ViT:
        path, config = self.folder / "vit.safetensors", self.config.vit
        return ViT.load(path, config, dtype=self.dtype, rounded_frequencies=self.rounded).eval()

    @cached_property
    def vae(self) -> VAE:
        return VAE.load(self.folder / "vae.safetensors", self.config.vae, dtype=self.dtype).eval()

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
