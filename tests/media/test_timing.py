"""Which frames are seen: steady files by the released rule, in every container; all others by time."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from openlance.media import Clip, as_clip, collected, frame_indices, read_media
from openlance.media.clip import frames_by_time, steady_rate

CONTAINERS = [
    ("mp4", "libx264"), ("mov", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"),
    ("flv", "flv"), ("asf", "wmv2"), ("mpegts", "mpeg2video"), ("mpeg", "mpeg2video"), ("ogg", "libvpx"),
    ("3gp", "mpeg4"), ("mxf", "mpeg2video"), ("yuv4mpegpipe", "wrapped_avframe"), ("nut", "ffv1"), ("ivf", "libvpx"),
    ("avi", "rawvideo"), ("swf", "flv"), ("m4v", "mpeg4"), ("h264", "libx264"), ("avi", "mjpeg"),
]  # fmt: skip
RATES = [5, 10, 12, 15, 16, 24, 25, 30, 50, 60, 120, 12.5, 23.976, 29.97, 59.94]


def seen(clip, count):
    """The numbers of the frames of a ramp."""
    return ((clip.pixels.mean((1, 2, 3)) - 20) / 200 * (count - 1)).round().astype(int).tolist()


@pytest.mark.parametrize("form, codec", CONTAINERS)
def test_a_steady_video_in_any_container_is_sampled_as_released(form, codec, film, ramp):
    pixels = {"rawvideo": "bgr24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    with collected():
        clip = read_media(film(ramp(26), form, codec, pixels))
    assert seen(clip, 26) == frame_indices(26, 25) and clip.fps == 12


@pytest.mark.parametrize("form", ["mp4", "matroska", "webm", "flv"])
@pytest.mark.parametrize("rate, count", [(5, 11), (10, 30), (12, 13), (Fraction(30000, 1001), 31), (60, 40), (120, 37)])
def test_a_steady_video_of_any_rate_is_sampled_as_released(form, rate, count, film, ramp):
    data = film(ramp(count), form, {"webm": "libvpx", "flv": "flv"}.get(form, "libx264"), rate=rate)
    assert seen(read_media(data), count) == frame_indices(count, float(rate))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("tick", [1e-9, 1e-3])
def test_rounded_clocks_change_nothing(rate, tick):
    for count in (2, 5, 17, 100, 301):
        starts = np.round(np.arange(count) / rate / tick) * tick
        chosen = frames_by_time(starts, count / rate, rate, tick=tick)
        assert chosen == frame_indices(count, rate)
        assert frames_by_time(starts + 0.123, count / rate + 0.123, rate, tick=tick) == chosen, "where it begins"


def test_a_wrong_rate_in_the_header_is_not_believed():
    starts = np.arange(30) / 10
    assert frames_by_time(starts, 3.0, 25.0) == frame_indices(30, 10)


def test_unsteady_clips_show_each_frame_for_its_share_of_the_time():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shares = rng.choice([0.04, 0.1, 0.3, 1.0], rng.integers(6, 12))
        ends = np.cumsum(shares)
        chosen = frames_by_time(np.concatenate([[0], ends[:-1]]), ends[-1])
        assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[-1] == len(shares) - 1
        assert len(chosen) % 4 == 1 and len(chosen) <= 69
        step = min(ends[-1], 6.0) / ends[-1] * 12  # frames seen a second
        if steady_rate(np.concatenate([[0], ends[:-1]]), ends[-1]) is None:
            assert np.abs(np.bincount(chosen, minlength=len(shares)) - shares * step).max() <= 3.5


def test_a_slide_show_of_less_than_a_frame_in_two_seconds_goes_by_time():
    counts = np.bincount(frames_by_time(np.arange(10) * 5.0, 50.0, 0.2))
    assert len(counts) == 10 and counts.sum() == 69 and counts.min() >= 6 and counts.max() <= 7


@pytest.mark.parametrize("form", ["matroska", "mp4"])
def test_a_video_of_variable_rate_goes_by_its_times(form, film, ramp):
    clip = read_media(film(ramp(6), form, times=[0, 100, 200, 300, 400, 3400]))
    assert clip.frames == 41
    found = np.bincount(seen(clip, 6), minlength=6)
    assert found[5] <= 2 and found[4] >= 34 and (found[:4] >= 1).all()


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_goes_by_the_time_of_its_frames(tmp_path, suffix):
    first, *others = [Image.new("RGB", (16, 16), (level,) * 3) for level in (20, 60, 100, 140, 220)]
    times = [100, 100, 100, 100, 3000]
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, duration=times, loop=0, lossless=True)
    levels = read_media(tmp_path / f"a{suffix}").pixels[:, 0, 0, 0].tolist()
    assert len(levels) == 41 and levels.count(220) >= 36 and len(set(levels)) == 5


@pytest.mark.parametrize("duration", [20, 40, 80, 100])
def test_a_steady_animation_is_sampled_as_released(tmp_path, duration):
    first, *others = [Image.new("L", (8, 8), 20 + 10 * i) for i in range(20)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=duration, loop=0)
    levels = (read_media(tmp_path / "a.gif").pixels[:, 0, 0, 0].astype(int) - 20) // 10
    assert levels.tolist() == frame_indices(20, 1000 / duration)


def test_a_clip_in_memory_is_resampled_and_an_array_keeps_its_frames(ramp):
    pixels = ramp(48)
    assert np.array_equal(as_clip(Clip(pixels, 24)).pixels, pixels[frame_indices(48, 24)])
    assert as_clip(Clip(pixels, 24)).fps == 12
    assert as_clip(Clip(pixels)).frames == as_clip(np.array(pixels)).frames == as_clip(list(pixels)).frames == 48
    assert as_clip(Clip(pixels[:1], 3)).frames == 1


def test_what_is_sped_up_is_said_and_nothing_else(film, ramp, tmp_path, caplog):
    (tmp_path / "long.mp4").write_bytes(film(ramp(60), rate=2))
    (tmp_path / "short.mp4").write_bytes(film(ramp(48), rate=24))
    with collected() as lines:
        assert read_media(tmp_path / "long.mp4").frames == 69
        read_media(tmp_path / "short.mp4")
    assert len(lines) == 1 and all(part in lines[0] for part in ("long.mp4", "30.0 s", "69 frames", "5.2 times faster"))
    assert not caplog.records
    read_media(tmp_path / "long.mp4")
    assert [record.name for record in caplog.records] == ["openlance.media"]
