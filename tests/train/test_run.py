"""Laws of a training run, on tiny real modules."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from openlance.config.model import EXACT, ModelConfig, VAEConfig, ViTConfig
from openlance.data.world import WorldMixture
from openlance.train.nano import world_tokenizer
from openlance.train.optim import Ema, orthogonalised
from openlance.train.recipe import Phase, Recipe
from openlance.train.run import Run, TrainingDiverged

VAE = VAEConfig(z_dim=4, dim=8, dec_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
                mean=(0.0,) * 4, std=(1.0,) * 4)  # fmt: skip
CONFIG = ModelConfig(
    vocab_size=640, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=48, rope_sections=(2, 3, 3),
    latent_channels=4, time_features=16, vae=VAE, faithful=EXACT,
    vit=ViTConfig(depth=1, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=8, window_size=64,
                  fullatt_block_indexes=(0,), out_hidden_size=32),
)  # fmt: skip
PLAN = Recipe(
    phases=(
        Phase(name="questions", steps=2, warmup=2, mixture=WorldMixture(drawn=0, asked=2, questions=2)),
        Phase(name="joint", steps=3, lr_end=0.1, mixture=WorldMixture(drawn=2, asked=1, questions=2)),
    ),
    draws=2,
)


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer(batches=20)


def shrink(clips):
    """A codec of four channels: 8x8 means of red, green, blue, and their mean."""
    found = []
    for clip in clips:
        pixels = torch.from_numpy(clip.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        small = F.avg_pool2d(pixels, 8)
        found.append(torch.cat([small, small.mean(1, keepdim=True)], 1).permute(0, 2, 3, 1).flatten(0, 2))
    return torch.cat(found)


def train(run: Run, until: int) -> list[float]:
    losses = []
    while run.step < until:
        row = run.train_step()
        losses += [row["text"], row["flow"], row["norm"]]
    return losses


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, tokenizer):
    straight = Run(PLAN, CONFIG, tokenizer, shrink)
    whole = train(straight, 5)
    first = Run(PLAN, CONFIG, tokenizer, shrink)
    before = train(first, 3)
    first.save(tmp_path / "state.pt")
    second = Run(PLAN, CONFIG, tokenizer, shrink)
    second.load(tmp_path / "state.pt")
    assert before + train(second, 5) == whole
    for (name, a), b in zip(straight.module.named_parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert all(torch.equal(straight.ema.values[n], second.ema.values[n]) for n in straight.ema.values)


def test_every_parameter_learns_once_pictures_are_drawn(tokenizer):
    run = Run(PLAN, CONFIG, tokenizer, shrink)
    train(run, 2)
    before = {n: p.detach().clone() for n, p in run.module.named_parameters()}
    train(run, 5)
    still = [n for n, p in run.module.named_parameters() if torch.equal(p, before[n])]
    assert not still, still


def test_the_generation_expert_rests_while_only_questions_are_trained(tokenizer):
    run = Run(PLAN, CONFIG, tokenizer, shrink)
    before = {n: p.detach().clone() for n, p in run.module.named_parameters() if ".gen." in n}
    train(run, 2)
    now = dict(run.module.named_parameters())
    assert before and all(torch.equal(now[n], p) for n, p in before.items())


def test_a_broken_gradient_stops_the_run_and_changes_nothing(tokenizer):
    run = Run(PLAN, CONFIG, tokenizer, lambda clips: shrink(clips) * float("nan"))
    run.step = 2
    before = [p.detach().clone() for p in run.module.parameters()]
    with pytest.raises(TrainingDiverged, match="step 2"):
        run.train_step()
    assert run.step == 2
    assert all(torch.equal(a, b) for a, b in zip(before, run.module.parameters(), strict=True))


def test_phases_follow_each_other_and_their_rates_fall_as_said():
    assert PLAN.steps == 5
    assert [PLAN.phase(s)[0].name for s in range(5)] == ["questions"] * 2 + ["joint"] * 3
    long = Phase(name="x", steps=1000, lr=1.0, lr_end=0.1, mixture=WorldMixture(), spread=(0.2, 1.0))
    rates = [long.rate(s) for s in range(1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert long.at(0).spread == (0.0, 0.2) and long.at(500).spread[1] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="over"):
        PLAN.phase(5)


def test_an_average_starts_at_the_weights_and_follows_them():
    layer = torch.nn.Linear(3, 3)
    ema = Ema(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    gaps = []
    for _ in range(60):
        ema.update(layer)
        gaps.append((ema.values["weight"] - 1).abs().max().item())
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.01


def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_evens_their_values():
    torch.manual_seed(0)
    for shape in ((2, 24, 48), (2, 48, 24)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)).float())
        assert values.min() > 0.4 and values.max() < 1.4


def test_the_order_of_a_batch_is_a_function_of_seed_and_step(tokenizer):
    run = Run(PLAN, CONFIG, tokenizer, shrink)
    run.step = 3
    a, b = run.batch()[0], run.batch()[0]
    assert torch.equal(a.rows.token, b.rows.token)
    other = Run(replace(PLAN, seed=1), CONFIG, tokenizer, shrink)
    other.step = 3
    assert not torch.equal(a.rows.token[:50], other.batch()[0].rows.token[:50])
