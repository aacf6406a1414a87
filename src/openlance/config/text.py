"""Text files as the programs of the world write them: UTF-8, with or without a byte order mark, lines ended by LF, CRLF
or CR and by nothing else. (`str.splitlines` also splits at U+2028, U+0085, form feeds and more, which texts hold.)
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from openlance.errors import UserError

MARK = "\ufeff"  # byte order mark
LINE_END = re.compile(r"\r\n|\r|\n")
OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # UTF-32 begins with the former, too


def read_text(path: str | Path, more: str = "") -> str:
    """The text of a file, without its byte order mark, every line end as a line feed.

    Args:
        path: A file.
        more: What to do beside saving it as UTF-8, for the error.

    Raises:
        UserError: If it cannot be read, or is no UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return decoded(data, path, more)


def decoded(data: bytes, name: object, more: str = "") -> str:
    """The text of bytes; arguments and errors as of `read_text`, `name` for the errors."""
    what = OTHER_MARKS.get(data[:2])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"it is {what}" if what else f"byte {error.start}"
        raise UserError(f"{name} is not UTF-8 text ({place}): save it as UTF-8{more}") from None
    if "\0" in text:  # what UTF-16 without a mark looks like
        raise UserError(f"{name} is not UTF-8 text (it has zero bytes, as UTF-16 has): save it as UTF-8{more}")
    return LINE_END.sub("\n", text)


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends, the empty one after the last end included. A byte order mark in front of
    a line is left by files that were put together, and dropped."""
    return [line.removeprefix(MARK) for line in LINE_END.split(text)]


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a file, whole or not at all. UserError if it cannot be written."""
    rest = memoryview(f"{line}\n".encode())
    try:
        with open(path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while rest:  # a disk that fills up takes a part
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space") from error
