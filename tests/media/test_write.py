"""Whatever is written reads back as what it was: the suffix chooses the form, the content decides on reading."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openlance.errors import UserError
from openlance.media import Clip, atomic_path, read_media, write_media
from openlance.media.write import CLIP_SUFFIXES, WRITABLE_SUFFIXES


def ramp(frames: int) -> Clip:
    """Smooth frames that differ, few enough colours for a palette."""
    t, y, x = np.mgrid[:frames, :32, :48]
    return Clip(np.stack([t * 200 // max(frames - 1, 1) + 20, y // 4 * 24, x // 8 * 32], -1).astype(np.uint8))


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
@pytest.mark.parametrize("frames", [5, 13, 17])
def test_a_clip_reads_back_with_its_frames(tmp_path, suffix, frames):
    clip, path = ramp(frames), tmp_path / f"a{suffix}"
    write_media(path, clip)
    back = read_media(path)
    assert back.pixels.shape == clip.pixels.shape and back.fps == 12
    assert np.abs(back.pixels.astype(int) - clip.pixels).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES[1:])
def test_an_animation_lasts_as_long_as_its_clip_and_never_ends(tmp_path, suffix):
    write_media(tmp_path / f"a{suffix}", ramp(17))
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.n_frames == 17 and image.info["loop"] == 0
        total = 0
        for n in range(17):
            image.seek(n)
            image.load()
            total += image.info["duration"]
    assert abs(total - 17 * 1000 / 12) <= 10


@pytest.mark.parametrize("suffix", WRITABLE_SUFFIXES)
def test_a_picture_reads_back_as_one_frame(tmp_path, suffix):
    write_media(tmp_path / f"a{suffix}", ramp(1))
    assert np.abs(read_media(tmp_path / f"a{suffix}").pixels.astype(int) - ramp(1).pixels).mean() < 8


def test_the_name_of_a_file_does_not_decide_what_is_in_it(tmp_path):
    for suffix, frames in ((".png", 1), (".mp4", 5), (".gif", 5)):
        write_media(tmp_path / f"a{suffix}", ramp(frames))
        (tmp_path / f"a{suffix}").rename(tmp_path / "b.jpg")
        assert read_media(tmp_path / "b.jpg").frames == frames


def test_a_form_that_cannot_hold_it_is_refused(tmp_path):
    for suffix, frames, said in ((".png", 5, "video"), (".avi", 5, r"\.mp4"), (".bmp", 1, "image")):
        with pytest.raises(UserError, match=said):
            write_media(tmp_path / f"a{suffix}", ramp(frames))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, data", [("a.mp4", b""), ("a.mp4", b"text"), ("a.png", b"text"), ("a", b""), ("a.gif", b"GIF89a")]
)
def test_what_is_neither_is_one_sentence(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name) as error:
        read_media(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_truncated_animation_is_refused(tmp_path):
    write_media(tmp_path / "a.gif", ramp(9))
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="a.gif"):
        read_media(tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_frames_that_stand_still_are_counted_too(tmp_path, suffix):
    still = np.zeros((1, 16, 16, 3), np.uint8)
    moving = np.full((1, 16, 16, 3), 255, np.uint8)
    clip = Clip(np.concatenate([still] * 5 + [moving] * 4))
    write_media(tmp_path / f"a{suffix}", clip)
    assert read_media(tmp_path / f"a{suffix}").pixels.mean((1, 2, 3)).round().tolist() == [0] * 5 + [255] * 4


# A process that may write no file of more than some bytes stands for a full disk: the system refuses in the same calls.
SMALL_DISK = """
import resource, signal, sys
import numpy as np
from openlance.errors import UserError
from openlance.media import Clip, write_media

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = Clip(np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), 64, 64, 3), dtype=np.uint8))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    write_media(sys.argv[1], noise)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("name, frames", [("a.png", 1), ("a.jpg", 1), ("a.webp", 1), ("a.mp4", 9), ("a.gif", 9)])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, name, frames):
    pytest.importorskip("resource")
    command = [sys.executable, "-c", SMALL_DISK, str(tmp_path / name), str(frames)]
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=ours)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = done.stdout.strip()
    assert said.startswith(f"cannot write {tmp_path / name}: File too large; ") and "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_place_that_takes_no_more_is_named(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=f"cannot write .*a.png: {os.strerror(number)}; .*choose another place"):
        write_media(tmp_path / "a.png", ramp(1))
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_about_the_place_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / "another"))
