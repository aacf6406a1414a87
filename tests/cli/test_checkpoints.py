"""`init`, `inspect`, `convert` and `download` as they are typed."""

import json

import pytest

from openlance.cli.main import main


@pytest.fixture(scope="module")
def random_nano(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "nano"
    assert main(["init", "nano", "--random", "-o", str(folder), "--shards", "2", "--parts", "decoder,vit"]) == 0
    return folder


def said(capsys, *line: str) -> tuple[int, str, str]:
    code = main(list(line))
    out, err = capsys.readouterr()
    return code, out, err


def test_inspect_says_what_is_there_and_what_is_not(random_nano, capsys):
    code, out, _ = said(capsys, "inspect", str(random_nano), "--values")
    assert code == 1 and "incomplete" in out and "missing: vae.safetensors" in out and "x2t_image" in out
    code, out, _ = said(capsys, "inspect", str(random_nano), "--json")
    found = json.loads(out)
    assert code == 1 and not found["complete"] and found["form"] == "openlance"
    assert set(found["tasks"]) == {"x2t_image", "x2t_video"}
    decoder = found["parts"][0]
    assert decoder["dtypes"].keys() == {"BF16"} and len(decoder["files"]) == 3 and decoder["tensors"] == 180


def test_inspect_of_one_file(random_nano, capsys):
    code, out, _ = said(capsys, "inspect", str(random_nano / "vit.safetensors"))
    assert code == 0 and "no checkpoint" in out and "BF16" in out


@pytest.mark.parametrize("line, told", [
    (["init", "nano", "-o", "x"], "--random"),
    (["init", "7b", "--random", "-o", "x"], "3b, nano"),
    (["init", "nano", "--random", "-o", "x", "--parts", "head"], "decoder, vit and vae"),
    (["init", "nano", "--random", "-o", "x", "--dtype", "int3"], "bfloat16"),
    (["init", "nano", "--random", "-o", "x", "--shards", "0"], "--shards"),
    (["init", "nano", "--random", "-o", "x", "--to", "zip"], "openlance, released, diffusers"),
    (["inspect", "nowhere"], "openlance download"),
    (["convert", "nowhere", "x"], "no model 'nowhere'"),
    (["download", "not a name"], "owner/model"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_and_writes_nothing(line, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, *line)
    assert code == 2 and told in err and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_convert_refuses_what_is_incomplete(random_nano, tmp_path, capsys):
    code, _, err = said(capsys, "convert", str(random_nano), str(tmp_path / "out"), "--to", "released")
    assert code == 2 and "vae.safetensors" in err and not list(tmp_path.iterdir())


def test_without_a_network_download_says_what_to_do(tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = said(capsys, "download", "-o", str(tmp_path / "downloads"))
    assert code == 2 and "cannot be reached" in err and f"-o {tmp_path / 'downloads'}" in err
