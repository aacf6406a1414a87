"""Stages that draw on two processes of one torchrun: whole weights on both, weights sharded over them, and one process
with twice the packs are the same run. What one process has to do is never as much as the other."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openlance.checkpoint.formats import folder_of
from openlance.config.lora import Lora
from openlance.config.sampling import DISTILLED, undistilled
from openlance.config.train import UNDERSTANDING, Distillation, Resolution, Rewarding, Stage, dump
from openlance.errors import UserError
from openlance.training.distillation import export_distilled, sampled
from openlance.training.files import Settings
from openlance.training.run import run_recipe, run_stage
from openlance.training.start import open_base

RL = Rewarding(
    rewards={"redness": 1.0}, objective="nft", group=4, num_inference_steps=3, times=(6, 1, 2, 2), scale="round",
    updates=2,
)  # fmt: skip
STAGE = Stage(
    name="rl", scale="nano", steps=2, lr=3e-4, eps=1e-8, betas=(0.9, 0.99), ema=0.0, text_weight=0.0,
    mixture={"t2i": 1.0}, source="world", pack_tokens=(60, 100), max_sample_tokens=100, dtype="float32", rl=RL,
    max_frames=5, resolutions=(Resolution(image=(32, 32), video=(32, 32)),), frozen=UNDERSTANDING,
)  # fmt: skip
EDITS = replace(STAGE, mixture={"t2i": 1.0, "image_edit": 1.0}, pack_tokens=(100, 200), max_sample_tokens=200)
# It fails for some requests, and tells nothing of others.
ODD = """import numpy as np
def score(prompt, image):
    return float("nan") if "green" in prompt else float(np.mean(image)) * ("red" in prompt or "blue" in prompt)
"""
STAGES = {
    "generation": replace(EDITS, rl=replace(RL, probes=2)),
    "everything": replace(
        STAGE, rl=replace(RL, objective="awm"), frozen=("vit",), checkpointing=True, ema=0.9, accumulate=2
    ),
    "adapter": replace(
        STAGE, rl=replace(RL, objective="grpo", settings={"kl": 0.1}), frozen=("vit",), lora=Lora(rank=2)
    ),
    # Conditions that learn on one process beside some that do not on the other, and samples as they are.
    "edits": replace(EDITS, rl=replace(RL, supervised=0.5, trust=0.5), pack_tokens=(60, 200)),
    "odd": replace(STAGE, rl=replace(RL, rewards={"odd.py:score": 1.0}, probes=2), pack_tokens=(100, 160)),
    "distilled": replace(
        EDITS, rl=None, distill=Distillation(), frozen=(), draws=2, pack_tokens=(200, 300), max_sample_tokens=300
    ),
    "beside": EDITS,  # from a start with distilled guidance
}  # fmt: skip


def two(folder: Path, *runs: dict) -> None:
    """Do runs of two processes."""
    (folder / "runs.json").write_text(json.dumps(runs))
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += [str(Path(__file__).with_name("worker.py")), str(folder / "runs.json")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *line], check=True, timeout=500, env=env, cwd=folder)


def learned(out: Path) -> Path:
    """The file of what a run has learned."""
    names = ("adapter_model.safetensors", f"model/{DISTILLED}", "model/model.safetensors")
    return next(out / name for name in names if (out / name).is_file())


def same(one: Path, other: Path) -> None:
    """Two runs had the same losses and ended with the same weights."""
    mine, theirs = load_file(learned(one)), load_file(learned(other))
    assert mine.keys() == theirs.keys()
    # float16, so the last bit may differ; and Adam goes a whole step where a gradient is nothing but rounding.
    far = [~torch.isclose(mine[n].float(), theirs[n].float(), atol=2e-4, rtol=2**-10) for n in mine]
    assert sum(int(x.sum()) for x in far) <= 1e-6 * sum(x.numel() for x in far)
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, other)]
    for left, right in zip(*logs, strict=True):
        assert left.keys() ^ right.keys() <= {"signal"}  # two parts of one process may be one of two
        for name in {
            "reward",
            "results",
            "dropped",
            "mute",
            "loss",
            "moved",
            "supervised",
            "flow",
            "norm",
        } & left.keys():
            assert left[name] == pytest.approx(right[name], rel=2e-3, abs=1e-6), name


@pytest.mark.nightly
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_with_whole_or_sharded_weights_learn_what_one_does(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text(ODD)
    stage, model = STAGES[name], folder_of("nano")
    if name == "beside":
        model = tmp_path / "start"
        begun = open_base(folder_of("nano"), STAGE)
        values = dict(begun.learner.lance.named_parameters())
        export_distilled(values, folder_of("nano"), model, sampled(begun.defaults, STAGES["distilled"]))
    if stage.rl is not None and stage.rl.supervised:  # matched steps cannot be taught beside rewards
        model = Path(shutil.copytree(model, tmp_path / "plain", ignore=shutil.ignore_patterns(DISTILLED)))
        said = undistilled(json.loads((model / "generation_config.json").read_text()))
        (model / "generation_config.json").write_text(json.dumps(said))
    (tmp_path / "stage.yaml").write_text(dump(stage))
    run = {"stage": str(tmp_path / "stage.yaml"), "model": str(model), "steps": 2}
    every = {out: run | {"out": str(tmp_path / out)} for out in ("whole", "sharded", "cut", "fewer")}
    for out in ("sharded", "cut", "fewer"):
        every[out] |= {"shard": 2}
    if name == "generation":
        two(tmp_path, every["whole"], every["sharded"])
    else:
        two(
            tmp_path,
            every["whole"],
            every["sharded"],
            every["cut"] | {"steps": 1},
            every["cut"],
            every["fewer"] | {"steps": 1},
        )
    twice = replace(stage, accumulate=2 * stage.accumulate)
    run_stage(twice, Settings(out=tmp_path / "one", model=model))
    for out in ("whole", "sharded"):
        same(tmp_path / "one", tmp_path / out)
    if name != "generation":
        assert learned(tmp_path / "cut").read_bytes() == learned(tmp_path / "sharded").read_bytes()
        # A checkpoint of sharded weights goes on with whole ones, by itself.
        run_stage(stage, Settings(out=tmp_path / "fewer", model=model))
        same(tmp_path / "one", tmp_path / "fewer")


@pytest.mark.parametrize("changes", [{"rl": RL}, {"rl": None, "distill": Distillation()}])
def test_a_recipe_does_not_draw_with_sharded_weights(tmp_path, changes):
    before = replace(STAGE, name="sft", rl=None)
    with pytest.raises(UserError, match="weights that are gathered for it: run it by itself"):
        run_recipe((before, replace(before, name="draws", **changes)), Settings(
            out=tmp_path / "run", model=folder_of("nano"), shard=2
        ))  # fmt: skip
    assert not (tmp_path / "run").exists()
