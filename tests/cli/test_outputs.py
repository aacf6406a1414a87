"""Where pictures go and what the page of the demo holds."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openlance.cli.drawing import choose_paths
from openlance.cli.options import parse_size, read_prompts
from openlance.config.sampling import GenerationConfig
from openlance.errors import UserError
from openlance.media import Clip
from openlance.sequence.tasks import TASKS
from toyworld.clips import parse_clip
from toyworld.demo import WISHES, Answer, Card, is_right
from toyworld.demo_page import render_page
from toyworld.demo_shows import SHOWS, Show, Shown, holds_in, perform
from toyworld.facts import Lettering
from toyworld.words import parse


@pytest.mark.parametrize(
    "output, prompts, per_prompt, folder, names",
    [
        ("out.png", 1, 1, False, ["out.png"]),
        ("a/out.v2.jpg", 1, 2, False, ["a/out.v2-0.jpg", "a/out.v2-1.jpg"]),
        ("many", 3, 1, True, ["many/000000.png", "many/000001.png", "many/000002.png"]),
        ("many", 2, 2, True, ["many/000000-0.png", "many/000000-1.png", "many/000001-0.png", "many/000001-1.png"]),
    ],
)
def test_every_picture_has_its_own_name(output, prompts, per_prompt, folder, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_paths(Path(output), prompts, per_prompt, folder=folder) == [Path(name) for name in names]
    assert not list(tmp_path.iterdir())


def test_a_size_is_width_then_height():
    assert parse_size("128x80") == (128, 80)


def test_a_prompt_per_line_whatever_the_line_ends(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red circle\r\n a blue “ring” \r\n\r\n".encode())
    assert read_prompts(file) == ["a red circle", "a blue “ring”"]
    file.write_text(" \n")
    with pytest.raises(UserError, match="is empty: write one prompt per line"):
        read_prompts(file)


def test_every_wish_of_the_demo_can_be_judged():
    for wish in WISHES:
        facts = parse(wish.prompt)
        assert facts, wish.prompt
        assert any(not isinstance(fact, Lettering) for fact in facts) or '"' in wish.prompt


def test_the_page_is_self_contained_and_escapes_what_a_model_says():
    answers = [
        Answer(
            question="locate it", text='[{"bbox_2d": [1, 2, 5, 4], "label": "</dd><script>"}]', expected="", seconds=0.1
        ),
        Answer(question="how many?", text="One.", expected="1", seconds=0.1),
    ]
    card = Card(wish=WISHES[0], picture=Image.new("RGB", (24, 16)), seconds=0.5, answers=answers, holds=True)
    page = render_page([card], "nano <b>", ["1 of 1"])
    assert "<script" not in page and "nano <b>" not in page
    assert '<rect x="1" y="2" width="4" height="2"/>' in page and 'viewBox="0 0 24 16"' in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert is_right(answers[1]) and page.count("✓") == 3


def test_every_show_is_of_a_task_and_can_be_judged():
    made = {wish.prompt for wish in WISHES} | {show.text for show in SHOWS if not show.uses}
    for show in SHOWS:
        assert show.task in TASKS
        assert not show.uses or show.uses in made
        assert not show.expects or parse(show.expects) or parse_clip(show.expects) or show.expects == "left"
    whole = {name for name, spec in TASKS.items() if not spec.in_part}
    assert {show.task for show in SHOWS} >= whole - {"t2i", "x2t_image"}


class Pipe:
    """What a demo needs to know of a pipeline that was trained for some tasks."""

    defaults = GenerationConfig(tasks=("t2v", "flf2v", "x2t_video"), num_frames=5)

    def generate_video(self, *_, **__):
        return [Clip(np.zeros((5, 16, 16, 3), np.uint8))]

    def animate(self, given, *_, last, num_frames, **__):
        assert num_frames == 5 and given.frames == last.frames == 1
        return [given]

    def ask(self, given, _):
        return "Left."


def test_only_what_a_model_was_trained_for_is_shown():
    shown = perform(Pipe(), {}, seed=0)
    assert [one.show.task for one in shown] == ["t2v", "t2v", "flf2v", "x2t_video"]
    assert shown[0].holds is False and shown[-1].holds is True and len(shown[2].given) == 2


def test_clips_run_inside_the_page():
    clip = Clip(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    show = Show(task="t2v", text="a <b> moves", call=lambda *_: clip)
    one = Shown(show=show, given=[clip.with_pixels(clip.pixels[:1])], result=clip, seconds=0.1, holds=True)
    page = render_page([], "nano", [], [one, Shown(show=show, given=[clip], result="<i>", seconds=0.1, holds=None)])
    assert page.count("data:image/webp") == 2 and page.count("data:image/png") == 1 and "5 frames" in page
    assert "<i>" not in page and "a <b>" not in page and page.count("✓") == 2
    assert holds_in("Left.", "left") and holds_in(clip, "") is None
