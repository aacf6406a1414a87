"""The parts one by one: position table, time embedder, projections, rotary embedding, ViT, VAE."""

from __future__ import annotations

from functools import cache, cached_property

import torch
from torch import Tensor

from lance_parity.checks import DEEP, EXACT, UNIT, VAE, Checks, Measure, Table
from lance_parity.parts import Parts
from openlance.model.attention import rotary_table, rotate
from openlance.model.lance import latent_table
from openlance.model.vit import to_patches, windows
from openlance.vae.autoencoder import sample
from openlance.vae.frames import channels_last


class Modules:
    """A file of unit-level vectors and what our parts make of its inputs.

    Axes: A heads, L tokens, E head width.
    """

    def __init__(self, checks: Checks, parts: Parts) -> None:
        self.file, self.config, self.lance = checks.file, parts.config, parts.lance
        self.vit, self.vae = parts.components.vit(), parts.components.vae()
        self.encoded = cache(lambda name: self.vae.encode(self.file.take(f"vae.{name}.pixels")))

    def table(self, ids: Tensor, width: int) -> Tensor:
        """Give rows of the fixed position table."""
        return latent_table(ids, width, self.config.position.max_latent_side)

    def of_grid(self, width: int, rows: int, columns: int) -> Tensor:
        """Give rows of the table of a width that stand on a grid of the file."""
        flat, side = self.file.take(f"latent_pos_embed.hidden{width}_flat_index"), self.config.position.max_latent_side
        t, y, x = flat // (rows * columns), flat // columns % rows, flat % columns
        return self.table((t * side + y) * side + x, width)

    def rotated(self, name: str) -> Tensor:
        """Give queries or keys (1, A, L, E) after rotation."""
        cos, sin = rotary_table(self.file.take("mrope.pos").T, self.config)
        return rotate(self.file.take(f"mrope.{name}")[0].transpose(0, 1), cos, sin).transpose(0, 1)[None]

    @cached_property
    def axes(self) -> list[Tensor]:
        """Cosines and sines of every axis alone, (3, L, E) each."""
        tables = [rotary_table(row[:, None].expand(-1, 3), self.config) for row in self.file.take("mrope.pos")]
        return [torch.stack(list(each)) for each in zip(*tables)]

    def clips(self, name: str) -> list[Tensor]:
        """Read the normalized clips (3, T, H, W) that the tower sees in one pass."""
        found = sorted((k["n"], clip) for clip, k in self.file.matching(f"vit.{name}.pixels{{n}}"))
        return [self.file.take(clip) for _, clip in found]

    def grid(self, name: str) -> Tensor:
        """Give (n, 3) patches of each clip along time, height and width."""
        return torch.tensor([to_patches(clip, self.config.vit)[1] for clip in self.clips(name)])

    def windows(self, name: str) -> tuple[Tensor, Tensor]:
        """Give the order of the merged cells by attention window, and the bounds of the windows in patches, as the
        tower works them out."""
        order, lengths = windows(
            tuple(to_patches(clip, self.config.vit)[1] for clip in self.clips(name)), self.config.vit
        )
        return order, torch.tensor([0, *lengths]).cumsum(0)

    def drawn(self, name: str) -> Tensor:
        """Give the latents (C, T, Y, X) that are drawn with the noise of the file."""
        return sample(*self.encoded(name), self.file.take(f"vae.{name}.eps"))


MODULES: Table = {
    "latent_pos_embed.rows": (lambda m: m.table(m.file.take("latent_pos_embed.ids"), m.config.width), UNIT),
    "latent_pos_embed.hidden{w}_grid{t}x{y}x{x}": (lambda m, w, t, y, x: m.of_grid(w, y, x), UNIT),
    "time_embedder.freq": (lambda m: m.lance.time.frequencies(m.file.take("time_embedder.t")), UNIT),
    "time_embedder.out": (lambda m: m.lance.time(m.file.take("time_embedder.t")), UNIT),
    "vae2llm.out": (lambda m: m.lance.latent_in(m.file.take("vae2llm.in")), UNIT),
    "llm2vae.out": (lambda m: m.lance.latent_out(m.file.take("llm2vae.in")), UNIT),
    "mrope.{name}_rot": (lambda m, name: m.rotated(name), UNIT),
    "mrope.cos_3axis": (lambda m: m.axes[0], UNIT),
    "mrope.sin_3axis": (lambda m: m.axes[1], UNIT),
    "vit.{name}.patches": (lambda m, name: torch.cat([to_patches(x, m.config.vit)[0] for x in m.clips(name)]), UNIT),
    "vit.{name}.grid_thw": (lambda m, name: m.grid(name), EXACT),
    "vit.{name}.out": (lambda m, name: m.vit(m.clips(name)), DEEP),
    "vit.{name}.window_index": (lambda m, name: m.windows(name)[0], EXACT),
    "vit.{name}.cu_window_seqlens": (lambda m, name: m.windows(name)[1], EXACT),
    "vae.{name}.mu_normalised": (lambda m, name: m.encoded(name)[0], VAE),
    "vae.{name}.logvar": (lambda m, name: m.encoded(name)[1], VAE),
    "vae.{name}.latent_sampled_thwc": (lambda m, name: channels_last(m.drawn(name)), VAE),
    "vae.{name}.recon_from_sample": (lambda m, name: m.vae.decode(m.drawn(name)), VAE),
    "vae.{name}.recon_from_mu": (lambda m, name: m.vae.decode(m.encoded(name)[0]), VAE),
    "vae.mean": (lambda m: m.config.vae.mean, Measure(1e-6)),
    "vae.std": (lambda m: m.config.vae.std, Measure(1e-6)),
    "vae.inv_std": (lambda m: 1 / torch.tensor(m.config.vae.std), UNIT),
}


@torch.no_grad()
def check_modules(checks: Checks, parts: Parts) -> None:
    """Make all comparisons of a file of unit-level vectors."""
    with checks.part("modules"):
        checks.table(MODULES, Modules(checks, parts))
