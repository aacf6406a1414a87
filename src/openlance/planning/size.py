"""How large a model is, from its numbers alone: parameters by name, products per row, kernels of the codec.

Nothing is built; tests hold these counts equal to the modules and to the published tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlance.config.model import ModelConfig, VAEConfig, ViTConfig, expert_parameters


def expert_size(c: ModelConfig) -> int:
    """Numbers of one stream in one layer: what a row of that stream meets there."""
    return sum(n for _, n in expert_parameters(c))


def linear_sizes(c: ModelConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the seven linear layers of one stream in one layer: where adapters go."""
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
    """Numbers of the vision tower."""
    patch = 3 * v.temporal_patch_size * v.patch_size**2 * v.hidden_size
    return patch + v.depth * vit_block_size(v) + vit_merger_size(v)


@dataclass(frozen=True)
class Kernel:
    """One convolution of the codec. weights: of the kernel, bias apart; side, frames: how many positions it has per
    latent cell, along a side and in time."""

    weights: int
    bias: int
    side: int
    frames: int


@dataclass(frozen=True)
class Half:
    """One half of the codec: its convolutions, and the numbers of its norms."""

    kernels: tuple[Kernel, ...]
    gains: int

    @property
    def size(self) -> int:
        return self.gains + sum(k.weights + k.bias for k in self.kernels)

    def flops(self, grid: tuple[int, int, int]) -> float:
        """Of one pass over a clip with these latent cells (t, y, x); frames after the first come in whole groups."""
        t, y, x = grid
        return sum(2.0 * k.weights * (1 + (t - 1) * k.frames) * y * x * k.side**2 for k in self.kernels)


class _Builder:
    """Collects the kernels of a half while walking through its levels."""

    def __init__(self, side: int, frames: int) -> None:
        self.kernels: list[Kernel] = []
        self.gains, self.side, self.frames = 0, side, frames

    def conv(self, inputs: int, outputs: int, taps: int) -> None:
        self.kernels.append(Kernel(taps * inputs * outputs, outputs, self.side, self.frames))

    def residual(self, inputs: int, outputs: int) -> None:
        self.gains += inputs + outputs
        self.conv(inputs, outputs, 27)
        self.conv(outputs, outputs, 27)
        if inputs != outputs:
            self.conv(inputs, outputs, 1)

    def middle(self, width: int) -> None:
        self.residual(width, width)
        self.gains += width
        self.conv(width, 3 * width, 1)
        self.conv(width, width, 1)
        self.residual(width, width)

    def end(self, width: int, outputs: int) -> None:
        self.gains += width
        self.conv(width, outputs, 27)

    def half(self) -> Half:
        return Half(tuple(self.kernels), self.gains)


def encoder_half(v: VAEConfig) -> Half:
    """The encoder with its joint, level by level from the pixels inwards."""
    widths = [v.dim * m for m in (1, *v.dim_mult)]
    b = _Builder(v.stride // v.patch_size, v.temporal_stride)
    b.conv(3 * v.patch_size**2, widths[0], 27)
    for level, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        for n in range(v.num_res_blocks):
            b.residual(inputs if n == 0 else outputs, outputs)
        if level < len(v.temporal_downsample):
            b.side //= 2
            b.conv(outputs, outputs, 9)
            if v.temporal_downsample[level]:
                b.frames //= 2
                b.conv(outputs, outputs, 3)
    b.middle(widths[-1])
    b.end(widths[-1], 2 * v.z_dim)
    b.conv(2 * v.z_dim, 2 * v.z_dim, 1)
    return b.half()


def decoder_half(v: VAEConfig) -> Half:
    """The decoder with its joint, level by level from the latents outwards."""
    widths = [v.dec_dim * m for m in (v.dim_mult[-1], *reversed(v.dim_mult))]
    b = _Builder(1, 1)
    b.conv(v.z_dim, v.z_dim, 1)
    b.conv(v.z_dim, widths[0], 27)
    b.middle(widths[0])
    temporal = tuple(reversed(v.temporal_downsample))
    for level, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        for n in range(v.num_res_blocks + 1):
            b.residual(inputs if n == 0 else outputs, outputs)
        if level < len(temporal):
            if temporal[level]:
                b.conv(outputs, 2 * outputs, 3)
                b.frames *= 2
            b.side *= 2
            b.conv(outputs, outputs, 9)
    b.end(widths[-1], 3 * v.patch_size**2)
    return b.half()
