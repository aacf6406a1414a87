"""How large a model is, from its hyper-parameters alone: products per row, parameters of the vision tower, kernels of
the VAE.

Nothing is built; tests hold these counts equal to the modules and to the published tensors.
"""

from __future__ import annotations

from functools import lru_cache

from openlance.config.model import Grid, ModelConfig, VAEConfig, ViTConfig
from openlance.model.lance import lance_parameters


def expert_size(c: ModelConfig) -> int:
    """Count the parameters of one stream in one layer: what a row of that stream meets there."""
    return sum(n for name, n in lance_parameters(c) if name.startswith("layers.0.und."))


def decoder_operations(c: ModelConfig, rows: float, pairs: float) -> float:
    """Count the operations of a forward pass of the layers: their products for all rows, and attention for pairs."""
    return c.layers * (2.0 * expert_size(c) * rows + 4.0 * c.heads * c.head_dim * pairs)


def linear_sizes(c: ModelConfig) -> list[tuple[int, int]]:
    """List (inputs, outputs) of the seven linear layers of one stream in one layer: where adapters go."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    mlp = [(c.width, c.mlp_width), (c.width, c.mlp_width), (c.mlp_width, c.width)]
    return [(c.width, q), (c.width, kv), (c.width, kv), (q, c.width), *mlp]


def vit_block_size(v: ViTConfig) -> int:
    d, f = v.hidden_size, v.intermediate_size
    return 2 * d + 4 * d * d + 4 * d + 3 * d * f + 2 * f + d


def vit_merger_size(v: ViTConfig) -> int:
    wide = v.hidden_size * v.spatial_merge_size**2
    return v.hidden_size + wide * wide + wide + wide * v.out_hidden_size + v.out_hidden_size


def vit_size(v: ViTConfig) -> int:
    """Count the parameters of the vision tower."""
    patch = 3 * v.temporal_patch_size * v.patch_size**2 * v.hidden_size
    return patch + v.depth * vit_block_size(v) + vit_merger_size(v)


def tower_operations(v: ViTConfig, patches: float) -> float:
    """Count the operations of a forward pass of the vision tower's linear layers, for tokens after merging."""
    return 2.0 * (v.depth * vit_block_size(v) * v.spatial_merge_size**2 + vit_merger_size(v)) * patches


class Half:
    """One half of the VAE, filled while walking through its levels.

    Args:
        side: Positions per latent cell along a side, where the walk begins.
        frames: Likewise in time.
    """

    def __init__(self, side: int, frames: int) -> None:
        self.side, self.frames = side, frames
        self.size = 0  # parameters
        self.products: list[tuple[int, int, int]] = []  # of each convolution: weights, positions in a plane and in time

    def conv(self, inputs: int, outputs: int, taps: int) -> None:
        self.products.append((taps * inputs * outputs, self.side**2, self.frames))
        self.size += taps * inputs * outputs + outputs

    def residual(self, inputs: int, outputs: int) -> None:
        self.size += inputs + outputs  # gains of the norms
        self.conv(inputs, outputs, 27)
        self.conv(outputs, outputs, 27)
        if inputs != outputs:
            self.conv(inputs, outputs, 1)

    def level(self, inputs: int, outputs: int, blocks: int) -> None:
        for n in range(blocks):
            self.residual(inputs if n == 0 else outputs, outputs)

    def middle(self, width: int) -> None:
        self.residual(width, width)
        self.size += width
        self.conv(width, 3 * width, 1)
        self.conv(width, width, 1)
        self.residual(width, width)

    def end(self, width: int, outputs: int) -> None:
        self.size += width
        self.conv(width, outputs, 27)

    def flops(self, grid: Grid) -> float:
        """Count the operations of one pass over a video with these latent cells; frames after the first come in whole
        groups."""
        t, y, x = grid
        return sum(2.0 * weights * (1 + (t - 1) * frames) * y * x * plane for weights, plane, frames in self.products)


@lru_cache(maxsize=8)
def encoder_half(v: VAEConfig) -> Half:
    """Walk the encoder with its joint, level by level from the pixels inwards."""
    widths = [v.dim * m for m in (1, *v.dim_mult)]
    half = Half(v.stride // v.patch_size, v.temporal_stride)
    half.conv(3 * v.patch_size**2, widths[0], 27)
    for level, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        half.level(inputs, outputs, v.num_res_blocks)
        if level < len(v.temporal_downsample):
            half.side //= 2
            half.conv(outputs, outputs, 9)
            if v.temporal_downsample[level]:
                half.frames //= 2
                half.conv(outputs, outputs, 3)
    half.middle(widths[-1])
    half.end(widths[-1], 2 * v.z_dim)
    half.conv(2 * v.z_dim, 2 * v.z_dim, 1)
    return half


@lru_cache(maxsize=8)
def decoder_half(v: VAEConfig) -> Half:
    """Walk the decoder with its joint, level by level from the latents outwards."""
    widths = [v.dec_dim * m for m in (v.dim_mult[-1], *reversed(v.dim_mult))]
    half = Half(1, 1)
    half.conv(v.z_dim, v.z_dim, 1)
    half.conv(v.z_dim, widths[0], 27)
    half.middle(widths[0])
    temporal = v.temporal_downsample[::-1]
    for level, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        half.level(inputs, outputs, v.num_res_blocks + 1)
        if level < len(temporal):
            if temporal[level]:
                half.conv(outputs, 2 * outputs, 3)
                half.frames *= 2
            half.side *= 2
            half.conv(outputs, outputs, 9)
    half.end(widths[-1], 3 * v.patch_size**2)
    return half
