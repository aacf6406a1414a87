"""Videos in, videos out: the frames the release would pick of any file that FFmpeg reads, and H.264 files that every
browser plays."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import UNKNOWN_FPS, Clip, frame_indices, frames_by_time, joined, tell_speed
from openlance.media.color import display_matrix, shown
from openlance.media.files import Source, begins_as_video, notice
from openlance.media.image import check_pixels

# What FFmpeg may take a file for. It would also take any text for a video (tty and a dozen formats of subtitles), and
# follow a list of other files (concat, hls, sdp ...) wherever it leads; images are Pillow's. Formats of sound alone
# are here to be refused by their true name.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf,yuv4mpegpipe,ivf,nut,rm,dv,gxf,wtv,swf,mpjpeg,mjpeg,"
    "h264,hevc,vvc,obu,av1,m4v,mpegvideo,vc1,vc1test,cavsvideo,dirac,dnxhd,evc,apv,nsv,nuv,pva,ty,lxf,cine,mlv,smjpeg,"
    "roq,bink,smk,flic,ea,film_cpk,idcin,ipmovie,rpl,thp,vmd,wc3movie,xmv,bfi,bmv,dsicin,dxa,gdv,hnm,mtv,kux,mv,4xm,"
    "gif,mp3,flac,wav,w64,aac,ac3,eac3,aiff,au,caf,ape,wv,tta,tak,mpc,mpc8,dsf,amr,dts,truehd,oma"
)
# Containers whose header tells how long the file lasts. Others count frames, or tell nothing: what FFmpeg says of their
# length it has from where they end.
TIMED = ("matroska,webm", "flv", "asf", "mxf", "gxf", "rm")
# Recordings of these are cut anywhere, and nothing in them tells.
UNTIMED = {"mpegts": "an MPEG transport stream", "mpeg": "an MPEG program stream"}
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the GUID of its file properties
# Bits of a track's disposition (FFmpeg): cover art, chapter thumbnails.
NO_VIDEO = 0x400 | 0x800
DEFAULT_TRACK = 0x1
# A file of which less can be read than this is refused. Edit lists hide a few frames; a tenth missing means the end is.
WHOLE = 0.9
Moment: TypeAlias = tuple[int | None, int]  # when a frame appears and for how long, in the clock of its track


def read_video_file(source: Source) -> Clip:
    """Read the frames of a video that the model sees, as a player shows them, at 12 frames a second.

    Packets tell first when frames are shown; then all are decoded and the chosen ones kept. Where decoding finds other
    frames than the packets told, a second pass goes by what decodes.

    Raises:
        UserError: the file is no video, unreadable, truncated, or its frames are too large or change their size.
    """
    line = survey(source)
    kept, times, damage = _pick(source, line.chosen() if line.count else ())
    if len(times) != line.count:
        starts, end = _spans(times, line.tick)
        line = replace(line, count=len(times), starts=starts, end=end)
        if times:
            kept, times, damage = _pick(source, line.chosen())
    _refuse_truncated(source.name, line, damage)
    wanted = line.chosen()
    if any(i not in kept for i in wanted):
        raise UserError(f"{source.name} is damaged: get it again or convert it to MP4")
    clip = joined([kept[i] for i in wanted], source.name)
    _tell(source.name, line, damage, len(wanted))
    return clip


def read_frames(source: Source, choose: Callable[[int, float], Sequence[int]]) -> Clip:
    """Read frames of a video by their numbers.

    Args:
        source: a file.
        choose: gives the numbers for how many frames there are, and how many a second.

    Raises:
        UserError: as `read_video_file`, and where there is no frame of a number.
    """
    line = survey(source)
    wanted = choose(line.count, line.rate or UNKNOWN_FPS)
    kept, _, damage = _pick(source, wanted)
    _refuse_truncated(source.name, line, damage)
    if any(number not in kept for number in wanted):
        raise UserError(f"{source.name} has no frame {max(wanted)}: get it again, or choose others")
    return joined([kept[number] for number in wanted], source.name)


def read_moments(source: Source, choose: Callable[[float], Sequence[float]]) -> Clip:
    """Read the frames of a video that are shown at some moments, whatever its rate.

    Args:
        source: a file.
        choose: gives the moments, ascending, in seconds from the first frame, for how many seconds there are.

    Raises:
        UserError: as `read_video_file`.
    """
    line = survey(source)
    if not line.count:
        return read_video_file(source)  # which says what is wrong, or finds frames that no packet told of
    starts, end = line.starts, line.end
    if starts is None:
        rate = line.rate or UNKNOWN_FPS
        starts, end = np.arange(line.count) / rate, line.count / rate
    # A clock of limited resolution may round a frame's start to just behind the moment that means it.
    moments = np.asarray(choose(float(end - starts[0]))) + starts[0] + max(line.tick, 1e-6)
    wanted = np.clip(np.searchsorted(starts, moments, side="right") - 1, 0, line.count - 1).tolist()
    kept, times, damage = _pick(source, wanted)
    if any(i not in kept for i in wanted) and len(times) != line.count:
        return read_video_file(source)
    _refuse_truncated(source.name, line, damage)
    if any(i not in kept for i in wanted):
        raise UserError(f"{source.name} is damaged: get it again or convert it to MP4")
    return joined([kept[i] for i in wanted], source.name)


class _Nameless:
    """A file without its name, of which FFmpeg would make something of its own (the suffix, %d, a protocol)."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """Yield (container, video track) of PyAV.

    Raises:
        UserError: it is no video that FFmpeg reads, has no video track, or too large frames.
    """
    import av

    name = source.name
    with source.open() as file:
        try:
            container = av.open(_Nameless(file), "r", container_options={"format_whitelist": FORMATS})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            what = "not an image or video that can be read: use a PNG, JPEG or MP4 file"
            if begins_as_video(source.head()):
                what = f"a damaged or truncated video ({why}): get the file again"
            raise UserError(f"{name} is {what}") from error
        with container:
            track = _video_track(container, name)
            context = track.codec_context
            if context is None:
                raise UserError(f"{name} holds video of an unknown kind: convert it to MP4 (H.264)")
            check_pixels(name, context.width or 0, context.height or 0)
            yield container, track


def _bits(disposition: Any) -> int:
    """What a track is meant for, as a number: some releases of PyAV give a flag that is none."""
    return int(getattr(disposition, "value", disposition))


def _video_track(container: Any, name: str) -> Any:
    """The default track of video, or the first: cover art of a song is none."""
    bits = {track: _bits(getattr(track, "disposition", 0)) for track in container.streams.video}
    tracks = [track for track in bits if not bits[track] & NO_VIDEO]
    if not tracks:
        raise UserError(f"{name} has no video track, only sound: give a video file")
    return next((track for track in tracks if bits[track] & DEFAULT_TRACK), tracks[0])


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When the frames of a video are shown.

    Args:
        form: the container, as FFmpeg names it.
        count: frames.
        packets: those that should decode to a frame each.
        starts: seconds at which the frames appear, ascending, (N,); None where the file has no times.
        end: second at which the last frame goes.
        rate: frames per second as the file has them.
        tick: resolution of its clock in seconds.
        declared: frames it should have; 0 if it does not say.
        told: whether it says how long it lasts, in frames or in seconds.
        missing: whether its end is missing.
    """

    form: str
    count: int
    packets: int
    starts: np.ndarray | None
    end: float
    rate: float | None
    tick: float
    declared: int
    told: bool
    missing: bool

    def chosen(self) -> list[int]:
        """Return the numbers of the frames that the model sees."""
        if self.starts is None:
            return frame_indices(self.count, self.rate)
        return frames_by_time(self.starts, self.end, self.rate, tick=self.tick)


def survey(source: Source) -> Timeline:
    """Read when the frames are shown from the packets, without decoding any."""
    import av

    with opened(source) as (container, track):
        times: list[Moment] = []
        hidden, first, latest = 0, math.inf, 0.0
        try:
            for packet in container.demux():
                start, length, base = packet.pts, packet.duration or 0, packet.time_base or 0
                if not packet.size:
                    continue
                if start is not None and packet.stream.type in ("video", "audio"):
                    first, latest = min(first, float(start * base)), max(latest, float((start + length) * base))
                if packet.stream_index == track.index and packet.is_discard:
                    hidden += 1  # by an edit list: it is decoded and not shown
                elif packet.stream_index == track.index:
                    times.append((start, length))
        except av.error.FFmpegError:
            pass  # decoding meets it again, and says so
        form, clock, rate = container.format.name, float(track.time_base or 0), track.average_rate or track.guessed_rate
        known = sorted((start, length) for start, length in times if start is not None)
        starts, end = _spans(known if len(known) == len(times) else times, clock)
        declared = track.frames
        if form.startswith("mov"):  # as edit lists and fragments have it
            declared = len(getattr(track, "index_entries", ())) or declared
        declared = max(declared - hidden, 0)
        if form.startswith("mov") and track.duration and len(times) >= declared:  # which alone tells it of each track
            end = max(end, ((track.start_time or 0) + track.duration) * clock)
        seen = max((start + length for start, length in known), default=0) * clock
        begins = 0.0 if first == math.inf else first
        missing = _ends_early(container, track, seen - begins, latest - begins) or _cut_asf(source, container)
        return Timeline(
            form=form, count=len(times), packets=len(times), starts=starts, end=end, rate=float(rate) if rate else None,
            tick=clock, declared=declared, told=declared > 0 or (form in TIMED and bool(container.duration)),
            missing=missing,
        )  # fmt: skip


def _spans(times: Sequence[Moment], clock: float) -> tuple[np.ndarray | None, float]:
    """The seconds at which frames appear, ascending, and at which the last one goes; None where times do not tell."""
    known = [start for start, _ in times if start is not None]
    starts = np.array(known) * clock
    if not known or not clock or len(known) < len(times) or (np.diff(starts) < 0).any():
        return None, 0.0
    last = times[-1][1] * clock or (starts[-1] - starts[0]) / max(len(starts) - 1, 1)
    return starts, float(starts[-1] + last)


def _ends_early(container: Any, track: Any, seen: float, latest: float) -> bool:
    """Whether a file lasts longer than what is in it, by its header and by what is said of the track itself.

    Both must say so: the sound of a whole file may go on after its video, and tags of a track may be stale.

    Args:
        seen, latest: seconds until the end of the last packet of the track, and of any track.
    """
    if container.format.name not in TIMED:
        return False
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", track.metadata.get("DURATION", ""))
    own = sum(float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True)) if tag else 0.0
    early = [end < WHOLE * lasts for end, lasts in ((latest, (container.duration or 0) / 1e6), (seen, own)) if lasts]
    return bool(early) and all(early)


def _cut_asf(source: Source, container: Any) -> bool:
    """Whether an ASF file is smaller than its header says (ASF specification 1.20, 3.2), from which FFmpeg takes no
    length then."""
    if container.format.name != "asf":
        return False
    head = source.head(1 << 16)
    at = head.find(ASF_PROPERTIES)
    return at >= 0 and container.size < WHOLE * int.from_bytes(head[at + 40 : at + 48], "little")


def _pick(source: Source, chosen: Collection[int]) -> tuple[dict[int, np.ndarray], list[Moment], Counter[str]]:
    """Decode all frames: the chosen ones as pixels by their number, and when each is shown."""
    chosen = set(chosen)
    kept: dict[int, np.ndarray] = {}
    times: list[Moment] = []
    damage: Counter[str] = Counter()
    matrix = None
    with opened(source) as (container, track):
        for index, frame in enumerate(decoded(container, track, damage, source.name)):
            times.append((frame.pts, getattr(frame, "duration", 0) or 0))
            if index in chosen:
                matrix = matrix or display_matrix(frame)
                kept[index] = shown(frame, track, matrix)
    return kept, times, damage


def decoded(container: Any, track: Any, damage: Counter[str], name: str) -> Iterator[Any]:
    """Decode every frame that can be decoded.

    Args:
        container: of PyAV, as `opened` yields it.
        track: its video track.
        damage: counts what cannot be decoded, by what notices call it.
        name: what errors call the file.

    Yields:
        Frames of PyAV in the order of display.

    Raises:
        UserError: a frame is too large.
    """
    import av

    context = _decoder(track)
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            damage["places after which nothing was read"] += 1
            packet = None
        if packet is not None and not packet.size:
            continue  # it would end the decoder, which the end of the file does
        try:
            for frame in context.decode(packet):
                check_pixels(name, frame.width, frame.height)
                if frame.is_corrupt:
                    damage["frames with damaged places"] += 1
                yield frame
        except av.error.EOFError:
            pass
        except av.error.FFmpegError:
            damage["packets skipped"] += 1
        if packet is None:
            return


def _decoder(track: Any) -> Any:
    """The track's own decoder; of VP8 and VP9 with transparency libvpx, since FFmpeg's own leave it out."""
    import av

    context = track.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.codec.canonical_name)
    if track.metadata.get("alpha_mode", track.metadata.get("ALPHA_MODE")) == "1" and name in av.codecs_available:
        made = av.CodecContext.create(name, "r")
        made.extradata = context.extradata
        return made
    context.thread_type = "AUTO"
    return context


def _refuse_truncated(name: str, line: Timeline, damage: Counter[str]) -> None:
    """UserError if a tenth or more of the file is missing or does not decode."""
    if not line.count:
        raise UserError(f"{name} has no whole frame: get it again or give another video")
    readable = f"only {line.count} of its {max(line.declared, line.packets)} frames can be read"
    if line.count < line.declared * WHOLE:
        raise UserError(f"{name} is truncated: {readable}; get the file again")
    if line.missing:
        raise UserError(f"{name} is truncated: it ends long before the time it declares; get the file again")
    if damage and line.count < line.packets * WHOLE:
        raise UserError(f"{name} is damaged: {readable}; get the file again")


def _tell(name: str, line: Timeline, damage: Counter[str], kept: int) -> None:
    """Notices of what is not read as the file has it."""
    if damage:
        found = ", ".join(f"{what}: {count}" for what, count in damage.items())
        notice(f"{name} is damaged ({found}): get it again if it looks wrong")
    if line.form.startswith("mov") and line.packets < line.declared:
        notice(f"{name} lacks its end: {line.count} of its {line.declared} frames can be read; get the file again")
    seconds = line.count / (line.rate or UNKNOWN_FPS) if line.starts is None else line.end - float(line.starts[0])
    if line.form in UNTIMED or not line.told:
        form = UNTIMED.get(line.form, "a video file")
        read = f"{line.count} frames ({seconds:.1f} s)"
        notice(f"{name} is {form}, which does not say where it ends: it was read as far as it goes, {read}")
    tell_speed(name, seconds, kept)
