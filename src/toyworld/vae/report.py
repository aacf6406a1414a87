"""What VAE training looks at: pictures in, decibels and sheets out; and folders that appear whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.model.precision import autocast
from toyworld.batches import weighed
from toyworld.render import render
from toyworld.scene import CATEGORIES, sample_scene
from toyworld.vae.frames import PictureVAE

Size = tuple[int, int]


def pictures(
    rng: np.random.Generator, count: int, size: Size, kinds: Mapping[str, float] = MappingProxyType({})
) -> np.ndarray:
    """Renders of freely placed scenes, none of them held out: uint8 (count, height, width, 3).

    kinds: Weights of the scenes' categories that are not 1, see `toyworld.scene.CATEGORIES`.
    """
    height, width = size
    weights = {name: kinds.get(name, 1.0) for name in (*CATEGORIES, "mixed")}
    # Without weights the scene draws its own kind, which is what runs before there were any repeat.
    drawn = [weighed(rng, weights) if kinds else None for _ in range(count)]
    scenes = (sample_scene(rng, placement="free", category=k, aspect=width / height) for k in drawn)
    return np.stack([render(scene, height, width) for scene in scenes])


def to_tensor(pixels_BHWC: np.ndarray) -> Tensor:
    """uint8 pixels to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a_BCHW: Tensor, b_BCHW: Tensor) -> float:
    """Decibels between pictures in [-1, 1], over the whole batch; the first is clamped."""
    return -10 * math.log10(max(F.mse_loss(a_BCHW.clamp(-1, 1), b_BCHW).item() / 4, 1e-10))


@torch.no_grad()
def latent_statistics(vae: PictureVAE, size: Size, seed: int, batches: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each latent channel over `batches` times 64 pictures."""
    total = square = torch.zeros(vae.config.z_dim, dtype=torch.float64)
    for i in range(batches):
        x = to_tensor(pictures(np.random.default_rng((seed, 3, i)), 64, size))
        with autocast("auto"):
            z = vae.encode(x)[0].double()
        total, square = total + z.mean((0, 2, 3)) / batches, square + z.square().mean((0, 2, 3)) / batches
    return total.float(), (square - total**2).sqrt().float()


@torch.no_grad()
def measure(vae: PictureVAE, std_C: Tensor, sizes: tuple[Size, ...], folder: Path, step: int) -> dict[str, float]:
    """Decibels on 64 fixed pictures of each size, and with latent noise of 0.2 deviations; writes a sheet of pictures
    above both reconstructions."""
    from PIL import Image

    levels: dict[str, float] = {}
    for size in sizes:
        x = to_tensor(pictures(np.random.default_rng((0, 2)), 64, size))
        with autocast("auto"):
            z = vae.encode(x)[0].float()
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)) * std_C[None, :, None, None]
            plain, noisy = vae.decode(z).float(), vae.decode(z + 0.2 * noise).float()
        name = f"{size[0]}x{size[1]}"
        levels |= {name: psnr(plain, x), f"{name}+noise": psnr(noisy, x)}
        if size == sizes[0]:
            Image.fromarray(sheet(x, plain, noisy)).save(folder / f"sheet-{step:06d}.png")
    return levels


def sheet(*versions_BCHW: Tensor, columns: int = 16, bands: int = 3) -> np.ndarray:
    """Pictures in [-1, 1] as one uint8 image (height, width, 3); a band shows the same pictures in every version."""
    rows = [torch.cat(list(v[i * columns : (i + 1) * columns]), 2) for i in range(bands) for v in versions_BCHW]
    return ((torch.cat(rows, 1).clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(1, 2, 0).numpy()


def put_back(folder: Path) -> None:
    """The folder as it was before a replacement that was cut between its two steps."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` once all is written."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    put_back(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
