"""What is kept of earlier epochs trains to the last bit as what is decoded anew, within its room on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from openlance.config.lora import Lora
from openlance.config.train import override
from openlance.data import columns
from openlance.data.cache import BLOCK, Cache, Missing, opened
from openlance.data.report import LOOKED_AT
from openlance.media.clip import Clip
from openlance.media.write import write_video
from openlance.sequence.segment import Kind, Role, Segment
from openlance.training.files import Settings
from openlance.training.run import run_stage
from openlance.training.start import lora_stage


def shown(path, number, size=(200, 150)):
    pixels = np.random.default_rng(number).integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


@pytest.fixture
def folder(tmp_path):
    """Pictures and their captions, one of which has a choice; pairs of pictures; questions."""
    place, pairs, asked = tmp_path / "data", [], []
    place.mkdir()
    for n in range(6):
        shown(place / f"{n}.jpg", n)
        pairs.append({"input_image": f"{n}.jpg", "output_image": f"{(n + 1) % 6}.jpg", "instruction": f"make {n}"})
        asked.append({"image": f"{n}.jpg", "question": "how many?", "answer": str(n)})
    texts = {f"{n}.jpg": ["one", "another"] if n == 3 else f"picture {n}" for n in range(6)}
    for name, rows in (("texts", texts), ("pairs", pairs), ("asked", asked)):
        (place / f"{name}.json").write_text(json.dumps(rows))
    return place


@pytest.fixture
def run(shallow):
    def run(folder, out, tasks, steps=4, **how):
        stage = override(
            lora_stage(shallow, list(tasks), steps=steps, lr=1e-3),
            [
                "draws=1",
                "pack_tokens=[60, 200]",
                "max_sample_tokens=200",
                "drop_all=0.2",
                "resolutions=[{image: [32, 32], video: [32, 32]}]",
            ],
        )
        data = {task: {"path": str(folder / name)} for task, name in tasks.items()}
        settings = Settings(out=out, model=shallow, data=data, **how)
        run_stage(replace(stage, lora=Lora(rank=2)), settings)
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return (out / "adapter_model.safetensors").read_bytes(), [(r["flow"], r["text"], r["norm"]) for r in rows]

    return run


def entries(out):
    return {path.name: path.read_bytes() for path in (out / "cache").rglob("*.npy")}


@pytest.mark.parametrize(
    "tasks", [{"t2i": "texts.json"}, {"image_edit": "pairs.json", "x2t_image": "asked.json"}], ids=["words", "pairs"]
)
def test_a_run_from_the_cache_is_bit_equal_to_one_without(run, folder, tmp_path, tasks, monkeypatch):
    """Through many epochs, with workers, and again from what an earlier run has kept."""
    decoded = []
    monkeypatch.setattr(columns, "read_image", lambda *a, real=columns.read_image: decoded.append(a) or real(*a))
    looked = len(tasks) * 2 * LOOKED_AT  # at most: by the report
    plain = run(folder, tmp_path / "plain", tasks, cache_gb=0, workers=1)
    assert run(folder, tmp_path / "kept", tasks) == plain and not (tmp_path / "plain" / "cache").exists()
    held, once = entries(tmp_path / "kept"), 6 * (2 * len(tasks) - 1)
    assert held and len(decoded) <= 2 * looked + once
    (tmp_path / "again").mkdir()
    (tmp_path / "kept" / "cache").rename(tmp_path / "again" / "cache")
    decoded.clear()
    assert run(folder, tmp_path / "again", tasks) == plain and entries(tmp_path / "again") == held
    assert len(decoded) <= looked


def test_a_cache_keeps_within_its_room_and_training_goes_on(run, folder, tmp_path):
    tasks = {"t2i": "texts.json"}
    room = 3 * BLOCK
    run(folder, tmp_path / "small", tasks, steps=2, cache_gb=room / 1e9)
    held = entries(tmp_path / "small")
    assert 0 < len(held) <= 3 and sum(-(-len(data) // BLOCK) * BLOCK for data in held.values()) <= room
    run(folder, tmp_path / "small", tasks, steps=3, cache_gb=room / 1e9)
    assert entries(tmp_path / "small") == held, "what is in stays, also when the run goes on"


def test_two_processes_share_the_room(tmp_path, tiny):
    vae = tiny.model.config.vae
    value = np.zeros((1, 8, 8, 16), np.float32)
    shares = [opened(tmp_path, 4 * 2 * BLOCK, 2, vae, ["salt"]) for _ in range(2)]
    for rank, cache in enumerate(shares):
        for n in range(9):
            cache.put(f"{rank}{n}", value)
    assert len(list(tmp_path.rglob("*.npy"))) == 4 and all(cache.full for cache in shares)
    assert opened(tmp_path, 4 * 2 * BLOCK, 2, vae, ["salt"]).room == 0


def test_a_damaged_entry_is_made_anew(tmp_path, tiny):
    cache = Cache(tmp_path, "", tiny.model.config.vae, 1 << 20)
    cache.put("ab", np.arange(9))
    [file] = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(Missing):
        cache.get("ab")
    cache.put("ab", np.arange(9))
    assert cache.get("ab").tolist() == list(range(9))


def test_memory_holds_what_was_cut_lately(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("openlance.data.cache.RECENT", 3 * 12)
    cache = Cache(tmp_path, "", tiny.model.config.vae)
    for n in (0, 1, 1, 2, 3, 4):
        clip = Clip(np.full((1, 2, 2, 3), n, np.uint8), origin=str(n))
        cache.remember([Segment(Kind.LATENTS, Role.TARGET, clip), Segment(Kind.TEXT, Role.PROMPT, "x")])
    assert list(cache.recent) == ["2", "3", "4"] and cache.kept("4").pixels.max() == 4
    with pytest.raises(Missing):
        cache.kept("1")


@pytest.mark.parametrize("frames, kept", [(9, 1), (30, 0)])
def test_of_clips_only_what_has_no_choice_is_kept(run, tmp_path, frames, kept):
    """A window lies at another place each time, unless the clip is as long as one."""
    place = tmp_path / "clips"
    place.mkdir()
    pixels = np.stack([np.full((64, 64, 3), 5 * n, np.uint8) for n in range(frames)])
    write_video(place / "0.mp4", Clip(pixels))
    (place / "0.txt").write_text("it becomes lighter")
    plain = run(place, tmp_path / "plain", {"t2v": "."}, steps=2, cache_gb=0)
    assert run(place, tmp_path / "kept", {"t2v": "."}, steps=2) == plain
    assert len(entries(tmp_path / "kept")) == kept


def test_a_name_stands_for_contents_cut_and_vae(tmp_path, tiny):
    """Another picture of the same size in bytes has another."""
    one = Cache(tmp_path, "vae 1", tiny.model.config.vae)
    read = columns.Reads(tmp_path, 9, "whole", 1, columns.Draw(0.5))
    Image.new("RGB", (16, 16), (1, 0, 0)).save(tmp_path / "a.bmp")
    first = read.contents([("a.bmp", "image_bytes")])
    Image.new("RGB", (16, 16), (2, 0, 0)).save(tmp_path / "a.bmp")
    second = read.contents([("a.bmp", "image_bytes")])
    bytes_too = read.contents([((tmp_path / "a.bmp").read_bytes(), "image_bytes")])
    names = {cache.origin("t2i", side, *contents) for cache in (one, replace(one, salt="vae 2"))
             for side in (64, 96) for contents in (first, second, bytes_too)}  # fmt: skip
    assert len(names) == 12 and read.contents([("b.bmp", "image_bytes")]) == []
