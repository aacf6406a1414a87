"""Released tensor names and ours, both ways: of the decoder and of the VAE, and the names of diffusers' VAE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openlance.config.model import VAEConfig
from openlance.config.values import as_data

FIXED = {
    "embed": "language_model.model.embed_tokens",
    "head": "language_model.lm_head",
    "norm.und": "language_model.model.norm",
    "norm.gen": "language_model.model.norm_moe_gen",
    "time.up": "time_embedder.mlp.0",
    "time.out": "time_embedder.mlp.2",
    "latent_in": "vae2llm",
    "latent_out": "llm2vae",
}
IN_LAYER = {
    "attention_norm": "input_layernorm@",
    "mlp_norm": "post_attention_layernorm@",
    "gate": "mlp@.gate_proj",
    "up": "mlp@.up_proj",
    "down": "mlp@.down_proj",
    **{name: f"self_attn.{name}_proj@" for name in "qkvo"},
    **{f"{name}_norm": f"self_attn.{name}_norm@" for name in "qk"},
}
SUFFIX = {"und": "", "gen": "_moe_gen"}
# Modules of the decoder both ways; `*` is the number of a layer.
_RELEASED = FIXED | {
    f"layers.*.{stream}.{name}": f"language_model.model.layers.*.{part.replace('@', suffix)}"
    for name, part in IN_LAYER.items()
    for stream, suffix in SUFFIX.items()
}
_OURS = {released: name for name, released in _RELEASED.items()}
_NUMBER = re.compile(r"(?<=layers\.)\d+")

# A fixed table that some checkpoints carry; we compute it.
COMPUTED = ("latent_pos_embed.pos_embed",)


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    module, _, leaf = name.rpartition(".")
    number, found = _NUMBER.search(module), modules.get(_NUMBER.sub("*", module, count=1))
    return None if found is None else f"{found.replace('*', number[0] if number else '')}.{leaf}"


def released_name(name: str) -> str:
    """Translate the name of one of our parameters, `layers.3.gen.q.bias`, say; KeyError if it has no released one."""
    found = _renamed(name, _RELEASED)
    if found is None:
        raise KeyError(f"{name} has no released name")
    return found


def our_name(released: str) -> str | None:
    """Translate the name of a released parameter; None for one that the decoder does not have."""
    return _renamed(released, _OURS)


# Released module -> ours, for the modules outside of the two halves, with the half that needs them.
_JOINTS = {"conv1": ("quant_conv", "encoder"), "conv2": ("post_quant_conv", "decoder")}
_RESIDUAL = {f"residual.{n}": name for n, name in ((0, "norm1"), (2, "conv1"), (3, "norm2"), (6, "conv2"))}
_RESIDUAL["shortcut"] = "conv_shortcut"


@dataclass(frozen=True)
class ReleasedNames:
    """Both ways between the tensor names of `Wan2.2_VAE.pth` and those of diffusers' modules."""

    ours: dict[str, str]  # released module path -> our module path

    def to_ours(self, name: str, parts: Iterable[str] = ("encoder", "decoder")) -> str | None:
        """Translate the name of a released tensor, or keep one that diffusers wrote.

        Returns:
            Our name, None if it belongs to a half that is not wanted, and a marked name if it is of neither, so that
            strict loading reports it as unexpected.
        """
        module, _, leaf = name.rpartition(".")
        released = self._theirs.get(module, module)
        if released not in self.ours:
            return f"unknown:{name}"
        half = _JOINTS[released][1] if released in _JOINTS else released.partition(".")[0]
        return f"{self.ours[released]}.{leaf}" if half in parts else None

    def to_released(self, name: str) -> str:
        """Translate the name of one of our tensors; KeyError if it has no released one."""
        module, _, leaf = name.rpartition(".")
        return f"{self._theirs[module]}.{leaf}"

    @cached_property
    def _theirs(self) -> dict[str, str]:
        return {ours: released for released, ours in self.ours.items()}


def released_names(config: VAEConfig) -> ReleasedNames:
    """Make the table of module names for a VAE."""
    blocks = config.num_res_blocks
    ours = {released: mine for released, (mine, _) in _JOINTS.items()}
    for half, theirs, mine, sampler, count in (
        ("encoder", "downsamples", "down_blocks", "downsampler", blocks),
        ("decoder", "upsamples", "up_blocks", "upsampler", blocks + 1),
    ):
        table = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        residuals = {"middle.0": "mid_block.resnets.0", "middle.2": "mid_block.resnets.1"}
        for level in range(len(config.dim_mult)):
            inside, ours_inside = f"{theirs}.{level}.{theirs}", f"{mine}.{level}"
            residuals |= {f"{inside}.{n}": f"{ours_inside}.resnets.{n}" for n in range(count)}
            for leaf in ("resample.1", "time_conv"):
                table[f"{inside}.{count}.{leaf}"] = f"{ours_inside}.{sampler}.{leaf}"
        for released, block in residuals.items():
            table |= {f"{released}.{a}": f"{block}.{b}" for a, b in _RESIDUAL.items()}
        for leaf in ("norm", "to_qkv", "proj"):
            table[f"middle.1.{leaf}"] = f"mid_block.attentions.0.{leaf}"
        ours |= {f"{half}.{a}": f"{half}.{b}" for a, b in table.items()}
    return ReleasedNames(ours)


# Ours -> diffusers', for the hyper-parameters of AutoencoderKLWan that differ between models.
_SETTINGS = {
    "z_dim": "z_dim", "dim": "base_dim", "dec_dim": "decoder_base_dim", "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks", "temperal_downsample": "temperal_downsample", "patch_size": "patch_size",
    "mean": "latents_mean", "std": "latents_std",
}  # fmt: skip


def config_of_diffusers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the config.json of diffusers' AutoencoderKLWan into what a released vae_config.json says."""
    return {mine: values[theirs] for mine, theirs in _SETTINGS.items() if theirs in values}


def config_for_diffusers(config: VAEConfig) -> dict[str, Any]:
    """Make the arguments of diffusers' AutoencoderKLWan for a VAE."""
    values = {"temperal_downsample": config.temporal_downsample, **vars(config)}
    channels = 3 * config.patch_size**2
    return as_data({theirs: values[mine] for mine, theirs in _SETTINGS.items()}) | {
        "is_residual": True, "in_channels": channels, "out_channels": channels,
        "scale_factor_temporal": config.temporal_stride, "scale_factor_spatial": config.stride,
    }  # fmt: skip
