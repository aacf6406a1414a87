"""What a browser remembers: the results that it asked for, and its conversation. It comes back from the browser, so
nothing of it is believed: what does not fit is left out, and files are only found by names that the store gave."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from openlance.serve.bodies import LONGEST_PROMPT
from openlance.serve.failures import Failure
from openlance.serve.store import Store
from openlance.serve.studio.calls import Call

MOST = 120  # results of a browser: its storage has a few megabytes


class Result(BaseModel):
    """A file, what it was made from, and what the model found at it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    call: Call
    verdict: str = ""


def results(memory: Any) -> list[Result]:
    """The results in a browser's memory, the newest first."""
    found = list[Result]()
    for one in memory if isinstance(memory, list) else []:
        try:
            found.append(Result.model_validate(one))
        except ValidationError:  # of an earlier version, say
            continue
    return found


def added(memory: Any, new: list[Result]) -> list[dict[str, Any]]:
    """A memory with further results."""
    return [one.model_dump(mode="json") for one in [*reversed(new), *results(memory)][:MOST]]


def kept(memory: Any, store: Store) -> list[Result]:
    """The results whose files are still there."""
    return [one for one in results(memory) if _is_there(store, one.file)]


def _is_there(store: Store, file: str) -> bool:
    try:
        return bool(store.path(file))
    except Failure:
        return False


class Turn(BaseModel):
    """What was said and shown, and what came of it: a file or an answer. parent: the turn before it, -1 for none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: int = -1
    text: str = Field("", max_length=LONGEST_PROMPT)
    shown: tuple[str, ...] = ()
    call: Call | None = None
    file: str = ""
    verdict: str = ""
    answer: str | None = None


class Talk(BaseModel):
    """A conversation with all its branches: `at` is the last turn of the one that goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turns: tuple[Turn, ...] = ()
    at: int = -1

    @model_validator(mode="after")
    def _is_a_tree(self) -> Talk:
        if not all(-1 <= turn.parent < n for n, turn in enumerate(self.turns)) or not -1 <= self.at < len(self.turns):
            raise ValueError("the turns are no tree")
        return self

    @classmethod
    def read(cls, said: Any) -> Talk:
        """The one in a browser's memory; a new one if there is none that fits."""
        try:
            return cls.model_validate(said or {})
        except ValidationError:
            return cls()

    @property
    def path(self) -> list[int]:
        """The turns of this branch, in order."""
        found, at = list[int](), self.at
        while at >= 0:
            found.append(at)
            at = self.turns[at].parent
        return found[::-1]

    @property
    def calls(self) -> dict[str, Call]:
        """What its files were made from."""
        return {turn.file: turn.call for turn in self.turns if turn.file and turn.call is not None}

    def say(self, turn: Turn) -> Talk:
        """With one more turn behind this branch."""
        return Talk(turns=(*self.turns, turn.model_copy(update={"parent": self.at})), at=len(self.turns))

    def undo(self) -> Talk:
        """One turn earlier."""
        return self.model_copy(update={"at": self.turns[self.at].parent if self.at >= 0 else -1})

    def branch(self, at: int) -> Talk:
        """From a turn on; any other number changes nothing."""
        return self.model_copy(update={"at": at}) if -1 <= at < len(self.turns) else self

    def beside(self, at: int) -> list[int]:
        """Turns with the same parent, which are other ways to go on."""
        return [n for n, turn in enumerate(self.turns) if turn.parent == self.turns[at].parent]

    def end_of(self, at: int) -> int:
        """The last turn of the newest branch through one."""
        while later := [n for n, turn in enumerate(self.turns) if turn.parent == at]:
            at = later[-1]
        return at
