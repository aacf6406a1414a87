"""The whole recipe of nano at its smallest: every part runs, what comes out is a model that can be loaded, and a second
call goes on where the first one was."""

import json
from dataclasses import replace

import pytest

from openlance.config.model import nano_vae
from openlance.config.train import recipe
from openlance.training.files import Settings
from openlance.training.run import replay_step
from toyworld.nano import train_nano, world_tokenizer
from toyworld.vae.pictures import VAERecipe

SMALL = VAERecipe(
    vae=replace(nano_vae(), dim=8, dec_dim=8), joint_steps=2, decoder_steps=1, batch=2, other_sizes=(), save_every=2,
    statistics_batches=1,
)  # fmt: skip


def stages(steps: int):
    """Two stages that share weights: questions, then pictures too."""
    first, last = recipe("nano")[0], recipe("nano")[-1]
    small = {"pack_tokens": (300, 900), "max_sample_tokens": 900, "dtype": "float32"}
    return (
        replace(first, steps=1, mixture={"x2t_image": 1}, **small),
        replace(last, steps=steps, mixture={"x2t_image": 1, "t2i": 1}, **small),
    )


def test_training_leaves_a_folder_that_draws_and_answers_and_goes_on_where_it_was(tmp_path):
    import openlance

    (tmp_path / "foundation").mkdir()
    world_tokenizer(batches=10).backend.save(str(tmp_path / "foundation" / "tokenizer.json"))
    seen, settings = [], Settings(out=tmp_path, model=tmp_path, save_every=1)
    folder = train_nano(tmp_path, stages=stages(1), vae_recipe=SMALL, settings=settings, show=seen.append)
    assert seen == [folder] and (tmp_path / "curves.svg").is_file()
    pipe = openlance.load(str(folder))
    picture = pipe.generate("a red circle", seed=0, num_inference_steps=2)[0]
    assert picture.size == (64, 64)
    assert isinstance(pipe.ask(picture, "what color is the circle?", max_new_tokens=3), str)
    train_nano(tmp_path, stages=stages(2), vae_recipe=SMALL, settings=settings)
    logs = [tmp_path / f"{name}" / "log.jsonl" for name in ("1-pt", "2-sft-iii")]
    steps = [[json.loads(line)["step"] for line in log.read_text().splitlines()] for log in logs]
    assert steps == [[1], [1, 2]]
    logged = json.loads(logs[1].read_text().splitlines()[1])
    again = replay_step(tmp_path / "2-sft-iii", 1)  # what this stage freezes comes from the stage before
    assert again["flow"] == pytest.approx(logged["flow"], rel=1e-4) and again["samples"]


def test_the_shipped_recipe_widens_placement_first_and_ends_slowly():
    first, *_, last = recipe("nano")
    assert first.spread[0] < first.spread[1] == 1.0
    assert last.rate(last.steps) < 0.05 * last.rate(last.warmup)
