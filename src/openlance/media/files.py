"""Writing a file in one step: nobody ever sees half of it, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openlance.errors import UserError

# Errors of a place that takes no (more) data, and what to do about each; others inside a block are not about writing.
PLACES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "allow larger files or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place",
    errno.EPERM: "choose another place",
    errno.EIO: "check the disk or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of path (made if missing); it becomes path when the block ends well.

    The temporary name keeps the suffix of path, since writers choose their format by it.

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
