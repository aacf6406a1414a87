"""Small films in any container, codec and timing, made where they are tested."""

import io
from fractions import Fraction

import numpy as np
import pytest


def greys(count, height=48, width=64):
    """Frames of one grey each, evenly from 20 to 220, uint8 (T, H, W, 3)."""
    levels = np.linspace(20, 220, count).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def make_film(frames, form="mp4", codec="libx264", pixels="yuv420p", **options):
    """The bytes of a video of uint8 (T, H, W, 3|4) frames.

    options: rate (25); times, in milliseconds; tags of the codec (color_range ...); encoder and muxer, options of
    these; matrix, of the conversion; turn, a display matrix; oblong, the shape of a pixel; raw, frames that are PyAV's.
    """
    import av

    memory = io.BytesIO()
    rate, times = options.get("rate", 25), options.get("times")
    with av.open(memory, "w", format=form, options=options.get("muxer", {})) as file:
        stream = file.add_stream(codec, rate=rate, options=options.get("encoder", {}))
        stream.pix_fmt = pixels
        first = frames[0]
        stream.height, stream.width = (first.height, first.width) if hasattr(first, "pict_type") else first.shape[:2]
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in options.get("tags", {}).items():
            setattr(stream.codec_context, name, value)
        if "turn" in options:
            stream.set_display_rotation(*options["turn"])
        if "oblong" in options:
            stream.codec_context.sample_aspect_ratio = options["oblong"]
        for number, one in enumerate(frames):
            frame = one
            if not hasattr(one, "pict_type"):
                kind = "rgba" if one.shape[-1] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format=kind)
                frame = frame.reformat(format=pixels, **options.get("matrix", {}))
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return memory.getvalue()


@pytest.fixture(scope="session")
def film():
    return make_film


@pytest.fixture(scope="session")
def ramp():
    return greys
