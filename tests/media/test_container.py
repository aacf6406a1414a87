"""Files of video: told by content, whole or refused, the right track, and nothing that is no film taken for one."""

import io

import numpy as np
import pytest

from openlance.errors import UserError
from openlance.media import Clip, collected, image, read_image, read_media, read_video, video, write_video

TEXTS = {
    "text": "A red circle moves right.\n" * 200,
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n" * 20,
    "web subtitles": "WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n\n" * 20,
    "styled subtitles": "[Script Info]\nTitle: x\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,Hi\n" * 9,
    "lyrics": "[00:01.00]la la\n" * 50,
    "json": '{"a.png": "a red circle"}\n' * 50,
    "code": "import os\n\ndef f():\n    return 1\n" * 50,
    "page": "<!DOCTYPE html><html><body>hello</body></html>\n" * 50,
    "drawing": "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>\n",
    "play list": "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:5,\nother.ts\n#EXT-X-ENDLIST\n",
    "list of files": "ffconcat version 1.0\nfile 'a.mp4'\n",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "terminal": "\x1b[31mred\x1b[0m\n" * 200,
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("suffix", [".mp4", ".txt", ".mkv", ".png", ""])
def test_text_is_no_film_whatever_its_name(tmp_path, kind, suffix, film, ramp):
    (tmp_path / "a.mp4").write_bytes(film(ramp(5)))
    path = tmp_path / f"b{suffix}"
    path.write_text(TEXTS[kind])
    with pytest.raises(UserError, match=r"b.*not an image"):
        read_media(path)


def test_noise_is_no_film():
    rng = np.random.default_rng(0)
    for size in (1, 7, 100, 5000, 200_000):
        with pytest.raises(UserError):
            read_media(rng.bytes(size))


@pytest.mark.parametrize("name", ["a%d.mp4", "a:b.mp4", "http:a.mp4", "-i.mp4", "a*?.jpg", "ä ü.png", "a'b.txt"])
def test_the_name_of_a_file_means_nothing(tmp_path, monkeypatch, name, film, ramp):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(film(ramp(5), rate=12))
    assert read_media(name).frames == read_media(tmp_path / name).frames == 5


def with_sound(film_frames=None, cover=True, form="mp3", codec="mp3"):
    """A second of silence, with a picture as cover art or as a film."""
    import av

    memory = io.BytesIO()
    with av.open(memory, "w", format=form) as file:
        sound = file.add_stream(codec, rate=44100)
        if film_frames is not None:
            picture = file.add_stream("mjpeg" if cover else "mpeg4", rate=12)
            picture.height, picture.width = film_frames.shape[1:3]
            picture.pix_fmt = "yuvj420p" if cover else "yuv420p"
            if cover:
                picture.disposition = av.stream.Disposition.attached_pic
            for pixels in film_frames:
                file.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
            file.mux(picture.encode(None))
        for number in range(38):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 44100, number * 1152
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
    return memory.getvalue()


def test_a_song_has_no_video_track_with_or_without_a_cover(ramp):
    for data in (with_sound(), with_sound(ramp(1))):
        with pytest.raises(UserError, match="no video track"):
            read_media(data)


def test_the_default_track_that_is_no_cover_is_the_film(film, ramp):
    class Track:
        def __init__(self, *bits):
            self.disposition = sum(bits)

    cover, first, default, thumbnails = Track(0x400, 1), Track(), Track(1), Track(0x800)
    for tracks, expected in (
        ([cover, first], first),
        ([first, cover, default], default),
        ([thumbnails, default], default),
    ):
        file = type("File", (), {"streams": type("Streams", (), {"video": tracks})})
        assert video._video_track(file, "a") is expected


@pytest.mark.parametrize("form, codec", [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("flv", "flv"),
                                         ("webm", "libvpx"), ("asf", "wmv2"), ("mov", "mpeg4")])  # fmt: skip
def test_half_of_a_video_is_refused_as_truncated(form, codec, film, ramp, tmp_path):
    moving = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)  # no packet is empty
    options = {"muxer": {"movflags": "faststart"}} if form in ("mp4", "mov") else {}
    if options:  # an index in front needs a file
        import av

        with av.open(str(tmp_path / "a"), "w", format=form, options=options["muxer"]) as file:
            stream = file.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for pixels in moving:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            file.mux(stream.encode(None))
        data = (tmp_path / "a").read_bytes()
    else:
        data = film(moving, form, codec)
    assert read_media(data).frames == 29
    for part in (0.3, 0.5, 0.8):
        with pytest.raises(UserError, match="truncated"):
            read_media(data[: int(part * len(data))])


def test_fragments_count_what_they_declare(film):
    moving = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    fragments = {"muxer": {"movflags": "frag_keyframe+empty_moov"}, "encoder": {"g": "10"}}
    data = film(moving, **fragments)
    with collected() as lines:
        assert read_media(data).frames == 29 and not lines
        assert read_media(data[: len(data) * 96 // 100]).frames in (25, 29) and "lacks its end" in lines[0]
    with pytest.raises(UserError, match="truncated"):
        read_media(data[: len(data) // 2])


@pytest.mark.parametrize("form", ["mpegts", "mpeg"])
def test_a_recording_that_is_cut_is_read_as_far_as_it_goes_and_that_is_said(form, film, ramp):
    data = film(np.repeat(ramp(60), 1, 0), form, "mpeg2video", encoder={"bf": "2"})
    with collected() as lines:
        clip = read_media(data[: len(data) * 6 // 10 // 188 * 188])
    assert 9 <= clip.frames < 29 and "as far as it goes" in lines[-1]


def test_damage_in_the_middle_is_skipped_and_said_and_too_much_of_it_refused(film):
    moving = np.random.default_rng(0).integers(0, 256, (100, 24, 32, 3), dtype=np.uint8)
    data = film(moving, "mov", "png", "rgb24")
    lightly, badly = bytearray(data), bytearray(data)
    lightly[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    for start in range(len(data) // 4, len(data) // 2, 2000):
        badly[start : start + 100] = bytes(100)
    with collected() as lines:
        assert read_media(bytes(lightly)).frames == 45
    assert len(lines) == 1 and "damaged (packets skipped: 1)" in lines[0]
    with pytest.raises(UserError, match="only 7. of its 100 frames"):
        read_media(bytes(badly))


def test_every_cut_and_every_flipped_byte_is_read_or_refused_in_a_sentence(film, ramp):
    rng = np.random.default_rng(0)
    for form, codec in (("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")):
        data = film(ramp(6), form, codec)
        for trial in range(12):
            changed = bytearray(data[: int(rng.integers(1, len(data)))] if trial % 2 else data)
            for place in rng.integers(0, len(changed), 8 if trial % 2 == 0 else 0):
                changed[place] = rng.integers(256)
            with collected():
                try:
                    read_media(bytes(changed))
                except UserError as error:
                    assert "\n" not in str(error)


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(film, ramp, monkeypatch):
    data = film(ramp(2))
    monkeypatch.setattr(image, "MAX_PIXELS", 1000)
    monkeypatch.setattr(video, "decoded", None)
    with pytest.raises(UserError, match="64x48"):
        read_media(data)


def test_an_edit_list_hides_frames_and_is_no_truncation(film, ramp):
    import av

    source, memory = io.BytesIO(film(ramp(50), encoder={"bf": "0", "g": "50"})), io.BytesIO()
    with av.open(source) as read, av.open(memory, "w", format="mp4") as write:
        track = read.streams.video[0]
        copy = write.add_stream_from_template(track)
        for packet in read.demux(track):
            if packet.dts is not None:
                packet.stream = copy
                packet.pts -= int(1.0 / packet.time_base)  # what comes before zero is hidden
                packet.dts -= int(1.0 / packet.time_base)
                write.mux(packet)
    clip = read_media(memory.getvalue())
    assert clip.frames == 9 and abs(clip.pixels[0].mean() - ramp(50)[25].mean()) < 6


def test_a_video_is_no_picture_and_a_still_picture_no_video(tmp_path, film, ramp):
    from PIL import Image

    (tmp_path / "a.png").write_bytes(film(ramp(5)))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.mp4", "JPEG")
    with pytest.raises(UserError, match="a video, not an image"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="still image, not a video"):
        read_video(tmp_path / "b.mp4")


def test_a_file_is_decoded_once_where_its_packets_tell_the_truth(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", Clip(np.zeros((13, 16, 16, 3), np.uint8)))
    passes, whole = [], video.decoded
    monkeypatch.setattr(video, "decoded", lambda *parts: passes.append(1) or whole(*parts))
    assert read_media(tmp_path / "a.mp4").frames == 13 and len(passes) == 1
