"""Few steps by distribution matching, on a nano of few layers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import openlance
from openlance.checkpoint.formats import folder_of
from openlance.config.sampling import DISTILLED, GenerationConfig
from openlance.config.train import UNDERSTANDING, Distillation, Rewarding, Stage, recipe
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.flow import add_noise
from openlance.inference.visual import denoise
from openlance.media.inputs import as_clip
from openlance.model.lance import own_generation
from openlance.runtime.media_encoder import MediaEncoder
from openlance.sequence.tasks import Views, image_to_video, text_to_visual
from openlance.training.distillation import Taught, guidance_of, sampled, taught_before
from openlance.training.files import Settings
from openlance.training.learner import Learner
from openlance.training.matching import LEVELS, Matched, Matching, MatchTrainer
from openlance.training.run import run_stage

FOUR = {"matched": False, "progressive": True, "steps": [4, 4], "num_inference_steps": 4, "solver": "dpm++"}
TWO = Distillation(
    matched=True,
    shift=(1.5, 1.5),
    num_inference_steps=2,
    solver="euler",
    by_role={"source": FOUR},
    critic_updates=1,
    hold=0.5,
)
STAGE = Stage(
    name="two", steps=2, lr=3e-4, eps=1e-8, ema=0.0, text_weight=0.0, mixture={"t2i": 1.0, "image_edit": 1.0},
    source="world", pack_tokens=(400, 700), max_sample_tokens=700, dtype="float32", draws=1, distill=TWO,
)  # fmt: skip
PROMPTS = ("a red circle", "two blue stars", "a green square")


@pytest.fixture(scope="module")
def start(shallow, tmp_path_factory):
    """A start with distilled guidance, of a step."""
    stage = replace(STAGE, name="distill", steps=1, distill=Distillation())
    return run_stage(stage, Settings(out=tmp_path_factory.mktemp("start"), model=shallow))


@pytest.fixture(scope="module")
def pipe(start):
    return openlance.load(str(start))


def matching(pipe, stage=STAGE):
    encode = MediaEncoder(lambda _: pipe.parts.vit(), pipe.parts.vae)
    made = {"stage": stage, "codec": pipe.codec, "encode": encode, "device": pipe.device}
    few = pipe.parts.distilled()
    taught = Taught(**made, teacher=pipe.parts.lance("und", "gen"), defaults=pipe.defaults, distilled=few)
    return Matching(**made, taught=taught)


def asked(pipe, prompts=PROMPTS, stage=STAGE):
    samples = [Sample(text_to_visual(prompt, [], (1, 64, 64)), prompt) for prompt in prompts]
    [one] = matching(pipe, stage)(samples, 7).asked
    return one


def trainer(pipe, start, few=None):
    learner = Learner(few or pipe.parts.distilled(), pipe.parts.vit(), len(pipe.codec.tokenizer))
    return MatchTrainer(replace(STAGE, frozen=("vit", "lance.*und", "lance.embed", "lance.head")), learner, start)


def test_a_run_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(start, tmp_path):
    whole = run_stage(STAGE, Settings(out=tmp_path / "whole", model=start))
    run_stage(replace(STAGE, steps=1), Settings(out=tmp_path / "cut", model=start))
    cut = run_stage(STAGE, Settings(out=tmp_path / "cut", model=start))
    assert (whole / DISTILLED).read_bytes() == (cut / DISTILLED).read_bytes()
    assert (whole / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()
    before, after = load_file(start / DISTILLED), load_file(whole / DISTILLED)
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)
    few = openlance.load(str(whole)).defaults.distilled
    assert few["words"] == {"num_inference_steps": 2, "solver": "euler", "shift": 1.5}
    assert few["source"]["num_inference_steps"] == 4
    drawn = (tmp_path / "whole" / "curves.svg").read_text()
    assert all(f">{name}<" in drawn for name in ("flow loss", "critic loss", "apart")) and "text loss" not in drawn


def test_two_processes_do_what_one_does_with_two_packs(start, tmp_path, on_two_processes):
    stage = replace(STAGE, steps=1)
    run_stage(replace(stage, accumulate=2), Settings(out=tmp_path / "one", model=start))
    on_two_processes(lambda: run_stage(stage, Settings(out=tmp_path / "two", model=start)))
    one, two = (json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("one", "two"))
    for name in ("flow", "apart", "critic", "norm"):
        assert one[name] == pytest.approx(two[name], rel=1e-4), name


@pytest.mark.parametrize(("steps", "solver"), [(2, "euler"), (8, "dpm++")])
def test_what_learns_draws_what_the_folder_of_its_result_will(pipe, steps, solver):
    how = replace(TWO, num_inference_steps=steps, solver=solver)
    one = asked(pipe, stage=replace(STAGE, distill=how))
    requests = [text_to_visual(prompt, [], (1, 64, 64)) for prompt in PROMPTS]
    made = denoise(
        pipe.parts.lance("und", "gen"), pipe.codec, requests, one.few, noise=list(one.noise.split(one.lengths)),
        distilled=pipe.parts.distilled(),
    )  # fmt: skip
    with torch.no_grad():
        drawn = one.drawn(pipe.parts.distilled())
    torch.testing.assert_close(drawn, torch.cat([latents.flatten(0, 2) for latents in made]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("few_lead", [True, False])
def test_results_are_held_to_where_the_teacher_leads(pipe, few_lead):
    """That is the guided model, or the start's own few steps."""
    one = asked(pipe, stage=replace(STAGE, distill=replace(TWO, progressive=few_lead)))
    requests, noise = (
        [text_to_visual(prompt, [], (1, 64, 64)) for prompt in PROMPTS],
        list(one.noise.split(one.lengths)),
    )
    usual = guidance_of(pipe.defaults, requests[0], few_lead)
    assert usual.distilled == few_lead
    start, few = pipe.parts.lance("und", "gen"), pipe.parts.distilled()
    led = denoise(start, pipe.codec, requests, usual, noise=noise, distilled=few if few_lead else None)
    torch.testing.assert_close(one.ends, torch.cat([latents.flatten(0, 2) for latents in led]))
    free = replace(STAGE, distill=replace(TWO, hold=0.0))
    assert asked(pipe, stage=free).ends is None
    far = {}
    for hold in (0.0, 1e4):  # so large that nothing else matters
        copy = own_generation(few)
        run, held = trainer(pipe, start, copy), replace(one, hold=hold)
        run.update([Matched(ids=["a"], asked=[held], lesson=None, others=[], size=len(one.noise))])
        with torch.no_grad():
            far[hold] = float((one.drawn(copy) - one.ends).square().mean())
    assert far[1e4] < far[0.0]


class Still:
    """Steps that go nowhere, and remember which velocities they were given."""

    def __init__(self):
        self.seen = {}

    def step(self, x, velocity, t, _):
        self.seen[round(t, 3)] = velocity
        return x

    def restart(self):
        pass


def test_what_is_expected_is_where_guided_velocities_lead(pipe):
    """Each request at a time of its own, above and below the interval of guidance, in a pack as alone."""
    one, times = asked(pipe), torch.tensor([0.9, 0.4, 0.6])
    assert [one.guided.acts_at(t) for t in times.tolist()] == [True, False, True]
    x = torch.randn(one.noise.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = one.expected(x, times).split(one.lengths)
    for n, (prompt, t) in enumerate(zip(PROMPTS, times.tolist(), strict=True)):
        own, still = x.split(one.lengths)[n], Still()
        with torch.no_grad():
            alone = asked(pipe, (prompt,)).expected(own, times[n : n + 1])
            torch.testing.assert_close(alone, found[n], atol=1e-4, rtol=1e-4)
        how = replace(one.guided, num_inference_steps=10, shift=1.0)
        request = text_to_visual(prompt, [], (1, 64, 64))
        denoise(pipe.parts.lance("und", "gen"), pipe.codec, [request], how, noise=[own.clone()], solver=still)
        torch.testing.assert_close(own - t * still.seen[round(t, 3)], found[n], atol=1e-4, rtol=1e-4)


def test_nothing_moves_where_the_critic_and_the_model_expect_the_same(pipe):
    """At first the critic is the start, so only guidance moves results."""
    start = pipe.parts.lance("und", "gen")
    run, one = trainer(pipe, start), asked(pipe, 3 * PROMPTS)
    plain = replace(one, guided=replace(one.guided, interval=(0.99, 1.0)))
    clean = torch.randn(one.noise.shape, generator=torch.Generator().manual_seed(2))
    step, apart = run._moved(plain, clean, torch.Generator().manual_seed(3))
    assert float(step.abs().max()) < 1e-4 and apart < 1e-4
    step, apart = run._moved(one, clean, torch.Generator().manual_seed(3))
    assert float(step.abs().max()) > 1e-2 and apart > 1e-2


def test_an_update_moves_results_from_what_the_critic_to_what_the_guided_model_expects(pipe):
    few = own_generation(pipe.parts.distilled())
    run, one = trainer(pipe, pipe.parts.lance("und", "gen"), few), asked(pipe, 3 * PROMPTS)
    with torch.no_grad():
        before = one.drawn(few)
    generator = torch.Generator().manual_seed(one.seed)
    low, high = LEVELS
    times = low + (high - low) * torch.rand(len(one.lengths), generator=generator)
    with torch.no_grad():
        x = add_noise(before, torch.randn(before.shape, generator=generator), one.each(times))
        [velocity] = one.of(run.critic).velocities(x, one.each(times), 1)
        wanted = one.expected(x, times) - (x - one.each(times)[:, None] * velocity)
    done = run.update([Matched(ids=["a"], asked=[one], lesson=None, others=[], size=len(before))])
    assert done.finite and run.step == 1
    with torch.no_grad():
        moved = one.drawn(few) - before
    assert torch.nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.1


def test_the_critic_learns_what_is_drawn_and_nothing_else_does(pipe):
    start = pipe.parts.lance("und", "gen")
    run, one = trainer(pipe, start), asked(pipe)
    before = {n: p.clone() for n, p in start.named_parameters()}
    with torch.no_grad():
        clean = one.drawn(pipe.parts.distilled())

    def loss():
        with torch.no_grad():
            return float(run._seen(one, clean, torch.Generator().manual_seed(5)).sum())

    first = loss()
    for _ in range(8):
        _, finite = run._critical([one], [clean], [torch.Generator().manual_seed(5)], float(one.moves.sum()))
        assert finite
        run.critic_optimizer.step(6e-4)
        run.critic_optimizer.zero_grad()
    assert loss() < 0.9 * first
    assert all(torch.equal(p, before[n]) for n, p in start.named_parameters())


def test_given_cells_stay_as_they_are(pipe):
    shown = as_clip(pipe.generate("a red circle", seed=1, distilled=False)[0])
    sample = Sample(image_to_video("the circle moves up", [Views(shown, shown)], (9, 64, 64)), "moving")
    [one] = matching(pipe)([sample], 1).asked
    given = ~one.moves
    assert 0 < int(given.sum()) < len(given)
    drawn = one.drawn(pipe.parts.distilled())
    assert torch.equal(drawn[given], one.noise[given])
    run = trainer(pipe, pipe.parts.lance("und", "gen"))
    step, _ = run._moved(one, drawn.detach(), torch.Generator().manual_seed(1))
    assert not step[given].any() and step[one.moves].any()


def test_steps_of_several_shifts_cannot_be_matched():
    with pytest.raises(UserError, match="one shift"):
        Distillation(matched=True)
    with pytest.raises(UserError, match="critic_lr"):
        Distillation(critic_lr=0.0)


def test_the_recipe_of_nano_teaches_the_steps_that_its_result_takes():
    """What requests of each of its tasks hold decides both, also where they hold a region alone."""
    [stage] = recipe("nano-distill-2")
    said = sampled(GenerationConfig.read(folder_of("nano")), stage)["distilled"]
    assert said.keys() == {"words", "source", "reference", "region"}
    for name in said:
        how = stage.distill.of(["prompt", "target"] if name == "words" else ["prompt", name, "target"])
        assert how.num_inference_steps == said[name]["num_inference_steps"] and how.solver == said[name]["solver"]
        assert how.matched == (name == "words")


def test_rewards_do_not_teach_matched_steps_again(start, tmp_path):
    whole = run_stage(replace(STAGE, steps=1), Settings(out=tmp_path / "two", model=start))
    how = Rewarding(rewards={"redness": 1.0}, objective="nft", group=2, supervised=0.5)
    stage = replace(STAGE, distill=None, rl=how, frozen=UNDERSTANDING)
    with pytest.raises(UserError, match="rl.supervised"):
        run_stage(stage, Settings(out=tmp_path / "run", model=whole))


def test_steps_at_which_guidance_does_not_act_cannot_be_matched(start, tmp_path):
    folder = shutil.copytree(start, tmp_path / "start")
    said = json.loads((folder / "generation_config.json").read_text())
    said["sampling"]["interval"] = [0.1, 0.5]
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="begin at 1, 0.6, and guidance acts from time 0.5"):
        run_stage(STAGE, Settings(out=tmp_path / "run", model=folder))
    assert not (tmp_path / "run").exists()


def test_what_older_versions_wrote_of_a_distillation_is_passed_over():
    four = {"within": 1, "steps": [4, 4]}
    said = {"progressive": True, "within": 3, "on_policy": True, "by_role": {"source": four}}
    how = taught_before(replace(GenerationConfig(), distillation=said))
    assert how.progressive and how.of(["source"]).steps == (4, 4)
