"""The suites of the world that grew: given objects and dialogues in clips, questions of two steps, regions. Who does
what is asked scores one, who does nothing scores nothing, and the second judge agrees where it can read."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from openlance.config.sampling import GenerationConfig
from openlance.errors import UserError
from openlance.media.clip import Clip
from toyworld.clip_dialogue import FORMS, Animate, Change, Film, sample_clip_dialogue
from toyworld.clip_questions import ClipQuestion, score_clip
from toyworld.clips import clip_facts
from toyworld.dialogue import Draw
from toyworld.edits import Edit
from toyworld.motion import clip_is_heldout, render_clip, sample_clip
from toyworld.outlines import second_opinion_of_clip
from toyworld.reasoning import STEPS, sample_reasoning
from toyworld.render import render
from toyworld.scene import relation_between
from toyworld.suites.bench import SUITES, Bench, run
from toyworld.suites.clip_dialogue import clip_dialogues
from toyworld.suites.clips import clip_subjects
from toyworld.suites.images import reasonings
from toyworld.suites.regions import extensions, inpaintings, outpaintings
from toyworld.suites.world_command import learned

TASKS = ("subject_video", "multi_turn_video", "vqa.reasoning", "image_inpaint", "outpaint", "extend")
SMALL = Bench(tasks=TASKS, samples=2, seed=3, batch=2, frames=9)


SIDES = {"left of": "left", "right of": "right", "above": "above", "over": "above", "below": "below", "under": "below"}


def picture(scene):
    return Image.fromarray(render(scene, 64, 64))


def film(clip):
    return Clip(render_clip(clip, 64, 64))


def seen(one):
    return np.asarray(one).tobytes() if isinstance(one, Image.Image) else one.pixels.tobytes()


class Oracle:
    """Knows the true result of every request."""

    def __init__(self):
        def asked(task, make):
            return [r for category in SUITES[task].categories for r in make(category, SMALL)]

        self.films = {s.prompt: film(s.clip) for s in asked("subject_video", clip_subjects)}
        self.films |= {r.prompt: film(r.clip) for r in asked("extend", extensions)}
        self.drawn = {r.prompt: picture(r.scene) for r in asked("outpaint", outpaintings)}
        self.edited = {(seen(picture(e.before)), e.instruction): picture(e.after)
                       for e, _ in asked("image_inpaint", inpaintings)}  # fmt: skip
        self.answers = {(a.pixels.tobytes(), a.question.question): a.question.answer
                        for a in asked("vqa.reasoning", reasonings)}  # fmt: skip
        for turns in asked("multi_turn_video", clip_dialogues):
            for before, turn in zip((None, *turns), turns):
                if isinstance(turn, Draw):
                    self.drawn[turn.prompt] = picture(turn.scene)
                elif isinstance(turn, Animate | Film):
                    self.films[turn.prompt] = film(turn.clip)
                elif isinstance(turn, Edit):
                    self.edited[seen(picture(turn.before)), turn.instruction] = picture(turn.after)
                elif isinstance(turn, Change):
                    self.edited[seen(film(before.clip)), turn.instruction] = film(turn.clip)
                else:
                    self.answers[seen(film(turn.clip)), turn.question] = turn.answer

    def generate(self, prompts, **_):
        return [self.drawn[p] for p in prompts]

    def generate_video(self, prompts, **_):
        return [self.films[p] for p in prompts]

    def subject(self, given, prompts, **_):
        return self.generate_video(prompts)

    def animate(self, first, prompts, **_):
        return self.generate_video(prompts)

    def extend(self, clips, prompts, **_):
        return self.generate_video(prompts)

    def outpaint(self, images, prompts, **_):
        return self.generate(prompts)

    def edit(self, sources, said, **_):
        return [self.edited[seen(s), t] for s, t in zip(sources, said, strict=True)]

    def ask(self, media, questions):
        return [self.answers[seen(m), q] for m, q in zip(media, questions, strict=True)]


class Lazy(Oracle):
    """Draws well, and hands back or holds still whatever else it gets."""

    def generate_video(self, prompts, **_):
        return [Clip(np.repeat(self.films[p].pixels[:1], 9, 0)) for p in prompts]

    def outpaint(self, images, prompts, **_):
        return [Image.new("RGB", (64, 64)) for _ in images]

    def edit(self, sources, said, **_):
        return sources

    def ask(self, media, questions):
        return ["" for _ in questions]


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("rapidocr")
    return {maker: run(maker(), SMALL) for maker in (Oracle, Lazy)}


def test_an_oracle_is_always_right_and_both_judges_say_so(results):
    for task, rows in results[Oracle].items():
        assert all(row["mean"] == 1 for row in rows.values()), (task, rows)
        assert all(row["second"]["mean"] == row["agree"]["mean"] == 1 for row in rows.values() if "second" in row), task
    assert "second" in results[Oracle]["subject_video"]["mean"] and "second" in results[Oracle]["extend"]["mean"]


def test_who_does_nothing_scores_nothing(results):
    for task, rows in results[Lazy].items():
        assert rows["mean"]["mean"] == 0, (task, rows)
    assert results[Lazy]["image_inpaint"]["kept"]["mean"] == 1
    assert results[Lazy]["subject_video"]["object"]["mean"] == 1


def test_the_tables_have_the_promised_rows(results):
    rows = {task: list(found) for task, found in results[Oracle].items()}
    assert rows["subject_video"] == ["one", "two", "object", "motion", "mean"]
    assert rows["multi_turn_video"] == [*FORMS, "turn_1", "turn_2", "turn_3", "mean"]
    assert rows["vqa.reasoning"] == [*STEPS, "mean", "heldout"]
    assert rows["outpaint"] == ["left", "top", "right", "bottom", "mean"]
    assert rows["extend"] == ["before", "after", "object", "motion", "mean"]


def test_requests_depend_on_the_seed_and_not_on_how_many_there_are():
    some = ((clip_subjects, "two"), (clip_dialogues, FORMS[0]), (outpaintings, "left"), (extensions, "after"))
    for make, category in some:
        few, many = (list(make(category, replace(SMALL, samples=n))) for n in (2, 4))
        other = list(make(category, replace(SMALL, samples=2, seed=4)))
        assert few == many[:2] and few != other


def test_a_model_is_asked_what_it_has_learned(capsys):
    usual = GenerationConfig(tasks=("t2i",))
    assert learned(TASKS, usual, True) == TASKS[:4]
    assert capsys.readouterr().err.count("left out") == 2
    with pytest.raises(UserError, match="not trained for outpaint: leave it out of --tasks"):
        learned(TASKS, usual, False)
    assert learned(TASKS, replace(usual, tasks=("outpaint", "extend")), False) == TASKS


@pytest.mark.parametrize("form", FORMS)
def test_each_turn_is_about_what_the_one_before_leaves(form):
    rng = np.random.default_rng(0)
    kinds = {"draw": Draw, "edit": Edit, "animate": Animate, "film": Film, "ask": ClipQuestion}
    wanted = [Change if name == "edit" and form.startswith("film") else kinds[name] for name in form.split("_")]
    for _ in range(8):
        turns = sample_clip_dialogue(rng, form=form)
        assert [type(turn) for turn in turns] == wanted
        scenes = [turn.clip.scene for turn in turns if not isinstance(turn, Draw | Edit)]
        if isinstance(turns[0], Draw):
            now = turns[1].after if isinstance(turns[1], Edit) else turns[0].scene
            assert all(scene == now for scene in scenes)
        else:
            assert scenes[1] == scenes[2] and scenes[0] != scenes[1]
        assert not any(clip_is_heldout(turn.clip) for turn in turns if not isinstance(turn, Draw | Edit))
        last = turns[-1]
        assert not isinstance(last, ClipQuestion) or score_clip(last, last.answer)


def test_the_second_judge_reads_clips():
    rng = np.random.default_rng(0)
    said = []
    for _ in range(40):
        clip = sample_clip(rng, category="color")
        facts = clip_facts(clip)
        verdict = second_opinion_of_clip(render_clip(clip, 64, 64), facts)
        said.append(verdict)
        if verdict is not None:
            still = np.repeat(render_clip(clip, 64, 64)[:1], 9, 0)
            moves = any(m.kind != "still" for m in clip.motions)
            assert second_opinion_of_clip(still, facts) is (not moves)
    assert said.count(True) >= 8 and said.count(False) == 0


@pytest.mark.parametrize("step", ["same", "size"])
def test_yes_is_right_as_often_as_no(step):
    """Of each thing that is compared: else a guess would pass for a look."""
    rng, told = np.random.default_rng(3), defaultdict[bool, list[bool]](list)
    for _ in range(300):
        q = sample_reasoning(rng, category=step)
        told["color" in q.question].append(q.answer == "yes")
    for answers in told.values():
        assert len(answers) > 100 and 0.4 < np.mean(answers) < 0.6


@pytest.mark.parametrize("step", STEPS)
def test_a_question_of_two_steps_has_the_answer_that_a_plain_look_gives(step):
    """What is told by its place is looked for in another way than it was drawn."""
    rng = np.random.default_rng(1)
    answers = set()
    for _ in range(25):
        q = sample_reasoning(rng, category=step)
        text, scene = q.question.lower(), q.scene
        answers.add(q.answer)
        assert q.category == "reasoning" and len(scene.objects) > 1
        side = next(side for word, side in SIDES.items() if f" {word} " in text)
        named = [o for o in scene.objects if f" {o.shape}" in text]
        around = [
            [o for o in scene.objects if o is not other and relation_between(o, other, scene.aspect) == side]
            for other in named
        ]
        if step == "count":
            assert int(q.answer) in [len(found) for found in around]
        elif step in ("color", "shape"):
            assert q.answer in [getattr(found[0], step) for found in around if len(found) == 1]
        else:
            assert q.answer in ("yes", "no") and any(len(found) == 1 for found in around)
    assert len(answers) > 1
