"""The one exception that a user may see, with what a program needs to say it in its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


class UserError(ValueError):
    """Something that a user caused and can mend.

    The command line prints it, with keywords as its own options, and exits with code 2; a server answers with status
    400. Everything else that is raised is a defect of this package.

    Args:
        what: What is wrong, "height is 7"; or the whole sentence, where no value of a keyword would mend it.
        expected: What would be right, "a multiple of 8".
        fix: The keyword and a value that would do, {"height": 8}.
        param: The keyword that is wrong, where no value is named for it.
    """

    def __init__(
        self, what: object = "", *, expected: str = "", fix: Mapping[str, Any] | None = None, param: str | None = None
    ) -> None:
        self.what, self.expected, self.fix = str(what), expected, dict(fix or {})
        self.param = param or next(iter(self.fix), None)
        such = ", ".join(f"{name}={value!r}" for name, value in self.fix.items())
        use = f"such as {such}" if expected else f"use {such}"
        wanted = [f"expected {expected}"] * bool(expected) + [use] * bool(such)
        super().__init__(": ".join([self.what, ", ".join(wanted)]) if wanted else self.what)


# What torch says on the CPU ("can't ...", by itself and by oneDNN) and on a GPU (by itself, cuBLAS and cuDNN).
NO_MEMORY = re.compile(
    "t allocate memory|out of memory|could not create a primitive$|std::bad_alloc|STATUS_ALLOC_FAILED"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its GPU had no memory left."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))
