"""Wan's VAE for single frames, in two dimensions: what training pictures needs, about three times cheaper.

A causal convolution pads its past with zeros, so on one frame only the last temporal slice of a kernel meets anything
but zeros, and the temporal resamplers are skipped. `FrameCodec` keeps diffusers' module tree with those slices as
plain 2-D convolutions in channels-last order; `to_video()` puts them back, and both give the same result on one frame.

B batch, C channels, Y X rows and columns of a feature map, H W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import VAEConfig


def build_wan(config: VAEConfig, mean: list[float] | None = None, std: list[float] | None = None) -> nn.Module:
    """diffusers' AutoencoderKLWan in its Wan2.2 form, freshly initialised; mean and std, one per latent channel,
    are only noted in its configuration."""
    from diffusers import AutoencoderKLWan

    channels = 3 * config.patch_size**2
    return AutoencoderKLWan(
        base_dim=config.dim, decoder_base_dim=config.dec_dim, z_dim=config.z_dim, dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks, temperal_downsample=list(config.temporal_downsample), is_residual=True,
        in_channels=channels, out_channels=channels, patch_size=config.patch_size,
        latents_mean=list(mean or config.mean), latents_std=list(std or config.std),
        scale_factor_temporal=config.temporal_stride, scale_factor_spatial=config.stride,
    )  # fmt: skip


class FrameCodec(nn.Module):
    """The picture half of the codec. Pixels lie in [-1, 1]; latents are as the VAE gives them, not normalised."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        wan = build_wan(config)
        self.encoder, self.decoder = _flatten(wan.encoder), _flatten(wan.decoder)
        self.quant_conv = nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.z_dim, config.z_dim, 1)
        self._start_gently()
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _start_gently(self) -> None:
        """Residual branches start near zero, so pixels reach the output over the shortcuts; latents start near unit
        deviation and nearly without posterior noise."""
        for name, module in self.named_modules():
            if name.endswith(("conv2", "proj")):
                module.weight.mul_(0.1)
        z = self.config.z_dim
        self.quant_conv.weight[:z] *= 5.0
        self.quant_conv.bias[z:] = -5.0

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, each (B, z, H / stride, W / stride)."""
        x = self.encoder.conv_in(_space_to_depth(pixels_BCHW, self.config.patch_size))
        for block in self.encoder.down_blocks:
            y = x
            for resnet in block.resnets:
                y = _residual(resnet, y)
            if block.downsampler is not None:
                y = block.downsampler.resample(y)
            x = y + _average_down(block.avg_shortcut, x)
        x = _head(self.encoder, _middle(self.encoder.mid_block, x))
        mean, logvar = self.quant_conv(x).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z_BCYX: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), not clamped."""
        x = self.decoder.conv_in(self.post_quant_conv(z_BCYX))
        x = _middle(self.decoder.mid_block, x)
        for block in self.decoder.up_blocks:
            y = x
            for resnet in block.resnets:
                y = _residual(resnet, y)
            if block.upsampler is not None:
                y = block.upsampler.resample[1](F.interpolate(y, scale_factor=2, mode="nearest"))
                y = y + _duplicate_up(block.avg_shortcut, x)
            x = y
        return _depth_to_space(_head(self.decoder, x), self.config.patch_size)

    def to_video(self, mean: list[float], std: list[float]) -> nn.Module:
        """diffusers' module with these weights. Earlier temporal slices are zero and the temporal resamplers repeat
        or keep frames, so an untrained clip passes frame by frame."""
        wan, flat = build_wan(self.config, mean, std), self.state_dict()
        state = {}
        for name, value in wan.state_dict().items():
            if "time_conv" in name:
                state[name] = _keep_last(value)
            elif value.ndim == 5:
                state[name] = torch.zeros_like(value)
                state[name][:, :, -1] = flat[name]
            else:
                state[name] = flat[name].reshape(value.shape)
        wan.load_state_dict(state)
        return wan.eval()


def _flatten(module: nn.Module) -> nn.Module:
    """Put a fresh 2-D convolution in place of every causal one, and drop the temporal resamplers."""
    for name, child in list(module.named_children()):
        if name == "time_conv":
            delattr(module, name)
        elif isinstance(child, nn.Conv3d):
            _, height, width = child.kernel_size
            flat = nn.Conv2d(child.in_channels, child.out_channels, (height, width), padding=(height // 2, width // 2))
            setattr(module, name, flat)
        else:
            _flatten(child)
    return module


def _keep_last(value: Tensor) -> Tensor:
    """Weight (out, in, 3, 1, 1) or bias (out,) of a temporal resampler that copies the newest frame."""
    copy = torch.zeros_like(value)
    if value.ndim == 5:
        eye = torch.eye(value.shape[1])
        copy[:, :, -1, 0, 0] = eye.repeat(value.shape[0] // value.shape[1], 1)
    return copy


def _norm(x_BCYX: Tensor, gamma: Tensor) -> Tensor:
    scale = x_BCYX.float().square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()
    return x_BCYX * scale.to(x_BCYX.dtype) * gamma.reshape(1, -1, 1, 1).to(x_BCYX.dtype)


def _residual(block: nn.Module, x: Tensor) -> Tensor:
    y = block.conv1(F.silu(_norm(x, block.norm1.gamma)))
    y = block.conv2(F.silu(_norm(y, block.norm2.gamma)))
    return y + block.conv_shortcut(x)


def _attention(block: nn.Module, x: Tensor) -> Tensor:
    qkv = block.to_qkv(_norm(x, block.norm.gamma)).flatten(2).transpose(1, 2)[:, None]
    y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
    return x + block.proj(y[:, 0].transpose(1, 2).reshape(x.shape))


def _middle(block: nn.Module, x: Tensor) -> Tensor:
    first, second = block.resnets
    return _residual(second, _attention(block.attentions[0], _residual(first, x)))


def _head(half: nn.Module, x: Tensor) -> Tensor:
    return half.conv_out(F.silu(_norm(x, half.norm_out.gamma)))


def _space_to_depth(x: Tensor, p: int) -> Tensor:
    """Channels come out as (colour, column, row), the order of the published weights."""
    B, C, H, W = x.shape
    y = x.reshape(B, C, H // p, p, W // p, p).permute(0, 1, 5, 3, 2, 4)
    return y.reshape(B, C * p * p, H // p, W // p).contiguous(memory_format=torch.channels_last)


def _depth_to_space(x: Tensor, p: int) -> Tensor:
    B, C, Y, X = x.shape
    return x.reshape(B, C // p**2, p, p, Y, X).permute(0, 1, 4, 3, 5, 2).reshape(B, C // p**2, Y * p, X * p)


def _average_down(shortcut: nn.Module, x: Tensor) -> Tensor:
    """AvgDown3D on a lone frame: the missing earlier frames count as zeros in the average."""
    B, C, Y, X = x.shape
    s, t = shortcut.factor_s, shortcut.factor_t
    x = x.reshape(B, C, 1, Y // s, s, X // s, s).permute(0, 1, 2, 4, 6, 3, 5)
    if t > 1:
        x = torch.cat([x.new_zeros(B, C, t - 1, *x.shape[3:]), x], dim=2)
    return x.reshape(B, shortcut.out_channels, shortcut.group_size, Y // s, X // s).mean(2)


def _duplicate_up(shortcut: nn.Module, x: Tensor) -> Tensor:
    """DupUp3D on a first frame: of its temporal copies only the last is kept."""
    B, _, Y, X = x.shape
    s, t = shortcut.factor_s, shortcut.factor_t
    x = x.repeat_interleave(shortcut.repeats, dim=1).reshape(B, shortcut.out_channels, t, s, s, Y, X)[:, :, -1]
    return x.permute(0, 1, 4, 2, 5, 3).reshape(B, shortcut.out_channels, Y * s, X * s)
