"""Plans are counted, not guessed: bytes of a real step, rows of a real pack, tokens of the paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from measured import PeakMemory

from openlance.config.lora import Lora
from openlance.config.model import ModelConfig, nano
from openlance.config.sampling import NO_PRIOR
from openlance.config.train import UNDERSTANDING, Distillation, Resolution, Rewarding, Stage, recipe, stage
from openlance.config.values import override
from openlance.errors import UserError
from openlance.model.lance import Lance, is_generation, lance_parameters
from openlance.model.vit import ViT
from openlance.planning.hardware import parse_devices
from openlance.planning.memory import activations
from openlance.planning.rounds import round_of
from openlance.planning.training import Machine, flops, plan, trainable
from openlance.planning.workload import Load, asked, load_of, packed, placeholder, ruler, sized, typical
from openlance.rl.results import Result
from openlance.sequence.pack import document, pack
from openlance.sequence.segment import PATCHES, Kind
from openlance.sequence.tasks import Views, edit, spec_of, text_to_visual, understand
from openlance.training.learner import Learner
from openlance.training.objective import Pass, noised, objective
from openlance.training.parallel import recompute
from openlance.training.rewarded.trainer import RewardTrainer

SMALL = replace(nano(), width=96, heads=6, kv_heads=2, mlp_width=200, layers=3)
DRAWS = 2


def machine(text: str, **options) -> Machine:
    count, device = parse_devices(text)
    return Machine(count=count, device=device, **options)


def samples() -> list:
    picture, clip = placeholder(1, 64, 64), placeholder(9, 64, 64)
    return [
        text_to_visual("a red circle left of a blue square", [], (1, 64, 64), picture),
        edit("make it blue", [Views(picture, picture)], (1, 64, 64), picture),
        text_to_visual("a ring moves to the left", [], (9, 64, 64), clip),
        understand("what is this?", [Views(picture, picture)], (1, 1, 1), "a red circle"),
    ]


def step(config: ModelConfig, low: bool, checkpointing: bool) -> tuple[int, int, int]:
    """Bytes at the end of a real forward pass, at the peak of the step, and of its gradients."""
    torch.manual_seed(0)
    model = Lance(config)
    if checkpointing:
        recompute(model)
    made = pack(samples(), ruler(config), config.position, DRAWS)
    latents = torch.randn(int(made.rows.is_latent.sum()), config.latent_channels)
    noise = noised(made, latents, torch.rand(int(made.rows.target.max()) + 1), torch.randn_like(latents))
    patches = torch.randn(int(made.rows.is_patch.sum()), config.width)
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            losses = objective(model, Pass(model.layout(made.rows), noise, patches, config.vocab_size))
        after = memory.now
        losses.total().backward()
    return after, memory.peak, sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def load_of_samples(config: ModelConfig) -> Load:
    documents = [document(s, ruler(config), config.position, DRAWS) for s in samples()]
    return sum((load_of(*found, config) for found in documents), Load())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("low", [False, True])
def test_counted_memory_is_that_of_a_real_step(low, checkpointing):
    after, peak, gradients = step(SMALL, low, checkpointing)
    counted = activations(SMALL, load_of_samples(SMALL), "autocast" if low else "float32")
    inside = gradients / 4 * 2 if low and not checkpointing else 0  # autocast keeps a bfloat16 copy of every weight
    assert counted.kept(checkpointing) + inside == pytest.approx(after, rel=0.15)
    assert counted.peak(checkpointing, gradients) + inside == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("frozen", [UNDERSTANDING, ("vit",)], ids=["generation", "everything"])
def test_counted_memory_of_a_round_is_that_of_a_real_update(frozen):
    """What runs together in an update: the conditions once for each weights, the noisy rows of all states."""
    torch.manual_seed(0)
    how = Rewarding(rewards={"redness": 1.0}, objective="awm", settings={"square": 0.0}, group=8, times=(6, 1, 3, 3))
    rl = Stage(
        name="rl", scale="nano", steps=1, lr=1e-4, mixture={"image_edit": 1}, pack_tokens=(700, 900), rl=how,
        max_sample_tokens=200, dtype="float32", frozen=frozen, resolutions=(Resolution(image=(64, 64)),),
    )  # fmt: skip
    lance = Lance(SMALL)
    drawn = round_of(rl, SMALL, rl.resolutions[0], 900)
    run = RewardTrainer(rl, Learner(lance, ViT(nano().vit), SMALL.vocab_size), ruler(SMALL))
    columns, _ = document(asked("image_edit", rl, SMALL, rl.resolutions[0]).segments, ruler(SMALL), SMALL.position)
    patches, latents = int((columns["kind"] == PATCHES).sum()), int(drawn.context.gen)
    seen, side = int(patches**0.5), int(latents**0.5)
    sizes = {Kind.PATCHES: (1, seen, seen, SMALL.width), Kind.LATENTS: (1, side, side, SMALL.latent_channels)}
    given = sized(spec_of("image_edit"), (64, 64), (1, 64, 64), 12, NO_PRIOR)
    requests = [
        [replace(s, value=torch.randn(sizes[s.kind])) if s.kind in sizes and s.value is not None else s for s in given]
        for _ in range(drawn.piece)
    ]
    results = [Result(clean=torch.randn(int(drawn.ask.gen), SMALL.latent_channels)) for _ in requests]
    generator = torch.Generator().manual_seed(0)
    asks = [ask for result in results for ask in run.objective.asks(result, 1.0, generator)]
    with PeakMemory() as memory:
        loss = run.objective.loss(asks, run.velocities(requests, asks)).per_ask.sum()
        after = memory.now
        loss.backward()
    gradients = sum(p.grad.nbytes for p in lance.parameters() if p.grad is not None)
    counted = activations(SMALL, drawn.update, "float32")
    assert counted.kept(False) == pytest.approx(after, rel=0.15)
    assert counted.peak(False, gradients) == pytest.approx(memory.peak, rel=0.15)


def test_a_round_is_counted_by_its_results_and_states():
    rl = stage("rl")
    one = round_of(rl, ModelConfig(), rl.resolutions[0], 77_000)
    assert one.results == 24 * one.requests and one.asks == 2 and one.beside == 1 and not one.conditions_learn
    more = replace(rl, rl=replace(rl.rl, num_inference_steps=20, window_size=4))
    twice = round_of(more, ModelConfig(), rl.resolutions[0], 77_000)
    for name, least in (("rollouts", 1.95), ("updates", 1.9)):
        assert least < twice.operations(2)[name] / one.operations(2)[name] <= 2
    whole = plan(ModelConfig(), replace(rl, frozen=("vit",)), machine("1xH200"), changes=False)
    some, adapter = (plan(ModelConfig(), s, machine("1xH200")) for s in (rl, replace(rl, lora=Lora(rank=16))))
    assert whole.memory["other weights"] > 2 * some.memory["other weights"] > 50 * adapter.memory["other weights"]
    assert not whole.fits and some.memory["peak"] > adapter.memory["peak"] and adapter.fits


def test_sharded_weights_are_whole_once_where_a_stage_draws():
    rl = stage("rl")
    whole, sharded = (plan(ModelConfig(), rl, machine("8xH200", shard=shard)).memory for shard in ("none", "full"))
    for name in ("optimizer", "average", "other weights", "gradients"):
        assert sharded[name] == pytest.approx(whole[name] / 8), name
    assert "whole weights" not in whole
    decoder = sum(n for _, n in lance_parameters(ModelConfig()))
    assert sharded["whole weights"] * 2**30 == pytest.approx(2 * decoder)  # bfloat16
    assert sharded["peak"] < whole["peak"]
    with pytest.raises(UserError, match="the stage sft draws, and x2t_video makes a text"):
        plan(ModelConfig(), replace(stage("sft"), distill=Distillation()), machine("8xH200"))
    taught = replace(stage("sft"), distill=Distillation(), frozen=("vit",), mixture={"t2i": 1.0, "image_edit": 1.0})
    found = {
        shard: plan(ModelConfig(), taught, machine("8xH200", shard=shard), changes=False) for shard in ("none", "full")
    }
    sides = {shard: one.memory["whole weights"] * 2**30 / 4 for shard, one in found.items()}
    generation = sum(n for name, n in lance_parameters(ModelConfig()) if is_generation(name))
    assert sides == {"none": pytest.approx(generation), "full": pytest.approx(decoder)}
    assert found["full"].model["trained"] == generation


def test_peak_memory_counts_what_is_alive_and_no_views():
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        c = b.add_(1)[2:]
        d = torch.ones(500)
    assert (memory.peak, memory.now) == (8000, 6000) and len(c) + len(d) == 508


def test_pairs_and_squares_are_those_of_the_mask():
    from openlance.sequence.segment import dense_mask

    for sample in samples():
        made = pack([sample], ruler(SMALL), SMALL.position, DRAWS)
        load = load_of(*document(sample, ruler(SMALL), SMALL.position, DRAWS), SMALL)
        assert load.pairs == int(dense_mask(made.rows).sum()) and load.rows == len(made)
        assert load.pairs <= load.squares


def test_operations_of_a_row_are_two_per_weight_and_three_passes():
    learns = trainable(SMALL, stage("pt", "nano"))
    work = flops(SMALL, Load(und=1.0), learns)
    inner = sum(p.numel() for n, p in Lance(SMALL).named_parameters() if ".und." in n and n.startswith("layers"))
    assert work["experts"] == 6 * inner and work["attention"] == work["VAE"] == 0


def test_what_is_frozen_does_not_train():
    every, some = (
        trainable(ModelConfig(), s) for s in (stage("pt"), override(stage("pt"), ["frozen=[vit,lance.embed]"]))
    )
    assert every["trained"] == 6_176_817_200 and some["trained"] == every["trained"] - 311_164_928
    assert trainable(nano(), stage("pt", "nano"))["tower learns"] == 1


@pytest.mark.parametrize(
    "name, tokens, eights", [("pt", 1.5e12, (88, 96)), ("ct-i", 1e11, (48,)), ("sft", 7.2e10, (64,)), ("rl", 5e8, (8,))]
)
def test_the_tokens_of_the_paper(name, tokens, eights):
    found = plan(ModelConfig(), stage(name), machine("128xA100-80GB"))
    assert found.tokens == tokens and found.fits
    low, high = found.paper["packs_per_step_low"], found.paper["packs_per_step_high"]
    assert tuple(n for n in range(8, 129, 8) if low <= n <= high) == eights
    assert found.paper["steps_here"] * found.tokens_per_step == pytest.approx(tokens)
    assert found.days * 86400 * found.tokens_per_second == pytest.approx(tokens)


def test_more_devices_are_faster_and_hold_less():
    one, two = (plan(ModelConfig(), stage("sft"), machine(f"{n}xH100", shard="full"), changes=False) for n in (8, 16))
    assert two.tokens_per_second == pytest.approx(2 * one.tokens_per_second)
    assert two.memory["optimizer"] == pytest.approx(one.memory["optimizer"] / 2)
    assert two.memory["activations"] == one.memory["activations"] and two.memory["peak"] < one.memory["peak"]


def test_what_is_said_to_make_it_fit_makes_it_fit():
    at = machine("1xA100-80GB")
    found = plan(ModelConfig(), stage("sft"), at)
    assert not found.fits and any("lora=64" in change for change in found.changes)
    assert plan(ModelConfig(), replace(stage("sft"), lora=Lora(rank=64)), at).fits


def test_what_a_stage_cannot_do_is_not_said_to_make_it_fit():
    """Distilling trains no adapters, and matching has whole weights on every device."""
    matched = Distillation(matched=True, shift=(2.0, 2.0))
    for how, shards in ((Distillation(), True), (matched, False)):
        two = replace(stage("sft"), mixture={"t2i": 1.0}, distill=how)
        found = plan(ModelConfig(), two, machine("1xA100-80GB"))
        assert not found.fits and not any("lora" in change for change in found.changes)
        assert any("shard" in change for change in found.changes) is shards
    with pytest.raises(UserError, match="whole weights on every device: use shard='none'"):
        plan(ModelConfig(), two, machine("8xH200"))


@pytest.mark.parametrize("one", recipe("nano"), ids=lambda s: s.name)
def test_nano_fits_on_two_cores(one):
    found = plan(nano(), one, machine("CPU"))
    assert found.fits and found.tokens == one.steps * np.mean(one.pack_tokens)


def test_clips_are_cut_to_what_a_sample_may_hold():
    ct = stage("ct-i")
    found = typical("video_edit", ct, ModelConfig(), ct.resolutions[0])
    assert found.frames < found.wanted == 69 and found.load.rows <= ct.max_sample_tokens
    assert packed(ct, ModelConfig(), ct.resolutions[0], 77_000).rows == pytest.approx(77_000)
    with pytest.raises(ValueError):
        typical("t2v", override(ct, ["max_sample_tokens=100"]), ModelConfig(), ct.resolutions[0])


@pytest.mark.parametrize("options", [{"shard": "most"}, {"shard": "3"}, {"utilization": 0.0}, {"utilization": 1.5}])
def test_a_machine_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        machine("8xH100", **options)
