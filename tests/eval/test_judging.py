"""Judges of results: what they are asked, what is read of their answers, and what goes on after a stop."""

import json

import numpy as np
import pytest
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.errors import UserError
from openlance.eval import geneval
from openlance.eval.benchmarks import BENCHMARKS, scored
from openlance.eval.judging import Detector, dpg_judge, imgedit_judge, judge, scores_in, viescore
from openlance.eval.sampling import Run, sample
from openlance.media import Clip

SAMPLING = {"num_inference_steps": 1, "shift": 3.0}


@pytest.fixture(scope="module")
def made(nano, checkouts, tmp_path_factory):
    """Results of all benchmarks of images."""
    root = tmp_path_factory.mktemp("made")
    for name in ("geneval", "dpg", "gedit", "imgedit"):
        size = (1, 32, 32) if BENCHMARKS[name].size else None
        sample(
            nano,
            BENCHMARKS[name].rules.jobs(checkouts / name),
            root / name,
            Run(benchmark=name, size=size, sampling=SAMPLING),
        )
    return root


@pytest.mark.parametrize(
    "answer, grades",
    [
        ('{"score": [8, 6.5], "reasoning": "fine"}', [8.0, 6.5]),
        ('first {"score" : [1]} then\n{\n"score" : [10, 0],\n"reasoning" : "it\'s"}', [10.0, 0.0]),
        ("score: [3, 4]", [3.0, 4.0]),
        ('{"score": [8, 11]}', None),
        ('{"score": [8]}', None),
        ("I cannot help with that.", None),
        ('{"score": [a, b]}', None),
    ],
)
def test_scores_of_a_judge(answer, grades):
    if grades is None:
        with pytest.raises(UserError, match="without 2 scores"):
            scores_in(answer, 2)
    else:
        assert scores_in(answer, 2) == grades


def test_gedits_judge_sees_both_images_and_then_the_result_alone(made, checkouts, tmp_path):
    names = {
        "_context_no_delimit": "context", "_prompts_0shot_two_image_edit_rule": "two",
        "_prompts_0shot_tie_rule_SC": "was <instruction> done?", "_prompts_0shot_rule_PQ": "is it natural?",
    }  # fmt: skip
    (tmp_path / "viescore").mkdir()
    lines = [f'{name} = """{text}"""' for name, text in names.items()]
    (tmp_path / "viescore" / "vie_prompts.py").write_text("import os\n" + "\n".join(lines))
    asked = list[tuple[str, int]]()

    def writer(text, images):
        asked.append((text, len(images)))
        return ('{"score": [8, 6]}' if len(images) == 2 else '{"score": [9, 7]}'), "stop"

    jobs = BENCHMARKS["gedit"].rules.jobs(checkouts / "gedit")
    records = judge(jobs, made / "gedit", viescore(writer, tmp_path / "viescore/vie_prompts.py"))
    assert set(asked) == {("context\ntwo\nwas make it blue done?", 2), ("context\nis it natural?", 1)}
    assert [r.found["overall"] for r in records] == [42**0.5] * 2
    assert scored("gedit", made / "gedit").ours["total"].value == 42**0.5


def test_a_failed_judgement_is_counted_and_tried_again(made, checkouts, tmp_path):
    prompts = tmp_path / "Basic"
    prompts.mkdir()
    (prompts / "prompts.json").write_text('{"adjust": "was <edit_prompt> done?"}')
    said = list[str]()

    def writer(text, images):
        said.append(text)
        if len(said) == 1:
            raise UserError("the server does not answer")
        return "a: 4\nb: 4\nc: 4", "stop"

    jobs, scorer = (
        BENCHMARKS["imgedit"].rules.jobs(checkouts / "imgedit"),
        imgedit_judge(writer, prompts / "prompts.json"),
    )
    judge(jobs, made / "imgedit", scorer)
    assert scored("imgedit", made / "imgedit", checkouts / "imgedit").failed == {"the server does not answer": 1}
    judge(jobs, made / "imgedit", scorer)
    judge(jobs, made / "imgedit", scorer)  # judged already
    score = scored("imgedit", made / "imgedit", checkouts / "imgedit")
    assert said == ["was make it blue done?"] * 2 and not score.failed and score.ours["total"].value == 4.0


@pytest.mark.parametrize("said, total", [("Yes.", 100.0), ("no", 0.0), ("perhaps", None)])
def test_dpgs_questions(said, total, made, checkouts, tmp_path):
    (job,) = BENCHMARKS["dpg"].rules.jobs(checkouts / "dpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/12.png").write_bytes((made / "dpg/images/12.png").read_bytes())
    (tmp_path / "manifest.json").write_bytes((made / "dpg" / "manifest.json").read_bytes())
    seen = list[Clip]()

    def writer(text, images):
        seen.extend(images)
        return said, "stop"

    judge([job], tmp_path, dpg_judge(writer, checkouts / "dpg"))
    score = scored("dpg", tmp_path, checkouts / "dpg")
    assert [clip.pixels.shape for clip in seen] == [(1, 32, 32, 3)] * 4
    if total is None:
        assert score.failed == {"an answer that is neither yes nor no": 4}
    else:
        assert score.ours["total"].value == total


def test_the_command_with_a_server(made, checkouts, chat_server, tmp_path):
    chat_server.answer = lambda prompt: "yes"
    line = ["bench", "judge", "dpg", str(made / "dpg"), "--checkout", str(checkouts / "dpg")]
    done = CliRunner().invoke(app, [*line, "--judge-url", chat_server.url, "--judge-model", "m"])
    assert done.exit_code == 0, done.output
    score = scored("dpg", made / "dpg", checkouts / "dpg")
    assert score.ours["total"].value == 100.0 and any("judged by m" in why for why in score.differs)
    assert isinstance(CliRunner().invoke(app, line).exception, UserError)  # who judges?


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Folders of the two models of GenEval's scorer, with random weights."""
    root = tmp_path_factory.mktemp("detector")
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=40,
        id2label={0: "dog", 1: "mouse"}, label2id={"dog": 0, "mouse": 1},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(root / "objects")
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / "objects")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1} | {c + end: n for n, (c, end) in enumerate(
        ((c, end) for c in "abcdefghijklmnopqrstuvwxyz-" for end in ("", "</w>")), start=2)}  # fmt: skip
    text = {**tower, "vocab_size": len(vocabulary), "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 77}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})).save_pretrained(
        root / "colors"
    )
    (root / "vocab.json").write_text(json.dumps(vocabulary))
    (root / "merges.txt").write_text("#version: 0.2\n")
    words = CLIPTokenizer(vocab=vocabulary, merges=[])
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, words).save_pretrained(root / "colors")
    return str(root / "objects"), str(root / "colors")


@pytest.fixture(scope="module")
def detector(scorers):
    return Detector(*scorers)


def test_what_a_detector_sees_is_inside_the_image_and_has_a_color(detector):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    seen = detector.detected(image)
    assert set(seen) <= {"dog", "computer mouse"} and seen
    for name, found in seen.items():
        for one in found:
            rows, columns = np.nonzero(one.mask)
            assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert one.mask.shape == (40, 60) and 0 < one.score <= 1
        colors = detector.colors_of(image, found, name)
        assert len(colors) == len(found) and set(colors) <= set(geneval.COLORS)


def test_geneval_from_images_to_a_score(made, checkouts, scorers):
    line = ["bench", "judge", "geneval", str(made / "geneval"), "--checkout", str(checkouts / "geneval")]
    done = CliRunner().invoke(app, [*line, "--detector", scorers[0], "--colors", scorers[1]])
    assert done.exit_code == 0 and "12 judged, 0 failed" in done.output, done.output
    score = scored("geneval", made / "geneval")
    assert score.incomplete == [] and score.official["total"] == 0.0  # a class that this detector does not know
    assert any(f"judged by {', '.join(scorers)}" in why for why in score.differs)
    line = (made / "geneval" / "records.jsonl").read_text().splitlines()[0]
    assert "expected clock>=1, found 0" in line
