"""Start points: a released folder and back, nothing, and Qwen2.5-VL."""

import pytest
import torch

from openlance.config.sampling import GenerationConfig
from openlance.errors import UserError
from openlance.runtime.components import load_lance
from openlance.runtime.distributed import Distributed
from openlance.training.start import Base, export, fill_from_qwen


def test_an_exported_model_is_the_averaged_one_under_released_names(worker, tmp_path):
    from openlance.model.vit import ViT

    _, run = worker.trained(Distributed(), worker.STAGE, 2)
    base = Base(
        beside=(tmp_path / "none", tmp_path / "base" / "tokenizer.json"), config=worker.CONFIG,
        codec=worker.codec(), defaults=GenerationConfig(style=worker.STYLE),
        learner=run.learner, vae=worker.MeanColor(),
    )  # fmt: skip
    (tmp_path / "base").mkdir()
    base.codec.tokenizer.backend.save(str(tmp_path / "base" / "tokenizer.json"))
    export(run, base, tmp_path / "out", torch.float32)
    lance = load_lance(tmp_path / "out" / "model.safetensors", worker.CONFIG)
    assert all(torch.equal(p, run.ema.values[f"lance.{n}"]) for n, p in lance.named_parameters())
    vit = ViT.load(tmp_path / "out" / "vit.safetensors", worker.CONFIG.vit)
    assert all(torch.equal(p, run.ema.values[f"vit.{n}"]) for n, p in vit.named_parameters())
    assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out" / "vae.safetensors").exists()


def qwen(config):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vit = config.vit
    torch.manual_seed(5)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": config.vocab_size, "hidden_size": config.width, "num_hidden_layers": config.layers,
                "intermediate_size": config.mlp_width, "num_attention_heads": config.heads,
                "num_key_value_heads": config.kv_heads, "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": vit.depth, "hidden_size": vit.hidden_size, "intermediate_size": vit.intermediate_size,
                "num_heads": vit.num_heads, "patch_size": vit.patch_size, "window_size": vit.window_size,
                "fullatt_block_indexes": [0], "out_hidden_size": vit.out_hidden_size,
            },
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def test_both_experts_begin_as_copies_of_qwen(worker):
    source = qwen(worker.CONFIG).state_dict()
    learner, fresh = worker.learner(), worker.learner()
    fill_from_qwen(learner, source)
    state = learner.lance.state_dict()
    for stream in ("und", "gen"):
        q = source["model.language_model.layers.1.self_attn.q_proj.weight"]
        assert torch.equal(state[f"layers.1.{stream}.q.weight"], q)
        assert torch.equal(state[f"layers.0.{stream}.q_norm.weight"], torch.ones(worker.CONFIG.head_dim))
    assert torch.equal(state["head.weight"], source["lm_head.weight"])
    for name in ("time.up.weight", "latent_in.weight", "latent_out.weight"):
        assert torch.equal(state[name], fresh.lance.state_dict()[name])
    tower = learner.vit.tower.state_dict()
    assert all(torch.equal(tower[n], source[f"model.visual.{n}"]) for n in tower)


def test_names_of_the_published_files_and_tied_embeddings_are_understood(worker):
    memory = qwen(worker.CONFIG).state_dict()
    renamed = {
        n.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t for n, t in memory.items()
    }
    del renamed["lm_head.weight"]
    learner = worker.learner()
    fill_from_qwen(learner, renamed)
    assert torch.equal(learner.lance.head.weight, memory["model.language_model.embed_tokens.weight"])


def test_what_is_not_qwen_or_lacks_a_part_is_named(worker):
    with pytest.raises(UserError, match="not a Qwen2.5-VL"):
        fill_from_qwen(worker.learner(), {"model.layers.0.x": torch.zeros(1)})
    source = qwen(worker.CONFIG).state_dict()
    del source["model.language_model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(UserError, match="missing: layers.0.gen.up.weight"):
        fill_from_qwen(worker.learner(), source)
