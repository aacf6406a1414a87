"""Files: writing one in a single step, reading one from disk or memory, what its first bytes say it is, and notices of
what was left out of it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from openlance.config.values import brief
from openlance.errors import UserError

# Errors of a place that takes no (more) data, and what to do about each; others inside a block are not about writing.
PLACES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or choose another place"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose another place"),
    errno.EFBIG: "allow larger files or choose another place",
    errno.EIO: "check the disk or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# Major and compatible brands of ISO base media files that hold images (ISO/IEC 23008-12 and the AVIF specification).
# Of the record of how a result was made, in its file (`media.write` puts it there, `media.inputs` reads it).
KEY = "openlance"
BEGIN = f'{{"{KEY}": '  # of every record: comments of other programs begin otherwise
LONGEST = 1 << 20  # bytes of a record; Pillow reads no longer text either
EXIF_IFD, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
AVIF_BRANDS = (b"avif", b"avis")
# Boxes that begin a QuickTime or MP4 file.
VIDEO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")
# First bytes of other containers of video, which readers of images must not be asked about.
VIDEO_STARTS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"OggS",
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b"YUV4MPEG2",
    b"DKIF",  # IVF
    b"\x12\x00\x0a",  # AV1 in OBUs
)
IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
    ".heic", ".heif", ".jp2", ".tga",
)  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
TS_PACKET = 188  # an MPEG transport stream has the byte 0x47 at the beginning of each (ISO/IEC 13818-1)
HEAD = 3 * TS_PACKET

# Without a handler of the application's own, Python's last resort prints warnings of a logger on stderr as they are.
log = logging.getLogger("openlance.media")
_gathered: ContextVar[list[str] | None] = ContextVar("openlance_media_notices", default=None)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` when the block ends well, so that nobody ever sees half a file.

    Args:
        path: the file to write; its folder is made if missing. The temporary name lies in the same folder and keeps
            the suffix, since writers choose their format by it.

    Raises:
        UserError: the place cannot be written, before the block or (a full disk) inside it.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        if target.is_dir():
            raise UserError(f"cannot write {target}: it is a folder; add a file name")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; choose another place") from error
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        elsewhere = error.filename is not None and str(error.filename) not in (str(temporary), str(target))
        if error.errno not in PLACES or elsewhere:
            raise
        why = os.strerror(error.errno)
        raise UserError(f"cannot write {target}: {why}; {PLACES[error.errno]}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Source:
    """The bytes of one file, on disk or in memory.

    Args:
        given: a path, or the bytes of a file.
        name: what errors and notices call it, if not by its path.
    """

    def __init__(self, given: str | Path | bytes, name: str | None = None) -> None:
        self.given = given
        self.name = name or ("the file given as bytes" if isinstance(given, bytes) else str(Path(given)))

    def open(self) -> BinaryIO:
        """Open the file at its beginning; the caller closes it. Raises UserError if there is nothing to read."""
        if isinstance(self.given, bytes):
            if not self.given:
                raise UserError(f"{self.name} holds 0 bytes: give the bytes of a whole file")
            return io.BytesIO(self.given)
        if not str(self.given):
            raise UserError("the path of the file is empty: give the path of an image or video")
        path = Path(self.given)
        try:
            if path.is_file():
                return path.open("rb")
            what = "a folder" if path.is_dir() else "a device or pipe" if path.exists() else None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"cannot open {brief(str(path))} ({why}): check its name and permissions") from error
        if what is None:
            raise UserError(f"there is no file {path}: check the path")
        raise UserError(f"{path} is {what}: give the path of one image or video")

    def size(self) -> int:
        """Return the length in bytes."""
        with self.open() as file:
            return file.seek(0, io.SEEK_END)

    def head(self, size: int = HEAD) -> bytes:
        """Read the first bytes."""
        with self.open() as file:
            return file.read(size)


def still_form(head: bytes) -> str | None:
    """Return "HEIC" or "AVIF" if a file that begins so is an image in an ISO base media file, else None."""
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))]
    if brands[0] in (*HEIC_BRANDS, *AVIF_BRANDS):
        return "AVIF" if any(b in AVIF_BRANDS for b in brands) else "HEIC"
    return None


def begins_as_video(head: bytes) -> bool:
    """Return whether a file begins as a well-known container of video does."""
    if head[4:8] in VIDEO_BOXES:
        return still_form(head) is None
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    packets = len(head) == HEAD and all(head[i] == 0x47 for i in range(0, HEAD, TS_PACKET))
    return riff or packets or head.startswith(VIDEO_STARTS)


def is_media(path: Path) -> bool:
    """Return whether a path is a file that begins, or is named, as an image or video does."""
    if not path.is_file():
        return False
    head, named = Source(path).head(), path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
    return named or head.startswith(IMAGE_STARTS) or begins_as_video(head)


def notice(text: str) -> None:
    """Say in one line on stderr what was shortened, resampled, skipped or dropped.

    Args:
        text: a sentence that names the file; line breaks in it become spaces.
    """
    line = " ".join(text.splitlines())
    lines = _gathered.get()
    if lines is None:
        log.warning("%s", line)
    else:
        lines.append(line)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Gather the notices of a block in the list it yields instead of printing them, the innermost block first.

    Holds in the thread or task that opened the block, as context variables do.
    """
    lines: list[str] = []
    token = _gathered.set(lines)
    try:
        yield lines
    finally:
        _gathered.reset(token)
