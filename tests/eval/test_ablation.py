"""The ablations of benchmarks/ablation.py: a run that was cut ends as one that was not."""

import signal
from dataclasses import replace

import ablation
import pytest
from PIL import Image

from openlance.errors import UserError
from openlance.training.interrupt import Interrupted

ARM = "ViT view alone"


@pytest.fixture
def plan(monkeypatch):
    """Three short steps of one small layer."""
    small, views = ablation.config_of, ablation.Viewed.__call__
    monkeypatch.setattr(ablation, "config_of", lambda arm, vae: replace(small(arm, vae), layers=1))
    monkeypatch.setattr(ablation, "PACKS", 1)

    def seen(self, samples, number):
        batch = views(self, samples, number)
        kinds = {v.kind for v in batch.packed.visuals if v.segment.role.name == "SOURCE"}
        assert len(kinds) <= 1, "an arm with one view saw two"
        return batch

    monkeypatch.setattr(ablation.Viewed, "__call__", seen)
    return replace(ablation.plan_of(ablation.ARMS[ARM], 1, 3), pack_tokens=(500, 700), max_sample_tokens=700)


def test_a_run_that_was_cut_ends_as_one_that_was_not(plan, tmp_path, monkeypatch):
    how = {"minutes": float("inf"), "compiled": False, "samples": 0}
    whole, cut = ablation.place_of(tmp_path / "whole", ARM, 1), ablation.place_of(tmp_path / "cut", ARM, 1)
    assert ablation.run(whole, ARM, plan, **how)
    with monkeypatch.context() as patch:
        seen = ablation.Viewed.__call__
        patch.setattr(
            ablation.Viewed, "__call__", lambda self, samples, n: (seen(self, samples, n), signal.raise_signal(2))[0]
        )
        with pytest.raises(Interrupted) as stopped:
            ablation.run(cut, ARM, plan, **how)
    assert stopped.value.step == 1
    assert ablation.run(cut, ARM, plan, **how | {"minutes": 0.0}) is False
    assert ablation.missing(tmp_path / "cut")[5] == "ViT view alone, seed 1 (step 1)" and not ablation.finished(
        tmp_path / "cut"
    )
    with pytest.raises(UserError, match="begun with --steps 3"):
        ablation.run(cut, ARM, replace(plan, steps=4), **how)
    assert ablation.run(cut, ARM, plan, **how)
    for name in ("result.json", "model/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    (one,) = ablation.finished(tmp_path / "cut")
    assert one["losses"].keys() == {"t2i", "image_edit", "x2t_image"} and one["tokens"] > 3 * 300


def test_edits_are_judged_with_the_views_that_the_arm_has_learned(monkeypatch):
    seen = []

    def asked(pipe, bench):
        assert bench.tasks == ("t2i", "image_edit", "vqa")
        fill = pipe.fill_latents
        pipe.fill_latents = lambda requests, *how, **more: (seen.extend(requests), fill(requests, *how, **more))[1]
        pipe.edit([Image.new("RGB", (64, 64))], ["make it blue"], seed=0, region="none", num_inference_steps=1)
        return {task: {"mean": {"mean": 0.5, "n": 2}} for task in bench.tasks}

    monkeypatch.setattr(ablation, "bench", asked)
    found = ablation.judged("nano", ablation.ARMS[ARM], 1)
    assert found == {"t2i": 0.5, "image_edit": 0.5, "x2t_image": 0.5}
    assert {s.kind.name for request in seen for s in request if s.role.name == "SOURCE"} == {"PATCHES"}


def test_a_report_of_what_is_finished_says_what_is_not():
    def result(arm, seed, **losses):
        return {"arm": arm, "seed": seed, "losses": losses, "judged": {t: 1 - v for t, v in losses.items()}}

    runs = [result("whole", n, t2i=0.5, x2t_image=0.2) for n in (1, 2, 3)]
    runs += [result("no MaPE", n, t2i=0.5 + n / 100, x2t_image=0.2 + (n - 2) / 100) for n in (1, 2, 3)]
    runs += [result("understanding alone", 1, x2t_image=0.1), result("generation alone", 7, t2i=9.0)]
    text = ablation.compared(runs, "losses")
    assert "| no MaPE | t2i | +4.00% | -0.97% to +8.97% | 3 | inside the noise | GenEval 80.56, whole 80.94 |" in text
    assert "| no MaPE | x2t_image | +0.00%" in text and "| understanding alone | x2t_image | -50.00% |  | 1 |" in text
    assert "| generation alone | t2i |  |  | 0 | not finished |" in text  # the whole model of that seed is missing
    assert "| no MaPE | t2i | -2.00% |" in ablation.compared(runs, "judged")
    assert ablation.figure(runs).count(">not finished<") == 2 * 9
