"""One process with n packs a step reads what n processes read, from every kind of source, and they take turns."""

import io
import json
import tarfile
from itertools import islice

import pytest
from PIL import Image

from openlance.data.lanes import Lanes
from openlance.data.open import open_source
from openlance.data.source import Reader, Reading
from openlance.errors import UserError


def folder(path, picture, count):
    path.mkdir()
    for n in range(count):
        (path / f"{n:02d}.png").write_bytes(picture(n))
        (path / f"{n:02d}.txt").write_text(f"a circle, {n}")
    return path


def tars(path, picture, count, shards=3):
    path.mkdir()
    for shard in range(shards):
        with tarfile.open(path / f"{shard}.tar", "w") as tar:
            for n in range(shard, count, shards):
                for suffix, data in (("png", picture(n)), ("txt", f"a circle, {n}".encode())):
                    member = tarfile.TarInfo(f"{n:02d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return path


def parquet(path, picture, count):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.mkdir()
    rows = {"image_bytes": [picture(n) for n in range(count)], "caption": [f"a circle, {n}" for n in range(count)]}
    pq.write_table(pa.table(rows), path / "a.parquet", row_group_size=7)
    return path


@pytest.fixture
def lanes(tiny, stage):
    opened = []

    def make(source, rank=0, world=1, accumulate=1, **reading):
        chosen = stage(mixture={"t2i": 1}, accumulate=accumulate, pack_tokens=(60, 200), max_sample_tokens=200)
        reading = Reading(rank=rank, world=world, look_ahead=4, **reading)
        opened.append(Lanes({"t2i": source}, chosen, tiny.codec, style=tiny.style, reading=reading))
        return opened[-1]

    yield make
    for one in opened:
        one.__exit__()


def ids(packs):
    return [[s.id for s in pack] for pack in packs]


@pytest.mark.parametrize("write", [folder, tars, parquet])
@pytest.mark.parametrize("count", [5, 23])
def test_one_process_reads_what_several_read(lanes, tmp_path, picture, write, count):
    source = open_source(write(tmp_path / "data", picture, count), "t2i")
    four = [ids(islice(lanes(source, rank, 4), 3)) for rank in range(4)]
    two = [ids(islice(lanes(source, rank, 2, 2), 6)) for rank in range(2)]
    one = ids(islice(lanes(source, 0, 1, 4, workers=1), 12))
    steps = [[four[rank][step] for rank in range(4)] for step in range(3)]
    assert one == [pack for step in steps for pack in step]
    assert [two[0][2 * n] for n in range(3)] == [s[0] for s in steps] and two[1][1] == steps[0][3]


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_run_goes_on_with_another_number_of_processes(lanes, tmp_path, picture, stop):
    source = open_source(folder(tmp_path / "data", picture, 11), "t2i")
    whole = ids(islice(lanes(source, 0, 1, 2), 2 * (stop + 3)))
    both = [lanes(source, rank, 2) for rank in range(2)]
    for one in both:
        list(islice(one, stop))
    saved = json.loads(json.dumps(both[0].state_dict() | both[1].state_dict()))
    alone = lanes(source, 0, 1, 2)
    next(alone)  # one that has been used is reset too
    alone.load_state_dict(saved)
    assert ids(islice(alone, 6)) == whole[2 * stop :]
    again = lanes(source, 1, 2)
    again.load_state_dict(saved)
    assert ids(islice(again, 3)) == whole[2 * stop + 1 :: 2]
    with pytest.raises(UserError, match="a step had 2 packs, and has 3 now: go on with as many"):
        lanes(source, 0, 1, 3).load_state_dict(saved)


@pytest.mark.parametrize("count, block", [(2, 8), (6, 2)])
def test_a_rank_that_is_left_without_a_row_borrows_one(greys, count, block):
    source = greys(count, block=block)
    readers = [Reader(source, Reading(rank=rank, world=8, shuffle=False)) for rank in range(8)]
    seen = [[row.values for row in islice(reader, 3)] for reader in readers]
    assert all(len(set(rows)) == 1 for rows in seen[block:]) and {rows[0] for rows in seen} == set(range(count))
    again = Reader(source, Reading(rank=7, world=8, shuffle=False))
    again.load_state_dict(readers[7].state_dict())
    assert next(again).values == next(readers[7]).values
    with pytest.raises(UserError, match="has no rows: give it data"):
        next(Reader(greys(0)))


def test_a_single_picture_serves_many_packs(lanes, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("a circle")
    assert len(list(islice(lanes(open_source(tmp_path / "data", "t2i"), accumulate=4), 8))) == 8
