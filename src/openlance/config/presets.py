"""Presets: hyper-parameters of models that ship or are trained here."""

from __future__ import annotations

from openlance.config.model import NO_QUIRKS, ModelConfig, PositionConfig, VAEConfig, ViTConfig

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
