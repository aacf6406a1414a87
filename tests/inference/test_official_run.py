"""Several processes share the entries of a file, and any number of them can go on with what others began."""

import json

import pytest

from openlance.compat.inputs import Entry
from openlance.compat.requests import Job
from openlance.compat.running import Record, run, settings_of
from openlance.errors import UserError
from openlance.media import read_image

ENTRIES = [Entry(f"{n}.png", f"{n:06d}", text) for n, text in enumerate(["a ring", "a star", "a cross"])]
JOB = Job(task="t2i", size=(1, 16, 16), settings={"num_inference_steps": 1})


def share(pipe, folder, world, entries=ENTRIES):
    """What `world` processes do, one after another; how many entries each found to do."""
    counts = []
    for rank in range(world):
        record = Record(folder, settings_of(JOB, "tiny"), rank)
        before = len(record.done)
        assert run(pipe, entries[rank::world], JOB, record) == []
        counts.append(len(record.done) - before)
    Record(folder, settings_of(JOB, "tiny")).finish(entries)
    return counts


def test_an_entry_does_not_depend_on_how_many_share_the_work(pipe, tmp_path):
    assert share(pipe, tmp_path / "one", 1) == [3] and share(pipe, tmp_path / "two", 2) == [2, 1]
    for entry in ENTRIES:
        one, two = (read_image(tmp_path / name / f"{entry.name}.png").pixels for name in ("one", "two"))
        assert abs(one.astype(int) - two).max() <= 1
    tables = [(tmp_path / name / "prompt.json").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1] and list(json.loads(tables[0])) == [f"00000{n}.png" for n in range(3)]


def test_other_processes_go_on(pipe, tmp_path):
    assert share(pipe, tmp_path, 2, ENTRIES[:2]) == [1, 1]
    assert share(pipe, tmp_path, 3) == [0, 0, 1]
    (tmp_path / "000001.png").unlink()
    assert share(pipe, tmp_path, 1) == [0], "known to the journal, but made again"
    assert (tmp_path / "000001.png").is_file()


def test_a_folder_has_one_kind_of_run(tmp_path):
    Record(tmp_path, settings_of(JOB, "tiny"))
    with pytest.raises(UserError, match="model 'tiny', not 'nano'"):
        Record(tmp_path, settings_of(JOB, "nano"))
