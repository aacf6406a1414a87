"""Parity with the release: the golden vectors in this repository pass, and a single wrong number does not."""

import json
import lzma
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from lance_parity.checks import LOSS, Checks, Row
from lance_parity.files import GoldenFile
from lance_parity.run import verify
from openlance.checkpoint.tensors import TensorSource
from openlance.cli.main import main
from openlance.sequence.tasks import TASKS

GOLDEN = Path(__file__).parents[1] / "golden"
FULL = Path(__file__).parents[3] / "shared" / "golden"  # all vectors at full precision, where they are to be had


@pytest.fixture(scope="module")
def report():
    return verify(GOLDEN)


@pytest.fixture()
def flat(tmp_path):
    """A flat folder with one plain case, without its further runs."""
    folder = tmp_path / "flat"
    folder.mkdir()
    facts = json.loads((GOLDEN / "cases/case_t2i_pub.json").read_text(encoding="utf-8"))
    facts["tensors"] = {name: x for name, x in facts["tensors"].items() if not name.startswith("var.")}
    (folder / "case_t2i_pub.json").write_text(json.dumps(facts), encoding="utf-8")
    tensors = load(lzma.decompress((GOLDEN / "cases/case_t2i_pub.safetensors.xz").read_bytes()))
    save_file({name: tensors[name] for name in facts["tensors"]}, folder / "case_t2i_pub.safetensors")
    return folder


def change(folder, name, edit):
    """Rewrite one tensor of the case, or put a new one beside it."""
    path = folder / "case_t2i_pub.safetensors"
    tensors = load_file(path)
    tensors[name] = edit(tensors.get(name, torch.zeros(3)))
    save_file(tensors, path)


def run(folder, *options):
    out = folder.parent / "report.json"
    named = ["--weights", str(GOLDEN / "weights"), "--tokenizer", str(GOLDEN / "tokenizer"), "--json", str(out)]
    code = main(["verify", str(folder), *named, *options])
    return code, json.loads(out.read_text(encoding="utf-8"))


def test_every_golden_number_is_met(report):
    assert report.failed == []


def test_every_task_and_every_part_is_there(report):
    cases = {row.case for row in report.rows}
    ours = {name for name, spec in TASKS.items() if spec.in_part}
    released = set(TASKS) - {"video_idip", "flf2v"} - ours  # those two are in the release's data code only
    packed = {f"{name}_pub" for name in (*released, "train_mixed", "train_und_only")}
    assert cases == packed | {"modules", "preproc", "image_edit_pub.bf16", "x2t_image_pub.bf16"}
    said = " ".join(row.quantity for row in report.rows)
    for quantity in (
        "packed_text_ids split_lens pos.rope_index pos.mape mask.packbits uncond.pos_kvcache_effective vit.embed"
        " cond.latent0 gen.noise gen.kv.v_uncond_step0 gen.nocache.v_cond_step0 gen.kv.x_steps gen.nocache.latent_final"
        " var.steps8.kv.latent_final und.kv.token_ids und.nocache.token_ids out.mse out.ce grad.vae2llm.bias grad_norm"
        " recon_from_mu logvar buckets frames in.media0.vae_u8 frame_indices latent_pos_embed.rows mrope.q_rot"
    ).split():
        assert quantity in said, quantity


def test_nothing_is_left_uncovered(report):
    assert report.uncovered == {}


def test_the_copy_stays_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 8e6


@pytest.mark.nightly  # the compact copy has the same cases
@pytest.mark.skipif(not FULL.is_dir(), reason="the full vectors are not here")
def test_every_full_number_is_met():
    full = verify(FULL)
    assert full.failed == [] and full.uncovered == {} and len(full.rows) > 500
    assert sum(row.case.endswith(".bf16") for row in full.rows) > 300


def test_each_wrong_number_is_found_and_nothing_else(flat):
    wrongly = {
        "gen.kv.latent_final": lambda x: x + 2e-3 * (torch.arange(x.numel()).view_as(x) == 5),
        "pos.mape": lambda x: x + (torch.arange(x.numel()).view_as(x) == 80),
        "gen.nocache.v_uncond_step0": lambda x: x * float("nan"),
        "pack.packed_text_ids": lambda x: x[:-1],
    }
    for name, how in wrongly.items():
        change(flat, name, how)
    code, found = run(flat)
    assert code == 1 and {row["quantity"] for row in found["rows"] if not row["pass"]} == wrongly.keys()


def test_a_flat_folder_passes_and_an_unknown_tensor_is_listed_and_does_not_count(flat):
    code, plain = run(flat)
    assert code == 0 and plain["passed"] and not plain["uncovered"]
    change(flat, "gen.tea_leaves", lambda x: x)
    code, found = run(flat)
    assert code == 0 and found["uncovered"] == {"t2i_pub": ["gen.tea_leaves"]}
    assert len(found["rows"]) == len(plain["rows"])


def test_a_promised_tensor_that_is_missing_fails(flat):
    tensors = load_file(flat / "case_t2i_pub.safetensors")
    del tensors["gen.kv.latent_final"]
    save_file(tensors, flat / "case_t2i_pub.safetensors")
    code, found = run(flat)
    assert code == 1 and [row["quantity"] for row in found["rows"] if not row["pass"]] == ["tensors"]


def test_a_case_that_breaks_down_fails_and_the_others_go_on(flat):
    facts = json.loads((flat / "case_t2i_pub.json").read_text(encoding="utf-8"))
    (flat / "case_t2i_pub.json").write_text(json.dumps(facts | {"task": "t2smell"}), encoding="utf-8")
    code, found = run(flat)
    assert code == 1 and [row["quantity"] for row in found["rows"]] == ["segments"]


def test_a_file_of_unknown_things_is_no_success(flat):
    for path in flat.iterdir():
        path.unlink()
    save_file({"x": torch.zeros(2)}, flat / "odd.safetensors")
    (flat / "odd.json").write_text('{"tensors": {"x": {"shape": [2]}}}', encoding="utf-8")
    code, found = run(flat)
    assert code == 1 and found["uncovered"] == {"odd": ["x"]}


def test_bad_input_is_one_sentence(tmp_path, flat, capsys):
    (flat / "case_t2i_pub.safetensors").write_bytes(b"half a file")
    empty = tmp_path / "empty"
    empty.mkdir()
    weights, tokenizer = ["--weights", str(GOLDEN / "weights")], ["--tokenizer", str(GOLDEN / "tokenizer")]
    for wrong in ([empty], [tmp_path / "nowhere"], [flat], [flat, *weights], [flat, *weights, *tokenizer]):
        assert main(["verify", *map(str, wrong)]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and said[0].startswith("error: ")


def test_what_is_not_a_number_never_passes():
    assert not Row("a", "b", math.nan, 1.0).passed and not Row("a", "b", math.inf, 1.0).passed


def test_names_fit_patterns_whose_short_fields_are_numbers():
    file = GoldenFile("x", {"vit.odd.pixels": 0}, TensorSource.of({"vit.a.b.pixels12": torch.zeros(1)}))
    assert file.matching("vit.{name}.pixels{n}") == [("vit.a.b.pixels12", {"name": "a.b", "n": 12})]


def test_relative_tolerances_hold_for_large_and_small_entries():
    source = TensorSource.of({"big": torch.tensor([1000.0, 1e-9])})
    checks = Checks(GoldenFile("x", {}, source))
    checks.compare("big", torch.tensor([1000.05, 2e-9]), LOSS)
    checks.compare("big", torch.tensor([1000.2, 1e-9]), LOSS)
    assert [row.passed for row in checks.rows] == [True, False]
