"""Rounds of rollouts, rewards and updates on nano itself, in small pictures of a few prompts."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openlance.checkpoint.formats import folder_of
from openlance.config.train import Resolution, Rewarding, Stage, dump
from openlance.errors import UserError
from openlance.flow.stochastic import STOCHASTIC
from openlance.model.lance import own_generation
from openlance.rl.rollout import Exploring, roll
from openlance.sequence.segment import roles_of
from openlance.training.files import Settings
from openlance.training.rewarded.trainer import RewardTrainer
from openlance.training.run import run_stage
from openlance.training.start import open_base

RL = Rewarding(rewards={"redness": 1.0}, objective="nft", group=4, num_inference_steps=3, times=(6, 1, 2, 2))
STAGE = Stage(
    name="rl", scale="nano", steps=2, lr=3e-4, eps=1e-12, betas=(0.9, 0.99), ema=0.0, text_weight=0.0,
    mixture={"t2i": 1.0}, source="world", pack_tokens=(60, 100), max_sample_tokens=100, dtype="float32", rl=RL,
    max_frames=5, resolutions=(Resolution(image=(32, 32), video=(32, 32)),),
)  # fmt: skip
PROMPTS = ("a red circle", "two stars", "a blue square", "a ring above a cross", "a yellow triangle")


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def made(out: Path, **changes) -> Settings:
        return Settings(out=out, model=folder_of("nano"), data={"t2i": str(tmp_path / "prompts.txt")}, **changes)

    return made


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base():
    return open_base(folder_of("nano"), STAGE)


@pytest.fixture(scope="module")
def requests(base):
    import openlance

    pipe = openlance.load("nano")
    from openlance.sequence import tasks

    words = ("a red circle", "two blue squares", "a yellow star left of a green ring")
    return [tasks.text_to_visual(text, [], (1, size, 64)) for text, size in zip(words, (64, 32, 64))], pipe


@pytest.mark.parametrize("objective", ["nft", "grpo", "awm"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(tmp_path, settings, objective):
    how = replace(RL, objective=objective, probes=2, window_size=1, updates=2)
    stage = replace(STAGE, rl=how)
    whole = run_stage(stage, settings(tmp_path / "whole"))
    run_stage(replace(stage, steps=1), settings(tmp_path / "cut"))
    cut = run_stage(stage, settings(tmp_path / "cut"))
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert [row["step"] for row in rows_of(tmp_path / "whole")] == [1, 2]
    begun = load_file(folder_of("nano") / "model.safetensors")
    changed = {n for n, t in load_file(whole / "model.safetensors").items() if not torch.equal(t, begun[n])}
    assert changed and all("moe_gen" in n or "time" in n or "vae2llm" in n or "llm2vae" in n for n in changed)


@pytest.mark.parametrize("kind", sorted(STOCHASTIC))
@pytest.mark.parametrize("own", [False, True], ids=["one decoder", "own generation side"])
def test_steps_are_as_likely_as_they_were_when_they_were_drawn(base, requests, kind, own):
    """Unchanged weights give every step the probability that the rollout noted: in a batch, with cached conditions."""
    texts, pipe = requests
    lance = base.learner.lance
    start = lance
    base.learner.lance = own_generation(lance) if own else lance
    try:
        stage = replace(STAGE, rl=replace(RL, objective="grpo"))
        run = RewardTrainer(stage, base.learner, base.codec, reads=start if own else None)
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
        loss.per_ask.mean().backward()
        slope = [
            p.grad.abs().sum() for n, p in base.learner.lance.named_parameters() if p.grad is not None and ".gen." in n
        ]
        assert sum(slope) > 0
    finally:
        base.learner.lance = lance
        base.learner.zero_grad()


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
        ({"rl": replace(RL, objective="grpo", guided=True)}, "not guided: leave out rl.guided"),
        ({"rl": replace(RL, objective="gripo")}, "grpo"),
        ({"rl": replace(RL, settings={"betta": 1.0})}, "beta"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, settings, changes, said):
    with pytest.raises(UserError, match=said):
        run_stage(replace(STAGE, **changes), settings(tmp_path / "run"))


def test_two_processes_learn_what_one_does(tmp_path, settings):
    """The requests of a round dealt to two processes, rewards compared over all of them."""
    how = replace(RL, scale="round", updates=2)
    stage = replace(STAGE, rl=how, accumulate=2)
    one = run_stage(stage, settings(tmp_path / "one"))
    (tmp_path / "stage.yaml").write_text(dump(replace(stage, accumulate=1)))
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "openlance.cli.main"]
    line += ["train", str(tmp_path / "stage.yaml"), "--data", f"t2i={tmp_path / 'prompts.txt'}", "-o"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *line, str(tmp_path / "two")], check=True, timeout=300, env=env)
    alone, shared = load_file(one / "model.safetensors"), load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert max((alone[n].float() - shared[n].float()).abs().max().item() for n in alone) < 3e-4  # float16
    for mine, theirs in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        for name in ("reward", "results", "mute", "loss", "moved"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


@pytest.mark.skipif("OPENLANCE_NIGHTLY" not in os.environ, reason="a minute on two cores")
def test_a_trivial_reward_rises_and_shuffled_rewards_do_not(tmp_path, settings):
    how = replace(RL, group=6, num_inference_steps=4, solver="dpm++", times=(6, 1, 3, 2), scale="round")
    how = replace(how, settings={"beta": 0.5, "most": 2.0})
    stage = replace(STAGE, steps=10, lr=1e-3, rl=how, pack_tokens=(250, 350), max_sample_tokens=200, dtype="auto")
    stage = replace(stage, resolutions=(Resolution(image=(64, 64), video=(64, 64)),), sides=(64, 64))
    risen = dict[str, float]()
    for name, shuffle in (("true", False), ("null", True)):
        world = replace(settings(tmp_path / name), data={})
        run_stage(replace(stage, rl=replace(how, shuffle=shuffle)), world)
        rewards = [row["reward"] for row in rows_of(tmp_path / name)]
        risen[name] = statistics.fmean(rewards[-3:]) - statistics.fmean(rewards[:3])
    assert risen["true"] > 0.15 and risen["null"] < risen["true"] / 3, risen
