"""The vision tower: transformers' Qwen2.5-VL ViT, fed with videos and giving one vector per merged cell.

Axes: T frames, H W pixels, N patches, P values of a patch, M merged cells, D output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors, unfilled
from openlance.config.model import ViTConfig
from openlance.model.attention import attend, plan_runs

# The statistics of CLIP's training images, which Qwen2.5-VL takes over (released code).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


Grid = tuple[int, int, int]


def normalize(pixels_THW3: Tensor) -> Tensor:
    """Bring uint8 (T, H, W, 3) to float32 (3, T, H, W) in CLIP's units."""
    mean = torch.tensor(CLIP_MEAN, device=pixels_THW3.device).view(3, 1, 1, 1)
    std = torch.tensor(CLIP_STD, device=pixels_THW3.device).view(3, 1, 1, 1)
    return (pixels_THW3.permute(3, 0, 1, 2).float() / 255.0 - mean) / std


def to_patches(clip_3THW: Tensor, config: ViTConfig) -> tuple[Tensor, Grid]:
    """Cut a normalized video into patches_NP and give its grid (t, h, w).

    Values of a patch: channel, frame, row, column. Patches: time, then cells of merge x merge patches in raster order,
    and in a cell its patches in raster order, so that one merged cell is contiguous. A video that does not fill the
    temporal patch repeats its last frame; so an image is doubled.
    """
    p, tp, m = config.patch_size, config.temporal_patch_size, config.spatial_merge_size
    channels, frames, height, width = clip_3THW.shape
    t, h, w = config.patch_grid((frames, height, width))
    if frames != t * tp:
        clip_3THW = torch.cat([clip_3THW, clip_3THW[:, -1:].expand(-1, t * tp - frames, -1, -1)], dim=1)
    cut = clip_3THW.reshape(channels, t, tp, h // m, m, p, w // m, m, p)
    return cut.permute(1, 3, 6, 4, 7, 0, 2, 5, 8).reshape(t * h * w, channels * tp * p * p), (t, h, w)


class ViT(nn.Module):
    """transformers' tower under our interface; parameter names below `tower` are the released ones.

    Attributes:
        config: Sizes of the tower.
        tower: The module of transformers.
    """

    def __init__(self, config: ViTConfig, *, rounded_frequencies: bool = False) -> None:
        """Build a tower with initial weights.

        Args:
            config: Sizes of the tower.
            rounded_frequencies: The reference quirk of that name (`Quirks`) of the model that it is part of.
        """
        super().__init__()
        self.config = config
        self.tower = _tower(config, rounded_frequencies)

    def forward(self, clips_3THW: Sequence[Tensor]) -> Tensor:
        """Encode normalized videos to cells_MD, video after video, each in order of time, row and column."""
        if not clips_3THW:
            raise ValueError("the vision tower needs at least one clip")
        weight = next(self.tower.parameters())
        patches, grids = zip(*(to_patches(clip, self.config) for clip in clips_3THW), strict=True)
        patches_NP = torch.cat(patches).to(device=weight.device, dtype=weight.dtype)
        out = self.tower(patches_NP, grid_thw=torch.tensor(grids, device=weight.device))
        # transformers 4 gives the merged cells, transformers 5 an object that holds them beside the unmerged patches.
        return out if isinstance(out, Tensor) else out.pooler_output

    @classmethod
    def load(
        cls,
        path: str | Path | TensorSource,
        config: ViTConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        allow_pickle: bool = False,
        prefix: str = "",
        rounded_frequencies: bool = False,
    ) -> ViT:
        """Build and fill a tower from released names, strictly.

        Args:
            path: A file of weights, a folder with one model, or an open source.
            config: Sizes of the tower.
            dtype: Of its weights.
            device: Where they are put.
            allow_pickle: Whether the file may be a pickle.
            prefix: Of the names that count: a decoder's file may carry the tower as `vit_model.*`.
            rounded_frequencies: See `__init__`.

        Raises:
            UserError: If the file does not fit.
        """
        with unfilled():
            vit = cls(config, rounded_frequencies=rounded_frequencies)
        source = open_tensors(path, allow_pickle=allow_pickle)
        load_into(vit.tower, source.only(lambda name: name.startswith(prefix)), lambda name: name[len(prefix) :],
                  dtype=dtype, device=device)  # fmt: skip
        _fill_tables(vit.tower, config, rounded_frequencies, device)
        return vit


class _PatchProjection(nn.Conv3d):
    """A convolution whose kernel covers its whole input is one matrix product; as such its gradient is far cheaper."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight.flatten(1))


def _attention(module: nn.Module, *given: Any, **named: Any) -> Tensor:
    """What an attention of transformers gives, which calls torch's once for every video; where it learns on a CPU all
    videos of one size go together, with our backward (`model.written`)."""
    return _together(module, *given, **named) if _learns(module) else type(module).forward(module, *given, **named)


def _learns(module: nn.Module) -> bool:
    weight = next(module.parameters())
    return torch.is_grad_enabled() and module.training and weight.requires_grad and weight.device.type == "cpu"


def _together(module: Any, x_ND: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **_: Any) -> Tensor:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    q, k, v = module.qkv(x_ND).unflatten(-1, (3, module.num_heads, -1)).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    mixed = attend(q, k, v, plan_runs(tuple(cu_seqlens.diff().tolist())))
    return module.proj(mixed.flatten(1))


class RoundedRotation(nn.Module):
    """The rotation of the release's tower, whose every number is of bfloat16.

    There `.to(bfloat16)` rounds the frequencies, and with them positions, their product, its cosine and its sine become
    bfloat16 (vit/qwen2_5_vl_vit.py, Qwen2_5_VisionRotaryEmbedding and the tower's forward); the rotation itself runs in
    float32. So it is here, whatever the weights are in. Axes: N patches, F frequencies of an axis, E half a head.
    """

    inv_freq: Tensor

    def __init__(self, inverse_F: Tensor) -> None:
        """Take over the frequencies of a tower, which are rounded here."""
        super().__init__()
        self.register_buffer("inv_freq", inverse_F.bfloat16(), persistent=False)

    def angles(self, position_N2: Tensor) -> Tensor:
        """Give (N, E) angles in bfloat16, those of the rows before those of the columns.

        Args:
            position_N2: Row and column of each patch.
        """
        return (position_N2.bfloat16()[..., None] * self.inv_freq.bfloat16()).flatten(-2)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Give cosine and sine of both halves of a head, as transformers' rotation does."""
        angle = self.angles(position_ids)
        return torch.cat([angle.cos()] * 2, dim=-1), torch.cat([angle.sin()] * 2, dim=-1)


def _fill_tables(tower: nn.Module, config: ViTConfig, rounded: bool, device: torch.device | str) -> None:
    """Give a planned tower its rotary frequencies, which are in no file. They depend on the width of a head alone, so
    a tower without layers has the same; they stay in float32, whatever the weights are in."""
    head = config.hidden_size // config.num_heads
    small = replace(config, depth=0, hidden_size=head, num_heads=1, intermediate_size=8, out_hidden_size=8)
    for name, table in _tower(small, rounded).named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(tower.get_submodule(owner), leaf, table.to(device))


def _tower(config: ViTConfig, rounded: bool = False) -> nn.Module:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    said = asdict(config) | {"fullatt_block_indexes": list(config.fullatt_block_indexes)}
    settings = Qwen2_5_VLVisionConfig(in_channels=3, hidden_act="silu", **said)
    tower = Qwen2_5_VisionTransformerPretrainedModel(settings)
    tower.patch_embed.proj.__class__ = _PatchProjection  # the same parameters, another forward
    for block in tower.blocks:
        attention: Any = block.attn
        attention.forward = partial(_attention, attention)
    if rounded:
        tower.add_module("rotary_pos_emb", RoundedRotation(tower.rotary_pos_emb.inv_freq))
    return tower
