"""From samples to what one forward pass reads: packed rows, noised latents, videos for the vision tower, labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openlance.config.train import Stage
from openlance.data.cache import Cache
from openlance.data.source import Sample
from openlance.flow import draw_times
from openlance.media.clip import Clip
from openlance.model.lance import Cache as KVCache
from openlance.model.precision import autocast
from openlance.runtime.media_encoder import MediaEncoder
from openlance.sequence.pack import Pack, pack
from openlance.sequence.segment import LATENTS, PATCHES, Kind, Role, Rows, Segment
from openlance.text.tokenizer import SequenceCodec
from openlance.training.objective import Noised, noised


@dataclass(frozen=True)
class Batch:
    """One pack with what fills it.

    Args:
        packed: Its rows.
        ids: Of its samples.
        noise: Of its latents, None without any.
        clips: What the vision tower looks at, each once, or its features (T, Y, X, D) where these were encoded ahead.
        shown: The number of the video of every PATCHES block, in order.
        labels: Of some of the videos, by their number.
        cache: What its noisy rows attend to, where the others ran before.
        counts: Label tokens, denoised latents and labelled points, (3,) float64: what the three losses are means over.
        seed: Of what else is random in its pass, such as dropout.
        preserved: (samples,) those at which what learns is to stay as it was; None for none.
    """

    packed: Pack
    ids: list[str]
    noise: Noised | None
    clips: list[Any]
    shown: list[int]
    labels: dict[int, np.ndarray]
    counts: Tensor
    seed: int = 0
    cache: KVCache | None = None
    preserved: Tensor | None = None

    @property
    def size(self) -> int:
        """Rows of the pack."""
        return len(self.packed)

    @property
    def rows(self) -> Rows:
        """Those that its pass runs."""
        rows = self.packed.rows
        return rows if self.cache is None else rows.at(rows.noisy.nonzero()[:, 0])


@dataclass(frozen=True, kw_only=True)
class Preparer:
    """Makes batches. Noise, times and dropout of a pack are a function of (seed, number of the pack), so that they
    depend neither on the number of processes nor on a resume.

    Args:
        stage: Gives the seed, the shift of the times and the noise samples per target.
        codec: Turns segments into tokens.
        encode: Turns media into latents.
        device: Where noise is added.
        cache: Keeps what is encoded of videos that have a name there.
        complete: Give every pack at least one image to look at and one latent, in a dummy sample without targets.
            Sharded weights need it: all ranks have to pass through the same modules.
    """

    stage: Stage
    codec: SequenceCodec
    encode: MediaEncoder
    device: torch.device
    complete: bool = False
    cache: Cache | None = None

    def __call__(self, samples: list[Sample], number_of_pack: int) -> Batch:
        packed = self._pack(samples)
        clips, shown, first_of, known = list[Any](), list[int](), dict[int, int](), dict[Any, int]()
        for v in packed.visuals:
            if v.kind != PATCHES:
                continue
            value = v.segment.value
            shown.append(known.setdefault(value.key if isinstance(value, Clip) else id(v), len(clips)))
            if shown[-1] == len(clips):
                clips.append(value)
            if isinstance(value, Clip):
                self._keep(value, value.pixels)
            first_of.setdefault(int(packed.rows.doc[v.rows[0]]), shown[-1])
        labels = {first_of[doc]: s.labels for doc, s in enumerate(samples) if s.labels is not None and doc in first_of}
        seed = self.stage.seed * 1_000_003 + number_of_pack
        ids, noise, counts = [s.id for s in samples], self._noise(packed, seed), self._counts(packed, labels)
        labels = dict(sorted(labels.items()))
        preserved = torch.zeros(len(packed.lengths), dtype=torch.bool)  # a dummy sample may come after the others
        preserved[: len(samples)] = torch.tensor([sample.preserved for sample in samples])
        return Batch(
            packed=packed, ids=ids, noise=noise, clips=clips, shown=shown, labels=labels, counts=counts, seed=seed,
            preserved=preserved if preserved.any() else None,
        )  # fmt: skip

    def _pack(self, samples: list[Sample]) -> Pack:
        lists = [s.segments for s in samples]
        kinds = {s.kind for segments in lists for s in segments if s.kind is Kind.LATENTS or isinstance(s.value, Clip)}
        missing = [kind for kind in (Kind.PATCHES, Kind.LATENTS) if kind not in kinds]
        if self.complete and missing:
            side = lcm(self.codec.config.vit.stride, self.codec.config.vae.stride)
            blank = Clip(np.zeros((1, side, side, 3), np.uint8))
            lists.append([Segment(kind, Role.REFERENCE, blank) for kind in missing])
        return pack(lists, self.codec, self.codec.config.position, self.stage.draws)

    def _counts(self, packed: Pack, labels: dict[int, np.ndarray]) -> Tensor:
        rows = packed.rows
        text = (rows.label >= 0) & (rows.label < len(self.codec.tokenizer))
        points = sum(label[0].size for label in labels.values())
        return torch.tensor([int(text.sum()), int(rows.denoise.sum()), points], dtype=torch.float64)

    def _noise(self, packed: Pack, seed: int) -> Noised | None:
        visuals = [v for v in packed.visuals if v.kind == LATENTS]
        kept = [v.segment for v in visuals]
        if not kept:
            return None
        generator = torch.Generator().manual_seed(seed)
        times = draw_times(int(packed.rows.target.max()) + 1, self.stage.shift, generator)
        with autocast(self.stage.dtype, self.device):
            [encoded] = self.encode([kept], targets=True)
        for before, after in zip(kept, encoded, strict=True):
            self._keep(before.value, after.value)
            self._keep(before.given, after.given)
        filled = [replace(v, segment=s) for v, s in zip(visuals, encoded, strict=True)]
        clean = torch.cat([v.clean().float().to(self.device) for v in filled])
        noise = torch.randn(clean.shape, generator=generator)
        return noised(packed, clean, times.to(self.device), noise.to(self.device))

    def _keep(self, clip: Any, made: Any) -> None:
        """Give a cache what was made of a video that it would know by its name."""
        if self.cache is not None and isinstance(clip, Clip) and clip.origin:
            self.cache.put(clip.origin, made.cpu().numpy() if isinstance(made, Tensor) else made)
