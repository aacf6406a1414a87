"""Which frames of a clip the model sees: the released rule for steady clips, the same rule by time for all others."""

from __future__ import annotations

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS
from openlance.media.notices import notice

# Longer clips are not cut but sped up: the frames of the whole clip are spread over this time (released code).
MAX_SECONDS = 6.0
# Taken where the file does not say (released code).
UNKNOWN_FPS = 24
# The temporal stride of the video VAE; the first frame stands alone, so clips have 4k + 1 frames.
TEMPORAL_STRIDE = 4


def frame_indices(total: int, fps: float | None) -> list[int]:
    """Choose the frames of a steady video that the model sees: at most 69 of them, 4k + 1, about 12 a second.

    The rule of the released code: file rate rounded, duration capped at 6 s, floor to a multiple of 4 and add one
    (take 3 off where it is a multiple already), then even integer steps from the first to the last frame.

    Args:
        total: frames of the video.
        fps: its frames per second; None where they are not known (24 is taken).

    Returns:
        Ascending frame numbers; slow videos repeat frames.
    """
    if total < 1:
        raise UserError("a video without frames cannot be sampled: give one that has at least one frame")
    rate = round(fps) if fps else 0
    return np.linspace(0, total - 1, _count(total / (rate or UNKNOWN_FPS)), dtype=int).tolist()


def _count(seconds: float) -> int:
    """How many frames a clip of a length keeps (released code)."""
    count = round(MODEL_FPS * min(seconds, MAX_SECONDS))
    if count % TEMPORAL_STRIDE:
        return count // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    return max(count - TEMPORAL_STRIDE + 1, 1)


def frames_by_time(
    starts: np.ndarray, end: float, rate: float | None = None, *, tick: float = 0.0, slowest: float = 0.5
) -> list[int]:
    """Choose the frames that the model sees from when each is shown.

    A steady clip is sampled by `frame_indices`. Any other one is looked at in as many even moments as a steady clip of
    its length, from the middle of its shortest frame (or of the model's own, if that is shorter) to as long before its
    end.

    Args:
        starts: seconds at which each frame appears, ascending, (N,).
        end: second at which the last one goes.
        rate: frames per second as the file has them; taken where it agrees with `starts`.
        tick: resolution of the file's clock in seconds, to which `starts` are rounded.
        slowest: frames per second up to which a steady clip goes by time as well. The released rule rounds a rate of
            half a frame a second to zero and would not know how long such a clip lasts.

    Returns:
        Ascending frame numbers of 0..N-1.
    """
    if len(starts) <= 1:
        return frame_indices(len(starts), rate)
    times = np.asarray(starts, np.float64) - starts[0]
    length = end - float(starts[0])
    measured = steady_rate(times, length, tick)
    if measured is not None:
        agreed = rate if rate and abs(rate / measured - 1) < 0.02 else measured
        if agreed > slowest:
            return frame_indices(len(times), agreed)
    gaps = np.diff(np.append(times, length))
    shortest = min(gaps[gaps > 0].min(initial=1 / MODEL_FPS), 1 / MODEL_FPS)
    moments = np.linspace(0, length - shortest, _count(length)) + shortest / 2
    return (np.searchsorted(times, moments, side="right") - 1).clip(0, len(times) - 1).tolist()


def steady_rate(times: np.ndarray, length: float, tick: float = 0.0) -> float | None:
    """Measure the frames per second of a clip that shows each frame equally long; None for any other.

    Args:
        times: seconds at which each frame appears, ascending from 0, (N,) of two or more.
        length: seconds of the whole clip.
        tick: resolution of the clock. Rounding to it (milliseconds in Matroska, say) makes no clip unsteady, nor does
            a frame that comes a quarter of a frame early or late: the sampler would see the same.
    """
    period = float(times[-1]) / (len(times) - 1)
    if period <= 0:
        return None
    allowed = max(period / 4, tick if tick < period / 2 else 0.0)
    uneven = np.abs(times - period * np.arange(len(times))).max()
    held = length - float(times[-1])  # a last frame that stays is a pause; that it is short says little
    return 1 / period if uneven <= allowed and held <= period + allowed else None


def tell_speed(name: str, seconds: float, frames: int) -> None:
    """Say that a clip of more than `MAX_SECONDS` is spread over the frames that are kept of it."""
    if seconds > MAX_SECONDS + 1 / MODEL_FPS:
        faster = seconds / (frames / MODEL_FPS)
        notice(
            f"{name} lasts {seconds:.1f} s: {frames} frames, evenly spread over the whole of it, are kept, so it looks "
            f"{faster:.1f} times faster; cut it to {MAX_SECONDS:g} s to keep its speed"
        )
