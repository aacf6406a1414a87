"""From exception to exit code: a mistake of the user is one sentence and code 2, a defect keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any

import typer

from openlance.errors import UserError, out_of_memory

# What a disk or folder says that takes no more, whatever was being written; the name is often missing then.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What shells report for Ctrl-C (128 + SIGINT), and for a program whose reader has gone (128 + SIGPIPE).
USER_MISTAKE, INTERRUPTED, CLOSED = 2, 130, 141

# The command that runs, as the parser knows it: its parameters are what a sentence from below can be about.
RUNNING: ContextVar[Any] = ContextVar("RUNNING", default=None)
# `name=value`, or a name of several words, that stands alone: no field of another one, no argument of a call, not in
# quotation marks, not what --set takes already.
KEYWORD = re.compile(
    r"""(?<![\w.=/'"-])(?<!\w\()(?<!--set )(?<!--set ')"""
    r"""(?:([a-z]\w*)=("[^"]*"|'[^']*'|\[[^]]*\]|\{[^}]*\}|[^\s,;()]*[^\s,;:.()])|([a-z]+(?:_[a-z]+)+)(?![\w=/.(]*[\w=/(]))"""
)
QUOTES = "'\""
# Fixes that name an object of Python, and what it is called here.
FLAGS = {
    "Enhancer(url=...)": "--enhance-url",
    "Enhancer(model=...)": "--enhance-model",
    "ChatServer(url=...)": "--judge-url",
    "with enhance=None": "without --enhance-prompt",
}

# The parser's base class of "the command line is wrong". Newer versions of typer carry their parser inside, older ones
# use click, so the class is found from what both publish.
ParserError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def wants_debug(args: Sequence[str]) -> bool:
    """Whether tracebacks are to be shown: `--debug` on the line or OPENLANCE_DEBUG=1 in the environment."""
    return "--debug" in args or os.environ.get("OPENLANCE_DEBUG", "") not in ("", "0")


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is ours: a ValueError of another package is a defect, not a mistake of the user."""
    name = ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return name.partition(".")[0] == "openlance"


def stage_fields() -> set[str]:
    from openlance.config.train import Stage

    return set(Stage.__dataclass_fields__)


def with_flags(text: str) -> str:
    """Say a sentence from below as the command line does: `seed=3` becomes `--seed 3` where that is an option.

    An entry of a table goes as `--data t2i=DIR`, a field of a stage as `--set lr=1e-4`, a switch without its value:
    `allow_pickle=True` becomes `--allow-pickle`, `metadata=False` `--no-metadata`. A name of several words, such as
    `num_frames`, is said as an option without a value, too. What the command that runs does not take stays as it is.
    """
    for keyword, flag in FLAGS.items():
        text = text.replace(keyword, flag)
    known = dict[str, Any]()
    for parameter in getattr(RUNNING.get(), "params", ()):
        for name in (parameter.name, *parameter.opts):
            if parameter.param_type_name == "option":
                known[name.removeprefix("--").replace("-", "_")] = parameter

    def said(found: re.Match[str]) -> str:
        option, value = known.get(found[1] or found[3]), found[2]
        if option is None:
            field = "set" in known and found[1] in stage_fields()
            return found[0] if not field else f'--set "{found[0]}"' if value[0] in "[{" else f"--set {found[0]}"
        flag = str(next(opt for opt in option.opts if opt.startswith("--")))
        if value is None:
            return flag
        if entry := re.fullmatch(r"{'(\w+)': '(.*)'}", value):
            return f"{flag} {entry[1]}={entry[2]}"
        if not option.is_flag:
            return f"{flag} {value if ' ' in value else value.strip(QUOTES)}"
        return flag if value == "True" else str(next(iter(option.secondary_opts), f"no {flag}"))

    return KEYWORD.sub(said, text)


def sentence(error: Any) -> str | None:
    """The one sentence for a mistake of the user, or None where the error is a defect that must keep its traceback."""
    if isinstance(error, UserError) or (isinstance(error, ValueError) and _raised_here(error.__traceback__)):
        return with_flags(one_line(error))
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return one_line(f"there is no file {error.filename}: check the path")
    if out_of_memory(error):
        return "there is not enough memory for this: ask for something smaller, or see --memory and `openlance plan`"
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"cannot write {error.filename}" if error.filename is not None else "what was made cannot be written"
        return one_line(f"{where} ({os.strerror(error.errno)}): free some space, or choose another place with -o")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EIO) and error.filename is None:
        return one_line(f"what was made cannot be written ({os.strerror(error.errno)}): choose another place with -o")
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror or error}")
    if isinstance(error, ParserError):
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context is not None else ""
        return one_line(error.format_message()).rstrip(".") + hint
    return None


def _reader_has_gone(error: BaseException) -> bool:
    """Whether a closed pipe is behind an exception."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BrokenPipeError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def drop_output() -> None:
    """Let nothing more be written where it could not be: the interpreter would try again at its end and complain."""
    try:
        sys.stdout.flush()
    except (AttributeError, ValueError, OSError):  # there is none, or it takes nothing
        with suppress(AttributeError, ValueError, OSError):
            place = os.open(os.devnull, os.O_WRONLY)
            os.dup2(place, sys.stdout.fileno())
            os.close(place)


def stop_while_loading(number: int, frame: FrameType | None) -> None:
    """Answer Ctrl-C: at once while modules are loaded, whose C++ code an exception would crash, else as Python does."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


@contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends a command quietly at any moment, where Python's own answer to it holds."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop_while_loading)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def guarded(call: Callable[[], Any], debug: bool) -> int:
    """Run a command and return its exit code; with `debug` the traceback is printed before the sentence."""
    try:
        code = call()
        if sys.stdout is not None:
            sys.stdout.flush()  # now, where it can be told what is wrong
        if code == INTERRUPTED:  # newer versions of typer answer Ctrl-C with the code alone
            print("interrupted", file=sys.stderr)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return CLOSED
    except SystemExit as stop:  # the libraries that print turn a closed pipe into this
        if not _reader_has_gone(stop):
            raise
        drop_output()
        return CLOSED
    except (ValueError, OSError, MemoryError, RuntimeError, ParserError) as error:
        said = sentence(error)
        if said is None:
            raise
        if debug:
            traceback.print_exception(error)
        drop_output()
        print(f"error: {said}", file=sys.stderr)
        return USER_MISTAKE
    return code if isinstance(code, int) else 0
