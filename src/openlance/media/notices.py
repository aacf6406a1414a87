"""What was left out, in one line: a reader that shortens, skips or drops something says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Without a handler of the application's own, Python's last resort prints warnings of a logger on stderr as they are.
log = logging.getLogger("openlance.media")
_gathered: ContextVar[list[str] | None] = ContextVar("openlance_media_notices", default=None)


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
