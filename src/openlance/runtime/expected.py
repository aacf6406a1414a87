"""Every tensor that a checkpoint of a configuration has, by its released name: what files are written from and held
against."""

from __future__ import annotations

from collections.abc import Iterable

from openlance.checkpoint.names import released_name
from openlance.checkpoint.tensors import unfilled
from openlance.config.model import ModelConfig
from openlance.model.lance import Lance

Shapes = dict[str, tuple[int, ...]]
PARTS = ("decoder", "vit", "vae")


def expected(config: ModelConfig, parts: Iterable[str] = PARTS) -> dict[str, Shapes]:
    """Shapes by released name for each of the wanted parts; no weights are made."""
    return {part: _OF[part](config) for part in parts}


def _decoder(config: ModelConfig) -> Shapes:
    with unfilled():
        lance = Lance(config)
    return {released_name(name): tuple(p.shape) for name, p in lance.named_parameters()}


def _vit(config: ModelConfig) -> Shapes:
    from openlance.model.vit import ViT

    with unfilled():
        tower = ViT(config.vit).tower
    return {name: tuple(p.shape) for name, p in tower.named_parameters()}


def _vae(config: ModelConfig) -> Shapes:
    from openlance.checkpoint.names import released_names
    from openlance.vae.autoencoder import build_wan

    names = released_names(config.vae)
    with unfilled():
        wan = build_wan(config.vae, ("encoder", "decoder"))
    return {names.to_released(name): tuple(p.shape) for name, p in wan.named_parameters()}


_OF = {"decoder": _decoder, "vit": _vit, "vae": _vae}
