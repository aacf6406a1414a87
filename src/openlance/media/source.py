"""A file to read, on disk or in memory, and what its first bytes say it is: names decide nothing."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from openlance.errors import UserError

# Major and compatible brands of ISO base media files that hold pictures (ISO/IEC 23008-12 and the AVIF specification).
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
AVIF_BRANDS = (b"avif", b"avis")
# Boxes that begin a QuickTime or MP4 file.
MOVIE_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")
# First bytes of other containers of moving pictures, which readers of pictures must not be asked about.
MOVIE_STARTS = (
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
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
TS_PACKET = 188  # an MPEG transport stream has the byte 0x47 at the beginning of each (ISO/IEC 13818-1)
HEAD = 3 * TS_PACKET


def require_file(path: str | Path) -> Path:
    """The path, if it is a file that can be opened; UserError otherwise."""
    found = Path(path)
    if not str(path):
        raise UserError("the path of the file is empty: give the path of a picture or video")
    try:
        if found.is_dir():
            raise UserError(f"{found} is a folder, not a file: give the path of one file")
        if not found.exists():
            raise UserError(f"there is no file {found}: check the path")
        if not found.is_file():
            raise UserError(f"{found} is not a regular file: give the path of a picture or video")
        with found.open("rb"):
            return found
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot open {found}: {error.strerror or error}; check its permissions") from error
    except ValueError as error:  # a NUL inside
        raise UserError(f"{str(path)!r} is no path ({error}): give the path of a picture or video") from error


@dataclass(frozen=True, kw_only=True)
class Source:
    """The bytes of one file.

    name: what errors and notices call it. data: its bytes, or None where they lie at `path`.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, given: str | Path | bytes, name: str | None = None) -> Source:
        """A path or the bytes of a file. UserError if there is nothing to read at the path or in the bytes."""
        if isinstance(given, bytes):
            called = name or "the file given as bytes"
            if not given:
                raise UserError(f"{called} holds 0 bytes: give the bytes of a whole file")
            return cls(name=called, data=given)
        found = require_file(given)
        return cls(name=name or str(found), path=found)

    def open(self) -> BinaryIO:
        """The file from its beginning; the caller closes it."""
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UserError(f"cannot open {self.name}: {error.strerror or error}; check its permissions") from error

    def size(self) -> int:
        """Its length in bytes."""
        with self.open() as file:
            return file.seek(0, io.SEEK_END)

    def head(self) -> bytes:
        """Its first bytes."""
        with self.open() as file:
            return file.read(HEAD)


def is_picture(path: Path) -> bool:
    """Whether a path is a file that begins, or is named, as a picture or video does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return head.startswith(PICTURE_STARTS) or is_movie(head) or path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES


def still_form(head: bytes) -> str | None:
    """ "HEIC" or "AVIF" if a file that begins so is a picture in an ISO base media file, else None."""
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))]
    if brands[0] in (*HEIC_BRANDS, *AVIF_BRANDS):
        return "AVIF" if any(b in AVIF_BRANDS for b in brands) else "HEIC"
    return None


def is_movie(head: bytes) -> bool:
    """Whether a file begins as a well-known container of moving pictures does."""
    if head[4:8] in MOVIE_BOXES:
        return still_form(head) is None
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    packets = len(head) == HEAD and all(head[i] == 0x47 for i in range(0, HEAD, TS_PACKET))
    return riff or packets or head.startswith(MOVIE_STARTS)
