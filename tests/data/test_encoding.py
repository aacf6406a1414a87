"""Encoded shards depend on the data alone, a stopped run goes on, and training reads them as it reads the source."""

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from openlance.cli.main import main
from openlance.data.encoded import MARK, EncodedSource, Job, PartEncoder, encode
from openlance.data.front import Fit
from openlance.data.open import open_source
from openlance.data.source import Reader, Reading, Sample
from openlance.data.stream import Stream
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.sequence.pack import pack
from openlance.sequence.segment import Kind, Role, Segment

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Means:
    """An encoder that needs no model: 4x4 means of pictures. Names every process in which it was made."""

    log: str = ""

    def __call__(self):
        if self.log:
            with open(self.log, "a") as file:
                file.write("made\n")

        def latents(clip):
            t, h, w, _ = clip.pixels.shape
            cells = clip.pixels[:1].reshape(1, h // 4, 4, w // 4, 4, 3).mean((2, 4), dtype=np.float32)
            return torch.from_numpy(np.concatenate([cells, cells[..., :1]], -1) / 255)

        def encoded(s):
            return s if s.kind is Kind.TEXT else Segment(s.kind, s.role, latents(s.value), s.size)

        class Encoder:
            probe = (0.5, 0.25)

            def __call__(self, samples):
                return [Sample([encoded(s) for s in sample.segments], sample.id, sample.labels) for sample in samples]

        return Encoder()


@pytest.fixture
def job(greys, tmp_path):
    return Job(
        source=greys(20, bad=frozenset([13])), fit=Fit(), make=Means(), out=tmp_path / "out", rows=3,
        about={"task": "t2i"}, max_broken=1,
    )  # fmt: skip


def finish(job, **how):
    return list(encode(job, **how))[-1]


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"*{MARK}"))}


def opened(folder):
    return EncodedSource(tuple(sorted(folder.glob(f"*{MARK}"))), "t2i")


def test_samples_come_back_as_they_were(job):
    done = finish(job)
    assert done["rows"] == 20 and done["broken"] == [["greys, row 13", "it is broken"]] and done["made"] == 8
    rows = list(Reader(opened(job.out), Reading(shuffle=False, repeat=False)))
    found = [opened(job.out).sample(row, Fit(), RNG) for row in rows]
    assert [s.id for s in found] == [f"greys, row {n}" for n in range(20) if n != 13]
    plain = [r for r in Reader(job.source, Reading(shuffle=False, repeat=False)) if r.values != 13]
    for row, sample in zip(plain, found, strict=True):
        [wanted] = Means()()([job.source.sample(row, Fit(), RNG)])
        for a, b in zip(wanted.segments, sample.segments, strict=True):
            assert (a.kind, a.role, a.size) == (b.kind, b.role, b.size)
            assert a.value == b.value if a.kind is Kind.TEXT else torch.allclose(a.value, b.value, atol=1e-3)


def test_pixels_labels_and_given_frames_are_kept(tmp_path):
    from openlance.data.encoded import write_shard

    seen = Segment(Kind.PATCHES, Role.SOURCE, Clip(np.full((1, 8, 8, 3), 7, np.uint8)))
    z = torch.arange(8.0).reshape(2, 1, 1, 4)
    made = Segment(Kind.LATENTS, Role.TARGET, z, (5, 4, 4), z[:1])
    write_shard(tmp_path / f"0{MARK}", [Sample([seen, made], "x", np.arange(3))], {"task": "t2i"})
    source = opened(tmp_path)
    (row,) = source.rows(source.files[0])
    sample = source.sample(row, Fit(), RNG)
    assert (sample.segments[0].value.pixels == 7).all() and sample.labels.tolist() == [0, 1, 2]
    assert torch.equal(sample.segments[1].value, z) and torch.equal(sample.segments[1].given, z[:1])


def test_the_number_of_workers_changes_no_byte(job, tmp_path):
    finish(job)
    other = replace(job, out=tmp_path / "other")
    finish(other, workers=2)
    assert shards(job.out) == shards(other.out)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_stopped_run_goes_on_and_ends_the_same(job, kept, tmp_path):
    finish(job)
    whole = shards(job.out)
    for name in list(whole)[kept:]:
        (job.out / name).unlink()
    again = replace(job, make=Means(str(tmp_path / "log")))
    assert finish(again)["made"] == len(whole) - kept and shards(job.out) == whole
    (tmp_path / "log").unlink()
    assert finish(again)["made"] == 0 and not (tmp_path / "log").exists(), "a finished run loads no model"


def test_a_folder_holds_one_thing_only(job):
    finish(job)
    with pytest.raises(UserError, match="holds shards of task 't2i' and not 't2v'"):
        finish(replace(job, about={"task": "t2v"}))
    with pytest.raises(UserError, match="holds samples of t2i, not of t2v"):
        open_source(job.out, "t2v")


def test_data_that_grew_or_shrank_is_encoded_as_it_is_now(job, tmp_path):
    finish(job)
    for count in (26, 9):
        now = replace(job, source=replace(job.source, count=count))
        finish(now)
        finish(replace(now, out=tmp_path / f"anew-{count}"))
        assert shards(job.out) == shards(tmp_path / f"anew-{count}")


def test_a_folder_that_grew_is_encoded_as_it_is_now(picture, tmp_path):
    def put(name):
        (tmp_path / "in" / f"{name}.png").write_bytes(picture(ord(name), 16, 16))
        (tmp_path / "in" / f"{name}.txt").write_text(f"a circle {name}")

    (tmp_path / "in").mkdir()
    put("b")
    how = {"fit": Fit(), "make": Means(), "out": tmp_path / "out", "about": {"task": "t2i"}}
    assert finish(Job(source=open_source(tmp_path / "in", "t2i"), **how))["made"] == 1
    put("a")
    assert finish(Job(source=open_source(tmp_path / "in", "t2i"), **how))["rows"] == 2
    source = open_source(tmp_path / "out", "t2i")
    assert [row.values[3]["id"][-5:] for part in source.parts(0, None) for row in source.rows(part)] == [
        "a.png",
        "b.png",
    ]


def test_contents_decide_whether_a_shard_is_made_anew(picture, tmp_path):
    """Another picture of the same size in bytes and of the same time, another text, another VAE or size."""
    place = tmp_path / "in" / "a.bmp"
    place.parent.mkdir()

    def put(value, text):
        Image.new("RGB", (16, 16), (value, 0, 0)).save(place)
        place.with_suffix(".txt").write_text(text)
        os.utime(place, (1e9, 1e9))

    def made(content="one vae"):
        source = open_source(tmp_path / "in", "t2i")
        return finish(Job(source=source, fit=Fit(), make=Means(), out=tmp_path / "out", about={"task": "t2i"},
                          content=content))["made"]  # fmt: skip

    put(1, "a red dot")
    assert [made(), made()] == [1, 0]
    put(2, "a red dot")
    assert [made(), made()] == [1, 0]
    put(2, "a red dog")
    assert [made(), made(), made("another"), made("another")] == [1, 0, 1, 0]


def test_a_shard_of_texts_that_changed_in_a_tar_or_a_table_is_made_anew(picture, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.png").write_bytes(picture(9, 16, 16))

    def made():
        job = Job(source=open_source(tmp_path / "a.parquet", "t2i"), fit=Fit(), make=Means(), out=tmp_path / "out",
                  about={"task": "t2i"})  # fmt: skip
        return finish(job)["made"]

    pq.write_table(pa.table({"image_path": ["a.png"], "text": ["one"]}), tmp_path / "a.parquet")
    assert [made(), made()] == [1, 0]
    pq.write_table(pa.table({"image_path": ["a.png"], "text": ["two"]}), tmp_path / "a.parquet")
    assert [made(), made()] == [1, 0]
    (tmp_path / "a.png").write_bytes(picture(10, 16, 16))  # a file that the table names
    assert [made(), made()] == [1, 0]


def test_latents_of_another_vae_are_not_trained_on(job):
    finish(job)
    opened(job.out).check_vae([0.51, 0.24])
    for probe in ([0.9, 0.25], [0.5, 0.25, 0.1]):
        with pytest.raises(UserError, match="latents of another VAE"):
            opened(job.out).check_vae(probe)


def test_too_many_broken_rows_stop_with_the_last_place(job):
    with pytest.raises(UserError, match="greys, row 13: it is broken .*max_broken=0"):
        finish(replace(job, max_broken=0))


def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(job):
    with pytest.raises(UserError, match="cannot write .*encoded.safetensors .*make room"):
        previous, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
        PartEncoder(job)._encode = None
        job.out.mkdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, limit[1]))
        try:
            finish(job)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, previous)
    assert not list(job.out.glob("*.safetensors")) and not [n for n in os.listdir(job.out) if n.startswith(".")]


def test_a_damaged_or_vanished_shard_is_one_sentence(job):
    finish(job)
    source = opened(job.out)
    source.files[0].write_bytes(source.files[0].read_bytes()[:100])
    with pytest.raises(UserError, match="00000-000.encoded.safetensors is damaged"):
        list(source.rows(source.files[0]))
    source.files[1].unlink()
    with pytest.raises(UserError, match="00000-001.encoded.safetensors is not there any more"):
        list(source.rows(source.files[1]))


def test_a_stream_reads_shards_as_it_reads_their_source(job, stage, tiny):
    job = replace(
        job,
        source=replace(job.source, bad=frozenset()),
        fit=replace(Fit(), front=replace(Fit().front, style=tiny.style)),
    )
    finish(job)
    changes = {"mixture": {"t2i": 1.0}, "max_sample_tokens": 420}
    for samples in islice(Stream({"t2i": open_source(job.out, "t2i")}, stage(**changes), tiny.codec), 4):
        packed = pack([s.segments for s in samples], tiny.codec, tiny.model.config.position)
        assert all(v.segment.value.shape == (*v.grid, 4) for v in packed.visuals) and len(packed) <= 420


@pytest.mark.skipif("OPENLANCE_RAY" not in os.environ, reason="OPENLANCE_RAY=1 starts Ray; it needs an idle machine")
def test_ray_makes_the_same_shards(job, tmp_path):
    ray = pytest.importorskip("ray")
    for ours in (job.source, job.make):  # Ray's workers cannot import a test
        ray.cloudpickle.register_pickle_by_value(sys.modules[type(ours).__module__])
    finish(job)
    other = replace(job, out=tmp_path / "other")
    assert finish(other, ray="local", workers=1)["rows"] == 20
    assert shards(job.out) == shards(other.out)
    with pytest.raises(UserError, match="damaged"):
        (other.out / f"00000-000{MARK}").write_bytes(b"")
        finish(other, ray="local", workers=2)


def test_the_command_encodes_a_folder_with_nano(picture, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(2):
        (pictures / f"{n}.png").write_bytes(picture(90 * n, 64, 64))
        (pictures / f"{n}.txt").write_text("a red circle")
    line = ["encode", str(pictures), "-o", str(tmp_path / "out"), "--task", "t2i", "--model", "nano"]
    assert main(line) == 0 and main(line) == 0
    assert "2 samples, 0 new shards" in capsys.readouterr().out
    source = open_source(tmp_path / "out", "t2i")
    made = [source.sample(row, Fit(), RNG).segments[-1] for row in source.rows(source.files[0])]
    assert [m.value.shape for m in made] == [(1, 8, 8, 16)] * 2 and not torch.equal(made[0].value, made[1].value)
    assert json.loads((tmp_path / "out" / "encode.json").read_text())["model"] == "nano"
    assert main([*line, "--column", "caption"]) == 2 and main([*line[:2], "-o", str(pictures / "0.png")]) == 2
