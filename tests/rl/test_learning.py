"""Rounds of rollouts, rewards and updates on a nano of few layers, in small pictures of a few prompts."""

import copy
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openlance.checkpoint.formats import folder_of
from openlance.config.lora import Lora
from openlance.config.train import UNDERSTANDING, Resolution, Rewarding, Stage
from openlance.errors import UserError
from openlance.flow.stochastic import STOCHASTIC
from openlance.inference.visual import conditions, rows_of_target
from openlance.media.clip import Clip
from openlance.model.lance import is_generation, own_generation
from openlance.model.lora import inject
from openlance.rl.results import Ask, Result
from openlance.rl.rollout import Exploring, roll
from openlance.runtime.media_encoder import MediaEncoder
from openlance.sequence import tasks
from openlance.sequence.pack import pack
from openlance.sequence.segment import roles_of
from openlance.training.files import Settings
from openlance.training.rewarded.trainer import RewardTrainer, Turn
from openlance.training.run import replay_step, run_stage
from openlance.training.start import open_base

RL = Rewarding(rewards={"redness": 1.0}, objective="nft", group=4, num_inference_steps=3, times=(6, 1, 2, 2))
STAGE = Stage(
    name="rl", scale="nano", steps=2, lr=3e-4, eps=1e-12, betas=(0.9, 0.99), ema=0.0, text_weight=0.0,
    mixture={"t2i": 1.0}, source="world", pack_tokens=(60, 100), max_sample_tokens=100, dtype="float32", rl=RL,
    max_frames=5, resolutions=(Resolution(image=(32, 32), video=(32, 32)),), frozen=UNDERSTANDING,
)  # fmt: skip
# What may learn, as a stage says it.
LEARNS = {"generation": {}, "everything": {"frozen": ("vit",)}, "adapter": {"frozen": ("vit",), "lora": Lora(rank=2)}}
PROMPTS = ("a red circle", "two stars", "a blue square", "a ring above a cross", "a yellow triangle")


@pytest.fixture
def settings(shallow, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def made(out: Path, **changes) -> Settings:
        return Settings(out=out, model=shallow, data={"t2i": str(tmp_path / "prompts.txt")}, **changes)

    return made


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(shallow):
    return open_base(shallow, STAGE)


@pytest.fixture(scope="module")
def requests(base, shallow):
    import openlance

    pipe = openlance.load(str(shallow))
    words = ("a red circle", "two blue squares", "a yellow star left of a green ring")
    return [tasks.text_to_visual(text, [], (1, size, 64)) for text, size in zip(words, (64, 32, 64))], pipe


@pytest.mark.parametrize(
    ("objective", "learns"), [("nft", "generation"), ("grpo", "everything"), ("awm", "adapter")]
)  # fmt: skip
def test_a_run_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(
    tmp_path, shallow, settings, objective, learns
):
    how = replace(RL, objective=objective, probes=2, window_size=1, updates=2)
    stage = replace(STAGE, rl=how, **LEARNS[learns])
    whole = run_stage(stage, settings(tmp_path / "whole"))
    run_stage(replace(stage, steps=1), settings(tmp_path / "cut"))
    cut = run_stage(stage, settings(tmp_path / "cut"))
    name = "adapter_model.safetensors" if learns == "adapter" else "model.safetensors"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert [row["step"] for row in rows_of(tmp_path / "whole")] == [1, 2]
    if objective == "nft":
        row, again = rows_of(tmp_path / "whole")[1], replay_step(tmp_path / "cut", 1)
        assert again["reward"] == pytest.approx(row["reward"], abs=1e-5)
        assert len(set(again["samples"].values())) > 1
    learned = load_file(whole / name)
    if learns == "adapter":
        sides = {side: [t for n, t in learned.items() if f".{side}." in n and "lora_B" in n] for side in ("und", "gen")}
        assert all(any(t.any() for t in some) for some in sides.values())
        return
    begun = load_file(shallow / "model.safetensors")
    changed = {n for n, t in learned.items() if not torch.equal(t, begun[n])}
    of_generation = {n for n in changed if "moe_gen" in n or "time" in n or "vae2llm" in n or "llm2vae" in n}
    assert of_generation and (changed == of_generation) == (learns == "generation")


@pytest.mark.parametrize(
    ("kind", "learns"),
    [*((kind, "generation") for kind in sorted(STOCHASTIC)), ("sde", "beside"), ("sde", "everything"),
     ("cps", "adapter")],
)  # fmt: skip
def test_steps_are_as_likely_as_they_were_when_they_were_drawn(base, requests, kind, learns):
    """Unchanged weights give every step the probability that the rollout noted: in a batch, with cached conditions."""
    texts, pipe = requests
    learner, own = copy.deepcopy(base.learner), learns == "beside"
    start = learner.lance
    if own:
        learner.lance = own_generation(start.requires_grad_(False))
    stage = replace(STAGE, rl=replace(RL, objective="grpo", settings={"kl": 0.1}), **LEARNS.get(learns, {}))
    if stage.lora is not None:
        inject(start, stage.lora)
        for name, p in start.named_parameters():  # one that has learned something
            if name.endswith("lora_B"):
                torch.nn.init.normal_(p, std=0.1)
    run = RewardTrainer(stage, learner, base.codec, reads=start if own else None)
    sampling = replace(
        pipe.defaults.sampling_for(roles_of(texts)), num_inference_steps=4, distilled=own, guidance_scale=1.0
    )
    exploring = Exploring(kind=STOCHASTIC[kind](noise=0.5), steps=range(1, 3))
    results = roll(run.drawing, base.codec, texts, sampling, [1, 2, 3], exploring)
    alone = roll(run.drawing, base.codec, texts[1:2], sampling, [2], exploring)
    torch.testing.assert_close(results[1].clean, alone[0].clean, atol=1e-4, rtol=1e-4)
    generator = torch.Generator().manual_seed(0)
    asks = [ask for result in results for ask in run.objective.asks(result, 1.0, generator)]
    loss = run.objective.loss(asks, run.velocities(texts, asks))
    assert loss.statistics["ratio"] == pytest.approx(1, abs=1e-5) and loss.statistics["off"] < 1e-5
    assert loss.statistics["kl"] < 1e-8  # the reference is the start, adapter and all
    loss.per_ask.mean().backward()
    slopes = {n: float(p.grad.abs().sum()) for n, p in learner.lance.named_parameters() if p.grad is not None}
    assert sum(slopes.values()) > 0
    assert any(slope for n, slope in slopes.items() if not is_generation(n)) == (learns in ("everything", "adapter"))
    if learns == "adapter":
        assert all("lora" in n for n in slopes)


@pytest.mark.parametrize("learns", LEARNS)
def test_conditions_carry_the_gradient_of_one_pass_over_everything(base, learns):
    """Cached conditions, shared by the noise samples of a target, are as good as a pass over all rows at once."""
    learner = copy.deepcopy(base.learner)
    stage = replace(STAGE, rl=replace(RL, settings={"square": 0.0}), **LEARNS[learns])
    if stage.lora is not None:
        inject(learner.lance, stage.lora)
        for name, p in learner.lance.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(p, std=0.1)
    run = RewardTrainer(stage, learner, base.codec)
    picture = Clip(np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8))
    wanted = [
        tasks.edit("make it blue", [tasks.Views(picture, picture)], (1, 32, 32)),
        tasks.text_to_visual("a red circle", [], (1, 32, 32)),
    ]
    with torch.no_grad():
        texts = MediaEncoder(lambda _: learner.vit, lambda: base.vae)(wanted)
    generator, channels = torch.Generator().manual_seed(0), base.config.latent_channels
    results = [Result(clean=torch.randn(rows_of_target(r, base.codec), channels, generator=generator)) for r in texts]
    asks = [ask for result in results for ask in run.objective.asks(result, 1.0, generator)]
    found = run.velocities(texts, asks)
    (found["new"] * found["old"]).sum().backward()
    mine = {n: p.grad.clone() for n, p in learner.lance.named_parameters() if p.grad is not None}
    learner.zero_grad()

    packed = pack(texts, base.codec, base.config.position, len(asks) // len(texts))
    features, context = conditions(packed, torch.device("cpu"))
    noisy = packed.rows.noisy[packed.rows.is_latent]
    latents, times = torch.zeros(len(noisy), channels), torch.zeros(len(noisy))
    latents[noisy], latents[~noisy] = torch.cat([a.x for a in asks]), context
    times[noisy] = torch.cat([a.times for a in asks])
    lance = learner.lance
    _, gen = lance(lance.layout(packed.rows), patches=features, latents=latents, times=times)
    velocities = lance.velocity(gen)[noisy]
    torch.testing.assert_close(found["new"], velocities, atol=1e-4, rtol=1e-4)
    (velocities * found["old"]).sum().backward()
    theirs = {n: p.grad for n, p in lance.named_parameters() if p.grad is not None}
    learning = {n for n, p in lance.named_parameters() if p.requires_grad}
    assert {n for n in mine if mine[n].any()} == {n for n in theirs if theirs[n].any()} <= learning
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-3 * float(theirs[name].abs().max()), rtol=1e-2)


@pytest.mark.parametrize("learns", LEARNS)
def test_weights_beside_the_new_ones_are_copies_of_what_learns_alone(base, learns):
    learner = copy.deepcopy(base.learner)
    stage = replace(STAGE, rl=replace(RL, objective="awm"), **LEARNS[learns])
    if stage.lora is not None:
        inject(learner.lance, stage.lora)
    run = RewardTrainer(stage, learner, base.codec)
    live = {n: p for n, p in learner.lance.named_parameters() if p.requires_grad}
    assert set(run.others) == {"old", "average", "reference"}
    for values in run.others.values():
        assert values.keys() == live.keys()
        assert all(
            torch.equal(value, live[n]) and value.data_ptr() != live[n].data_ptr() for n, value in values.items()
        )
    drawing = dict(run.drawing.lance.named_parameters())
    assert not any(p.requires_grad for p in drawing.values())
    for n, p in learner.lance.named_parameters():  # the rest is there once
        assert drawing[n].data_ptr() == (run.others["old"][n] if n in live else p).data_ptr()


def test_results_that_were_compared_are_in_one_part_of_an_update_where_they_fit(base):
    run = RewardTrainer(STAGE, copy.deepcopy(base.learner), base.codec)  # a pack has room for 100 rows
    sizes = {0: (3, 2), 1: (3, 2), 2: (2, 1), 3: (6, 2), 4: (1, 2)}  # results of a group, and asks of each

    def asks(count: int) -> list[Ask]:
        state = torch.zeros(10, 4)
        return [Ask(result=Result(clean=state), advantage=0.0, x=state, t=0.5)] * count

    turns = [Turn(group, n, asks(each)) for group, (results, each) in sizes.items() for n in range(results)]
    parts = [[turn.group for turn in part] for part in run._pieces(turns)]
    assert parts == [[2, 2], [0, 0, 0], [1, 1, 1], [3, 3, 3, 3, 3], [3, 4]]


def test_requests_whose_rewards_never_differ_end_the_run_with_a_sentence(tmp_path, settings):
    (tmp_path / "same.py").write_text("def score(prompt, image):\n    return 0.5\n")
    how = replace(RL, rewards={f"{tmp_path / 'same.py'}:score": 1.0}, patience=2)
    with pytest.raises(UserError, match="for 2 rounds no request had results of different rewards .*mean is 0.5"):
        run_stage(replace(STAGE, steps=5, rl=how), settings(tmp_path / "run"))
    assert rows_of(tmp_path / "run")[0]["mute"] == 1.0


def test_a_reward_that_fails_drops_the_group_and_is_counted(tmp_path, settings):
    (tmp_path / "odd.py").write_text(
        "calls = []\ndef score(prompt, image):\n    calls.append(1)\n"
        "    return float('nan') if len(calls) == 1 else float(len(calls))\n"
    )
    how = replace(RL, rewards={f"{tmp_path / 'odd.py'}:score": 1.0})
    run_stage(replace(STAGE, steps=1, rl=how), settings(tmp_path / "run"))
    [row] = rows_of(tmp_path / "run")
    assert row["dropped"] == 1.0 and row["groups"] >= 1


def test_held_out_prompts_are_shown_by_round_and_groups_are_told(tmp_path, settings):
    """Of every round what one of several results would reach, how far they are apart, and where the time went; of some
    rounds, and before the first, the same held-out prompts."""
    (tmp_path / "others.txt").write_text("a blue ring\na cross & a <star>")
    how = {"held_out": {"t2i": str(tmp_path / "others.txt")}, "validate_every": 2, "held_out_packs": 1}
    run_stage(replace(STAGE, steps=2, lr=1e-3), settings(tmp_path / "run", **how))
    start, *rows = rows_of(tmp_path / "run")
    assert start["step"] == 0 and start["validation_reward"] != rows[1]["validation_reward"]
    assert "validation_reward" not in rows[0]
    for row in rows:
        assert row["pass@1"] == pytest.approx(row["reward"], abs=1e-4) and row["pass@4/redness"] > row["pass@1/redness"]
        assert row["spread"] > 0 and 0 < row["diversity"] < 1
    sheet = (tmp_path / "run" / "pictures.svg").read_text()
    assert sheet.count("<image") == 4 and ">before<" in sheet and ">round 2<" in sheet and "a &lt;star&gt;" in sheet
    first, last = ((tmp_path / "run" / "pictures" / f"{n:06d}-1.png").read_bytes() for n in (0, 2))
    assert first != last
    curves = (tmp_path / "run" / "curves.svg").read_text()
    assert all(f">{name}<" in curves for name in ("validation_reward", "pass@4", "spread", "share of rollouts"))
    # A run that begins again from nothing says the same of its start.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    run_stage(replace(STAGE, steps=1, lr=1e-3), settings(tmp_path / "run", **how))
    again = rows_of(tmp_path / "run")
    assert [row["step"] for row in again] == [0, 1] and again[0] == start
    assert (tmp_path / "run" / "pictures" / "000000-1.png").read_bytes() == first


def test_rewards_are_told_by_the_kind_of_the_request_too(tmp_path, settings):
    prompts = [{"prompt": text, "kind": "blue" if "blue" in text else "other"} for text in PROMPTS]
    (tmp_path / "prompts.txt").rename(tmp_path / "prompts.jsonl")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "blues.py").write_text(
        "import numpy as np\ndef score(prompt, image):\n    return np.mean(image) / 1e3 - ('blue' in prompt)\n"
    )
    rl = replace(RL, rewards={f"{tmp_path / 'blues.py'}:score": 1.0})
    how = replace(settings(tmp_path / "run"), data={"t2i": str(tmp_path / "prompts.jsonl")})
    [row] = rows_of(run_stage(replace(STAGE, steps=1, rl=rl, pack_tokens=(400, 500)), how).parent)
    assert {name for name in row if name.startswith("kind/")} == {"kind/t2i blue", "kind/t2i other"}
    assert row["kind/t2i blue"] < row["reward"] < row["kind/t2i other"]
    assert "signal" in row


def test_probes_count_in_the_log_where_their_rewards_do_not_differ(tmp_path, settings):
    (tmp_path / "stars.py").write_text(
        "calls = []\ndef score(prompt, image):\n    calls.append(1)\n"
        "    return len(calls) / 100 if 'star' in prompt else -1.0\n"
    )
    how = replace(RL, rewards={f"{tmp_path / 'stars.py'}:score": 1.0}, probes=2)
    run_stage(
        replace(STAGE, steps=1, rl=how, pack_tokens=(150, 190), max_sample_tokens=100), settings(tmp_path / "run")
    )
    [row] = rows_of(tmp_path / "run")
    requests = row["results"] / 4 / (1 - row["mute"])
    assert requests == pytest.approx(round(requests)) and round(requests) > 1
    # Two probes of every request, of which those without a star have -1.
    assert -1 < row["reward"] < -row["mute"] + 1 and 0 < row["mute"] < 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl": replace(RL, rewards={"ocr": 1.0})}, "quotes|quotation"),
        ({"mixture": {"t2i": 1.0, "x2t_image": 1.0}}, "x2t_image draws nothing"),
        ({"rl": replace(RL, supervised=0.1)}, "prompt alone.*leave out rl.supervised"),
        ({"drop_text": 0.1}, "drop_text=0"),
        ({"frozen": ("vae",)}, "do not reach the vision tower.*frozen=.'vit', 'vae'"),
        ({"lora": Lora(dropout=0.1)}, "no dropout"),
        ({"rl": replace(RL, objective="grpo", guided=True)}, "not guided: leave out rl.guided"),
        ({"rl": replace(RL, objective="gripo")}, "grpo"),
        ({"rl": replace(RL, settings={"betta": 1.0})}, "beta"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, settings, changes, said):
    with pytest.raises(UserError, match=said):
        run_stage(replace(STAGE, **changes), settings(tmp_path / "run"))


@pytest.mark.nightly
def test_a_trivial_reward_rises_and_shuffled_rewards_do_not(tmp_path, settings):
    # The same in every round, and none says a color.
    (tmp_path / "prompts.txt").write_text("a star\na circle\ntwo squares\na ring above a cross")
    how = replace(RL, group=6, num_inference_steps=4, solver="dpm++", times=(6, 1, 3, 2), scale="round")
    how = replace(how, settings={"beta": 0.5, "most": 2.0})
    stage = replace(STAGE, steps=10, lr=6e-4, rl=how, pack_tokens=(250, 350), max_sample_tokens=200, dtype="auto")
    stage = replace(stage, resolutions=(Resolution(image=(64, 64), video=(64, 64)),), sides=(64, 64))
    risen = dict[str, float]()
    for name, shuffle in (("true", False), ("null", True)):
        start = replace(settings(tmp_path / name), model=folder_of("nano"))  # which draws what it is asked for
        run_stage(replace(stage, rl=replace(how, shuffle=shuffle)), start)
        rewards = [row["reward"] for row in rows_of(tmp_path / name)]
        risen[name] = statistics.fmean(rewards[-3:]) - statistics.fmean(rewards[:3])
    assert risen["true"] > 0.15 and risen["null"] < risen["true"] / 3, risen
