"""The whole recipe of nano at its smallest: every stage runs, what comes out is a model that can be loaded."""

from openlance.data.world import WorldMixture
from openlance.train.codec import CodecRecipe
from openlance.train.nano import recipe, train_nano, world_tokenizer
from openlance.train.recipe import Phase, Recipe

SMALL = CodecRecipe(joint_steps=2, decoder_steps=1, batch=2, other_sizes=((64, 64),), save_every=2)


def plan(steps: int) -> Recipe:
    return Recipe(phases=(Phase(name="joint", steps=steps, mixture=WorldMixture(drawn=1, asked=1, questions=1)),))


def test_training_leaves_a_folder_that_draws_and_answers_and_goes_on_where_it_was(tmp_path):
    import openlance

    world_tokenizer(batches=10).backend.save(str(tmp_path / "tokenizer.json"))
    seen = []
    folder = train_nano(tmp_path, plan=plan(1), codec_plan=SMALL, compiled=False, show=seen.append)
    assert seen == [folder]
    pipe = openlance.load(str(folder))
    picture = pipe.generate("a red circle", seed=0, num_inference_steps=2)[0]
    assert picture.size == (64, 64)
    assert isinstance(pipe.ask(picture, "what color is the circle?", max_new_tokens=3), str)
    train_nano(tmp_path, plan=plan(2), codec_plan=SMALL, compiled=False)
    steps = [line.split('"step": ')[1].split(",")[0] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == ["1", "2"]


def test_the_shipped_recipe_widens_placement_and_ends_slowly():
    phases = recipe().phases
    assert phases[0].mixture.drawn == 0 and all(p.mixture.drawn for p in phases[1:])
    widest = [p.at(s).spread[1] for p in phases[1:] for s in (0, p.steps - 1)]
    assert widest == sorted(widest) and widest[-1] == 1.0
    assert phases[-1].rate(phases[-1].steps) < 0.05 * phases[-1].rate(0)
