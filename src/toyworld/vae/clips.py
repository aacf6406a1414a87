"""Teach nano's VAE motion: from the weights that pictures taught, on clips of the procedural world.

    train_clip_vae(ClipVAERecipe(), Path("vae/final"), Path("vae-clips"))   # stops and goes on where it was

The encoder keeps what it does with pictures: only the taps that see earlier frames learn, so every latent of a picture
and of a first frame stays as it was, and a backbone that was trained on them stays right. The decoder learns as a whole
and meets pictures in between. Every step draws its data and noise from (seed, step).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openlance.config.model import VAEConfig
from openlance.model.precision import autocast
from openlance.vae.autoencoder import VAE
from toyworld.motion import render_clip, sample_clip
from toyworld.vae.clip_frames import ClipVAE, stacked
from toyworld.vae.frames import PictureVAE
from toyworld.vae.pictures import Size, VAERecipe, VAERun, drive
from toyworld.vae.report import pictures, psnr, sheet

MEASURED = 16  # clips
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ClipVAERecipe(VAERecipe):
    """As VAERecipe, whose second stage this is: the rates and lengths named decoder_... are those of the run; `batch`
    is the number of pictures in a step of pictures.

    clips, frames: of a step; pictures_every: one step in so many shows pictures. encoder_learns: without it the decoder
    alone learns to move between what the encoder shows of every fourth frame; latents of clips stay as they are, so a
    backbone can start on them at once.
    """

    joint_steps: int = 0
    decoder_steps: int = 1500
    clips: int = 4
    frames: int = 9
    pictures_every: int = 4
    encoder_learns: bool = True
    other_every: int = 7  # not a multiple of pictures_every: clips and pictures both come in other sizes
    muon_scale: float = 5.0  # gentler than from nothing: pictures would pay for it
    warmup: int = 50
    ema: float = 0.99
    save_every: int = 100


def reconstruct_clips(vae: PictureVAE, x_BCHW: Tensor, std_C: Tensor, noise: float, joint: bool) -> tuple[Tensor, ...]:
    """Encode, disturb, decode stacked frames: pixels, mean and log-variance of the latents, all float32."""
    assert isinstance(vae, ClipVAE)
    mean, logvar = (v.float() for v in vae.encode(x_BCHW))
    sigma = torch.rand(vae.stack.clips, 1, 1, 1).repeat(len(mean) // vae.stack.clips, 1, 1, 1)
    variance = (sigma * noise * std_C[None, :, None, None]) ** 2
    z = mean + variance.sqrt() * torch.randn_like(mean)
    return vae.decode(z).float(), mean, logvar


class ClipRun(VAERun):
    """The state of a run on clips; mean and deviation of the latents stay those of pictures."""

    recipe: ClipVAERecipe
    vae: ClipVAE
    average: ClipVAE
    reconstruct = staticmethod(reconstruct_clips)

    def __init__(self, recipe: ClipVAERecipe, folder: Path, start: Path) -> None:
        config = VAEConfig.of(json.loads((start / "vae_config.json").read_text()))
        vae = VAE.load(start / "vae.safetensors", config)
        self.recipe, self.folder, self.step = recipe, folder, 0
        self.vae, self.average = ClipVAE(vae), ClipVAE(vae)
        self.mean_C, self.std_C = torch.tensor(config.mean), torch.tensor(config.std)
        self.forward = torch.compile(self.reconstruct, dynamic=False) if recipe.compile else self.reconstruct
        new = self.vae.new_parameters() if recipe.encoder_learns else set()
        for name, parameter in self.vae.named_parameters():
            parameter.requires_grad_(name in new or not name.startswith(("encoder.", "quant_conv.")))
        self.optimizer = self._new_optimizer()

    def _learned(self) -> ClipVAE:
        return self.vae

    def batch(self) -> tuple[Tensor, bool]:
        """Stacked frames of this step, and whether they have the usual form."""
        r, turn = self.recipe, self.step // self.recipe.other_every
        usual = not r.other_sizes or self.step % r.other_every != r.other_every - 1
        size = r.size if usual else r.other_sizes[turn % len(r.other_sizes)]
        rng = np.random.default_rng((r.seed, 4, self.step))
        still = self.step % r.pictures_every == r.pictures_every - 1
        count = max((r.batch if still else r.clips) // (1 if usual else 2), 1)
        pixels = pictures(rng, count, size, r.kinds)[:, None] if still else clips(rng, count, size, r.frames)
        self.vae.stack.clips = count
        return stacked(torch.from_numpy(pixels)), usual

    def levels(self) -> dict[str, float]:
        """Decibels on pictures, and on clips: of all frames, of first ones, and with latent noise."""
        self.average.stack.clips = 64  # as many pictures as `measure` looks at
        found = super().levels()
        r = self.recipe
        x = stacked(torch.from_numpy(clips(np.random.default_rng((0, 5)), MEASURED, r.size, r.frames)))
        self.average.stack.clips = MEASURED
        with torch.no_grad(), autocast("auto"):
            z = self.average.encode(x)[0].float()
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)) * self.std_C[None, :, None, None]
            plain, noisy = self.average.decode(z).float(), self.average.decode(z + 0.2 * noise).float()
        self._show(x, plain, noisy)
        first = slice(0, MEASURED)
        return found | {
            "clips": psnr(plain, x), "clips+noise": psnr(noisy, x), "first": psnr(plain[first], x[first]),
            "latent": float((z[MEASURED:].std((0, 2, 3)) / self.std_C).mean()),  # of later frames over pictures
        }  # fmt: skip

    def _show(self, *versions: Tensor) -> None:
        from PIL import Image

        by_clip = [v.unflatten(0, (-1, MEASURED)).transpose(0, 1)[:_SHOWN].flatten(0, 1) for v in versions]
        frames = len(by_clip[0]) // _SHOWN
        picture = sheet(*by_clip, columns=frames, bands=_SHOWN)
        Image.fromarray(picture).save(self.folder / f"clips-{self.step:06d}.png")


def clips(rng: np.random.Generator, count: int, size: Size, frames: int) -> np.ndarray:
    """Renders of freely placed scenes in motion, none of them held out: uint8 (count, frames, height, width, 3)."""
    height, width = size
    scenes = (sample_clip(rng, aspect=width / height, frames=frames) for _ in range(count))
    return np.stack([render_clip(scene, height, width) for scene in scenes])


def train_clip_vae(
    recipe: ClipVAERecipe, start: Path, out_dir: Path, *, steps: int | None = None, resume: bool = True
) -> Path:
    """Go on from the VAE in the folder `start` (vae.safetensors, vae_config.json); else as `train_vae`."""
    return drive(ClipRun(recipe, out_dir, start), steps, resume)
