"""The vision tower: Qwen2.5-VL's ViT, fed with videos and giving one vector per merged cell.

Axes: T frames, H W pixels, N patches, P values of a patch, M merged cells, D width, A heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors, unfilled
from openlance.config.model import Grid, ViTConfig
from openlance.model.attention import Plan, attend, plan_runs, rotate
from openlance.model.lance import RMSNorm, add, swiglu

# The statistics of CLIP's training images, which Qwen2.5-VL takes over (released code).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
EPS, THETA, INITIAL = 1e-6, 1e4, 0.02  # of norms, of rotations, deviation of initial weights (Qwen2.5-VL)


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


def windows(grids: tuple[Grid, ...], config: ViTConfig) -> tuple[Tensor, tuple[int, ...]]:
    """Give the order of the merged cells (M,) window after window, and how many patches each window has.

    Windows are squares of `window_size` pixels in a frame, in raster order, cut off where the frame ends
    (vit/qwen2_5_vl_vit.py, get_window_index).
    """
    merge = config.spatial_merge_size
    side, cells = config.window_size // merge // config.patch_size, list[Tensor]()
    firsts = accumulate((t * h * w // merge**2 for t, h, w in grids), initial=0)
    for first, (t, h, w) in zip(firsts, grids, strict=False):
        of_video = first + torch.arange(t * h * w // merge**2).view(t, h // merge, w // merge)
        cells += [part.flatten() for frame in of_video for rows in frame.split(side) for part in rows.split(side, 1)]
    return torch.cat(cells), tuple(len(part) * merge**2 for part in cells)


def places(grids: tuple[Grid, ...], config: ViTConfig) -> Tensor:
    """Give the row and the column (N, 2) of every patch, in the order of `to_patches`."""
    m = config.spatial_merge_size
    found = list[Tensor]()
    for t, h, w in grids:
        of_frame = torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(h // m, m, w // m, m, 2)
        found.append(of_frame.transpose(1, 2).reshape(-1, 2).repeat(t, 1))
    return torch.cat(found)


@dataclass(frozen=True)
class Layout:
    """Where the patches of some grids are, and how they attend; the same for all blocks.

    Attributes:
        order_M: Merged cells, window after window.
        back_M: Brings them back to raster order.
        place_N2: Row and column of every patch, in the order of `to_patches`.
        narrow: Attention within windows.
        wide: Attention within frames.
    """

    order_M: Tensor
    back_M: Tensor
    place_N2: Tensor
    narrow: Plan
    wide: Plan

    @staticmethod
    @lru_cache(maxsize=64)
    @torch.inference_mode(False)
    def of(grids: tuple[Grid, ...], config: ViTConfig, device: torch.device) -> Layout:
        """Make it on a device, once for the same grids; what learns may read what was made for an answer."""
        order_M, lengths = windows(grids, config)
        frames = tuple(h * w for t, h, w in grids for _ in range(t))
        return Layout(
            order_M=order_M.to(device), back_M=order_M.argsort().to(device), place_N2=places(grids, config).to(device),
            narrow=plan_runs(lengths).to(device), wide=plan_runs(frames).to(device),
        )  # fmt: skip


class Rotation(nn.Module):
    """By what patches are turned: the first quarter of a head's numbers by their row, the next by their column, and
    these halves against the others.

    In the release `.to(bfloat16)` rounds the frequencies, and with them positions, their product, its cosine and its
    sine become bfloat16 (vit/qwen2_5_vl_vit.py, Qwen2_5_VisionRotaryEmbedding and the tower's forward); the rotation
    itself runs in float32. So it is here with `rounded`, whatever the weights are in.

    Attributes:
        inv_freq: (E / 4,) frequencies. In no file, and no buffer: whatever moves or rounds weights leaves them alone.
    """

    def __init__(self, head: int, rounded: bool) -> None:
        super().__init__()
        half = head // 2
        inverse = 1.0 / THETA ** (torch.arange(0, half, 2, device="cpu").float() / half)
        self.inv_freq = inverse.bfloat16() if rounded else inverse

    def angles(self, position_N2: Tensor) -> Tensor:
        """Give (N, E / 2) angles, those of the rows before those of the columns, in the dtype of the frequencies."""
        inverse = self.inv_freq.to(position_N2.device)
        return (position_N2[..., None].to(inverse.dtype) * inverse).flatten(-2)

    def forward(self, position_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Give cosine and sine (N, E / 2), which both halves of a head share."""
        angle = self.angles(position_N2)
        return angle.cos(), angle.sin()


class Projection(nn.Conv3d):
    """A convolution whose kernel covers its whole input: one matrix product, whose gradient is far cheaper."""

    def forward(self, x_NP: Tensor) -> Tensor:
        return F.linear(x_NP, self.weight.flatten(1))


class Block(nn.Module):
    """Attention within windows or frames, then the MLP."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        width, inner, self.heads = c.hidden_size, c.intermediate_size, c.num_heads
        self.norm1, self.norm2 = RMSNorm(width, EPS), RMSNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({
            "gate_proj": nn.Linear(width, inner), "up_proj": nn.Linear(width, inner),
            "down_proj": nn.Linear(inner, width),
        })  # fmt: skip

    def forward(self, x_ND: Tensor, cos_NE: Tensor, sin_NE: Tensor, plan: Plan) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x_ND)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        # In float32, whatever the weights are in (apply_rotary_pos_emb_vision of the release).
        q, k = (rotate(part.float(), cos_NE, sin_NE).to(part.dtype) for part in (q, k))
        x_ND = add(x_ND, self.attn["proj"](attend(q, k, v, plan).flatten(1)))
        y_ND, mlp = self.norm2(x_ND), self.mlp
        return add(x_ND, mlp["down_proj"](swiglu(mlp["gate_proj"](y_ND), mlp["up_proj"](y_ND))))


class Tower(nn.Module):
    """The ViT itself, its parameters named as released."""

    def __init__(self, c: ViTConfig, rounded: bool) -> None:
        super().__init__()
        self.config, size = c, (c.temporal_patch_size, c.patch_size, c.patch_size)
        cell = c.hidden_size * c.spatial_merge_size**2
        self.patch_embed = nn.ModuleDict({"proj": Projection(3, c.hidden_size, size, size, bias=False)})
        self.rotary_pos_emb = Rotation(c.hidden_size // c.num_heads, rounded)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        mlp = nn.Sequential(nn.Linear(cell, cell), nn.GELU(), nn.Linear(cell, c.out_hidden_size))
        self.merger = nn.ModuleDict({"ln_q": RMSNorm(c.hidden_size, EPS), "mlp": mlp})
        for part in self.modules():
            if isinstance(part, nn.Linear | Projection):
                nn.init.normal_(part.weight, std=INITIAL)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, patches_NP: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Encode patches in the order of `to_patches` to one vector per merged cell, (M, D)."""
        merge, layout = self.config.spatial_merge_size**2, Layout.of(grids, self.config, patches_NP.device)
        cos_NE, sin_NE = self.rotary_pos_emb(layout.place_N2)
        x_ND = self.patch_embed["proj"](patches_NP)
        x_ND, cos_NE, sin_NE = (
            x.unflatten(0, (-1, merge)).index_select(0, layout.order_M).flatten(0, 1) for x in (x_ND, cos_NE, sin_NE)
        )
        for number, block in enumerate(self.blocks):
            within_frames = number in self.config.fullatt_block_indexes
            x_ND = block(x_ND, cos_NE, sin_NE, layout.wide if within_frames else layout.narrow)
        cells_MD = self.merger["mlp"](self.merger["ln_q"](x_ND).unflatten(0, (-1, merge)).flatten(1))
        return cells_MD.index_select(0, layout.back_M)


class ViT(nn.Module):
    """The tower from videos to cells; parameter names below `tower` are the released ones.

    Attributes:
        config: Sizes of the tower.
        tower: What sees patches.
    """

    def __init__(self, config: ViTConfig, *, rounded_frequencies: bool = False) -> None:
        """Build a tower with initial weights.

        Args:
            config: Sizes of the tower.
            rounded_frequencies: The reference quirk of that name (`Quirks`) of the model that it is part of.
        """
        super().__init__()
        self.config = config
        self.tower = Tower(config, rounded_frequencies)

    def forward(self, clips_3THW: Sequence[Tensor]) -> Tensor:
        """Encode normalized videos to cells_MD, video after video, each in order of time, row and column."""
        if not clips_3THW:
            raise ValueError("the vision tower needs at least one clip")
        weight = next(self.tower.parameters())
        patches, grids = zip(*(to_patches(clip, self.config) for clip in clips_3THW), strict=True)
        patches_NP = torch.cat(patches).to(device=weight.device, dtype=weight.dtype)
        return self.tower(patches_NP, grids)

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
        return vit
