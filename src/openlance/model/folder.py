"""A checkpoint folder: the released files (JSON configurations and safetensors), read strictly and written back.

    llm_config.json  vit_config.json  vae_config.json  lance_config.json
    model.safetensors  vit.safetensors  vae.safetensors  tokenizer.json

nano ships in this very form; what the release does not know (the exact form of guidance, say) are extra keys of
`lance_config.json` with the released behaviour as their default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from openlance.config.model import EXACT, Faithful, ModelConfig, PositionConfig, VAEConfig, ViTConfig
from openlance.config.values import known, read_json
from openlance.errors import UserError
from openlance.model.lance import Lance
from openlance.model.names import COMPUTED, our_name
from openlance.model.weights import Placing, TensorSource, load_into, open_tensors, unfilled


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration of a checkpoint folder; UserError if a file is missing or its numbers contradict each other."""
    folder = Path(folder)
    return model_config(folder, *(read_json(folder / f"{name}_config.json") for name in ("llm", "lance", "vit", "vae")))


def model_config(folder: Path, llm: dict, lance: dict, vit: dict, vae: dict) -> ModelConfig:
    """The configuration that the JSON files of a folder make; an empty `vae` is the published codec."""
    try:
        return _config(llm, lance, vit, vae)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the configuration in {folder} does not fit together: {error}") from error


def _config(llm: dict, lance: dict, vit: dict, vae: dict) -> ModelConfig:
    codec = VAEConfig.of(vae) if vae else VAEConfig()
    heads = llm["num_attention_heads"]
    position = PositionConfig(
        tokens_per_second=vit.get("tokens_per_second", 2),
        max_latent_side=lance["max_latent_size"],
        max_latent_frames=lance["max_num_frames"] // 4 + 1,
        **known(PositionConfig, lance.get("position", {})),
    )
    return ModelConfig(
        vocab_size=llm["vocab_size"],
        width=llm["hidden_size"],
        layers=llm["num_hidden_layers"],
        heads=heads,
        kv_heads=llm["num_key_value_heads"],
        head_dim=llm.get("head_dim") or llm["hidden_size"] // heads,
        mlp_width=llm["intermediate_size"],
        rms_eps=llm["rms_norm_eps"],
        rope_theta=llm["rope_theta"],
        rope_sections=tuple(llm["rope_scaling"]["mrope_section"]),
        latent_channels=codec.z_dim,
        time_features=lance.get("time_features", 256),
        position=position,
        vit=ViTConfig.of(vit),
        vae=codec,
        faithful=_habits(lance.get("faithful", {})),
    )


def _habits(said: Mapping[str, Any]) -> Faithful:
    """The habits that a folder names; what it leaves out is as released. A table from before the frequencies were a
    habit that turns all others off is of an exact model, which goes on as it was trained."""
    habits = Faithful(**known(Faithful, said))
    older = {f.name for f in fields(Faithful)} - {"rounded_frequencies"}
    if "rounded_frequencies" not in said and not any(said.get(name, True) for name in older):
        return EXACT
    return habits


def config_files(c: ModelConfig) -> dict[str, dict[str, Any]]:
    """What each of the four JSON files of a folder says, by name, as `read_config` reads them."""
    vae = asdict(c.vae)
    vae["temperal_downsample"] = vae.pop("temporal_downsample")  # spelled so in the release
    position = asdict(c.position)
    return {
        "llm_config.json": {
            "model_type": "qwen2", "vocab_size": c.vocab_size, "hidden_size": c.width, "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
            "intermediate_size": c.mlp_width, "rms_norm_eps": c.rms_eps, "rope_theta": c.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(c.rope_sections)}, "tie_word_embeddings": False,
        },
        "vit_config.json": asdict(c.vit) | {"tokens_per_second": position.pop("tokens_per_second")},
        "vae_config.json": vae,
        "lance_config.json": {
            "max_latent_size": position.pop("max_latent_side"),
            "max_num_frames": 4 * (position.pop("max_latent_frames") - 1) + 1,
            "time_features": c.time_features, "position": position, "faithful": asdict(c.faithful),
        },
    }  # fmt: skip


def write_config(folder: str | Path, c: ModelConfig) -> None:
    """The four JSON files of a folder."""
    for name, content in config_files(c).items():
        write_json(Path(folder) / name, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    from openlance.media.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
    from openlance.model.quant import receive

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
