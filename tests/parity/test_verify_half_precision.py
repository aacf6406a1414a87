"""Vectors in half precision: they pass, one wrong number is found, and frequencies that are not rounded are found."""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from lance_parity.parts import PLAIN, RELEASED, UNROUNDED, Parts
from lance_parity.run import verify
from openlance.cli.main import main
from openlance.config.model import Quirks

GOLDEN = Path(__file__).parents[1] / "golden"
FULL = Path(__file__).parents[3] / "shared" / "golden"  # all vectors at full precision, where they are to be had
WEIGHTS: list[Path] = []
EDIT, QUESTION = "case_image_edit_pub", "case_x2t_image_pub"


def plain_copy(folder, stem):
    folder.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / "bf16" / f"{stem}.json", folder)
    tensors = load(lzma.decompress((GOLDEN / "bf16" / f"{stem}.safetensors.xz").read_bytes()))
    save_file(tensors, folder / f"{stem}.safetensors")


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory):
    """Plain weights, unpacked once for all that runs here."""
    folder = tmp_path_factory.mktemp("plain") / "weights"
    shutil.copytree(GOLDEN / "weights", folder, ignore=shutil.ignore_patterns("*.xz"))
    for packed in (GOLDEN / "weights").glob("*.xz"):
        (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    WEIGHTS.append(folder)


@pytest.fixture
def edit(tmp_path):
    """A folder with an edit alone, away from the cases whose inputs it has."""
    plain_copy(tmp_path / "half", EDIT)
    return tmp_path / "half"


@pytest.fixture
def question(tmp_path):
    """Likewise with a question, in the same folder where a test takes both."""
    plain_copy(tmp_path / "half", QUESTION)
    return tmp_path / "half"


def change(folder, stem, name, edit):
    """Rewrite one tensor, or leave it out."""
    tensors = load_file(folder / f"{stem}.safetensors")
    changed = edit(tensors.pop(name))
    facts = json.loads((folder / f"{stem}.json").read_text())
    if changed is None:
        del facts["tensors"][name]
        (folder / f"{stem}.json").write_text(json.dumps(facts))
    else:
        tensors[name] = changed.contiguous()
    save_file(tensors, folder / f"{stem}.safetensors")


def run(folder, **options):
    given = {"weights": WEIGHTS[0], "tokenizer": GOLDEN / "tokenizer", "inputs": GOLDEN / "cases"}
    return verify(folder, **given, **options)


def wrong(report):
    return {row.quantity for row in report.failed}


def test_they_pass_whatever_is_on_and_nothing_is_left_out(edit, question):
    plain = verify(GOLDEN / "bf16")
    assert plain.failed == [] and plain.uncovered == {} and len(plain.rows) > 50
    ways = run(edit, ways=("offload", "tiling", "prefix", "batch"))
    assert ways.failed == [] and len(ways.rows) == len(plain.rows)


def test_each_wrong_number_is_found_and_no_other(edit):
    wrongly = {
        "rope.inv_freq": lambda x: x * (1 + 2**-7),
        "vit.angle": lambda x: x + (x == x.max()),
        "rope.cos": lambda x: x + 0.01 * (x == x.max()),
        "prefix.hidden_last": lambda x: x * 1.02,
        "float32_rounded.gen.kv.latent_final": lambda x: x + 2e-4 * (x == x.max()),
        "float32_rounded.layer0.k": lambda x: x[:-1],
        "gen.vae_embed_step0": lambda x: x + 0.05 * (x == x.max()),
        "vae.mean0": lambda x: x * float("nan"),
    }
    for name, how in wrongly.items():
        change(edit, EDIT, name, how)
    assert {q for q in wrong(run(edit)) if not q.endswith("share")} == wrongly.keys()


def test_tokens_count_up_to_the_first_close_call(question):
    gaps = json.loads((question / f"{QUESTION}.json").read_text())["und_kv_top2_gaps"]
    close = next(n for n, gap in enumerate(gaps) if gap < 0.1)
    name = "und.kv.token_ids"
    at = torch.arange(len(gaps))
    change(question, QUESTION, name, lambda x: x + (at >= close))
    assert wrong(run(question)) == set()
    change(question, QUESTION, name, lambda x: x + (at == close - 1))
    assert wrong(run(question)) == {name}


@pytest.mark.parametrize("lost", [("rows.joined", "rope.", "layer0.k"), ("rows.prefix", "prefix."), ("vit.", "gen.")])
def test_any_of_them_may_be_missing(edit, lost):
    for name in load_file(edit / f"{EDIT}.safetensors"):
        if any(part in name for part in lost):
            change(edit, EDIT, name, lambda x: None)
    report = run(edit)
    assert report.failed == [] and report.uncovered == {}


def test_frequencies_that_are_not_rounded_are_found(edit, monkeypatch):
    plain = Quirks(rounded_frequencies=False)
    monkeypatch.setattr("lance_parity.parts.Quirks", lambda rounded_frequencies: plain)
    found = wrong(run(edit))
    assert {"rope.cos", "rope.sin", "layer0.k", "layer0.k: share", "prefix.hidden_last: share"} <= found


def test_inputs_that_are_not_there_are_one_sentence(question, capsys, tmp_path):
    named = ["--weights", str(WEIGHTS[0]), "--tokenizer", str(GOLDEN / "tokenizer")]
    for more in ([], ["--inputs", str(tmp_path)]):
        assert main(["verify", str(question), *named, *more]) == 2
        assert "--inputs DIR" in capsys.readouterr().err
    assert main(["verify", str(question), *named, "--inputs", str(GOLDEN / "cases"), "--only-failed"]) == 0


def test_the_forms_of_a_model_differ_in_dtype_and_rounding():
    parts = Parts(GOLDEN / "weights", GOLDEN / "tokenizer")
    rounded = [parts.of(form).config.quirks.rounded_frequencies for form in (RELEASED, UNROUNDED, PLAIN)]
    assert rounded == [True, False, False] and parts.of(RELEASED) is parts.of(RELEASED) and parts.of(PLAIN) is parts
