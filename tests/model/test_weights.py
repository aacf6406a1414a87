"""Weight files: everything has one place, every place is filled, and what does not fit is named."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors, read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.errors import UserError


def layers() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module.register_buffer("steps", torch.arange(2))
    return module


def state() -> dict[str, torch.Tensor]:
    return {name: torch.rand(t.shape).to(t.dtype) + 1 for name, t in layers().state_dict().items()}


def shards(folder: Path, tensors: dict) -> None:
    names = sorted(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, keys in parts.items():
        write_tensors(folder / file, {k: tensors[k] for k in keys})
    table = {k: file for file, keys in parts.items() for k in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_what_is_written_is_read_back_from_a_file_a_folder_and_shards(tmp_path):
    tensors = state()
    write_tensors(tmp_path / "one" / "model.safetensors", tensors)
    (tmp_path / "many").mkdir()
    shards(tmp_path / "many", tensors)
    for path in (tmp_path / "one", tmp_path / "one" / "model.safetensors", tmp_path / "many"):
        found = read_tensors(path)
        assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert read_tensors(tmp_path / "many", lambda name: name.endswith("bias")).keys() == {"0.bias", "1.bias"}


def test_streaming_reads_one_tensor_at_a_time(tmp_path):
    write_tensors(tmp_path / "w.safetensors", state())
    source = open_tensors(tmp_path / "w.safetensors")
    assert {name: tuple(t.shape) for name, t in source} == dict(source.shapes)


def test_the_released_order_of_names_is_kept(tmp_path):
    for value, name in ((1.0, "ema"), (2.0, "model")):
        write_tensors(tmp_path / f"{name}.safetensors", {"x": torch.tensor(value)})
    assert read_tensors(tmp_path)["x"] == 2
    (tmp_path / "model.safetensors").unlink()
    assert read_tensors(tmp_path)["x"] == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loading_fills_every_place_by_its_new_name(device):
    with torch.device(device):
        module = layers()
    tensors = state()
    load_into(module, {f"old.{name}": t for name, t in tensors.items()}, lambda name: name.removeprefix("old."))
    assert all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())


def test_a_planned_module_takes_the_wanted_type_and_shares_nothing():
    with torch.device("meta"):
        module = layers()
    tensors = state()
    load_into(module, tensors, dtype=torch.bfloat16)
    assert module[0].weight.dtype == torch.bfloat16 and module.steps.dtype == torch.int64
    before = tensors["steps"].clone()
    module.steps += 1
    assert torch.equal(tensors["steps"], before)


def test_dropped_tensors_are_never_read():
    def refuse(name):
        raise AssertionError(name)

    tensors = state()
    source = TensorSource("a file", {"table": (9,), **{n: tuple(t.shape) for n, t in tensors.items()}}, tensors.get)
    load_into(layers(), source, lambda name: None if name == "table" else name)
    with pytest.raises(UserError, match="unexpected: table"):
        load_into(layers(), TensorSource("a file", source.shapes, refuse))


def test_everything_wrong_is_named_at_once_and_nothing_is_changed():
    module, tensors = layers(), state()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    del tensors["0.bias"]
    tensors |= {f"extra{i}": torch.zeros(1) for i in range(7)} | {"0.weight": torch.zeros(4, 2)}
    with pytest.raises(UserError) as caught:
        load_into(module, tensors)
    message = str(caught.value)
    for part in ("missing: 0.bias", "extra4 and 2 more", "0.weight (is 4x2, needs 4x3)"):
        assert part in message
    assert "extra5" not in message and "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_two_tensors_for_one_place_are_refused():
    with pytest.raises(UserError, match="twice"):
        load_into(layers(), state() | {"also.0.bias": torch.zeros(4)}, lambda name: name.removeprefix("also."))


def test_a_table_of_names_must_know_every_tensor():
    tensors = state()
    load_into(layers(), tensors, {name: name for name in tensors})
    with pytest.raises(UserError, match="unexpected: steps"):
        load_into(layers(), tensors, {name: name for name in tensors if name != "steps"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, value):
    tensors = state()
    tensors["1.weight"][2] = value
    write_tensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(UserError, match=r"not finite in 1\.weight"):
        read_tensors(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"not finite in 1\.weight"):
        load_into(layers(), open_tensors(tmp_path / "w.safetensors"))


def test_pickles_are_refused_unless_asked_for_and_then_only_give_tensors(tmp_path):
    tensors = state()
    torch.save(tensors, tmp_path / "w.pth")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("w.pth", "old.bin"):
        with pytest.raises(UserError, match="allow_pickle=True"):
            open_tensors(tmp_path / name)
        found = read_tensors(tmp_path / name, allow_pickle=True)
        assert all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_the_content_of_a_file_counts_not_its_name(tmp_path):
    torch.save(state(), tmp_path / "pickle.safetensors")
    for allow in (False, True):
        with pytest.raises(UserError, match="is a pickle"):
            open_tensors(tmp_path / "pickle.safetensors", allow_pickle=allow)
    for length in range(1, 40):  # headers of all lengths, some of which begin like a pickle
        write_tensors(tmp_path / "w.bin", {"x" * length: torch.ones(1)})
        assert read_tensors(tmp_path / "w.bin").keys() == {"x" * length}


class Trap:
    """A pickle that would make a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_a_pickle_never_runs_code(tmp_path):
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"w": Trap(tmp_path / "sprung")}, protocol=2))
    torch.save({"w": Trap(tmp_path / "sprung")}, tmp_path / "zip.pt")
    torch.save({"w": torch.zeros(1), "epoch": 3}, tmp_path / "more.pt")
    for name in ("bare.pt", "zip.pt", "more.pt"):
        with pytest.raises(UserError, match=name):
            open_tensors(tmp_path / name, allow_pickle=True)
    assert not (tmp_path / "sprung").exists()


def test_missing_damaged_and_ambiguous_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        open_tensors(tmp_path / "none")
    with pytest.raises(UserError, match="holds no .safetensors"):
        open_tensors(tmp_path)
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth is a pickle"):
        open_tensors(tmp_path)
    write_tensors(tmp_path / "x.safetensors", state())
    data = (tmp_path / "x.safetensors").read_bytes()
    for size in (0, 5, 40, len(data) - 1):
        (tmp_path / "cut.bin.safetensors").write_bytes(data[:size])
        with pytest.raises(UserError, match="not a readable safetensors"):
            open_tensors(tmp_path / "cut.bin.safetensors")
    with pytest.raises(UserError, match="several models"):
        open_tensors(tmp_path)


def test_an_index_names_only_files_beside_it(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for text, reason in (
        ("{", "not an index"),
        ("[]", "not an index"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "outside"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "not there"),
        ('{"weight_map": {}}', "not there"),
    ):
        index.write_text(text)
        with pytest.raises(UserError, match=reason):
            open_tensors(tmp_path)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(AttributeError):
        write_tensors(tmp_path / "w.safetensors", {"a": "not a tensor"})
    assert not list(tmp_path.iterdir())
