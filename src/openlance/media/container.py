"""Files of video opened by FFmpeg: which are taken, which track is the picture, when its frames are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from openlance.errors import UserError
from openlance.media.image import MAX_PIXELS
from openlance.media.notices import notice
from openlance.media.source import Source

# What FFmpeg may take a file for. It would also take any text for a film (tty and a dozen formats of subtitles), and
# follow a list of other files (concat, hls, sdp ...) wherever it leads; pictures are Pillow's. Formats of sound alone
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


class _Nameless:
    """A file without its name, of which FFmpeg would make something of its own (the suffix, %d, a protocol)."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """Yield (container, picture track) of PyAV.

    Raises:
        UserError: it is no video that FFmpeg reads, has no picture track, or too large frames.
    """
    import av

    with source.open() as file:
        try:
            container = av.open(_Nameless(file), "r", container_options={"format_whitelist": FORMATS})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(_not_read(source, error)) from error
        with container:
            track = _picture_track(container, source.name)
            context = track.codec_context
            if context is None:
                raise UserError(f"{source.name} holds video of a kind that is not known: convert it to MP4 (H.264)")
            check_pixels(source.name, context.width or 0, context.height or 0)
            yield container, track


def is_video(source: Source) -> bool:
    """Whether FFmpeg takes a file for one of its formats and finds moving pictures in it."""
    try:
        with opened(source):
            return True
    except UserError:
        return False


def _not_read(source: Source, error: Exception) -> str:
    from openlance.media.source import is_movie

    why = getattr(error, "strerror", None) or error
    if is_movie(source.head()):
        return f"{source.name} is a damaged or truncated video ({why}): get it again or convert it to MP4"
    return f"{source.name} is not a picture or video that can be read: use a PNG, JPEG, WebP or MP4 file"


def _picture_track(container: Any, name: str) -> Any:
    """The default track of moving pictures, or the first: cover art of a song is none."""
    tracks = [s for s in container.streams.video if not int(getattr(s, "disposition", 0)) & NO_VIDEO]
    if not tracks:
        raise UserError(f"{name} has no picture track, only sound: give a video file")
    default = [s for s in tracks if int(getattr(s, "disposition", 0)) & DEFAULT_TRACK]
    return (default or tracks)[0]


def check_pixels(name: str, width: int, height: int) -> None:
    """UserError if frames of a size are too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name} has frames of {width}x{height}, more than the {MAX_PIXELS // 10**6} megapixels allowed: scale it "
            f"down first"
        )


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When the frames of a video are shown.

    form: the container, as FFmpeg names it. count: frames. packets: those that should decode to a frame each.
    starts: seconds, ascending, (N,), or None where the file has no times. end: second at which the last frame goes.
    rate: frames per second as the file has them. tick: resolution of its clock, seconds. declared: frames it should
    have, 0 if it does not say. told: whether it says how long it lasts, in frames or in seconds. missing: whether its
    end is.
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


@dataclass
class Damage:
    """What could not be read of a file: packets that do not decode, frames that the decoder patched."""

    packets: int = 0
    frames: int = 0
    cut: bool = False

    @property
    def found(self) -> bool:
        return bool(self.packets or self.frames or self.cut)

    def tell(self, name: str) -> None:
        parts = [
            f"packets skipped: {self.packets}" * bool(self.packets),
            f"frames with damaged places: {self.frames}" * bool(self.frames),
            "nothing was read after a damaged place" * self.cut,
        ]
        if any(parts):
            notice(f"{name} is damaged ({', '.join(p for p in parts if p)}): get it again if it looks wrong")


@dataclass
class _Packets:
    """Times of the packets of one track, in its clock, as they come."""

    shown: list[tuple[int, int]] = field(default_factory=list)  # (start, duration)
    timed: bool = True
    count: int = 0
    hidden: int = 0

    def add(self, packet: Any) -> None:
        """Count a packet; one that an edit list hides is decoded and not shown."""
        if packet.is_discard:
            self.hidden += 1
            return
        self.count += 1
        if packet.pts is None:
            self.timed = False
        else:
            self.shown.append((packet.pts, packet.duration or 0))


def survey(source: Source) -> Timeline:
    """Read when the frames are shown from the packets, without decoding any."""
    import av

    with opened(source) as (container, track):
        packets, latest, first = _Packets(), 0.0, None
        try:
            for packet in container.demux():
                if not packet.size:
                    continue
                base = packet.time_base or 0
                if packet.pts is not None and packet.stream.type in ("video", "audio"):
                    latest = max(latest, float((packet.pts + (packet.duration or 0)) * base))
                    first = float(packet.pts * base) if first is None else min(first, float(packet.pts * base))
                if packet.stream_index == track.index:
                    packets.add(packet)
        except av.error.FFmpegError:
            pass  # decoding meets it again, and says so
        seen = max((float((time + length) * track.time_base) for time, length in packets.shown), default=0.0)
        missing = _ends_early(container, track, seen - (first or 0.0), latest - (first or 0.0))
        if container.format.name == "asf":  # FFmpeg takes no length from the header of one that is cut
            missing = missing or source.size() < WHOLE * _asf_bytes(source)
        told = container.format.name in TIMED and bool(container.duration)
        return _timeline(packets, track, told=told, missing=missing)


def _asf_bytes(source: Source) -> int:
    """How many bytes an ASF file should have, 0 if its header does not say (ASF specification 1.20, 3.2)."""
    with source.open() as file:
        head = file.read(1 << 16)
    at = head.find(ASF_PROPERTIES)
    return int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0


def _ends_early(container: Any, track: Any, seen: float, latest: float) -> bool:
    """Whether a file lasts longer than what is in it, by its header and by what is said of the track itself.

    Both must say so: the sound of a whole file may go on after its picture, and tags of a track may be stale.

    Args:
        seen, latest: seconds until the end of the last packet of the track, and of any track.
    """
    if container.format.name not in TIMED:
        return False
    whole, own = (container.duration or 0) / 1e6, 0.0
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", track.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        own = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    early = [end < WHOLE * lasts for end, lasts in ((latest, whole), (seen, own)) if lasts]
    return bool(early) and all(early)


def _timeline(packets: _Packets, track: Any, told: bool, missing: bool) -> Timeline:
    rate = track.average_rate or track.guessed_rate
    clock = float(track.time_base or 0)
    declared = _declared_frames(track, packets.hidden)
    starts, end = None, 0.0
    if packets.timed and packets.shown and clock:
        ordered = sorted(packets.shown)
        starts = np.array([start for start, _ in ordered]) * clock
        last = ordered[-1][1] * clock or (starts[-1] - starts[0]) / max(len(starts) - 1, 1)
        end = max(float(starts[-1]) + last, _track_end(track, clock) if packets.count >= declared else 0.0)
    return Timeline(
        form=track.container.format.name, count=packets.count, packets=packets.count, starts=starts, end=end,
        rate=float(rate) if rate else None, tick=clock, declared=declared, told=told or declared > 0, missing=missing,
    )  # fmt: skip


def _declared_frames(track: Any, hidden: int) -> int:
    """How many frames a file should show; of a QuickTime file those of its index."""
    index = getattr(track, "index_entries", ())  # as edit lists and fragments have it
    listed = len(index) if track.container.format.name.startswith("mov") else 0
    return max((listed or track.frames) - hidden, 0)


def _track_end(track: Any, clock: float) -> float:
    """The second at which a track says its last frame goes: QuickTime files alone have it of each track."""
    if track.container.format.name.startswith("mov") and track.duration:
        return ((track.start_time or 0) + track.duration) * clock
    return 0.0


def decoded(container: Any, track: Any, damage: Damage, name: str) -> Iterator[Any]:
    """Every frame that decodes, as PyAV frames in the order of display; what does not is counted in `damage`."""
    import av

    context = _decoder(track)
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            damage.cut, packet = True, None
        if packet is not None and not packet.size:
            continue  # it would end the decoder, which the end of the file does
        try:
            for frame in context.decode(packet):
                check_pixels(name, frame.width, frame.height)
                damage.frames += bool(frame.is_corrupt)
                yield frame
        except av.error.EOFError:
            pass
        except av.error.FFmpegError:
            damage.packets += 1
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
