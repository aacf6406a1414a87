"""The second judge: it sees what is there, finds fault with what is not, and abstains from what it cannot read."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.eval.report import sections
from openlance.eval.suite import summary, with_second
from toyworld.facts import Count, Lettering, Relation, Thing, Within
from toyworld.outlines import look, readable, second_opinion
from toyworld.render import render
from toyworld.scene import Object, Scene
from toyworld.suites import world_command as command
from toyworld.suites.bench import BENCH_CATEGORIES, Bench, drawings, run

pytest.importorskip("cv2")


def test_it_is_right_about_true_pictures_and_those_of_other_prompts():
    bench = Bench(samples=12, seed=8)
    asked = [d for c in BENCH_CATEGORIES["t2i"] for d in drawings(c, bench) if all(map(readable, d.facts))]
    assert len(asked) > 45
    pictures = [render(d.scene, 64, 64) for d in asked]
    true = [second_opinion(pixels, d.facts) for pixels, d in zip(pictures, asked)]
    other = [second_opinion(pixels, d.facts) for pixels, d in zip(pictures[1:], asked)]
    assert np.mean(true) > 0.97 and np.mean(other) < 0.1


def test_places_are_those_of_the_scene():
    scene = Scene(
        objects=(Object(shape="star", color="red", x=0.25, y=0.3), Object(shape="circle", color="blue", x=0.7, y=0.6))
    )
    _, seen = look(render(scene, 64, 96))
    found = {(t.color, t.shape): (t.x, t.y) for t in seen}
    assert np.allclose(found["red", "star"], (0.25, 0.3), atol=0.03)
    assert np.allclose(found["blue", "circle"], (0.7, 0.6), atol=0.03)
    star, circle = Thing("star"), Thing("circle")
    pixels = render(scene, 64, 96)
    assert second_opinion(
        pixels, [Relation(star, "left", circle), Count(Thing(), 2), Within(star, (0.2, 0.2, 0.3, 0.4))]
    )
    assert second_opinion(pixels, [Relation(star, "right", circle)]) is False
    assert second_opinion(pixels, [Within(circle, (0.2, 0.2, 0.3, 0.4))]) is False


@pytest.mark.parametrize("fact", [Lettering("A7"), Count(Thing(fill="striped")), Count(Thing(size="small"))])
def test_it_abstains_from_what_it_cannot_read(fact):
    assert second_opinion(np.zeros((64, 64, 3), np.uint8), [Count(Thing("circle"), 0), fact]) is None


class Wrong:
    """Draws a red circle, whatever is asked."""

    def generate(self, prompts, *, height, width, seed):
        scene = Scene(objects=(Object(shape="circle", color="red", x=0.5, y=0.5),))
        return [Image.fromarray(render(scene, height, width)) for _ in prompts]


def test_both_judges_stand_beside_each_other_in_scores_and_reports(tmp_path):
    pytest.importorskip("rapidocr")
    bench, images = Bench(tasks=("t2i",), samples=4, seed=2), tmp_path / "images"
    command.options.write_json({"benchmark": "world"}, images / "manifest.json")
    results = command.with_progress(lambda tell: run(Wrong(), bench, tell), 32, images)
    command.options.write_json(results, tmp_path / "scores.json")
    mean, text = results["t2i"]["mean"], results["t2i"]["text"]
    assert mean["second"]["n"] == mean["agree"]["n"] < mean["n"] and "second" not in text  # it reads no texts
    assert mean["agree"]["mean"] > 0.9
    for place in ("scores.json", "images"):  # both have the same numbers, and the same form as public benchmarks
        (section,) = sections([str(tmp_path / place)])
        first, second = section.runs
        assert second.name == f"{first.name}, second judge" and second.score.ours["total"].n == mean["second"]["n"]
        assert second.score.ours["total"].value == mean["second"]["mean"]
        assert f"of {mean['agree']['n']} in its total it says of 1.000" in second.score.notes[0]
    ((_, differences),) = section.pairs  # item by item, where the records are there
    assert differences["total"].value == 0.0 and differences["total"].n == mean["agree"]["n"]
    done = CliRunner().invoke(app, ["bench", "report", str(images), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and "images, second judge (95 %)" in (tmp_path / "r.md").read_text(), done.output
    assert json.loads((tmp_path / "scores.json").read_text()) == results


def test_agreement_is_that_of_pairs():
    rows = summary({"single": [True, True, False], "text": [True], "heldout": [False]})
    both = with_second(rows, {"single": [(True, False), (True, True)], "heldout": [(False, False)]})
    assert both["single"]["second"]["mean"] == both["single"]["agree"]["mean"] == 0.5
    assert both["mean"]["agree"]["n"] == 2 and both["heldout"]["agree"]["mean"] == 1.0 and "second" not in both["text"]
    assert with_second(rows, {}) == rows and with_second(rows, {"heldout": [(True, True)]}) == rows
