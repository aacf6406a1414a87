"""Guidance distilled into a generation side of its own, on nano itself."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import openlance
from openlance.checkpoint.formats import DISTILLED, folder_of
from openlance.config.lora import Lora
from openlance.config.train import UNDERSTANDING, Distillation, Rewarding, Stage
from openlance.errors import UserError
from openlance.training.files import Settings
from openlance.training.run import run_stage

STAGE = Stage(
    name="distill", steps=2, lr=3e-4, eps=1e-8, ema=0.0, text_weight=0.0, mixture={"t2i": 1.0, "image_edit": 1.0},
    source="world", pack_tokens=(400, 700), max_sample_tokens=700, dtype="float32", draws=2, distill=Distillation(),
)  # fmt: skip


def settings(out, **changes):
    return Settings(out=out, model=folder_of("nano"), **changes)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled")
    return run_stage(STAGE, settings(out / "whole")), out


def test_a_run_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(distilled, tmp_path):
    run_stage(replace(STAGE, steps=1), settings(tmp_path / "cut"))
    cut = run_stage(STAGE, settings(tmp_path / "cut"))
    assert (distilled[0] / DISTILLED).read_bytes() == (cut / DISTILLED).read_bytes()
    assert (cut / "model.safetensors").read_bytes() == (folder_of("nano") / "model.safetensors").read_bytes()


def test_conditions_and_answers_are_the_start_s_to_the_last_bit(distilled):
    nano, pipe = openlance.load("nano"), openlance.load(str(distilled[0]))
    how = {"distilled": False, "num_inference_steps": 3, "solver": "euler", "seed": 1}
    [image] = nano.generate("a red circle", **how | {"distilled": None})
    assert image.tobytes() == pipe.generate("a red circle", **how)[0].tobytes()
    assert image.tobytes() != pipe.generate("a red circle", seed=1)[0].tobytes()
    assert nano.ask(image, "what color is the circle?") == pipe.ask(image, "what color is the circle?")
    plain = {"region": "none", **how}
    [edited] = nano.edit(image, "make the circle blue", **plain | {"distilled": None})
    assert edited.tobytes() == pipe.edit(image, "make the circle blue", **plain)[0].tobytes()


def test_a_copy_of_the_generation_side_draws_what_no_guidance_draws(distilled, tmp_path):
    """One pass of the same weights at every step, whatever the scales are: alone as in a batch."""
    folder, pipe = tmp_path / "copied", openlance.load("nano")
    folder.mkdir()
    for path in distilled[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stored = load_file(folder / DISTILLED)
    start = load_file(folder_of("nano") / "model.safetensors")
    save_file({name: start[name] for name in stored}, folder / DISTILLED)
    copied = openlance.load(str(folder))
    prompts = ["a red circle", "two blue stars"]
    for one, other in zip(copied.generate(prompts, seed=3), pipe.generate(
        prompts, seed=3, guidance_scale=1.0, num_inference_steps=4, solver="dpm++"
    )):  # fmt: skip
        difference = torch.tensor(list(one.tobytes())).float() - torch.tensor(list(other.tobytes())).float()
        # DPM++ forgets its past where guidance ends, and there is none here to end.
        assert difference.abs().mean() < 12
    [alone] = copied.generate(prompts[1], seed=4)
    both = copied.generate(prompts, seed=3)[1]
    assert (torch.tensor(list(alone.tobytes())).int() - torch.tensor(list(both.tobytes())).int()).abs().max() <= 2


def test_other_guidance_than_what_is_distilled_is_refused_by_name(distilled):
    pipe = openlance.load(str(distilled[0]))
    with pytest.raises(UserError, match=r"guidance_scale is 3.0, but 4.0 is distilled .*distilled=False"):
        pipe.generate("a red circle", guidance_scale=3)
    with pytest.raises(UserError, match="negative prompt .*distilled=False"):
        pipe.generate("a red circle", negative_prompt="blue")
    with pytest.raises(UserError, match="needs cached=True"):
        pipe.generate("a red circle", cached=False)
    assert pipe.generate("a red circle", guidance_scale=3, distilled=False)[0].size == (64, 64)
    with pytest.raises(UserError, match=r"has no distilled guidance \(distilled.safetensors\)"):
        openlance.load("nano").generate("a red circle", distilled=True)


def test_what_was_not_taught_is_guided_as_before(distilled):
    said = json.loads((distilled[0] / "generation_config.json").read_text())
    assert said["sampling"]["distilled"] and said["sampling"]["num_inference_steps"] == 4
    by_role = said["sampling_with"]
    assert by_role["source"]["distilled"] and by_role["source"]["guidance_scale"] == 2.0
    for role in ("video", "reference", "history", "region"):
        assert not by_role[role]["distilled"] and by_role[role]["num_inference_steps"] == 10, role


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"mixture": {"x2t_image": 1.0}}, {}, "x2t_image has none"),
        ({"drop_text": 0.1}, {}, "drop_text=0"),
        ({"distill": Distillation()}, {"init": "fresh"}, "by itself"),
    ],
)
def test_what_cannot_be_distilled_is_refused(tmp_path, changes, more, said):
    with pytest.raises(UserError, match=said):
        run_stage(replace(STAGE, **changes), settings(tmp_path / "run", **more))


def test_rewards_go_on_in_the_distilled_side_alone(distilled, tmp_path):
    how = Rewarding(
        rewards={"redness": 1.0}, objective="nft", group=2, num_inference_steps=2, times=(4, 1, 2, 1), supervised=0.5
    )  # fmt: skip
    stage = replace(STAGE, steps=1, distill=None, rl=how, frozen=UNDERSTANDING, pack_tokens=(400, 700))
    start = replace(settings(tmp_path / "run"), model=distilled[0])
    refused = {"nothing else of these learns": {"frozen": ("vit",)}, "without an adapter": {"lora": Lora()}}
    for said, changes in refused.items():
        with pytest.raises(UserError, match=said):
            run_stage(replace(stage, **changes), start)
    done = run_stage(stage, start)
    assert (done / "model.safetensors").read_bytes() == (distilled[0] / "model.safetensors").read_bytes()
    before, after = (load_file(folder / DISTILLED) for folder in (distilled[0], done))
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)
