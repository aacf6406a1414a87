"""The parts one by one: position table, time embedder, projections, rotary embedding, ViT, VAE."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from openlance.compat.verify.checks import CODEC, DEEP, UNIT, Checks
from openlance.compat.verify.parts import Parts
from openlance.model.attention import rotary_table, rotate
from openlance.model.lance import latent_table
from openlance.model.vit import to_patches
from openlance.vae.autoencoder import sample
from openlance.vae.lazy import channels_last


@torch.no_grad()
def check_modules(checks: Checks, parts: Parts) -> None:
    """All comparisons of a file of unit-level vectors."""
    for what, check in (
        ("latent_pos_embed", _check_table), ("projections", _check_projections), ("mrope", _check_rotary),
    ):  # fmt: skip
        with checks.part(what):
            check(checks, parts)
    names = {(m[1], m[2]) for n in checks.file.names() if (m := re.fullmatch(r"(vit|vae)\.(\w+)\.\w+", n))}
    for branch, name in sorted(names):
        with checks.part(f"{branch}.{name}"):
            (_check_vit if branch == "vit" else _check_vae)(checks, parts, name)
    for name, ours in (("mean", parts.config.vae.mean), ("std", parts.config.vae.std)):
        checks.near(f"vae.{name}", torch.tensor(ours), 1e-6)
    checks.near("vae.inv_std", 1 / torch.tensor(parts.config.vae.std), UNIT)


def _check_table(checks: Checks, parts: Parts) -> None:
    """Rows of the fixed position table, at the width of the model and at any other that the file names."""
    file, side = checks.file, parts.config.position.max_latent_side
    if "latent_pos_embed.ids" in file:
        ids = file.take("latent_pos_embed.ids")
        checks.near("latent_pos_embed.rows", latent_table(ids, parts.config.width, side), UNIT)
    for name in file.names():
        match = re.fullmatch(r"latent_pos_embed\.hidden(\d+)_grid(\d+)x(\d+)x(\d+)", name)
        if match:
            width, _, rows, columns = map(int, match.groups())
            flat = file.take(f"latent_pos_embed.hidden{width}_flat_index")
            t, y, x = flat // (rows * columns), flat // columns % rows, flat % columns
            checks.near(name, latent_table((t * side + y) * side + x, width, side), UNIT)


def _check_projections(checks: Checks, parts: Parts) -> None:
    file, lance = checks.file, parts.lance
    if "time_embedder.t" in file:
        t = file.take("time_embedder.t")
        checks.near("time_embedder.freq", lance.time.frequencies(t), UNIT)
        checks.near("time_embedder.out", lance.time(t), UNIT)
    for name, layer in (("vae2llm", lance.latent_in), ("llm2vae", lance.latent_out)):
        if f"{name}.in" in file:
            checks.near(f"{name}.out", layer(file.take(f"{name}.in")), UNIT)


def _check_rotary(checks: Checks, parts: Parts) -> None:
    file = checks.file
    if "mrope.pos" not in file:
        return
    position = file.take("mrope.pos")
    cos, sin = rotary_table(position.T, parts.config)
    for name in ("q", "k"):
        if f"mrope.{name}" in file:
            rotated = rotate(file.take(f"mrope.{name}")[0].transpose(0, 1), cos, sin)
            checks.near(f"mrope.{name}_rot", rotated.transpose(0, 1)[None], UNIT)
    axes = [rotary_table(row[:, None].expand(-1, 3), parts.config) for row in position]
    checks.near("mrope.cos_3axis", torch.stack([c for c, _ in axes]), UNIT)
    checks.near("mrope.sin_3axis", torch.stack([s for _, s in axes]), UNIT)


def _check_vit(checks: Checks, parts: Parts, name: str) -> None:
    """One pass of the tower over normalised clips (3, T, H, W)."""
    file, config = checks.file, parts.config.vit
    clips = list[Tensor]()
    while f"vit.{name}.pixels{len(clips)}" in file:
        clips.append(file.take(f"vit.{name}.pixels{len(clips)}"))
    cut = [to_patches(clip, config) for clip in clips]
    grid = torch.tensor([g for _, g in cut])
    checks.near(f"vit.{name}.patches", torch.cat([p for p, _ in cut]), UNIT)
    checks.same(f"vit.{name}.grid_thw", grid)
    checks.near(f"vit.{name}.out", parts.vit(clips), DEEP)
    if f"vit.{name}.window_index" in file or f"vit.{name}.cu_window_seqlens" in file:
        index, bounds = _windows(parts, grid)
        checks.same(f"vit.{name}.window_index", index)
        checks.same(f"vit.{name}.cu_window_seqlens", bounds)


def _windows(parts: Parts, grid: Tensor) -> tuple[Tensor, Tensor]:
    """(order of the merged cells by attention window, window bounds in patches), by the window rule itself: windows
    in raster order per frame, those at the border smaller."""
    config = parts.config.vit
    side = config.window_size // config.stride
    order, bounds, before = list[int](), [0], 0
    for t, h, w in grid.tolist():
        h, w = h // config.spatial_merge_size, w // config.spatial_merge_size
        cells = torch.arange(t * h * w).view(t, h, w) + before
        before += t * h * w
        for frame in cells:
            for rows in frame.split(side):
                for window in rows.split(side, dim=1):
                    order += window.flatten().tolist()
                    bounds.append(bounds[-1] + window.numel() * config.spatial_merge_size**2)
    return torch.tensor(order), torch.tensor(bounds)


def _check_vae(checks: Checks, parts: Parts, name: str) -> None:
    """Encoding of pixels (3, F, H, W) in [-1, 1] and decoding of its mean and of a sample."""
    file, prefix = checks.file, f"vae.{name}"
    mean, logvar = parts.vae.encode(file.take(f"{prefix}.pixels"))
    checks.near(f"{prefix}.mu_normalised", mean, CODEC)
    checks.near(f"{prefix}.logvar", logvar, CODEC)
    if f"{prefix}.eps" in file:
        latent = sample(mean, logvar, file.take(f"{prefix}.eps"))
        checks.near(f"{prefix}.latent_sampled_thwc", channels_last(latent), CODEC)
        if f"{prefix}.recon_from_sample" in file:
            checks.near(f"{prefix}.recon_from_sample", parts.vae.decode(latent), CODEC)
    if f"{prefix}.recon_from_mu" in file:
        checks.near(f"{prefix}.recon_from_mu", parts.vae.decode(mean), CODEC)
