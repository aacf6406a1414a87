"""Hyper-parameters of a model, the grids of tokens that follow from them, and the JSON files in which a checkpoint
folder carries them. Presets live beside the classes.

Sizes are (frames, height, width) in pixels; grids are (frames, rows, columns) of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

from openlance.config.values import known
from openlance.errors import UserError

Json: TypeAlias = Mapping[str, Any]  # what a file of a checkpoint says

Size = tuple[int, int, int]
Grid = tuple[int, int, int]


def nearest_good_size(height: int, width: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the next smaller and the next larger (height, width) with sides that are positive multiples of stride."""
    small = [max(side // stride, 1) * stride for side in (height, width)]
    large = [max(-(-side // stride), 1) * stride for side in (height, width)]
    return (small[0], small[1]), (large[0], large[1])


def check_size(height: int, width: int, stride: int) -> None:
    """Check that both sides, in pixels, are positive multiples of stride.

    Raises:
        UserError: If not; it names the nearest good sizes as WIDTHxHEIGHT.
    """
    if height > 0 and width > 0 and height % stride == 0 and width % stride == 0:
        return
    small, large = nearest_good_size(height, width, stride)
    sizes = " or ".join(f"{w}x{h}" for h, w in dict.fromkeys((small, large)))
    raise UserError(f"a size of {width}x{height} is not a multiple of {stride} on both sides: use {sizes}")


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
    """How tokens are placed (paper: MaPE; values from the released code).

    Args:
        shift: Without it only the Qwen2.5-VL index is left (the paper's ablation).
        patches_start: The frame position at which ViT blocks begin, so that they never collide with what is made.
        reference_start: Likewise of reference latents.
        tokens_per_second: Frame positions of a second of video.
        max_latent_side: Rows and columns of the latent position table.
        max_latent_frames: Its frames.
        patch_table: How strongly ViT tokens carry rows of that table, 0 in the release: a small model has a hard time
            to learn from rotations alone where they stand.
    """

    shift: bool = True
    patches_start: int = 1000
    reference_start: int = 2000
    tokens_per_second: int = 2
    max_latent_side: int = 64
    max_latent_frames: int = 31
    patch_table: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The vision tower (Qwen2.5-VL's). Defaults: the published 3B."""

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
        """Read a vit_config.json as released; what it says beyond our fields is left aside."""
        return cls(**known(cls, values))

    def patch_grid(self, size: Size) -> Grid:
        """Count the patches, before merging, of an image or video of a size.

        Raises:
            UserError: If a side is not a multiple of the stride; it names the nearest good sizes.
        """
        frames, height, width = size
        check_size(height, width, self.stride)
        return -(-frames // self.temporal_patch_size), height // self.patch_size, width // self.patch_size

    def cell_grid(self, size: Size) -> Grid:
        """Count the merged cells, one token each, of an image or video of a size; errors as `patch_grid`."""
        t, h, w = self.patch_grid(size)
        return t, h // self.spatial_merge_size, w // self.spatial_merge_size


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The VAE (Wan2.2's). Defaults: the published one."""

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
        return int(self.patch_size * 2 ** (len(self.dim_mult) - 1))

    @property
    def temporal_stride(self) -> int:
        return int(2 ** sum(self.temporal_downsample))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> VAEConfig:
        """Read a vae_config.json as released: the constructor arguments of its VAE class."""
        return cls(**known(cls, values) | {"temporal_downsample": tuple(values["temperal_downsample"])})

    def whole_frames(self, frames: int) -> int:
        """Find the longest 1 + k * temporal stride within a number of frames: the first frame stands alone."""
        return (frames - 1) // self.temporal_stride * self.temporal_stride + 1

    def latent_grid(self, size: Size) -> Grid:
        """Count the latents of an image or video of a size; frames beyond `whole_frames` have none (released code).

        Raises:
            UserError: If a side is not a multiple of the stride; it names the nearest good sizes.
        """
        frames, height, width = size
        check_size(height, width, self.stride)
        return (frames - 1) // self.temporal_stride + 1, height // self.stride, width // self.stride

    def check(self, size: Size) -> None:
        """Check that an image or video of exactly this size can be made.

        Raises:
            UserError: If not; it names the nearest good sizes or numbers of frames.
        """
        frames, step = size[0], self.temporal_stride
        self.latent_grid(size)
        if frames < 1 or frames != self.whole_frames(frames):
            low = max(self.whole_frames(frames), 1)
            good = f"{low} or {low + step}" if frames > 1 else "1"
            raise UserError(f"a video of {frames} frames does not fit the temporal stride {step}: use {good} frames")


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """Reference quirks (`docs/compatibility.md`): three of the released sampler, which its training does not share, and
    one of its rotary tables, which its training has too.

    Released checkpoints get them by default: their published results were made with them. Off is the exact form.

    Args:
        uncond_keeps_positions: The cached unconditional prefix keeps the conditional positions.
        norm_includes_given: Guidance norms include the known first frame of image-to-video.
        decode_without_shift: Answers are decoded without the modality shift.
        rounded_frequencies: Rotary frequencies are bfloat16 numbers; in the ViT angle, cosine and sine too.
    """

    uncond_keeps_positions: bool = True
    norm_includes_given: bool = True
    decode_without_shift: bool = True
    rounded_frequencies: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Quirks:
        """Read the entry `faithful` of a lance_config.json; what it leaves out is as released. An entry from before
        the frequencies were among them that turns all others off is of an exact model, which goes on as trained."""
        older = {f.name for f in fields(cls)} - {"rounded_frequencies"}
        if "rounded_frequencies" not in values and not any(values.get(name, True) for name in older):
            return NO_QUIRKS
        return cls(**known(cls, values))


NO_QUIRKS = Quirks(**{f.name: False for f in fields(Quirks)})
# Ours -> the names in a llm_config.json.
LLM = {
    "vocab_size": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "mlp_width": "intermediate_size", "rms_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The dual-stream decoder and its neighbors. Defaults: the published 3B."""

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
    quirks: Quirks = field(default_factory=Quirks)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if 2 * sum(self.rope_sections) != self.head_dim:
            raise ValueError(f"rope_sections {self.rope_sections} must add up to head_dim/2 = {self.head_dim // 2}")
        if self.latent_channels != self.vae.z_dim:
            raise ValueError(f"latent_channels={self.latent_channels} must equal the VAE's z_dim={self.vae.z_dim}")

    @classmethod
    def of(cls, llm: Json, lance: Json, vit: Json, vae: Json) -> ModelConfig:
        """Read what the JSON files of a folder say; an empty `vae` is the published VAE.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: If an entry is missing or does not fit.
        """
        sizes = {ours: llm[theirs] for ours, theirs in LLM.items()}
        sizes["head_dim"] = llm.get("head_dim") or sizes["width"] // sizes["heads"]
        sizes["rope_sections"] = tuple(llm["rope_scaling"]["mrope_section"])
        sizes["time_features"] = lance.get("time_features", 256)
        made, quirks = VAEConfig.of(vae) if vae else VAEConfig(), Quirks.of(lance.get("faithful", {}))
        table = {"max_latent_side": lance["max_latent_size"], "max_latent_frames": lance["max_num_frames"] // 4 + 1}
        seconds = {"tokens_per_second": vit.get("tokens_per_second", 2)}
        position = PositionConfig(**table, **seconds, **known(PositionConfig, lance.get("position", {})))
        parts: dict[str, Any] = {"position": position, "vit": ViTConfig.of(vit), "vae": made, "quirks": quirks}
        return cls(**sizes, **parts, latent_channels=made.z_dim)

    def files(self) -> dict[str, dict[str, Any]]:
        """Return the content of the four JSON files of a folder, by name, as `of` reads it."""
        vae, position = asdict(self.vae), asdict(self.position)
        vae["temperal_downsample"] = vae.pop("temporal_downsample")  # spelled so in the release
        rope = {"type": "mrope", "mrope_section": list(self.rope_sections)}
        llm = {theirs: getattr(self, ours) for ours, theirs in LLM.items()}
        llm |= {"model_type": "qwen2", "head_dim": self.head_dim, "rope_scaling": rope, "tie_word_embeddings": False}
        return {
            "llm_config.json": llm,
            "vit_config.json": asdict(self.vit) | {"tokens_per_second": position.pop("tokens_per_second")},
            "vae_config.json": vae,
            "lance_config.json": {
                "max_latent_size": position.pop("max_latent_side"),
                "max_num_frames": 4 * (position.pop("max_latent_frames") - 1) + 1,
                "time_features": self.time_features,
                "position": position,
                "faithful": asdict(self.quirks),
            },
        }


NANO_VOCABULARY = 640


def nano_vae(mean: tuple[float, ...] = (0.0,) * 16, std: tuple[float, ...] = (1.0,) * 16) -> VAEConfig:
    """Make Wan2.2's VAE with stride 8 and 16 channels: a 64x64 image has 8x8 latent cells.

    Args:
        mean: Of each latent channel, known once it is trained.
        std: Likewise.
    """
    return VAEConfig(
        z_dim=16, dim=32, dec_dim=48, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
        mean=mean, std=std,
    )  # fmt: skip


def nano(vae: VAEConfig | None = None) -> ModelConfig:
    """Make the 3B's configuration in small, 12.5 million parameters without the VAE. There is no second code path: a
    64x64 image is 64 latent tokens or 16 ViT tokens."""
    return ModelConfig(
        vocab_size=NANO_VOCABULARY, width=256, layers=6, heads=8, kv_heads=4, head_dim=32, mlp_width=768,
        rope_theta=1e4, rope_sections=(4, 6, 6), latent_channels=16, time_features=128,
        vit=ViTConfig(
            depth=4, hidden_size=192, intermediate_size=512, num_heads=6, patch_size=8, window_size=64,
            fullatt_block_indexes=(0, 1, 2, 3), out_hidden_size=256,
        ),
        vae=vae or nano_vae(), position=PositionConfig(patch_table=6.0), quirks=NO_QUIRKS,
    )  # fmt: skip
