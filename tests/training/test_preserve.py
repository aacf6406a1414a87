"""What an adapter preserves: at such samples the start is the target, and a fresh adapter has nothing to learn."""

import json
from dataclasses import replace

import pytest
import torch

from openlance.cli.main import main
from openlance.config.lora import Lora
from openlance.model.lora import inject, without_updates
from openlance.training.objective import Pass, objective


@pytest.fixture
def passed(tiny):
    """Three samples in one pass of a decoder with an adapter, and the documents of its labels and latents."""
    made = replace(tiny)
    made.build()
    inject(made.model, Lora(rank=2))
    packed = made.pack([made.draw(), made.answer(), made.edit()])
    layout = made.model.layout(packed.rows)
    one = Pass(layout, made.noised(packed), made.media(packed)[0], made.vocabulary)
    return made.model, one, layout.rows.doc[one.labeled], layout.rows.doc[layout.und :][one.moved]


def learns(model):
    return [p for p in model.parameters() if p.requires_grad]


def moved(model, by=0.3):
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            p.data.copy_(by * torch.randn(p.shape, generator=generator))


def test_a_fresh_adapter_has_nothing_to_learn_where_the_start_is_preserved(passed):
    model, one, text, latent = passed
    kept = torch.tensor([False, True, True])
    losses, usual = objective(model, one, kept), objective(model, one)
    assert losses.per_token[kept[text]].abs().max() < 1e-6 and losses.per_latent[kept[latent]].max() < 1e-9
    assert torch.equal(losses.per_token[~kept[text]], usual.per_token[~kept[text]])
    assert torch.equal(losses.per_latent[~kept[latent]], usual.per_latent[~kept[latent]])
    assert usual.per_latent[kept[latent]].min() >= 0 and usual.per_token[kept[text]].min() > 1e-3
    nothing, much = (
        torch.autograd.grad(
            found.per_token[kept[text]].sum() + found.per_latent[kept[latent]].sum(), learns(model)
        ) for found in (losses, usual)
    )  # fmt: skip
    assert max(g.abs().max() for g in nothing) < 1e-4 * max(g.abs().max() for g in much)


def test_an_adapter_that_has_moved_is_pulled_to_what_the_start_predicts(passed):
    model, one, text, latent = passed
    with torch.no_grad():
        logits, velocities = one.predicted(model)
    moved(model)
    with torch.no_grad(), without_updates(model):
        again = one.predicted(model)
    assert torch.equal(again[0], logits) and torch.equal(again[1], velocities)
    losses = objective(model, one, torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        now = one.predicted(model)
    assert torch.allclose(losses.per_latent, (now[1] - velocities).square(), atol=1e-4)
    apart = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (logits, now[0])))
    assert torch.allclose(losses.per_token, apart, atol=1e-5) and losses.per_token.sum() > 0
    losses.total().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("lora_B"))


def test_a_run_preserves_beside_what_it_learns_and_goes_on(shallow, tmp_path, capsys):
    small = ["--set", "draws=1", "--set", "pack_tokens=[150, 700]", "--set", "max_sample_tokens=700", "--rank", "1"]
    small += ["--model", str(shallow), "--set", "schedule=constant", "--set", "warmup=0"]
    kept = ["--preserve", "edit=world", "--preserve", "vqa=world", *small]
    command = ["train", "lora", "--task", "edit", "--data", "world", *kept]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*command, "-o", str(whole), "--steps", "2"]) == 0
    assert main([*command, "-o", str(cut), "--steps", "1"]) == 0
    assert main([*command, "-o", str(cut), "--steps", "2"]) == 0
    stage = json.loads((whole / "run.json").read_text())[-1]["stage"]
    assert stage["preserve"] == ["image_edit@preserved", "x2t_image@preserved"]
    assert stage["mixture"] == {"image_edit": 1, "image_edit@preserved": 1, "x2t_image@preserved": 1}
    files = [(run / "adapter_model.safetensors").read_bytes() for run in (whole, cut)]
    assert files[0] == files[1]
    capsys.readouterr()
    assert main(["train", "lora", "--task", "edit", "--data", "world", "-o", str(cut), "--steps", "3", *small]) == 2
    assert "preserve" in capsys.readouterr().err
