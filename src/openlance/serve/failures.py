"""What goes wrong, as OpenAI's clients understand it: a status, and an error with message, type, param and code."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pydantic import ValidationError

from openlance.errors import UserError, out_of_memory

log = logging.getLogger(__name__)
NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients send 408, 409, 429 and 5xx again otherwise
# Codes that OpenAI uses for what pydantic finds.
FOUND = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
SAID = {
    "extra_forbidden": "there is no such parameter", "is_instance_of": "expected a file, or an address",
}  # fmt: skip
FIELD, TYPES = re.compile(r"[a-z_][a-z_0-9]*|\d+"), {"str", "int", "float", "bool", "tuple", "list", "dict"}


class Failure(Exception):
    """An answer in the place of a result.

    Args:
        message: One sentence for the user.
        status: Of HTTP.
        code: What a program goes by.
        param: The field that is wrong.
        retry_after: Seconds after which to ask again; None where that cannot help.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def __reduce__(self) -> tuple:  # it may come from another process
        said = {name: getattr(self, name) for name in ("status", "code", "param", "retry_after")}
        return partial(Failure, str(self), **said), ()

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        known = {401: "authentication_error", 429: "rate_limit_error"}
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return NO_RETRY if self.retry_after is None else {"retry-after": str(max(round(self.retry_after), 1))}


def cancelled() -> Failure:
    return Failure("the request was cancelled", status=409, code="cancelled")


def queue_full(waiting: int, seconds: float) -> Failure:
    """So many results wait already, which takes about so long."""
    wait = min(max(seconds, 1.0), 120.0)
    message = f"{waiting} results are waiting already: ask again in {wait:.0f} seconds"
    return Failure(message, status=429, code="queue_full", retry_after=wait)


def takes_nothing() -> Failure:
    return Failure("the server takes nothing new for now", status=503, code="draining", retry_after=10)


def unkept(why: object) -> Failure:
    """What was made, or is known of it, cannot be written; why is for the log, since it may name paths."""
    log.error("the server's files cannot be written: %s", why)
    return Failure("the server cannot keep this: its disk takes nothing", status=507, code="storage_failed")


def worker_ended() -> Failure:
    return Failure("the worker has ended; the log says why", status=503, code="worker_ended")


def shutting_down() -> Failure:
    return Failure("the server is shutting down", status=503, code="server_shutdown", retry_after=10)


def failure_of(error: BaseException) -> Failure:
    """Any exception as the failure that a client is told; what is no user's mistake tells nothing of the inside."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Of a field that may be of several types, pydantic names the type as well.
        named = [str(part) for part in first["loc"] if FIELD.fullmatch(str(part)) and str(part) not in TYPES]
        param = ".".join(named) or None
        what = SAID.get(first["type"], first["msg"])
        message = what if param is None else f"{param}: {what}"
        return Failure(message, code=FOUND.get(first["type"], "invalid_value"), param=param)
    if isinstance(error, UserError):
        return Failure(str(error), code="invalid_value", param=error.param)
    if out_of_memory(error):
        message = "there is not enough memory for this: ask for a smaller size, or fewer frames"
        return Failure(message, status=500, code="out_of_memory")
    if isinstance(error, sqlite3.Error):
        return unkept(error)
    return Failure("something went wrong inside; the log says more", status=500, code="internal_error")


@contextmanager
def about(param: str) -> Iterator[None]:
    """Name the parameter that a mistake of a block is about, where the mistake does not say so itself."""
    try:
        yield
    except UserError as error:
        raise Failure(str(error), code="invalid_value", param=error.param or param) from error
