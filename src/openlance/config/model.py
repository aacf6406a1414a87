"""Numbers of a model, and the grids of tokens that follow from them. Presets live beside the classes; a checkpoint
folder carries its own.

Sizes are (frames, height, width) in pixels; grids are (frames, rows, columns) of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from openlance.errors import UserError

Grid = tuple[int, int, int]


def nearest_good_size(height: int, width: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The next smaller and the next larger (height, width) with sides that are positive multiples of stride."""

    def below(side: int) -> int:
        return max(side // stride * stride, stride)

    def above(side: int) -> int:
        return max(-(-side // stride) * stride, stride)

    return (below(height), below(width)), (above(height), above(width))


def check_size(height: int, width: int, stride: int) -> None:
    """UserError, naming the nearest good sizes as WIDTHxHEIGHT, unless both sides are positive multiples of stride."""
    if height > 0 and width > 0 and height % stride == 0 and width % stride == 0:
        return
    small, large = nearest_good_size(height, width, stride)
    sizes = " or ".join(f"{w}x{h}" for h, w in dict.fromkeys((small, large)))
    raise UserError(f"a size of {width}x{height} is not a multiple of {stride} on both sides: use --size {sizes}")


# Wan2.2 channel statistics (released code).
WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """`patches_start` and `reference_start` are the frame positions at which ViT blocks and reference latents begin,
    so that they never collide with what is being made (paper: MaPE offsets; values from the released code).
    With `shift=False` only the Qwen2.5-VL index is left (the paper's ablation). `patch_table` is how
    strongly ViT tokens carry rows of the latent position table, 0 in the release: a small model has a hard time to
    learn from rotations alone where they stand."""

    shift: bool = True
    patches_start: int = 1000
    reference_start: int = 2000
    tokens_per_second: int = 2
    max_latent_side: int = 64
    max_latent_frames: int = 31
    patch_table: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The vision tower (transformers' Qwen2.5-VL). Defaults: the published 3B."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    out_hidden_size: int = 2048

    @property
    def stride(self) -> int:
        """Pixels per token side after the merge."""
        return self.patch_size * self.spatial_merge_size

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ViTConfig:
        """The configuration in a vit_config.json as released; what it says beyond our fields is left aside."""
        said = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "fullatt_block_indexes" in said:
            said["fullatt_block_indexes"] = tuple(said["fullatt_block_indexes"])
        return cls(**said)

    def patch_grid(self, size: Grid) -> Grid:
        """Patches, before merging, of a clip of a size.

        Raises:
            UserError: If a side is not a multiple of the stride; it names the nearest good sizes.
        """
        frames, height, width = size
        check_size(height, width, self.stride)
        return -(-frames // self.temporal_patch_size), height // self.patch_size, width // self.patch_size

    def cell_grid(self, size: Grid) -> Grid:
        """Merged cells, one token each, of a clip of a size; errors as `patch_grid`."""
        t, h, w = self.patch_grid(size)
        return t, h // self.spatial_merge_size, w // self.spatial_merge_size


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The codec (diffusers' AutoencoderKLWan in its Wan2.2 form). Defaults: the published one."""

    z_dim: int = 48
    dim: int = 160
    dec_dim: int = 256
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 2
    mean: tuple[float, ...] = WAN22_MEAN
    std: tuple[float, ...] = WAN22_STD

    def __post_init__(self) -> None:
        if len(self.mean) != self.z_dim or len(self.std) != self.z_dim:
            raise ValueError(f"z_dim={self.z_dim} needs as many channel means and deviations, not {len(self.mean)}")

    @property
    def stride(self) -> int:
        """Pixels per latent side."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal_downsample)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> VAEConfig:
        """The configuration in a vae_config.json as released: the constructor arguments of its VAE class."""
        said = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        said |= {name: tuple(said[name]) for name in ("dim_mult", "mean", "std") if name in said}
        return cls(**said | {"temporal_downsample": tuple(values["temperal_downsample"])})

    def whole_frames(self, frames: int) -> int:
        """The longest 1 + k * temporal stride within a number of frames: the first frame stands alone."""
        return (frames - 1) // self.temporal_stride * self.temporal_stride + 1

    def latent_grid(self, size: Grid) -> Grid:
        """Latents of a clip of a size; frames beyond `whole_frames` have none (released code).

        Raises:
            UserError: If a side is not a multiple of the stride; it names the nearest good sizes.
        """
        frames, height, width = size
        check_size(height, width, self.stride)
        return (frames - 1) // self.temporal_stride + 1, height // self.stride, width // self.stride

    def check(self, size: Grid) -> None:
        """UserError, naming the nearest good numbers, unless a clip of exactly this size can be made."""
        frames, step = size[0], self.temporal_stride
        self.latent_grid(size)
        if frames < 1 or frames != self.whole_frames(frames):
            low = max(self.whole_frames(frames), 1)
            good = f"{low} or {low + step}" if frames > 1 else "1"
            raise UserError(f"a clip of {frames} frames does not fit the temporal stride {step}: use {good} frames")

    def pixel_size(self, grid: Grid) -> Grid:
        """The size of what latents of a grid decode to; the inverse of `latent_grid`."""
        return (grid[0] - 1) * self.temporal_stride + 1, grid[1] * self.stride, grid[2] * self.stride


@dataclass(frozen=True, kw_only=True)
class Faithful:
    """Four habits of the release (`docs/compatibility.md`): three of its sampler, which its training does not share,
    and one of its rotary tables, which its training has too.

    Released checkpoints get them by default: their published results were made with them. Off is the exact form.
    """

    uncond_keeps_positions: bool = True  # the cached unconditional prefix keeps the conditional positions
    norm_includes_given: bool = True  # guidance norms include the known first frame of image-to-video
    decode_without_shift: bool = True  # answers are decoded without the modality shift
    rounded_frequencies: bool = True  # rotary frequencies are bfloat16 numbers; in the ViT angle, cosine and sine too


EXACT = Faithful(
    uncond_keeps_positions=False, norm_includes_given=False, decode_without_shift=False, rounded_frequencies=False
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The dual-stream decoder and its neighbours. Defaults: the published 3B."""

    vocab_size: int = 151936
    width: int = 2048
    layers: int = 36
    heads: int = 16
    kv_heads: int = 2
    head_dim: int = 128
    mlp_width: int = 11008
    rms_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_sections: tuple[int, int, int] = (16, 24, 24)
    latent_channels: int = 48
    time_features: int = 256
    position: PositionConfig = field(default_factory=PositionConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    faithful: Faithful = field(default_factory=Faithful)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if 2 * sum(self.rope_sections) != self.head_dim:
            raise ValueError(f"rope_sections {self.rope_sections} must add up to head_dim/2 = {self.head_dim // 2}")
        if self.latent_channels != self.vae.z_dim:
            raise ValueError(f"latent_channels={self.latent_channels} must equal the VAE's z_dim={self.vae.z_dim}")
