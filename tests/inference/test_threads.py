"""One pipeline under any number of threads: every result is, bit for bit, that of the same call alone."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import openlance
from openlance.checkpoint.formats import CLIPS, IMAGES, find
from openlance.checkpoint.tensors import read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.media.clip import Clip
from openlance.runtime.conversion import gather, write

THREADS = 16


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def film(seed: int, side: int) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 256, (5, side, side, 3), dtype=np.uint8))


# (pipeline, seed, side of its pictures) -> what a call gives. Some move, some do not, some only answer.
CALLS = [
    lambda p, n, s: p.generate("a red circle", seed=n),
    lambda p, n, s: p.edit(picture(n, s), "make it blue", seed=n),
    lambda p, n, s: p.ask(film(n, s), "what moves?", max_new_tokens=6),
    lambda p, n, s: p.animate(picture(n, s), "it moves", num_frames=5, seed=n),
    lambda p, n, s: p.ask(picture(n, s), "what is it?", max_new_tokens=6),
    lambda p, n, s: p.edit(film(n, s), "make it blue", seed=n),
    lambda p, n, s: p.subject([picture(n, s), picture(n + 1, s)], "both on white", seed=n),
    lambda p, n, s: p.generate_video("a star moves", num_frames=5, seed=n),
    lambda p, n, s: p.generate(["a ring", "two rings"], seed=n, guidance_scale=1.0),
    lambda p, n, s: p.caption(picture(n, s), max_new_tokens=6),
    lambda p, n, s: (
        p("a ring", negative_prompt=f"{n} stars", generator=torch.Generator().manual_seed(n), height=s, width=s).images
    ),
    lambda p, n, s: p("make it red", image=picture(n, s), generator=torch.Generator().manual_seed(n)).images,
    lambda p, n, s: p.ask(picture(n, s), "what is it?", max_new_tokens=6, repetition_penalty=1.5, stop=["a", "e"]),
]


def plain(made):
    """A result as something that can be compared."""
    if isinstance(made, str):
        return str(made)
    return [np.asarray(m.pixels if isinstance(m, Clip) else m).tobytes() for m in made]


def check(load, count: int, seeds: int, **settings) -> None:
    """Run `count` mixed calls in THREADS threads and compare each with the same call on a pipeline of its own kind."""
    calls = [(k % len(CALLS), k // len(CALLS) % seeds) for k in range(count)]
    alone = {}
    for kind, seed in sorted(set(calls)):
        pipe = load(**settings)
        alone[kind, seed] = plain(CALLS[kind](pipe, seed, pipe.defaults.height))
    shared, begin = load(**settings), threading.Barrier(THREADS)

    def worker(number: int) -> list:
        begin.wait()
        mine = [calls[k] for k in range(number, count, THREADS)]
        return [(call, plain(CALLS[call[0]](shared, call[1], shared.defaults.height))) for call in mine]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [one for part in pool.map(worker, range(THREADS)) for one in part]
    assert len(found) == count
    wrong = [call for call, made in found if made != alone[call]]
    assert wrong == []


def two_checkpoints(folder: Path, out: Path) -> Path:
    """A released tree whose checkpoint for clips has other weights than the one for pictures."""
    write(out, gather(find(folder)), "released", show=False)
    shutil.copytree(out / IMAGES, out / CLIPS)
    torch.manual_seed(0)
    weights = read_tensors(out / CLIPS / "model.safetensors")
    changed = {n: t + 0.2 * t.std() * torch.randn_like(t) if t.ndim == 2 else t for n, t in weights.items()}
    write_tensors(out / CLIPS / "model.safetensors", changed)
    return out


def test_mixed_calls_in_threads_are_those_made_alone(checkpoint):
    check(checkpoint.load, 39, 2)


def test_two_checkpoints_are_never_mixed_up(checkpoint, tmp_path):
    tree = two_checkpoints(checkpoint.folder, tmp_path / "tree")
    check(lambda **how: openlance.load(tree, **how), 39, 2)


def test_a_call_that_waits_inside_another_gets_its_own_checkpoint(checkpoint, tmp_path, monkeypatch):
    """A clip is asked for while a picture is encoded; the picture still comes from the checkpoint for pictures."""
    tree = two_checkpoints(checkpoint.folder, tmp_path / "tree")
    side = 16
    wanted = plain(openlance.load(tree).edit(picture(1, side), "make it blue", seed=3))
    pipe, real, busy = openlance.load(tree), openlance.Pipeline.encode, threading.Event()

    def slow(self, requests):
        busy.set()
        return real(self, requests)

    monkeypatch.setattr(openlance.Pipeline, "encode", slow)
    found: dict = {}
    one = threading.Thread(target=lambda: found.update(e=plain(pipe.edit(picture(1, side), "make it blue", seed=3))))
    one.start()
    busy.wait(30)
    pipe.animate(picture(2, side), "it moves", num_frames=5, seed=0)
    one.join(60)
    assert found["e"] == wanted


def test_a_request_leaves_no_trace(checkpoint, tmp_path):
    """The same call gives the same after calls of every other kind."""
    tree = two_checkpoints(checkpoint.folder, tmp_path / "tree")
    pipe = openlance.load(tree)
    first = [plain(call(pipe, 1, 16)) for call in CALLS]
    assert [plain(call(pipe, 1, 16)) for call in reversed(CALLS)] == first[::-1]


def test_in_one_list_what_moves_and_what_does_not_have_their_own_checkpoints(checkpoint, tmp_path):
    pipe = openlance.load(two_checkpoints(checkpoint.folder, tmp_path / "tree"))
    media, said = [picture(1, 16), film(2, 16), picture(3, 16)], "make it blue"
    alone = [plain(pipe.edit(medium, said, seed=5 + n)) for n, medium in enumerate(media)]
    assert [plain([made]) for made in pipe.edit(media, [said] * 3, seed=5)] == alone
    question = {"question": "what is it?", "max_new_tokens": 6}
    told = [pipe.ask(medium, **question) for medium in media]
    assert pipe.ask([[medium] for medium in media], **question | {"question": ["what is it?"] * 3}) == told


@pytest.mark.nightly
def test_two_hundred_calls_of_nano(tmp_path):
    check(lambda **how: openlance.load("nano", **how), 200, 2)


@pytest.mark.nightly
def test_two_hundred_calls_of_two_checkpoints(tmp_path):
    tree = two_checkpoints(Path(openlance.__file__).parent / "assets" / "nano", tmp_path / "tree")
    check(lambda **how: openlance.load(tree, **how), 200, 2)
