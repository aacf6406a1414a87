"""Rewards: what they say is weighed in one place; those that raise, hang, die or say nonsense are named, counted and
dropped, and everything else is scored as if they had not been there."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.rl.rewards import Drawn, RewardPool, known_rewards, parse_rewards

BAD = """
import math, os, sys, time
import numpy as np
from openlance.errors import UserError
from openlance.rl.rewards import Reward

def level(image):
    return np.asarray(image)[0, 0, 0]

def fine(prompt, image):
    print("what a reward prints is no answer")
    return level(image) / 255

def several(prompt, image):
    return {"bright": 0.25, "sharp": 0.75}

def raises(prompt, image):
    return 1 / (level(image) - 3.0) if level(image) != 3 else {}["nothing"]

def nan(prompt, image):
    return math.nan if level(image) == 3 else 0.0

def nothing(prompt, image):
    return None if level(image) == 3 else 0.0

def hangs(prompt, image):
    if level(image) == 3:
        time.sleep(100)
    return 0.0

def dies(prompt, image):
    if level(image) == 3:
        os.kill(os.getpid(), 9)
    return 0.0

def heavy(prompt, image):
    return float("torch" in sys.modules)

class Wide(Reward):
    name, range = "wide", (0.0, 1.0)
    def __call__(self, drawn):
        return [2.0 if level(one.media.pixels[0]) == 3 else 1.0 for one in drawn]

class Picky(Reward):
    def check(self, prompt, truth=None):
        if not prompt:
            raise UserError("it is too short")

class Short(Reward):
    def __call__(self, drawn):
        return [1.0] if any(level(one.media.pixels[0]) == 3 for one in drawn) else [1.0] * len(drawn)
"""


def picture(level, size=8):
    return Drawn(prompt=f"picture {level}", media=Clip(np.full((1, size, size, 3), level, np.uint8)))


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "bad.py"
    path.write_text(BAD)
    return str(path)


def test_rewards_are_written_as_text_or_as_a_mapping(bad):
    for said in (f"redness:-2, {bad}:fine", {"redness": -2, f"{bad}:fine": 1}):
        assert [(one.said, one.weight) for one in parse_rewards(said)] == [("redness", -2.0), (f"{bad}:fine", 1.0)]


def test_a_function_of_a_file_with_and_without_weight(bad):
    one, two = parse_rewards(f"{bad}:fine:0.5,{bad}:several")
    assert (one.reward.name, one.weight, two.reward.name, two.weight) == ("bad.fine", 0.5, "bad.several", 1.0)


@pytest.mark.parametrize(
    "said, sentence",
    [
        ("rednes", "there is no reward 'rednes': use 'redness'"),
        ("redness:0", "weight of redness is 0"),
        ("redness:nan", "weight of redness"),
        ("redness:many", "weight of redness"),
        ("redness,redness:2", "redness is given twice"),
        ("redness=3", "takes nothing after its name"),
        ({}, "no reward is given"),
        ("", "there is no reward ''"),
        ("gone.py:score", "gone.py is no file"),
    ],
)
def test_a_mistake_in_the_choice_is_one_sentence(said, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_rewards(said)


def test_a_file_that_does_not_run_or_lacks_the_function_is_named(tmp_path, bad):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match="broken.py:score cannot be loaded: ModuleNotFoundError"):
        parse_rewards(f"{tmp_path}/broken.py:score")
    with pytest.raises(UserError, match="has no function score: it has .*fine"):
        parse_rewards(f"{bad}:score")


def test_scores_keep_their_order_whatever_the_workers_and_are_weighed(bad):
    drawn = [picture(level) for level in range(40)]
    with RewardPool(f"redness:2,{bad}:fine:0.5,{bad}:several", workers=2) as pool:
        pending = [pool.submit(drawn[:7]), pool.submit(drawn[7:])]
        scores = pending[0].collect() + pending[1].collect()
    assert [score.facts["bad.fine"] for score in scores] == [level / 255 for level in range(40)]
    assert scores[0].facts.keys() == {"redness", "bad.fine", "bad.several.bright", "bad.several.sharp"}
    for level, score in enumerate(scores):
        assert score.total == pytest.approx(0 * 2 + 0.5 * level / 255 + (0.25 + 0.75) / 2)


def test_a_request_that_cannot_be_scored_is_refused_before_anything_is_drawn(bad):
    with RewardPool(f"redness,{bad}:Picky") as pool:
        pool.check("fine")
        with pytest.raises(UserError, match="it is too short"):
            pool.check("")


def test_redness():
    red, gray, cyan = (np.full((1, 4, 4, 3), color, np.uint8) for color in ((255, 0, 0), (9, 9, 9), (0, 255, 255)))
    with RewardPool("redness") as pool:
        scores = pool.submit([Drawn(prompt="", media=Clip(pixels)) for pixels in (red, gray, cyan)]).collect()
    assert [score.total for score in scores] == [1, 0, -1]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("raises", "raised KeyError: 'nothing'"),
        ("nan", "returned nan"),
        ("nothing", "returned NoneType where a number is expected"),
        ("Wide", "returned 2, outside its range from 0 to 1"),
    ],
)
def test_what_one_result_breaks_is_named_and_only_its_score_is_lost(name, sentence, bad, caplog):
    with RewardPool(f"redness,{bad}:{name}") as pool:
        scores = pool.submit([picture(level) for level in range(12)]).collect()
        (failed,) = pool.failed.items()
    assert [score is None for score in scores] == [level == 3 for level in range(12)]
    assert failed[1] == 1 and failed[0] in ("wide", f"bad.{name}")
    assert sentence in caplog.text and "'picture 3'" in caplog.text


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("hangs", "took longer than 3 s"),
        ("dies", "ended its process with SIGKILL"),
        ("Short", "returned 1 scores for 8 results"),
    ],
)
def test_a_batch_that_never_ends_is_ended_and_the_next_one_is_scored(name, sentence, bad, caplog):
    with RewardPool(f"redness,{bad}:{name}", seconds=3) as pool:
        scores = pool.submit([picture(level) for level in range(12)]).collect()
        again = pool.submit([picture(9)]).collect()
    assert [score is None for score in scores] == [True] * 8 + [False] * 4 and again[0] is not None
    assert pool.failed == {f"bad.{name}": 8} and caplog.text.count(sentence) == 1


def test_too_many_failures_end_all_with_a_sentence(bad):
    with RewardPool(f"{bad}:nan", failures=2) as pool:
        assert [s is None for s in pool.submit([picture(3)] * 2 + [picture(4)]).collect()] == [True, True, False]
        with pytest.raises(UserError, match=r"3 results could not be scored \(bad.nan 3\).*failures=2"):
            pool.submit([picture(3)]).collect()


def test_the_model_does_not_wait_while_results_are_scored(bad):
    with RewardPool(f"{bad}:hangs", seconds=5) as pool:
        began = time.perf_counter()
        pool.submit([picture(3)])
        assert time.perf_counter() - began < 1
    assert time.perf_counter() - began < 3  # nor when it is closed meanwhile


def test_where_the_model_keeps_all_cores_results_are_scored_when_it_asks(bad):
    with RewardPool("redness", beside=False) as pool:
        pending = pool.submit([picture(3), picture(5)])
        time.sleep(0.2)
        assert not pool.spent
        with RewardPool("redness") as other:
            assert pending.collect() == other.submit([picture(3), picture(5)]).collect()
        assert pool.spent


def test_workers_hold_no_torch_unless_a_reward_needs_it(bad):
    import torch  # noqa: F401  the process that trains does

    with RewardPool(f"redness,{bad}:heavy") as pool:
        assert pool.submit([picture(0)]).collect()[0].total == 0


def test_workers_end_with_the_program_even_if_that_is_killed(tmp_path, bad):
    script = tmp_path / "train.py"  # without a guard: it is not run again by the workers
    script.write_text(f"""
import os
from openlance.rl.rewards import RewardPool
pool = RewardPool({f"{bad}:hangs"!r})
print(*(process._process.pid for process in pool._processes), flush=True)
from openlance.rl.rewards import Drawn
from openlance.media.clip import Clip
import numpy, time
pool.submit([Drawn(prompt="", media=Clip(numpy.full((1, 4, 4, 3), 3, numpy.uint8)))])
time.sleep(0.5)
os.kill(os.getpid(), 9)
""")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    worker = int(done.stdout)
    assert done.returncode == -9
    for _ in range(100):
        if not os.path.exists(f"/proc/{worker}"):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlives the program")


PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "rewards.md").read_text(encoding="utf-8")


def test_every_reward_says_what_it_is_and_stands_on_the_page():
    known = known_rewards()
    assert {"ocr", "similarity", "redness", "world"} <= known.keys()
    for name, reward in known.items():
        assert reward.name == name and reward.cost and reward.exploits and reward.__doc__
        low, high = (f"{edge:g}" for edge in reward.range)
        assert re.search(rf"\| `{name}[=`].*\| {low} to {high} \|", PAGE), name


def test_what_the_page_shows_runs(tmp_path, monkeypatch):
    pytest.importorskip("rapidocr")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    use, function, kind = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_reward.py").write_text(function)
    (tmp_path / "mine.py").write_text(kind)
    image = Image.new("RGB", (256, 256), "black")
    ImageDraw.Draw(image).text((40, 90), "OPEN", font=ImageFont.load_default(size=64), fill="white")
    names = {"clip": Clip(np.asarray(image)[None])}
    exec(compile(use, "docs/rewards.md", "exec"), names)
    assert names["score"].facts["ocr.exact"] == 1 and names["score"].facts["my_reward.score"] > 0
    (mine,) = parse_rewards("mine.py:Score")
    assert mine.reward.weights(mine.reward([None])[0]) == pytest.approx({"sharp": 2 / 3, "bright": 1 / 3})
