"""Writing a file in one step: nobody ever sees half of it, and a failure leaves nothing behind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openlance.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of path (made if missing); it becomes path when the block ends well.

    The temporary name keeps the suffix of path, since writers choose their format by it. UserError if the place cannot
    be written.
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
    finally:
        temporary.unlink(missing_ok=True)
