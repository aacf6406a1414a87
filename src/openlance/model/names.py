"""Our parameter names <-> the released ones, one rule per part, checked to be a bijection over a whole checkpoint."""

from __future__ import annotations

import re

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
LAYER = re.compile(r"layers\.(\d+)\.(und|gen)\.(\w+)")

# A fixed table that some checkpoints carry; we compute it.
COMPUTED = ("latent_pos_embed.pos_embed",)


def released_name(name: str) -> str:
    """The released name of one of our parameters, e.g. `layers.3.gen.q.bias`."""
    module, _, leaf = name.rpartition(".")
    if module in FIXED:
        return f"{FIXED[module]}.{leaf}"
    match = LAYER.fullmatch(module)
    if not match or match[3] not in IN_LAYER:
        raise KeyError(f"{name} has no released name")
    number, stream, part = match.groups()
    return f"language_model.model.layers.{number}.{IN_LAYER[part].replace('@', SUFFIX[stream])}.{leaf}"


_OURS = {released: name for name, released in FIXED.items()}
_PARTS = {
    part.replace("@", suffix): (stream, name) for name, part in IN_LAYER.items() for stream, suffix in SUFFIX.items()
}
_RELEASED_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+)")


def our_name(released: str) -> str | None:
    """Our name of a released parameter; None for one that the decoder does not have."""
    module, _, leaf = released.rpartition(".")
    if module in _OURS:
        return f"{_OURS[module]}.{leaf}"
    match = _RELEASED_LAYER.fullmatch(module)
    if not match or match[2] not in _PARTS:
        return None
    stream, part = _PARTS[match[2]]
    return f"layers.{match[1]}.{stream}.{part}.{leaf}"
