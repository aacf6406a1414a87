"""Videos in, videos out: the frames the release would pick, and H.264 files that every browser plays."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS, Clip
from openlance.media.color import display_matrix, shown
from openlance.media.container import UNTIMED, WHOLE, Damage, Timeline, decoded, opened, survey
from openlance.media.files import atomic_path
from openlance.media.notices import notice
from openlance.media.provenance import written
from openlance.media.source import Source
from openlance.media.timing import UNKNOWN_FPS, frame_indices, frames_by_time, tell_speed

Moment: TypeAlias = tuple[int | None, int]  # when a frame appears and for how long, in the clock of its track


def read_source(source: Source) -> Clip:
    """Read the frames of a video that the model sees, as a player shows them, at 12 frames a second.

    Packets tell first when frames are shown; then all are decoded and the chosen ones kept. Where decoding finds other
    frames than the packets told, a second pass goes by what decodes.

    Raises:
        UserError: the file is no video, unreadable, truncated, or its frames are too large or change their size.
    """
    line = survey(source)
    kept, times, damage = _pick(source, line)
    if len(times) != line.count:
        line = _as_decoded(line, times)
        if times:
            kept, times, damage = _pick(source, line)
    _refuse_truncated(source.name, line, len(times), damage)
    wanted = _chosen(line)
    if any(i not in kept for i in wanted):
        raise UserError(f"{source.name} is damaged: get it again or convert it to MP4")
    if len({kept[i].shape for i in wanted}) > 1:
        raise UserError(f"{source.name} changes its size on the way: convert it to a video of one size")
    _tell(source.name, line, damage, len(wanted))
    return Clip(np.stack([kept[i] for i in wanted]), MODEL_FPS)


def _chosen(line: Timeline) -> list[int]:
    if line.starts is None:
        return frame_indices(line.count, line.rate)
    return frames_by_time(line.starts, line.end, line.rate, tick=line.tick)


def _pick(source: Source, line: Timeline) -> tuple[dict[int, np.ndarray], list[Moment], Damage]:
    """Decode all frames: the chosen ones as pixels by their number, and when each is shown."""
    chosen = set(_chosen(line)) if line.count else set()
    kept: dict[int, np.ndarray] = {}
    times: list[Moment] = []
    damage = Damage()
    matrix = None
    with opened(source) as (container, track):
        for index, frame in enumerate(decoded(container, track, damage, source.name)):
            times.append((frame.pts, getattr(frame, "duration", 0) or 0))
            if index in chosen:
                matrix = matrix or display_matrix(frame)
                kept[index] = shown(frame, track, matrix)
    return kept, times, damage


def _as_decoded(line: Timeline, times: list[Moment]) -> Timeline:
    """The timeline of the frames that decode."""
    known = [(start * line.tick, length * line.tick) for start, length in times if start is not None]
    if len(known) < len(times) or not known:
        return replace(line, count=len(times), starts=None)
    starts = np.array([start for start, _ in known])
    last = known[-1][1] or (starts[-1] - starts[0]) / max(len(starts) - 1, 1)
    if (np.diff(starts) < 0).any():
        return replace(line, count=len(times), starts=None)
    return replace(line, count=len(times), starts=starts, end=float(starts[-1] + last))


def _refuse_truncated(name: str, line: Timeline, total: int, damage: Damage) -> None:
    """UserError if a tenth or more of the file is missing or does not decode."""
    if not total:
        raise UserError(f"{name} has no whole frame: get it again or give another video")
    if total < line.declared * WHOLE:
        raise UserError(
            f"{name} is truncated: only {total} of its {line.declared} frames can be read; get the file again"
        )
    if line.missing:
        raise UserError(f"{name} is truncated: it ends long before the time it declares; get the file again")
    if damage.found and total < line.packets * WHOLE:
        raise UserError(f"{name} is damaged: only {total} of {line.packets} frames can be read; get the file again")


def _tell(name: str, line: Timeline, damage: Damage, kept: int) -> None:
    """Notices of what is not read as the file has it."""
    seconds = line.count / (line.rate or UNKNOWN_FPS) if line.starts is None else line.end - float(line.starts[0])
    damage.tell(name)
    if line.form.startswith("mov") and line.packets < line.declared:
        notice(f"{name} lacks its end: {line.count} of its {line.declared} frames can be read; get the file again")
    if line.form in UNTIMED or not line.told:
        form = UNTIMED.get(line.form, "a file of moving pictures")
        notice(
            f"{name} is {form}, which does not say where it ends: it was read as far as it goes, "
            f"{line.count} frames ({seconds:.1f} s)"
        )
    tell_speed(name, seconds, kept)


def write_video(path: str | Path, clip: Clip, *, crf: int = 18) -> None:
    """Write a clip as H.264, yuv420p, .mp4, at clip.fps; the file appears whole or not at all.

    Its colors are BT.709 and say so, since players guess by the size otherwise; its index comes first, for browsers. It
    says how the clip was made, if that is known.

    Args:
        crf: quality, 0 (largest) to 51 (smallest); 18 is visually lossless.

    Raises:
        UserError: another suffix, an odd side (4:2:0 color needs even ones), or a place that cannot be written.
    """
    import av

    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise UserError(f"cannot write a video as {target.name!r}: end its name in .mp4")
    if clip.height % 2 or clip.width % 2:
        raise UserError(f"a video of {clip.height}x{clip.width} has an odd side: use sides that are even")
    index_first = {"movflags": "faststart"}
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="mp4", options=index_first) as container:
        if text := written(clip.made, target.name):
            container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1001))
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, 1)  # BT.709 of limited range, in ffmpeg's numbers
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        for pixels in clip.pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
