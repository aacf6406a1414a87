"""Guidance distilled into a generation side of its own, on a nano of few layers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import openlance
from openlance.checkpoint.formats import find, find_model
from openlance.config.lora import Lora
from openlance.config.sampling import DISTILLED
from openlance.config.train import UNDERSTANDING, Distillation, Rewarding, Stage
from openlance.errors import UserError
from openlance.inference.visual import denoise
from openlance.runtime.conversion import gather, write
from openlance.sequence.tasks import text_to_visual
from openlance.training.distillation import Taught, guidance_of, sampled
from openlance.training.files import Settings
from openlance.training.run import run_stage

STAGE = Stage(
    name="distill", steps=2, lr=3e-4, eps=1e-8, ema=0.0, text_weight=0.0, mixture={"t2i": 1.0, "image_edit": 1.0},
    source="world", pack_tokens=(400, 700), max_sample_tokens=700, dtype="float32", draws=2, distill=Distillation(),
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(shallow):
    return lambda out, **changes: Settings(out=out, model=shallow, **changes)


def taught(pipe, **more):
    return Taught(
        stage=STAGE, codec=pipe.codec, encode=None, device=pipe.device, teacher=pipe.parts.lance("und", "gen"),
        defaults=pipe.defaults, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def distilled(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled")
    return run_stage(STAGE, settings(out / "whole")), out


def test_a_run_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(distilled, tmp_path, shallow, settings):
    run_stage(replace(STAGE, steps=1), settings(tmp_path / "cut"))
    cut = run_stage(STAGE, settings(tmp_path / "cut"))
    assert (distilled[0] / DISTILLED).read_bytes() == (cut / DISTILLED).read_bytes()
    assert (cut / "model.safetensors").read_bytes() == (shallow / "model.safetensors").read_bytes()


def test_conditions_and_answers_are_the_start_s_to_the_last_bit(distilled, shallow):
    nano, pipe = openlance.load(str(shallow)), openlance.load(str(distilled[0]))
    how = {"distilled": False, "seed": 1}
    [image] = nano.generate("a red circle", **how | {"distilled": None})
    assert image.tobytes() == pipe.generate("a red circle", **how)[0].tobytes()
    assert image.tobytes() != pipe.generate("a red circle", seed=1)[0].tobytes()
    assert nano.ask(image, "what color is the circle?") == pipe.ask(image, "what color is the circle?")
    plain = {"region": "none", **how}
    [edited] = nano.edit(image, "make the circle blue", **plain | {"distilled": None})
    assert edited.tobytes() == pipe.edit(image, "make the circle blue", **plain)[0].tobytes()


def test_a_copy_of_the_generation_side_draws_what_no_guidance_draws(distilled, tmp_path, shallow):
    """One pass of the same weights at every step, whatever the scales are: alone as in a batch."""
    folder, pipe = tmp_path / "copied", openlance.load(str(shallow))
    folder.mkdir()
    for path in distilled[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stored = load_file(folder / DISTILLED)
    start = load_file(shallow / "model.safetensors")
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


def test_other_guidance_than_what_is_distilled_is_refused_by_name(distilled, shallow):
    pipe = openlance.load(str(distilled[0]))
    with pytest.raises(UserError, match=r"guidance_scale is 3.0, but 4.0 is distilled .*distilled=False"):
        pipe.generate("a red circle", guidance_scale=3)
    with pytest.raises(UserError, match="negative prompt .*distilled=False"):
        pipe.generate("a red circle", negative_prompt="blue")
    with pytest.raises(UserError, match="needs cached=True"):
        pipe.generate("a red circle", cached=False)
    assert pipe.generate("a red circle", guidance_scale=3, distilled=False)[0].size == (64, 64)
    with pytest.raises(UserError, match=r"has no distilled guidance \(distilled.safetensors\)"):
        openlance.load(str(shallow)).generate("a red circle", distilled=True)


def test_what_was_not_taught_is_guided_as_before(distilled):
    nano, after = find_model("nano").defaults, find(distilled[0]).defaults
    for roles in ([], ["source"]):
        few = {"distilled": True, "num_inference_steps": 4, "solver": "dpm++"}
        assert after.sampling_for(roles) == replace(nano.sampling_for(roles), **few)
        assert after.sampling_for(roles, distilled=False) == nano.sampling_for(roles)
    for roles in (["video"], ["source", "video"], ["reference"], ["history"], ["source", "region"]):
        assert after.sampling_for(roles) == nano.sampling_for(roles), roles
        with pytest.raises(UserError, match=r"not distilled .* for .*expected images from words, edits"):
            after.sampling_for(roles, distilled=True)


def test_few_steps_are_taken_where_nobody_says_how_many(distilled):
    nano, after = find_model("nano").defaults, find(distilled[0]).defaults
    assert after.sampling_for([], num_inference_steps=3).num_inference_steps == 3
    assert after.denoising(num_inference_steps=3).sampling_for(["source"]).num_inference_steps == 3
    assert after.denoising(distilled=False).sampling_for([]) == nano.sampling_for([])
    few = nano.denoising(distilled=True)
    assert [few.sampling_for(roles).num_inference_steps for roles in ([], ["source"], ["reference"])] == [2, 4, 4]


def test_other_weights_are_not_said_to_be_distilled(distilled, tmp_path):
    """Neither those that are trained from a distilled start, nor a folder without the distilled side."""
    whole = replace(STAGE, distill=None, steps=1, mixture={"t2i": 1.0}, text_weight=1.0)
    trained, bare = run_stage(whole, Settings(out=tmp_path / "on", model=distilled[0])), tmp_path / "bare"
    assert not (trained / DISTILLED).exists()
    assert not {"distilled", "distillation"} & json.loads((trained / "generation_config.json").read_text()).keys()
    shutil.copytree(distilled[0], bare, ignore=shutil.ignore_patterns(DISTILLED))
    for other in (trained, bare):
        pipe = openlance.load(str(other))
        assert pipe.sampling().num_inference_steps == 10 and not pipe.sampling().distilled


def test_what_is_distilled_goes_along_where_a_folder_has_a_place_for_it(distilled, tmp_path, capsys):
    gathered = gather(find(distilled[0]))
    write(tmp_path / "same", gathered, show=False)
    one, other = (load_file(folder / DISTILLED) for folder in (tmp_path / "same", distilled[0]))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert openlance.load(tmp_path / "same").sampling().distilled
    write(tmp_path / "released", gathered, "released", show=False)
    write(tmp_path / "int8", gather(find(distilled[0]), quantize="int8"), show=False)
    assert capsys.readouterr().err.count("note: distilled.safetensors is left out") == 2
    for folder in (tmp_path / "released", tmp_path / "int8"):
        assert not list(folder.rglob(DISTILLED)) and not openlance.load(folder).sampling().distilled


def test_what_is_learned_progressively_is_where_the_start_s_own_few_steps_lead(distilled):
    """States are those that the distilled start passes, no guidance in them, and velocities lead from one to the next;
    what one has not distilled is guided."""
    pipe = openlance.load(str(distilled[0]))
    few = pipe.parts.distilled()
    teach = taught(pipe, distilled=few)
    request = text_to_visual("a red circle", [], (1, 64, 64))
    sampling = guidance_of(pipe.defaults, request, True)
    assert sampling.distilled and sampling.solver == "dpm++"
    rows, passed = list[int](), list[tuple[float, torch.Tensor]]()
    denoise(
        teach.teacher, pipe.codec, [request], sampling, seeds=[5], distilled=few, on_pass=rows.append,
        on_step=lambda _, t, x: passed.append((t, x)),
    )  # fmt: skip
    assert rows == [64] * sampling.num_inference_steps
    [states] = teach._trajectories([request], sampling, [5])
    assert len(states) == sum(sampling.acts_at(t) for t, _ in passed) > 1
    for (x, t, velocity), (now, own), (later, after) in zip(states, passed, passed[1:]):
        assert t == now and torch.equal(x, own)
        torch.testing.assert_close(x - velocity * (t - later), after)
    moving = text_to_visual("a red circle moves up", [], (9, 64, 64))
    assert guidance_of(pipe.defaults, moving, True) == guidance_of(pipe.defaults, moving)


def test_an_interval_that_begins_later_is_passed_through(shallow):
    pipe = openlance.load(str(shallow))
    request = text_to_visual("a red circle", [], (1, 64, 64))
    sampling = replace(guidance_of(pipe.defaults, request), num_inference_steps=8, shift=1.0, interval=(0.4, 0.8))
    [states] = taught(pipe)._trajectories([request], sampling, [5])
    assert [t for _, t, _ in states] == pytest.approx([0.75, 0.625, 0.5])
    sampling = replace(pipe.defaults.sampling, interval=(0.999, 0.9995))
    late = replace(taught(pipe), defaults=replace(pipe.defaults, sampling=sampling, sampling_with={}))
    with pytest.raises(UserError, match=r"at none of \d+ steps"):
        late._states([request], torch.Generator().manual_seed(0))


def test_what_a_request_holds_decides_how_it_is_distilled():
    four = {"steps": [4, 4], "matched": False, "num_inference_steps": 4, "solver": "dpm++"}
    how = Distillation(
        matched=True, shift=(1.5, 1.5), num_inference_steps=2, solver="euler", by_role={"source": four}
    )  # fmt: skip
    assert how.of(["prompt"]).matched and how.of(["source", "region"]).steps == (4, 4)
    assert how.matches and how.goes_on and not Distillation(by_role={"source": four}).goes_on
    with pytest.raises(UserError, match=r"no field 'distill.stps'"):
        Distillation(by_role={"source": {"stps": [4, 4]}})
    nano = find_model("nano").defaults
    said = sampled(nano, replace(STAGE, distill=how))
    words, source = said["distilled"]["words"], said["distilled"]["source"]
    assert words == {"num_inference_steps": 2, "solver": "euler", "shift": 1.5}
    assert source == {"num_inference_steps": 4, "solver": "dpm++", "shift": 1.5}
    assert "video" not in said["distilled"]


@pytest.mark.parametrize(
    ("tasks", "few"),
    [
        ("image_edit", {"source"}),
        ("image_inpaint", set()),  # nano's regions are also those beyond the borders of an image
        ("image_inpaint outpaint", {"region"}),
        ("image_idip t2v", {"reference"}),
        ("t2v i2v flf2v video_edit video_idip video_inpaint extend", {"video"}),
    ],
)
def test_few_passes_are_usual_where_all_that_nano_knows_of_it_was_taught(tasks, few):
    stage = replace(STAGE, mixture=dict.fromkeys(["t2i", *tasks.split()], 1.0))
    said = sampled(find_model("nano").defaults, stage)
    assert said["sampling"]["distilled"] and said["distilled"].keys() == {"words", *few}


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"mixture": {"x2t_image": 1.0}}, {}, "x2t_image has none"),
        ({"drop_text": 0.1}, {}, "drop_text=0"),
        ({"distill": Distillation(progressive=True)}, {}, "progressive goes on .*shallow is none: distil its guidance"),
        ({"distill": Distillation(matched=True, shift=(2, 2))}, {}, "matched goes on .*shallow is none: distil"),
        ({"distill": Distillation()}, {"init": "fresh"}, "by itself"),
    ],
)
def test_what_cannot_be_distilled_is_refused(tmp_path, changes, more, said, settings):
    with pytest.raises(UserError, match=said):
        run_stage(replace(STAGE, **changes), settings(tmp_path / "run", **more))


def test_rewards_go_on_in_the_distilled_side_alone(distilled, tmp_path, settings):
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
