"""A model that looks at its results: what words name, what follows from them, and drawing again by its answers."""

import time

import numpy as np
import pytest
import torch

import openlance
from openlance.errors import UserError
from openlance.inference import checking
from openlance.inference.checking import Fact, draw_seed, facts_of, judged, listed, shown
from openlance.inference.dialogue import Dialogue
from openlance.media.clip import Clip
from openlance.sequence import tasks
from openlance.text.instructions import change_of
from openlance.text.phrases import read

SMALL = {"height": 16, "width": 16, "num_inference_steps": 1}
BEFORE = read("a red circle, two small blue stars and a green ring on a black background")


@pytest.fixture(scope="module")
def nano():
    return openlance.load("nano")


def said(things):
    return [(t.count, t.said) for t in things]


@pytest.mark.parametrize("text, things, ground", [
    ("a red circle", [(1, "red circle")], ""),
    ("There are two small red circles on a white background.", [(2, "small red circles")], "white"),
    ("I would like a hollow gray cross", [(1, "outlined grey cross")], ""),
    ("please draw me an old wooden boat, 3 gulls and a lighthouse", [(1, "old wooden boat"), (3, "gulls"),
                                                                       (1, "lighthouse")], ""),
    ('the text "A7" on blue', [], "blue"),
])  # fmt: skip
def test_words_name_things(text, things, ground):
    reading = read(text)
    assert said(reading.things) == things and reading.ground == ground


def test_words_place_things_and_set_them_beside_each_other():
    (relation,) = read("a cat to the left of a dog").relations
    assert (relation.a.said, relation.side, relation.b.said) == ("cat", "left", "dog")
    (relation,) = read("a green cross, and to the right of it a white circle").relations
    assert (relation.a.said, relation.side, relation.b.said) == ("white circle", "right", "green cross")
    (place,) = read("a star in the upper left corner").places
    assert (place.thing.said, place.down, place.across) == ("star", "top", "left")
    assert read('the words "GO" and “STOP”').texts == ("GO", "STOP")
    moves = read("a red circle moves to the left while a star stays still")
    assert [t.does for t in moves.things] == ["left", "still"]


@pytest.mark.parametrize("instruction, named, new, stay", [
    ("make the red circle blue", ["red circle"], ["blue circle"], 2),
    ("Remove the stars.", ["small blue stars"], [], 2),
    ("replace the ring with a large yellow cross", ["green ring"], ["large yellow cross"], 2),
    ("turn the red circle into a square", ["red circle"], ["red square"], 2),
    ("please make the ring bigger", ["green ring"], ["large ring"], 2),
    ("put stripes on the ring", ["green ring"], ["striped ring"], 2),
    ("add a white square above the ring", [], ["white square"], 3),
    ("move the ring to the left", ["green ring"], ["green ring"], 2),
    ("make it darker", [], [], 3),
    ("put a yellow cross in place of the ring", ["green ring"], ["yellow cross"], 2),
    ("replace the ring with two crosses", ["green ring"], ["crosses"], 2),
    ("turn the red circle into a blue square", ["red circle"], ["blue square"], 2),
    ("make the ring and the red circle medium sized", ["green ring", "red circle"], ["medium ring", "medium circle"],
     1),
    ("remove everything but the ring", ["red circle", "small blue stars"], [], 1),
    ("make the objects striped", ["red circle", "small blue stars", "green ring"],
     ["striped circle", "striped stars", "striped ring"], 0),
    ("blur the ring", ["green ring"], [], 2),
    ("make the ring darker", ["green ring"], [], 2),
    ("make the ring as large as the red circle", ["green ring"], [], 1),
    ("make the ring blue and the stars red", ["green ring"], [], 1),
    ("make the red circle move up", ["red circle"], ["red circle"], 2),
])  # fmt: skip
def test_instructions_name_what_changes_and_what_stays(instruction, named, new, stay):
    change = change_of(instruction, BEFORE)
    found = ([t.said for t in change.named], [t.said for t in change.new], len(change.stay))
    assert found == (named, new, stay)


@pytest.mark.parametrize("instruction, does", [
    ("make the star move up", "up"), ("let the star go to the left", "left"), ("stop the star", "still"),
    ("reverse the motion of the star", "left"), ("make the star do the opposite", "left"),
    ("make it get bigger", "grows"), ("make the star red", "right"),
    ("turn the star into a ring", "right"), ("replace it with a ring", "right"),
])  # fmt: skip
def test_things_go_on_moving_unless_told_otherwise(instruction, does):
    assert [t.does for t in change_of(instruction, read("a blue star moving right")).new] == [does]


@pytest.mark.parametrize(
    "instruction", ["invert it", "make it darker", "make it a negative", "make it black and white"]
)
def test_what_changes_everything_is_not_the_look_of_the_only_thing(instruction):
    facts = checking.changed(change_of(instruction, read("a green cross on a black background")), {})
    asked = ["how many crosses are there?", "is there a cross?", "how many objects are there?", "locate the cross"]
    assert [fact.question for fact in facts] == asked


def test_phrases_that_fit_several_things_count_them_all():
    facts = shown(read("a circle and a small red circle"))
    told = {fact.question: fact.answer for fact in facts}
    assert told["how many circles are there?"] == "2" and told["how many small red circles are there?"] == "1"
    change = change_of("shrink the red ring", read("a red ring, a small ring and a star"))
    facts = checking.changed(change, {"small ring": (0.5, 0.5), "star": (0.2, 0.2), "red ring": (0.8, 0.8)})
    told = {fact.question: fact.answer for fact in facts}
    assert told["how many small rings are there?"] == "2" and "locate the small ring" not in told


def test_things_spoken_of_again_are_counted_once():
    reading = read("a red circle and a blue star, the red circle is left of the star and the star moves up")
    assert said(reading.things) == [(1, "red circle"), (1, "blue star")]
    assert [t.does for t in reading.things] == ["", "up"] and reading.relations[0].b.said == "blue star"


@pytest.mark.parametrize(
    "text", ["«" * 32_000, "„a " * 10_000, "to a " * 6400, "make the a " * 3000, "x-" * 16_000, "9" * 32_000]
)
def test_long_nonsense_is_read_at_once(text):
    began = time.perf_counter()
    shown(read(text)), checking.changed(change_of(text, BEFORE), {})
    assert time.perf_counter() - began < 1


def test_instructions_change_grounds_texts_and_places():
    assert change_of("make the background grey", BEFORE).ground == "grey"
    assert change_of("put it on a white background", BEFORE).ground == "white"
    assert change_of('change "A" to "B7"', read('the text "A" in red on a black background')).texts == ("B7",)
    assert change_of("move the ring up", BEFORE).way == (0, -1)
    assert change_of("put the ring in the bottom right corner", BEFORE).place == ("bottom", "right")
    relation = change_of("put the ring below the red circle", BEFORE).relation
    assert relation is not None and (relation.a.said, relation.side, relation.b.said) == (
        "green ring",
        "below",
        "red circle",
    )


def test_a_list_of_questions_is_found_between_other_words():
    facts = listed('Sure:\n["Is there a dog?", "Is it black?"]')
    assert facts is not None and [f.question for f in facts] == ["Is there a dog?", "Is it black?"]
    assert {f.answer for f in facts} == {"yes"}
    assert [listed(text) for text in ("none", "[]", "[1]", '["a"', "[" * 100_000)] == [None] * 5


def test_likelihoods_are_those_of_the_answers_that_are_written(nano, monkeypatch):
    """The greedy answer is likelier than another one, and its probability is the product of its tokens'."""
    image = nano.generate("a red circle", seed=1)[0]
    clip, question = Clip(np.asarray(image.convert("RGB"))[None]), "what color is the circle?"
    answer = nano.ask(image, question)
    right, wrong = checking._likely(nano, [(clip, question, answer), (clip, question, "a blue square")])
    assert -0.7 < right <= 0 and wrong < right - 5
    request = nano.front.request("x2t_image", question, [clip])
    steps = []

    def choose(logits, *_):
        steps.append(float(logits.log_softmax(-1).max()))
        return logits.argmax(-1)

    monkeypatch.setattr("openlance.inference.text.choose", choose)
    nano.fill_text([request], checking.ANSWER)
    assert right == pytest.approx(sum(steps), abs=1e-3)
    alone = nano.likelihoods([[*request[:-1], tasks.reply(answer)]])[0]
    assert alone == pytest.approx(right, abs=1e-4)


def test_right_pictures_hold_and_wrong_ones_name_the_fault(nano):
    facts = shown(read("a red circle on a black background"))
    red, blue = (
        Clip(np.asarray(im.convert("RGB"))[None]) for im in nano.generate(["a red circle", "a blue square"], seed=1)
    )
    fine, wrong = judged(nano, [red, blue], [facts, facts])
    assert fine.faults == () and fine.facts == 3 and "a red circle" in wrong.faults
    assert wrong.score < fine.score and "no fault" in str(fine) and "faults: " in str(wrong)


def test_a_checked_result_is_that_of_the_seed_in_its_record(nano, tmp_path):
    prompt = 'the text "Q8"'
    (image,) = nano.generate(prompt, seed=5, check=3)
    image.save(tmp_path / "a.png")
    made = openlance.read_provenance(tmp_path / "a.png")
    verdict = image.verdict
    assert made.seed == draw_seed(5, verdict.draw) and made.settings["check"]["faults"] == list(verdict.faults)
    assert 1 <= verdict.draw <= verdict.draws <= 3 and verdict.fine >= (verdict.draws < 3)
    again = nano.generate(prompt, seed=made.seed)[0]
    assert np.array_equal(np.asarray(image), np.asarray(again)) and again.verdict is None


def test_the_best_draw_is_kept_and_no_more_are_made_than_needed(pipe, monkeypatch):
    """Scores by draw: the third is fine for the first request, none for the second, whose second is the best."""
    scores = {0: [-9.0, -8.0, 0.0, 0.0], 1: [-7.0, -3.0, -5.0, -4.0]}
    monkeypatch.setattr(
        checking, "facts_of", lambda pipe, requests: [[Fact(f"{n}", "", "")] for n in range(len(requests))]
    )
    number = {"draw": 0}

    def likely(_, triples):
        number["draw"] += 1
        which = [0, 1] if len(triples) == 2 else [1]
        return [scores[n][number["draw"] - 1] for n in which]

    monkeypatch.setattr(checking, "_likely", likely)
    one, two = pipe.generate(["a", "b"], seed=7, check=4, **SMALL)
    assert (one.verdict.draw, one.verdict.draws, one.verdict.faults) == (3, 3, ())
    assert (two.verdict.draw, two.verdict.draws, two.verdict.faults) == (2, 4, ("1",))
    plain = pipe.generate("b", seed=draw_seed(8, 2), **SMALL)[0]
    assert np.array_equal(np.asarray(two), np.asarray(plain))


def test_edits_are_asked_about_what_changes_and_what_stays(nano):
    image = nano.generate("a red circle left of a blue square", seed=7)[0]
    source = Clip(np.asarray(image.convert("RGB"))[None])
    (facts,) = facts_of(nano, [nano.front.request("image_edit", "make the circle green", [source])])
    says = [f.says for f in facts]
    assert {"a green circle", "a blue square", "nothing else", "the blue square where it was"} <= set(says)
    (verdict,) = judged(nano, [source], [facts])  # nothing was changed
    assert "a green circle" in verdict.faults and "a blue square" not in verdict.faults


def test_released_checkpoints_make_the_questions_themselves(pipe, monkeypatch):
    """One that does not list its tasks is asked for a list; where it writes none the words count."""
    asked = []

    def fill(requests, *_):
        asked.append(requests[0][-2].value)
        return ['["Is there a boat?"]']

    monkeypatch.setattr(pipe, "fill_text", fill)
    request = pipe.front.request("t2i", "a boat", asked=(1, 16, 16))
    assert not pipe.defaults.tasks and facts_of(pipe, [request]) == [
        [Fact("Is there a boat?", "Is there a boat?", "yes")]
    ]
    assert "JSON" in asked[0] and asked[0].endswith("Request: a boat")
    monkeypatch.setattr(pipe, "fill_text", lambda requests, *_: ["no list"] * len(requests))
    assert "a boat" in [f.says for f in facts_of(pipe, [request])[0]]


@pytest.mark.parametrize("wrong", [0, -1, 101, "many", 2.5, True])
def test_a_number_of_draws_that_is_none_is_named(pipe, wrong):
    with pytest.raises(UserError, match="check"):
        pipe.generate("a", check=wrong, **SMALL)


def test_a_check_needs_seeds(pipe):
    with pytest.raises(UserError, match="give a seed in the place of the generator"):
        pipe.generate("a", check=2, generator=torch.Generator(), **SMALL)


def test_the_call_of_diffusers_checks_as_the_methods_do(nano):
    """Its generators give the seeds; an interrupt ends the draws too."""
    prompts, how = ['the text "Q8"', "a red circle"], {"num_inference_steps": 4, "check": 3}
    generators = [torch.Generator().manual_seed(5 + n) for n in range(2)]
    made, alike = nano(prompts, generator=generators, **how), nano.generate(prompts, seed=5, **how)
    assert made.verdicts == [image.verdict for image in alike] and made.verdicts[0].draws > 1
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(made.images, alike))
    held = []

    def stop(pipe, step, t, tensors):
        held.append(len(tensors["latents"]))
        pipe.interrupt = len(held) == 6

    generators = [torch.Generator().manual_seed(5 + n) for n in range(2)]
    assert nano(prompts, generator=generators, callback_on_step_end=stop, **how).verdicts[0].draws == 2
    assert held == [2] * 4 + [len(alike[1:]) + (alike[1].verdict.draws > 1)] * 2
    for wrong in ({"generator": torch.Generator()}, {"latents": torch.zeros(2, 16, 1, 8, 8)}):
        with pytest.raises(UserError, match="a generator for each result"):
            nano(prompts, check=2, **wrong)
    with pytest.raises(UserError, match="looks at pixels"):
        nano(prompts, check=2, output_type="latent")


def test_a_dialogue_checks_what_it_draws(nano):
    talk = Dialogue(nano, seed=3, check=2)
    picture = talk.draw("a red circle").picture
    assert picture.verdict is not None and picture.made.seed == draw_seed(3, picture.verdict.draw)
