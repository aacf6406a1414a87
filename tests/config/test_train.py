"""Stages as data: the paper's numbers, and files and overrides that say exactly what is wrong with them."""

from pathlib import Path

import pytest

from openlance.config.train import (
    CHOICES,
    Resolution,
    Stage,
    changed,
    dump,
    presets,
    read_recipe,
    read_stage,
    recipe,
    stage,
)
from openlance.config.values import differences, override

ALL = [one for scale in ("3b", "nano") for one in recipe(scale)]


def small(**fields) -> Stage:
    numbers = {
        "name": "a",
        "steps": 10,
        "lr": 1.0,
        "mixture": {"t2i": 1},
        "pack_tokens": (5, 9),
        "max_sample_tokens": 9,
    }
    return Stage(**numbers | fields)


@pytest.mark.parametrize(
    "name, lr, schedule, warmup, text, shift, pack, longest, tokens, sides, understood",
    [
        ("pt", 1e-4, "constant", 2500, 0.25, 1.0, (44_000, 50_000), 40_000, 1.5e12, (192, 848), (168, 826)),
        ("ct-i", 1e-4, "constant", 2500, 0.5, 4.0, (74_000, 80_000), 70_000, 1e11, (480, 848), (462, 826)),
        ("ct-ii", 1e-4, "constant", 2500, 0.5, 4.0, (74_000, 80_000), 70_000, 1e11, (480, 848), (462, 826)),
        ("ct-iii", 1e-4, "constant", 2500, 0.5, 4.0, (74_000, 80_000), 70_000, 1e11, (480, 848), (462, 826)),
        ("sft", 2.5e-5, "cosine", 500, 0.25, 4.0, (74_000, 80_000), 70_000, 7.2e10, (480, 848), (462, 826)),
        ("rl", 2e-6, "constant", 50, 0.0, 4.0, (74_000, 80_000), 70_000, 5e8, (480, 848), (462, 826)),
    ],
)
def test_the_table_of_the_paper(name, lr, schedule, warmup, text, shift, pack, longest, tokens, sides, understood):
    s = stage(name)
    assert (s.lr, s.schedule, s.warmup, s.text_weight, s.shift) == (lr, schedule, warmup, text, shift)
    assert (s.pack_tokens, s.max_sample_tokens, s.paper_tokens) == (pack, longest, tokens)
    assert (s.sides, s.understood_sides) == (sides, understood)
    assert (s.optimizer, s.betas, s.eps, s.weight_decay, s.max_norm) == ("adamw", (0.9, 0.95), 1e-15, 0.0, 1.0)
    assert s.freezes("vit.tower.blocks.0.attn.qkv.weight")
    assert s.freezes("lance.layers.0.und.q.weight") == (name == "rl")  # which is ours, the paper does not say


def test_steps_of_the_paper():
    assert [stage(name).steps for name in ("pt", "sft", "rl")] == [350_000, 15_000, 800]
    assert sum(stage(name).steps for name in ("ct-i", "ct-ii", "ct-iii")) == 80_000


@pytest.mark.parametrize(
    "name, images, videos",
    [
        ("pt", (100, 0, 0), (100, 0, 0, 0)),
        ("ct-i", (70, 15, 15), (60, 10, 15, 15)),
        ("ct-ii", (60, 20, 20), (40, 20, 20, 20)),
        ("ct-iii", (50, 25, 25), (25, 25, 25, 25)),
        ("sft", (60, 20, 20), (60, 10, 15, 15)),
    ],
)
def test_the_mixtures_of_the_paper(name, images, videos):
    wanted = {"x2t_video": 16.0, "x2t_image": 4.0}
    wanted |= {task: 0.16 * n for task, n in zip(("t2i", "image_edit", "image_idip"), images) if n}
    wanted |= {task: 0.64 * n for task, n in zip(("t2v", "i2v", "video_edit", "video_idip"), videos) if n}
    assert stage(name).mixture == pytest.approx(wanted)


def test_dropouts_and_curriculum_of_the_paper():
    assert (stage("pt").drop_text, stage("pt").drop_all) == (0.1, 0.0)
    assert {(stage(n).drop_text, stage(n).drop_all) for n in ("ct-i", "ct-ii", "ct-iii", "sft")} == {(0.05, 0.05)}
    pt = stage("pt")
    assert [pt.resolution(step).video[0] for step in (0, 150_000, 349_999)] == [256, 480, 640]


@pytest.mark.parametrize("one", ALL, ids=lambda s: f"{s.scale}/{s.name}")
def test_a_dumped_stage_reads_back_the_same(one, tmp_path):
    (tmp_path / "stage.yaml").write_text(dump(one))
    assert read_stage(tmp_path / "stage.yaml") == one


def test_names_are_read_as_people_write_them():
    assert stage("CT3") == stage("ct_iii") == stage("CT-III")
    assert recipe("recipe/nano") == recipe("nano") and {"3b", "nano", "nano-rl"} <= set(presets())


def test_the_rate_warms_up_and_falls():
    s = small(steps=110, warmup=10, schedule="cosine", lr_end=0.1)
    assert s.rate(0) == 0.1 and s.rate(9) == s.rate(10) == 1.0
    assert s.rate(60) == pytest.approx(0.55) and s.rate(110) == s.rate(500) == pytest.approx(0.1)
    assert small(schedule="constant").rate(9) == 1.0


def test_freezing_by_the_beginning_of_a_name_or_by_pattern():
    s = small(frozen=("vit", "lance.layers.*.und"))
    assert s.freezes("vit.tower.merger.ln_q.weight") and s.freezes("lance.layers.11.und.q.weight")
    assert not s.freezes("lance.layers.1.gen.q.weight") and not s.freezes("lance.norm.und.weight")


def test_a_file_begins_with_a_preset_and_changes_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: 3b/sft\nname: mine\nlr: 3e-5\nsteps: 2e3\nfrozen: vit\nmixture: {image_edit: 1}\n")
    wanted = {"name", "lr", "steps", "paper_tokens", "frozen", *(f"mixture.{task}" for task in stage("sft").mixture)}
    assert set(differences(stage("sft"), read_stage(path))) == wanted
    assert (read_stage(path).lr, read_stage(path).steps) == (3e-5, 2000)
    path.write_text("stages:\n  - {base: nano/pt, steps: 5}\n  - {base: pt, name: more}\n")
    assert [(s.name, s.steps) for s in read_recipe(path)] == [("pt", 5), ("more", 5)]
    assert read_stage(path, "more").steps == 5


def test_fields_beside_the_stages_of_a_file_are_of_all_and_other_steps_are_not_the_papers(tmp_path):
    path = tmp_path / "mine.yaml"
    entries = ("{base: 3b/pt, lr: 2e-5}", "{base: pt, name: more, steps: 9}", "base: 3b/sft")
    path.write_text("seed: 7\nlr: 3e-5\nstages:\n" + "".join(f"- {entry}\n" for entry in entries))
    one, two, three = read_recipe(path)
    assert [s.seed for s in (one, two, three)] == [7] * 3 and [s.lr for s in (one, two, three)] == [2e-5, 2e-5, 3e-5]
    assert one.paper_tokens == stage("pt").paper_tokens
    assert changed(stage("pt"), ["steps=9"]).paper_tokens == 0 and changed(stage("pt"), ["lr=1"]).paper_tokens > 0
    path.write_text("{base: 3b/pt, steps: 9}")
    assert read_stage(path).paper_tokens == 0


def test_overrides_reach_every_field():
    settings = ["lr=3e-5", "mixture.t2v=10", "betas.1=0.99", "resolutions.0.video=[320,308]", "checkpointing=no"]
    s = override(stage("ct-i"), settings)
    assert (s.lr, s.mixture["t2v"], s.betas, s.checkpointing) == (3e-5, 10.0, (0.9, 0.99), False)
    assert s.resolutions == (Resolution(image=(768, 672), video=(320, 308)),)
    assert override(stage("ct-i"), []) == stage("ct-i")


@pytest.mark.parametrize(
    "setting, said",
    [
        ("lrr=1", "'lrr': use 'lr'"),
        ("resolutions.0.vidoe=[1,2]", "'resolutions.0.vidoe': use 'video'"),
        ("lr=fast", "lr is 'fast': expected a number"),
        ("steps=1.5", "steps is 1.5: expected a whole number"),
        ("lr=.nan", "lr is nan: expected a number"),
        ("checkpointing=3", "checkpointing is 3: expected true or false"),
        ("pack_tokens=[1]", "pack_tokens has 1 values: expected 2"),
        ("betas.7=1", "entries 0 to 1"),
        ("lr.x=1", "single value"),
        ("lr", "field=value"),
        ("lr=[", "not YAML"),
        ("lr=2024-13-45", "not YAML"),
        ("schedule=cosin", "expected one of constant, cosine"),
        ("mixture={}", "at least one is above 0"),
        ("mixture.t2v=-1", "mixture.t2v of the stage ct-i is -1"),
        ("drop_all=1.2", "drop_all of the stage ct-i is 1.2"),
        ("max_sample_tokens=90000", "at most the pack's 80000 tokens"),
        ("resolutions.0.until=0.5", "the last 1"),
    ],
)
def test_an_override_that_does_not_fit_names_its_field(setting, said):
    with pytest.raises(ValueError) as error:
        override(stage("ct-i"), [setting])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("lr: 1\n", "lacks name, steps"),
        ("- 1\n", "holds list"),
        ("a: [\n", "not YAML (line 2"),
        ("stages: []\n", "expected a list of stages"),
        ("base: 3b/sfft\n", "use 'sft'"),
        ("base: 4b/sft\n", "use '3b'"),
        ("base: 3b/sft\nlrr: 1\n", "use 'lr'"),
        ("stages: [{base: nano/pt}, {base: nano/sft}]\n", "say which"),
    ],
)
def test_a_file_that_does_not_fit_says_where(text, said, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_stage(path)
    assert said in str(error.value)


@pytest.mark.parametrize("field", CHOICES)
def test_choices_are_closed(field):
    with pytest.raises(ValueError):
        small(**{field: "other"})


def test_the_table_of_the_docs_is_the_data():
    docs = (Path(__file__).parents[2] / "docs" / "howto" / "stages.md").read_text(encoding="utf-8")
    stages = recipe("3b")
    for name in ("lr", "schedule", "warmup", "steps", "text_weight", "shift", "pack_tokens", "drop_text", "drop_all"):
        assert f"| {name} | {' | '.join(cell(getattr(s, name)) for s in stages)} |" in docs
    for task in {task for s in stages for task in s.mixture}:
        assert f"| {task} | {' | '.join(cell(s.mixture.get(task, '-')) for s in stages)} |" in docs


def cell(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, float):
        return f"{value:g}" if value >= 1e-3 or not value else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return str(value)
