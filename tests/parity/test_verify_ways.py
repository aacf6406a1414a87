"""What spends less time or memory changes no golden number."""

import lzma
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load, save_file

from lance_parity.run import verify
from openlance.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case_image_edit_pub", "case_x2t_image_pub")


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """A picture that is edited and a question, in a flat folder."""
    folder = tmp_path_factory.mktemp("some")
    for case in CASES:
        shutil.copy(GOLDEN / "cases" / f"{case}.json", folder)
        packed = (GOLDEN / "cases" / f"{case}.safetensors.xz").read_bytes()
        save_file(load(lzma.decompress(packed)), folder / f"{case}.safetensors")
    return folder


def test_offload_tiling_shared_prefixes_and_batches_pass(some):
    plain = verify(some, GOLDEN / "weights", GOLDEN / "tokenizer")
    with_all = verify(some, GOLDEN / "weights", GOLDEN / "tokenizer", ways=("offload", "tiling", "prefix", "batch"))
    assert with_all.failed == [] and len(with_all.rows) == len(plain.rows) > 50


def test_a_way_that_is_none_is_refused(capsys):
    assert main(["verify", str(GOLDEN), "--with", "magic"]) == 2
    assert "'magic'" in capsys.readouterr().err
