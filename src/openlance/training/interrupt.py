"""Ctrl-C and SIGTERM end a run between two steps, with everything saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which a second Ctrl-C counts as the first: torchrun passes on what the terminal has sent to all already.
SAME = 1.0


class Interrupted(KeyboardInterrupt):
    """A run was stopped and is saved; the same call goes on.

    Args:
        folder: Of the run.
        step: Steps that are done.
        number: The signal.
    """

    def __init__(self, folder: Path, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}, all saved in {folder}: the same command goes on")
        self.folder, self.step, self.number = folder, step, number


@dataclass
class Heard:
    """When each signal came first."""

    at: dict[int, float] = field(default_factory=dict)

    @property
    def of_each(self) -> list[bool]:
        """Whether each of `SIGNALS` came."""
        return [number in self.at for number in SIGNALS]


@contextmanager
def stoppable(tells: bool = True) -> Iterator[Heard]:
    """Note Ctrl-C and SIGTERM in the place of ending at once; a later second Ctrl-C does end at once.

    Without effect outside of the main thread, where Python hears no signals.

    Args:
        tells: Whether the error stream says what will happen.
    """
    heard = Heard()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - heard.at.get(number, now) > SAME:
            raise KeyboardInterrupt
        if tells and not heard.at:
            again = "; Ctrl-C again ends at once, unsaved" if number == signal.SIGINT else ""
            os.write(2, f"\nfinishing the step and saving{again}\n".encode())
        heard.at.setdefault(number, now)

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
