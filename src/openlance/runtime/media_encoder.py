"""Media to model space, before anything is packed: ViT features for what is looked at, clean latents for what is kept.

One way for sampling, training, `encode` and `verify`. Media are known by what they show (`Clip.key`), so whatever
stands several times in the segments is encoded once.

    encoder = MediaEncoder(vit=..., vae=...)
    encoder(requests)          # the same lists of segments, their media replaced by tensors
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from openlance.media.clip import Clip
from openlance.runtime.components import LazyVAE
from openlance.sequence.segment import Kind, Role, Segment, Segments, any_video
from openlance.vae.frames import channels_first, channels_last, to_signed, to_uint8
from openlance.vae.tiling import Tiling, decode_tiled, encode_tiled

if TYPE_CHECKING:
    from openlance.model.vit import ViT

TOGETHER = 1 << 22  # pixels of all frames that go through the VAE's encoder together in training: bounds its memory
REMEMBERED = 64  # media
DECODED = 1 << 18  # pixels of one frame of all results that are decoded together: many small images, large ones in turn
Key = tuple[Kind, bytes, bool]  # what is made, of what, by which tower


def pixels_of(clip: Clip) -> Tensor:
    """uint8 (T, H, W, 3). torch has no read-only or mirrored tensors, so such pixels are copied."""
    return torch.from_numpy(np.require(clip.pixels, requirements=("C", "W")))


def features(vit: ViT, clips: Sequence[Clip]) -> list[Tensor]:
    """Encode what videos mean: (T, Y, X, D) merged cells of each, from one pass of the tower."""
    from openlance.model.vit import normalize

    grids = [vit.config.cell_grid(clip.pixels.shape[:3]) for clip in clips]
    cells = vit([normalize(pixels_of(clip)) for clip in clips]).split([int(np.prod(grid)) for grid in grids])
    return [part.reshape(*grid, -1) for part, grid in zip(cells, grids, strict=True)]


def latents(vae: LazyVAE, clips: Sequence[Clip], tiling: Tiling | None = None, together: int = 0) -> list[Tensor]:
    """Encode how videos look.

    Args:
        vae: The VAE.
        clips: Frames beyond 1 + k * the temporal stride have no latents (released code).
        tiling: See `vae.tiling`.
        together: Pixels of videos of one size that may share a pass. With 0 each has its own, and its latents are the
            same to the last bit whatever it is encoded beside.

    Returns:
        (T, Y, X, C) clean latents of each in float32, the encoder's mean.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for n, clip in enumerate(clips):
        by_shape.setdefault(clip.pixels.shape, []).append(n)
    found: dict[int, Tensor] = {}
    for shape, numbers in by_shape.items():
        most = max(1, together // int(np.prod(shape[:3])))
        for at in range(0, len(numbers), most):
            some = numbers[at : at + most]
            found |= zip(some, _means(vae, [clips[n] for n in some], tiling), strict=True)
    return [found[n] for n in range(len(clips))]


def _means(vae: LazyVAE, clips: list[Clip], tiling: Tiling | None) -> Tensor:
    frames = vae.config.whole_frames(clips[0].frames)
    pixels = torch.stack([to_signed(pixels_of(clip)[:frames]) for clip in clips]).to(vae.device, vae.dtype)
    if tiling is None:
        mean = vae.encode(pixels)[0]
    else:
        mean = torch.stack([encode_tiled(lambda x: vae.encode(x)[0], p, vae.config.stride, tiling) for p in pixels])
    return channels_last(mean.float())


@torch.no_grad()
def decoded(
    vae: LazyVAE, latents: Sequence[Tensor], tiling: Tiling | None = None, dtype: torch.dtype | None = None
) -> list[Clip]:
    """Decode latents.

    Args:
        vae: The VAE.
        latents: (T, Y, X, C) of each; where all are of one shape, some are decoded together.
        tiling: See `vae.tiling`.
        dtype: In which they are decoded, that of the VAE by default.
    """
    if not latents:
        return []
    stride = vae.config.stride
    some = max(DECODED // (latents[0].shape[1] * latents[0].shape[2] * stride**2), 1)
    alike = len({z.shape for z in latents}) == 1
    runs = [torch.stack(list(latents[n : n + some])) for n in range(0, len(latents), some)] if alike else None
    clips = list[Clip]()
    for z in runs or [z[None] for z in latents]:
        z = channels_first(z).to(vae.device, dtype or vae.dtype)
        steps = vae.decode_steps(z) if tiling is None else decode_tiled(vae.decode_steps, z, stride, tiling)
        # Frames leave the device as bytes as soon as they are there: what a long clip takes does not grow.
        frames = [torch.stack([to_uint8(p) for p in pixels]).cpu().numpy() for pixels in steps]
        clips += [Clip(pixels) for pixels in np.concatenate(frames, axis=1)]
    return clips


@dataclass
class MediaEncoder:
    """Replaces media in lists of segments by what the model reads.

    Args:
        vit: Gives the vision tower, told whether the segments are about videos: a release has a checkpoint for images
            and one for videos, each with a tower of its own. Called when there is something new to look at.
        vae: Gives the VAE, likewise when it is needed.
        tiling: Of the VAE; None encodes whole images.
        remembers: How many media of earlier calls are kept.
        together: See `latents`.
    """

    vit: Callable[[bool], ViT]
    vae: Callable[[], LazyVAE]
    tiling: Tiling | None = None
    remembers: int = 0
    together: int = 0
    memory: OrderedDict[Key, Tensor] = field(default_factory=OrderedDict)

    @torch.no_grad()
    def __call__(self, samples: Iterable[Segments], *, targets: bool = False) -> list[Segments]:
        """Encode what is looked at, what is kept and what is given.

        Args:
            samples: Requests or samples. Media that are tensors already, (T, Y, X, D) features or (T, Y, X, C) latents,
                stay as they are.
            targets: Encode what fills visual targets, too.

        Returns:
            The same lists, their media as tensors on the device of the part that made them.
        """
        lists = [list(segments) for segments in samples]
        moving = any_video(lists)
        held = [(s.kind, clip) for segments in lists for s in segments for clip in _media(s, targets)]
        wanted = {_key(kind, clip, moving): clip for kind, clip in held}
        found = self._found(wanted, moving)

        def made(kind: Kind, value: Any) -> Any:
            return found.get(_key(kind, value, moving), value) if isinstance(value, Clip) else value

        def encoded(s: Segment) -> Segment:
            return s if s.kind is Kind.TEXT else replace(s, value=made(s.kind, s.value), given=made(s.kind, s.given))

        return [[encoded(s) for s in segments] for segments in lists]

    def _found(self, wanted: dict[Key, Clip], moving: bool) -> dict[Key, Tensor]:
        found = {key: self.memory[key] for key in wanted if key in self.memory}
        for kind in (Kind.PATCHES, Kind.LATENTS):
            new = {key: clip for key, clip in wanted.items() if key[0] is kind and key not in found}
            clips = list(new.values())
            if clips and kind is Kind.PATCHES:
                found |= zip(new, features(self.vit(moving), clips), strict=True)
            elif clips:
                found |= zip(new, latents(self.vae(), clips, self.tiling, self.together), strict=True)
        if self.remembers:
            for key in wanted:
                self.memory[key] = found[key]
                self.memory.move_to_end(key)
            while len(self.memory) > self.remembers:
                self.memory.popitem(last=False)
        return found


def _key(kind: Kind, clip: Clip, moving: bool) -> Key:
    return kind, clip.key, moving and kind is Kind.PATCHES


def _media(s: Segment, targets: bool) -> list[Clip]:
    """The videos of a segment that are to be encoded."""
    values = [s.given] if s.role is Role.TARGET and not targets else [s.value, s.given]
    return [value for value in values if isinstance(value, Clip)]
