"""Few steps by distribution matching, on a nano of few layers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from measured import PeakMemory
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import openlance
from openlance.checkpoint.formats import find_model
from openlance.cli.main import main
from openlance.config.sampling import DISTILLED, GenerationConfig
from openlance.config.train import UNDERSTANDING, Distillation, Resolution, Rewarding, Stage, recipe
from openlance.config.train import stage as preset
from openlance.data.front import Fit
from openlance.data.open import open_source
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.flow import add_noise
from openlance.inference.visual import denoise
from openlance.media.inputs import as_clip
from openlance.model.lance import is_generation, own_generation
from openlance.planning.lessons import critic_loads, lesson_loads, lesson_operations
from openlance.planning.memory import activations
from openlance.planning.size import tower_operations
from openlance.planning.workload import asked as asked_for
from openlance.planning.workload import packed
from openlance.runtime.media_encoder import MediaEncoder
from openlance.sequence.segment import prompt_in
from openlance.sequence.tasks import Views, image_to_video, text_to_visual
from openlance.training.distillation import Taught, emptied, guidance_of, sampled, taught_before
from openlance.training.files import Settings
from openlance.training.learner import Learner
from openlance.training.matching import LEVELS, Matched, Matching, MatchTrainer
from openlance.training.results import Drawer, ResultSettings
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


def trainer(pipe, start, few=None, **how):
    learner = Learner(few or pipe.parts.distilled(), pipe.parts.vit(), len(pipe.codec.tokenizer))
    stage = replace(STAGE, frozen=("vit", "lance.*und", "lance.embed", "lance.head"), **how)
    return MatchTrainer(stage, learner, start)


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


def test_gradients_are_the_same_to_the_last_bit_on_several_threads(pipe):
    one, copy = asked(pipe), own_generation(pipe.parts.distilled())
    names = [name for name, _ in copy.named_parameters() if is_generation(name)]
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            values = [p.requires_grad_() for name, p in copy.named_parameters() if name in names]
            found.append(torch.autograd.grad(one.drawn(copy).square().mean(), values))
    finally:
        torch.set_num_threads(threads)
    assert not [n for other in found[1:] for n, *both in zip(names, found[0], other) if not torch.equal(*both)]


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
    ends = torch.cat([latents.flatten(0, 2) for latents in led])
    torch.testing.assert_close(one.held[0], ends)
    free = replace(STAGE, distill=replace(TWO, hold=0.0))
    assert asked(pipe, stage=free).held is None
    far = {}
    for hold in (0.0, 1e4):  # so large that nothing else matters
        copy = own_generation(few)
        run, held = trainer(pipe, start, copy), replace(one, held=(ends, torch.full((len(ends),), hold)))
        run.update([Matched(ids=["a"], asked=[held], lesson=None, others=[], size=len(one.noise))])
        with torch.no_grad():
            far[hold] = float((one.drawn(copy) - ends).square().mean())
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
    said = sampled(find_model("nano").defaults, stage)["distilled"]
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


REWARD = """
def score(prompt, image):
    return float(len(prompt) % 2)
"""


@pytest.fixture(scope="module")
def drawn(start, tmp_path_factory):
    """Shards of 24 requests of the world, of which a reward refuses some."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "reward.py").write_text(REWARD)
    said = ["encode", "world", "-o", str(folder / "results"), "--model", str(start), "--samples", "24", "--drawn"]
    main([*said, "--rewards", f"{folder}/reward.py:score", "--shard-rows", "10"])
    return folder / "results"


def read(folder, task="t2i"):
    source = open_source(folder, task)
    return [source.sample(row, Fit(), None) for part in source.parts(0, None) for row in source.rows(part)]


def test_results_are_what_the_guided_model_draws_of_their_seeds(pipe, drawn):
    samples = read(drawn)
    kept = [s for s in samples if s.segments[-1].value is not None]
    assert len(samples) == 24 and 0 < len(kept) < 24 and len({s.seed for s in samples}) == 24
    some = [emptied(s.segments) for s in kept[:3]]
    led = denoise(
        pipe.parts.lance("und", "gen"), pipe.codec, some, guidance_of(pipe.defaults, some[0]),
        seeds=[s.seed for s in kept[:3]],
    )  # fmt: skip
    for sample, latents in zip(kept, led):
        torch.testing.assert_close(sample.segments[-1].value, latents, atol=0.05, rtol=0.05)  # half precision


def test_matched_results_are_held_to_what_was_drawn_and_not_refused(pipe, drawn):
    samples = [*read(drawn)[:6], Sample(text_to_visual("a red circle", [], (1, 64, 64)), "now")]
    [one] = matching(pipe)(samples, 7).asked
    ends, weights = one.held
    led = denoise(
        pipe.parts.lance("und", "gen"), pipe.codec, [emptied(s.segments) for s in samples], one.guided,
        noise=list(one.noise.split(one.lengths)),
    )  # fmt: skip
    [again] = matching(pipe)(samples, 8).asked
    both = zip(samples, one.noise.split(one.lengths), again.noise.split(one.lengths), strict=True)
    kept = [s.seed is not None and s.segments[-1].value is not None for s in samples]
    assert [torch.equal(first, second) for _, first, second in both] == kept  # others begin with other noise each time
    for sample, end, weight, now in zip(samples, ends.split(one.lengths), weights.split(one.lengths), led):
        wanted = sample.seed is None or sample.segments[-1].value is not None
        assert torch.equal(weight, torch.full_like(weight, TWO.hold if wanted else 0.0))
        if wanted:
            torch.testing.assert_close(end, now.flatten(0, 2), atol=0.05, rtol=0.05)
    assert {float(w[0]) for w in weights.split(one.lengths)} == {0.0, TWO.hold}


def test_a_stage_learns_from_them(start, drawn, tmp_path):
    alone = replace(STAGE, steps=1, mixture={"t2i": 1.0})
    made = run_stage(alone, Settings(out=tmp_path / "run", model=start, data={"t2i": str(drawn)}))
    assert openlance.load(str(made)).defaults.distilled["words"]["num_inference_steps"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distill": None}, "rewards refused it"),
        ({"distill": replace(TWO, progressive=True)}, "the start's few steps lead"),
        ({}, "another model, or other guidance"),
    ],
)
def test_a_stage_refuses_what_was_drawn_for_another(changes, said, start, drawn, tmp_path):
    shutil.copytree(start, tmp_path / "model")
    if not changes:
        path = tmp_path / "model" / "generation_config.json"
        path.write_text(path.read_text().replace('"guidance_scale": 4.0', '"guidance_scale": 3.0'))
    stage = replace(STAGE, steps=1, mixture={"t2i": 1.0}, **changes)
    with pytest.raises(UserError, match=said):
        run_stage(stage, Settings(out=tmp_path / "run", model=tmp_path / "model", data={"t2i": str(drawn)}))
    assert not (tmp_path / "run").exists()


def test_prompts_of_a_file_are_drawn(start, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\nthree blue stars\n")
    command = ["encode", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out"), "--model", str(start), "--drawn"]
    assert main(command) == 0
    assert [prompt_in(s.segments) for s in read(tmp_path / "out")] == ["a red circle", "three blue stars"]
    assert all(s.segments[-1].value.shape == (1, 8, 8, 16) for s in read(tmp_path / "out"))


def test_a_request_that_a_reward_cannot_judge_is_a_broken_row(start, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text('the text "A7"\na star\na ring\n')
    command = ["encode", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out"), "--model", str(start), "--drawn"]
    command += ["--rewards", "ocr"]
    assert main(command) == 2 and "prompts.txt, prompt 3: " in capsys.readouterr().err
    assert main([*command, "--max-broken", "2"]) == 0 and "2 rows skipped" in capsys.readouterr().out
    assert len(read(tmp_path / "out")) == 1


def test_edits_are_drawn_after_what_is_edited(pipe):
    source = open_source("world", "image_edit").drawn(3, 5)
    fit = Fit.at(preset("sft", "nano"), 0, pipe.config, pipe.defaults.style)
    samples = [source.sample(row, fit, None) for row in source.rows(source.parts(0, None)[0])]
    for s in Drawer(pipe, ResultSettings(rewards="world=letters", threshold=0.0, rows=64))(samples):
        assert s.segments[-1].value.shape == (1, *(side // 8 for side in s.segments[-1].size[1:]), 16)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (["--rewards", "ocr"], "rewards judge what is drawn"),
        (["--drawn", "--task", "x2t_image"], "makes a text"),
        (["--drawn", "--rewards", "beauty"], "beauty"),
        (["--drawn", "--threshold", "0.5"], "a threshold is one of rewards"),
        (["--drawn", "--rewards", "REWARD"], "the reward reward.score raised ZeroDivisionError"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence_and_leaves_nothing(how, said, start, tmp_path, capsys):
    (tmp_path / "reward.py").write_text("def score(prompt, image):\n    return 1 / 0\n")
    how = [f"{tmp_path}/reward.py:score" if one == "REWARD" else one for one in how]
    command = ["encode", "world", "-o", str(tmp_path / "out"), "--model", str(start), "--samples", "4", *how]
    assert main(command) == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()


GUIDED = {"matched": False, "steps": [8, 8], "shift": [2.0, 2.0], "by_role": {}}


def planned(pipe, task, draws=1, **how):
    """A stage of one task, four of its samples, their resolution and their rows."""
    whole = Resolution(image=(64, 64), video=(64, 64))
    stage = replace(
        STAGE, scale="nano", mixture={task: 1.0}, resolutions=(whole,), draws=draws, distill=replace(TWO, **how),
        pack_tokens=(4000, 8000), max_sample_tokens=2000, max_frames=9,
    )  # fmt: skip
    source, fit = open_source("world", task).drawn(4, 5), Fit.at(stage, 0, pipe.config, pipe.defaults.style)
    samples = [source.sample(row, fit, None) for row in source.rows(source.parts(0, None)[0])]
    return stage, samples, whole, 4 * asked_for(task, stage, pipe.config, whole).sample


@pytest.mark.parametrize(
    ("task", "how", "draws"),
    [
        ("t2i", {"hold": 0.0}, 1), ("t2i", {"critic_updates": 3, "num_inference_steps": 5}, 1),
        ("t2i", {"progressive": True}, 1), ("t2i", GUIDED, 2), ("image_edit", {}, 1), ("image_edit", {}, 3),
        ("image_edit", GUIDED, 2), ("image_edit", {"by_role": {}}, 1), ("outpaint", GUIDED, 1),
        ("i2v", GUIDED, 1),
    ],
)  # fmt: skip
def test_planned_operations_are_those_of_an_update(pipe, task, how, draws):
    """Of the teacher's passes, what learns and the critic; a plan counts as much for weights that need no gradient, and
    for the last layer of what comes before, of which keys and values are enough."""
    stage, samples, whole, rows = planned(pipe, task, draws, **how)
    run = trainer(pipe, pipe.parts.lance("und", "gen"), own_generation(pipe.parts.distilled()))
    run.how = stage.distill
    with FlopCounterMode(display=False) as counter:
        run.update([matching(pipe, stage)(samples, 3)])
    count = sum(lesson_operations(stage, pipe.config, whole, rows, pipe.defaults).values())
    count += tower_operations(pipe.config.vit, packed(stage, pipe.config, whole, rows).patches)
    assert count == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.mark.parametrize(("steps", "recomputes"), [(1, False), (2, False), (4, False), (4, True)])
def test_planned_memory_of_results_is_that_of_all_their_steps(start, steps, recomputes):
    """Of those too at which guidance does not act, which the start takes."""
    pipe = openlance.load(str(start))
    stage, samples, whole, rows = planned(pipe, "t2i", num_inference_steps=steps, hold=0.0)
    [one] = matching(pipe, stage)(samples, 3).asked
    few = own_generation(pipe.parts.distilled())
    run = trainer(pipe, pipe.parts.lance("und", "gen").requires_grad_(False), few, checkpointing=recomputes)
    [(load, passes)] = lesson_loads(stage, pipe.config, whole, rows)
    with PeakMemory() as memory:
        clean = one.drawn(run.learner.lance)
        held = memory.now
        clean.sum().backward()
    counted = activations(pipe.config, load, "float32", passes=passes)
    assert counted.kept(recomputes) == pytest.approx(held, rel=0.15)
    live = 4 * sum(p.numel() for p in few.parameters() if p.requires_grad)
    assert counted.peak(recomputes, live) == pytest.approx(memory.peak, rel=0.15)


def test_planned_memory_of_the_critic_is_that_of_a_real_update(pipe):
    """Both gradients, of what draws and of the critic, are there at once."""
    stage, samples, whole, rows = planned(pipe, "t2i", hold=0.0)
    [one] = matching(pipe, stage)(samples, 3).asked
    run = trainer(pipe, pipe.parts.lance("und", "gen"), own_generation(pipe.parts.distilled()))
    with torch.no_grad():
        clean = one.drawn(run.learner.lance)
    live = 4 * sum(p.numel() for name, p in run.critic.named_parameters() if is_generation(name))
    with PeakMemory() as memory:
        run._critical([one], [clean], [torch.Generator().manual_seed(5)], float(one.moves.sum()))
    [load] = critic_loads(stage, pipe.config, whole, rows)
    counted = activations(pipe.config, load, "float32").peak(False, live)
    assert counted == pytest.approx(memory.peak, rel=0.15)
