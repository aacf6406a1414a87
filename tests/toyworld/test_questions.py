import re

import numpy as np
import pytest

from toyworld.facts import Count, Relation, Thing, holds
from toyworld.questions import QUESTIONS, ask, askable, iou, normalise, parse_box, sample_question, score
from toyworld.scene import Object, Scene, is_heldout
from toyworld.vocabulary import COLORS, HELDOUT_PAIRS, OPPOSITE, SHAPES
from toyworld.words import describe, parse, plural

PAIR = Scene(
    objects=(Object(shape="circle", color="red", x=0.25), Object(shape="square", color="blue", x=0.75)),
    background="white",
)


def drawn(category: str, n: int = 80, **settings):
    rng = np.random.default_rng(2)
    return [sample_question(rng, category=category, **settings) for _ in range(n)]


def thing_in(words: str) -> Thing:
    (fact,) = parse(words)
    return fact.thing


@pytest.mark.parametrize("category", QUESTIONS)
def test_the_true_answer_is_right_and_another_question_s_answer_is_not(category):
    questions = drawn(category)
    assert all(score(q, q.answer) and category in askable(q.scene) for q in questions)
    assert not any(score(q, "") or score(q, "purple elephants") for q in questions)
    wrong = [q for q, other in zip(questions, questions[1:], strict=False) if not score(q, other.answer)]
    assert len(wrong) > 20


def test_the_same_seed_asks_the_same():
    assert drawn("relation", 5) == drawn("relation", 5)


def test_counts_are_those_of_the_scene():
    seen = set()
    for q in drawn("count"):
        noun = re.search(rf"{'|'.join(map(plural, SHAPES))}|objects|shapes", q.question)[0]
        shape = next((shape for shape in SHAPES if plural(shape) == noun), None)
        color = next((c for c in COLORS if c in q.question), None)
        assert holds(q.scene, Count(Thing(shape, color), int(q.answer))), q.question
        seen.add(q.answer)
    assert seen == {"0", "1", "2", "3", "4"}


def test_a_colour_is_asked_of_things_of_one_colour():
    for q in drawn("color"):
        if "background" in q.question:
            assert q.answer == q.scene.background
        elif "text" in q.question:
            assert q.answer == q.scene.text.color
        else:
            shape = next(s for s in SHAPES if s in q.question)
            assert {o.color for o in q.scene.objects if o.shape == shape} == {q.answer}


def test_a_shape_is_asked_of_things_of_one_shape():
    for q in drawn("shape"):
        color = next((c for c in COLORS if c in q.question), None)
        fill = next((f for f in ("striped", "outlined") if f in q.question), None)
        assert {o.shape for o in q.scene.objects if Thing(None, color, fill).means(o)} == {q.answer}


def test_existence_is_true_balanced_and_never_denies_a_held_out_pair():
    questions = drawn("existence", 300)
    for q in questions:
        words = re.search(r"(?:there|see|show) (.*?)(?: in the picture)?\?", q.question)[1]
        thing = thing_in(words)
        assert (q.answer == "yes") == any(thing.means(o) for o in q.scene.objects), q.question
        assert q.answer == "yes" or (thing.color, thing.shape) not in HELDOUT_PAIRS
    assert 0.4 < np.mean([q.answer == "yes" for q in questions]) < 0.6


def test_relations_are_true_and_the_opposite_is_false():
    for q in drawn("relation"):
        a, b = (
            thing_in(words) for words in re.findall(r"the ((?:\w+ )*?(?:" + "|".join(SHAPES) + r"))\b", q.question)[:2]
        )
        if q.question.lower().startswith("on which side"):
            a, b = b, a
        if q.answer in OPPOSITE:
            relation = q.answer
        else:
            asked = next(r for r in OPPOSITE if r in q.question)
            relation = asked if q.answer == "yes" else OPPOSITE[asked]
        assert holds(q.scene, Relation(a, relation, b)), q.question
        assert not holds(q.scene, Relation(a, OPPOSITE[relation], b))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
def test_a_box_is_that_of_the_only_such_thing(size):
    height, width = size
    for q in drawn("grounding", 30, height=height, width=width):
        box, label = parse_box(q.answer), re.search(r'"label": "([^"]*)"', q.answer)[1]
        assert sum(thing_in(label).means(o) for o in q.scene.objects) == 1 and label in q.question
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and all(v == int(v) for v in box)


def test_held_out_questions_are_about_held_out_scenes():
    rng = np.random.default_rng(0)
    assert all(is_heldout(sample_question(rng, heldout=True).scene) for _ in range(20))
    assert not any(is_heldout(sample_question(rng).scene) for _ in range(50))


@pytest.mark.parametrize(
    ("answer", "right"),
    [("left", True), ("Left.", True), ("to the left", True), ("right", False), ("left right", False), ("", False)],
)
def test_marking_forgives_form_and_nothing_else(answer, right):
    rng = np.random.default_rng(0)
    questions = [ask(PAIR, rng, "relation") for _ in range(40)]
    question = next(q for q in questions if q.answer == "left")
    assert score(question, answer) is right


def test_numbers_match_as_words_and_digits():
    assert normalise("Three.") == normalise("3") and normalise("gray") == "grey" and normalise("A") == "a"
    assert normalise("13") != normalise("3")


def test_boxes_are_marked_by_overlap():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0 and iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    q = ask(PAIR, np.random.default_rng(0), "grounding")
    x1, y1, x2, y2 = (int(v) for v in parse_box(q.answer))
    assert score(q, f'[{{"bbox_2d": [{x1 + 2}, {y1}, {x2 + 2}, {y2}], "label": "it"}}]')
    assert not score(q, f'[{{"bbox_2d": [{x1 + 12}, {y1}, {x2 + 12}, {y2}], "label": "it"}}]')
    assert not score(q, "[1, 2, 3]")


def test_what_cannot_be_asked_is_refused():
    rng = np.random.default_rng(0)
    assert "ocr" not in askable(PAIR) and describe(PAIR)
    for category, words in (("ocr", "askable"), ("poetry", "use one of")):
        with pytest.raises(ValueError, match=words):
            ask(PAIR, rng, category)
    with pytest.raises(ValueError, match="use one of"):
        sample_question(rng, category="ocr", heldout=True)
