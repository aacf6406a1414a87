"""Rows are shuffled inside a part as between parts, every row once an epoch, and a reader goes on exactly."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from openlance.data.open import open_source
from openlance.data.source import BUFFER, Reader, Reading, Row, buffered

ROWS = 40


def png(n):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (n, n, n)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module", params=["parquet", "tar", "saved"])
def source(request, tmp_path_factory):
    """40 rows in one part."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "tar":
        with tarfile.open(place / "a.tar", "w") as tar:
            for n in range(ROWS):
                for name, data in ((f"{n:03d}.png", png(n)), (f"{n:03d}.txt", b"x")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    elif request.param == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"image": [png(n) for n in range(ROWS)], "text": ["x"] * ROWS}), place / "a.parquet")
    else:
        datasets = pytest.importorskip("datasets")
        rows = {"image": [png(n) for n in range(ROWS)], "text": ["x"] * ROWS}
        datasets.Dataset.from_dict(rows).save_to_disk(place)
    return open_source(place, "t2i")


def places(reader, count=ROWS):
    return [next(reader).place for _ in range(count)]


def test_a_part_is_shuffled_whole_and_anew_in_each_epoch(source):
    in_order = [row.place for row in source.rows(source.parts(0, None)[0])]
    reader = Reader(source, seed=1)
    one, two = places(reader), places(reader)
    assert sorted(one) == sorted(two) == sorted(in_order) and len({*map(tuple, (in_order, one, two))}) == 3
    # A table sorted by class: both halves of it are in each quarter of an epoch.
    first = {place: n < ROWS // 2 for n, place in enumerate(in_order)}
    for quarter in range(4):
        assert len({first[place] for place in one[10 * quarter : 10 * quarter + 10]}) == 2
    assert places(Reader(source, Reading(shuffle=False))) == in_order


@pytest.mark.parametrize("world", [1, 3])
def test_a_reader_goes_on_exactly_and_ranks_share_the_rows(source, world):
    seen = []
    for rank in range(world):
        reading = Reading(rank=rank, world=world)
        whole = places(Reader(source, reading, seed=3), 30)
        reader = Reader(source, reading, seed=3)
        start = places(reader, 11)
        again = Reader(source, reading, seed=3)
        again.load_state_dict(reader.state_dict())
        assert start + places(again, 19) == whole
        seen += places(Reader(source, Reading(rank=rank, world=world, repeat=False), seed=3), ROWS // world)
    assert len(set(seen)) == len(seen) == ROWS // world * world


def test_what_can_only_be_read_from_front_to_back_is_shuffled_in_a_buffer():
    rows = [Row(str(n), n) for n in range(3 * BUFFER)]
    mixed = [row.values for row in buffered(iter(rows), np.random.default_rng(0))]
    assert sorted(mixed) == list(range(3 * BUFFER)) and abs(np.corrcoef(mixed[:BUFFER], range(BUFFER))[0, 1]) < 0.5
    assert mixed == [row.values for row in buffered(iter(rows), np.random.default_rng(0))]
