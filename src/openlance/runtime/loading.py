"""The decoder from its files, strictly: every name known, every number there."""

from __future__ import annotations

from pathlib import Path

import torch

from openlance.checkpoint.names import COMPUTED, our_name
from openlance.checkpoint.tensors import Placing, TensorSource, load_into, open_tensors, unfilled
from openlance.config.model import ModelConfig
from openlance.model.lance import Lance


def load_lance(
    folder: str | Path | TensorSource,
    config: ModelConfig,
    *,
    streams: tuple[str, ...] = ("und", "gen"),
    dtype: torch.dtype = torch.float32,
    device: Placing = "cpu",
    allow_pickle: bool = False,
) -> Lance:
    """Fill the decoder from released names, strictly. Without "gen" the generation expert is neither built nor read."""
    with unfilled():
        lance = Lance(config, streams)
    source = open_tensors(folder, allow_pickle=allow_pickle)
    # The fixed position table is computed, and a vision tower inside the file is read by whoever needs one.
    source = source.only(lambda name: name not in COMPUTED and not name.startswith("vit_model."))
    if source.has_scales:
        from openlance.runtime.quantization import receive

        receive(lance, source)
    wanted = {name for name, _ in lance.named_parameters()}

    def place(name: str) -> str | None:
        ours = our_name(name)
        skipped = ours is not None and ours not in wanted and "gen" not in streams and is_generation(ours)
        return None if skipped else ours or name

    load_into(lance, source, place, dtype=dtype, device=device)
    return lance.eval()


def is_generation(name: str) -> bool:
    """Whether one of our parameters belongs to the generation side."""
    return ".gen." in f".{name}" or name.startswith(("time.", "latent_in.", "latent_out."))
