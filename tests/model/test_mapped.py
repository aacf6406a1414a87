"""Mapped files: views that read when touched, and memory that holds what is kept and little else."""

from pathlib import Path

import pytest
import torch
from torch import nn

from openlance.checkpoint.tensors import DTYPES, PIECE, load_into, open_tensors, read_tensors, unfilled
from openlance.checkpoint.writer import Stream, stream_of, write_file, write_shards, write_tensors
from openlance.errors import UserError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def plain(tensor: torch.Tensor, piece: int = 7) -> Stream:
    return Stream(tuple(tensor.shape), tensor.dtype, lambda: iter(tensor.reshape(-1).split(piece)))


def several() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    floats = {str(d): torch.randn(3, 5).to(d) for d in DTYPES.values() if d.is_floating_point}
    return floats | {"whole": torch.arange(9), "yes": torch.tensor([True, False]), "one": torch.tensor(2.5)}


def test_what_is_streamed_out_is_read_back(tmp_path):
    tensors = several()
    write_file(tmp_path / "w.safetensors", {name: plain(t) for name, t in tensors.items()})
    mapped = open_tensors(tmp_path / "w.safetensors")
    assert mapped.shapes == {name: tuple(t.shape) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        assert mapped.read(name).dtype == tensor.dtype
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (mapped.read(name), tensor)))
    half = {name: stream_of(open_tensors(tmp_path / "w.safetensors"), name, torch.float16) for name in ("one", "whole")}
    write_file(tmp_path / "half.safetensors", half)
    assert {t.dtype for t in read_tensors(tmp_path / "half.safetensors").values()} == {torch.float16, torch.int64}


@pytest.mark.parametrize("shards", [1, 2, 3, 11])
def test_shards_hold_everything_once(tmp_path, shards):
    tensors = {str(n): torch.rand(n + 1, 4) for n in range(11)}
    files = write_shards(tmp_path, "model", {name: plain(t) for name, t in tensors.items()}, shards)
    assert len([f for f in files if f.suffix == ".safetensors"]) == shards
    found = read_tensors(tmp_path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[n], tensors[n]) for n in tensors)
    with pytest.raises(UserError, match="shards"):
        write_shards(tmp_path, "more", {"a": plain(torch.ones(1))}, 2)


def test_a_view_can_leave_memory_and_come_back_and_changes_stay_private(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"a": torch.arange(1 << 15).float()})
    mapped = open_tensors(tmp_path / "w.safetensors")
    view = mapped.read("a")
    before = view.clone()
    mapped.release("a", view)
    assert torch.equal(view, before)
    view[7] = -1
    assert open_tensors(tmp_path / "w.safetensors").read("a")[7] == 7


def peak_growth(work) -> int:
    """Bytes by which the most memory that the process ever used grows over what it uses now."""

    def kilobytes(name: str) -> int:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines[name].split()[0])

    RESET.write_text("5")
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) * 1024


@pytest.mark.skipif(not RESET.exists(), reason="the peak of this process cannot be read")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_loading_needs_little_more_memory_than_what_is_kept(tmp_path, stored):
    with unfilled():
        model = nn.Sequential(*(nn.Linear(2000, 2000, bias=False) for _ in range(6)))
    write_tensors(tmp_path / "w.safetensors", {f"{n}.weight": torch.ones(2000, 2000, dtype=stored) for n in range(6)})
    kept = 6 * 2000 * 2000 * 2
    pieces = 2 * PIECE * stored.itemsize  # one of the source, and its pages before they are let go
    grown = peak_growth(lambda: load_into(model, open_tensors(tmp_path / "w.safetensors"), dtype=torch.bfloat16))
    assert grown < 1.1 * kept + pieces
    # What stays as it is in the file has been looked at and let go: it is read again when it is used.
    assert stored is not torch.bfloat16 or grown < 0.2 * kept + pieces
    assert model[5].weight.dtype == torch.bfloat16 and bool((model[5].weight == 1).all())
