"""Videos: the frames that the release would pick, and files that play."""

import json
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openlance
from openlance.errors import UserError
from openlance.media import Clip, color, frame_indices, read_video, write_video
from openlance.media.inputs import read_media

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


def ramp(frames: int, height: int = 32, width: int = 48) -> Clip:
    """Smooth frames that differ: red grows with time, green downwards, blue to the right."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return Clip(np.stack([t * 200 // max(frames - 1, 1) + 20, y * 6, x * 4], -1).astype(np.uint8))


def test_the_same_frames_are_the_same_file_whatever_else_goes_on(tmp_path):
    """With its macroblock tree x264 writes other pixels of this video in one of ten to fifty tries."""
    pipe = openlance.load("nano")
    circle = pipe.generate("a red circle", seed=1, num_inference_steps=2)
    (clip,) = pipe.animate(circle, ["the red circle"], num_frames=5, num_inference_steps=2, seed=2144872771)
    rng, files = np.random.default_rng(0), set[bytes]()
    for _ in range(60):
        junk = [rng.integers(0, 255, rng.integers(1000, 300_000), np.uint8) for _ in range(20)]
        del junk  # memory that was used before
        writer = threading.Thread(target=write_video, args=(tmp_path / "x.mp4", clip))
        writer.start()
        writer.join()
        files.add((tmp_path / "x.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not here")
def test_the_released_sampler_picks_the_same_frames():
    for case in json.loads((GOLDEN / "preproc.json").read_text())["frame_sampler"]["cases"]:
        assert frame_indices(case["total_frames"], case["fps"]) == case["indices"]


@pytest.mark.parametrize("total", range(1, 200, 7))
@pytest.mark.parametrize("fps", [None, 1, 8, 12, 23.976, 30, 60])
def test_samples_have_4k_plus_1_frames_up_to_69_over_the_whole_clip(total, fps):
    picked = frame_indices(total, fps)
    assert len(picked) % 4 == 1 and len(picked) <= 69
    assert picked[0] == 0 and picked == sorted(picked) and picked[-1] <= total - 1
    assert len(picked) == 1 or picked[-1] == total - 1


def test_a_written_video_reads_back_nearly_unchanged(tmp_path):
    import av

    clip = ramp(9)
    write_video(tmp_path / "a.mp4", clip)
    back = read_video(tmp_path / "a.mp4")
    assert back.pixels.shape == clip.pixels.shape and back.fps == 12
    assert np.abs(back.pixels.astype(int) - clip.pixels).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
    assert [f.name for f in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_are_taken_by_the_sampler(tmp_path):
    clip = ramp(24)
    write_video(tmp_path / "a.mp4", Clip(clip.pixels, fps=24))
    picked = frame_indices(24, 24)
    assert np.abs(read_video(tmp_path / "a.mp4").pixels.astype(int) - clip.pixels[picked]).mean() < 3


def test_a_video_stored_on_its_side_comes_out_upright(tmp_path):
    import av

    still = ramp(1).pixels[0]
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a display matrix")
        stream.set_display_rotation(90)  # counter-clockwise
        file.mux(stream.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
        file.mux(stream.encode(None))
    assert np.abs(read_video(tmp_path / "a.mp4").pixels[0].astype(int) - np.rot90(still)).mean() < 4


def write_frames(path, frames, times, pixel_format="yuv420p"):
    """A grey file whose frame k is shown at times[k] milliseconds."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_format == "yuv420p10le":  # what a phone calls HDR: BT.2020, PQ
            for name, number in (("color_primaries", 9), ("color_trc", 16), ("colorspace", 9)):
                setattr(stream.codec_context, name, number)
        for grey, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), grey, np.uint8), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def shown_grey(grey, pixel_format):
    """What a player shows of a level: of PQ the light it stands for, 203 nits of which are white."""
    if pixel_format != "yuv420p10le":
        return grey
    return color.srgb_curve(np.minimum(color.pq_nits(np.array(grey / 255)) / 203, 1)) * 255


@pytest.mark.parametrize(
    ("count", "gaps", "pixel_format", "seen"),
    [
        pytest.param(1, [33], "yuv420p", 1, id="one frame"),
        pytest.param(20, [20, 120], "yuv420p", 17, id="variable rate"),
        pytest.param(48, [33], "yuv420p10le", 17, id="ten bits"),
        pytest.param(3000, [33], "yuv420p", 69, id="3000 frames"),
    ],
)
def test_any_rate_depth_and_length_is_read(tmp_path, count, gaps, pixel_format, seen):
    greys = np.linspace(20, 230, count).astype(int)
    write_frames(tmp_path / "a.mp4", greys, np.cumsum(np.resize(gaps, count)) - gaps[0], pixel_format)
    found = read_video(tmp_path / "a.mp4").pixels
    assert found.shape == (seen, 16, 16, 3)
    first, last = (float(shown_grey(grey, pixel_format)) for grey in greys[[0, -1]])
    assert abs(found[0].mean() - first) < 6 and abs(found[-1].mean() - last) < 6, "the first and the last"


def test_damaged_files_and_pictures_without_a_track_are_refused(tmp_path):
    write_video(tmp_path / "a.mp4", ramp(9))
    data = (tmp_path / "a.mp4").read_bytes()
    for size in (0, 100, len(data) // 2, len(data) - 200):
        (tmp_path / "cut.mp4").write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut\.mp4"):
            read_video(tmp_path / "cut.mp4")
    with pytest.raises(UserError, match="no file"):
        read_video(tmp_path / "none.mp4")


def test_odd_sides_and_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match="odd side"):
        write_video(tmp_path / "a.mp4", ramp(1, 31))
    with pytest.raises(UserError, match=r"\.mp4"):
        write_video(tmp_path / "a.avi", ramp(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "png"])
def test_an_animation_cut_anywhere_is_read_or_refused_in_a_sentence(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    first, *others = [Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in range(4)]
    first.save(path, save_all=True, append_images=others)
    whole = path.read_bytes()
    for length in range(1, len(whole), 3):
        path.write_bytes(whole[:length])
        try:
            read_media(path)
        except UserError as error:
            assert str(path) in str(error)


def test_a_photo_with_a_second_picture_inside_is_one_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    first, second = (Image.fromarray(np.full((16, 24, 3), level, np.uint8)) for level in (60, 200))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], exif=exif)
    clip = read_media(tmp_path / "a.jpg")
    assert (clip.frames, clip.height, clip.width) == (1, 24, 16)


def test_a_process_forked_after_reading_ends(tmp_path):
    """What reading leaves behind must not make a child wait for threads that it does not have."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    write_video(tmp_path / "a.mp4", Clip(ramp(5, 256, 256).pixels))
    code = (
        "import gc, os, sys; from openlance.media import read_media; gc.disable(); read_media(sys.argv[1]);"
        "child = os.fork(); gc.collect(); os._exit(0) if not child else os.waitpid(child, 0); print('ended')"
    )
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")], capture_output=True, text=True, env=ours, timeout=20
    )
    assert done.stdout.strip() == "ended", done.stderr
