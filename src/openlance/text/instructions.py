"""What an instruction changes of what is there: which things it names, what becomes of them, and what has to stay.

    change_of("make the red circle blue", read("a red circle and a green star on a black background"))

What is there comes from a description in words, so that no thing, color or shape is known here by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openlance.text.phrases import (
    EMPTY,
    RELATION,
    Reading,
    Relation,
    Thing,
    place_in,
    quoted,
    read,
    stem,
    thing,
    words_in,
)

REMOVE = re.compile(r"^(?:remove|delete|erase|take away|get rid of|wipe out|drop)\b")
ADD = re.compile(r"^(?:add|insert|put|place|draw|include) (?=(?:an?|one|two|three|four|another)\b)(?!.* in place of )")
MOVE = re.compile(r"^(?:move|shift|put|place|push|bring) (?=the |it\b)(?!.*\bbackground$)")
SWAP = re.compile(r"^(?:replace|swap|exchange|put .* in place of)\b")
GROUND = re.compile(
    r"\bbackground (?:(?:to|into|should be|as) )?(?:an? )?(?P<a>[\w-]+)$|\ban? (?P<b>[\w-]+) background$"
)
WHOLE = frozenset(
    "it object objects shape shapes thing things picture image photo video clip colors everything".split()
)
NEW = re.compile(
    r"\b(?:(?:in)?to|with|by|for|put|make (?:the [\w ]+?|it)) (?P<said>(?:an?|one) [\w -]+?)(?: in place of .*)?$"
)
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "upwards": (0, -1), "downwards": (0, 1)}
# What an instruction is made of beside what it names.
VERBS = frozenset(
    "make paint recolour recolor change colour color turn should give set in place put on of to into with by for all"
    " swap replace exchange object shape thing background and now instead please be as".split()
)


@dataclass(frozen=True)
class Change:
    """What is expected of an edit.

    Args:
        named: Things that the instruction is about.
        stay: The other ones.
        new: What is there afterwards in the place of the named things, or beside everything.
        adds: Whether `new` is added.
        ground: Of the result; empty where nothing is known.
        texts: What is written afterwards.
        way: Where the named things go, (right, down) of -1 to 1.
        place: Where `new` is afterwards, a row and a column of "top", "centre", "bottom" and "left", "centre", "right".
        relation: How they stand afterwards.
        whole: The change is about the looks of everything: `stay` are the things by their nouns.
    """

    named: tuple[Thing, ...] = ()
    stay: tuple[Thing, ...] = ()
    new: tuple[Thing, ...] = ()
    adds: bool = False
    ground: str = ""
    texts: tuple[str, ...] = ()
    way: tuple[int, int] | None = None
    place: tuple[str, str] | None = None
    relation: Relation | None = None
    whole: bool = False

    @property
    def after(self) -> tuple[Thing, ...]:
        """All things afterwards."""
        return (*self.stay, *(self.named if self.adds else ()), *self.new)


def change_of(instruction: str, source: Reading) -> Change:
    """Read an instruction against a description of what it changes."""
    texts = quoted(instruction)
    plain = re.sub("^please ", "", " ".join(instruction.lower().split()).rstrip(" .!"))
    same = Change(stay=source.things, ground=source.ground, texts=source.texts)
    if texts:
        return replace(same, texts=(texts[-1],))
    found = GROUND.search(plain)
    if found is not None:
        look = thing(found["a"] or found["b"])
        return replace(same, ground=look.said if look is not None else "")
    if ADD.match(plain):
        return _added(ADD.sub("", plain), same)
    cut = RELATION.search(plain) if MOVE.match(plain) else None
    named = _named(plain[: cut.start()] if cut else plain, source.things)
    if not named:
        return replace(same, stay=by_noun(source.things), whole=True, ground="")
    left = replace(same, named=named, stay=tuple(t for t in source.things if t not in named))
    if REMOVE.match(plain):
        return left
    if MOVE.match(plain):
        return _gone_to(plain, replace(left, new=named), cut, source.things)
    return replace(left, new=_become(plain, named))


def _added(words: str, same: Change) -> Change:
    """What "a blue star above the circle" adds."""
    added = read(words)
    at = next(((p.down, p.across) for p in added.places), None)
    beside = next(((r, _named(r.b.said, same.stay)) for r in added.relations), None)
    relation = Relation(beside[0].a, beside[0].side, beside[1][0]) if beside and beside[1] else None
    return replace(same, new=added.things[:1], adds=True, relation=relation, place=at)


def _gone_to(plain: str, change: Change, cut: re.Match[str] | None, things: Sequence[Thing]) -> Change:
    """Where "move the circle below the star" puts what it names; cut: where it says how they stand."""
    anchor = _named(plain[cut.end() :], things) if cut else ()
    if cut is not None and anchor:
        return replace(change, relation=Relation(change.named[0], cut.lastgroup or "", anchor[0]))
    place = place_in(plain)
    way = next((WAYS[w] for w in reversed(words_in(plain)) if w in WAYS), None)
    return replace(change, place=place, way=None if place else way)


def _become(plain: str, named: Sequence[Thing]) -> tuple[Thing, ...]:
    """What becomes of named things: another thing, or they themselves with another look."""
    into = NEW.search(plain)
    new = thing(into["said"]) if into else None
    if new is not None:
        return (new if SWAP.match(plain) else _with_noun(named[0], new),)
    known = {word for t in named for word in t.words}
    said = [w for w in words_in(plain) if stem(w) not in known and w not in VERBS | EMPTY | WHOLE]
    looks = thing(" ".join(said))
    return () if looks is None else tuple(_with_look(t, looks) for t in named)


def _named(text: str, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Things that words speak of: those that have all of a phrase's words, as far as they are words of things here."""
    known, nouns = {word for t in things for word in t.words}, {noun(t) for t in things}
    runs, run = list[frozenset[str]](), list[str]()
    for word in map(stem, words_in(text)):
        run = [*run, word] if word in known else []
        if word in nouns:
            runs.append(frozenset(run))
            run = []
    for words in runs:
        meant = tuple(t for t in things if words <= t.words and noun(t) in words)
        if meant:
            return meant
    if sum(t.count for t in things) == 1 and set(words_in(text)) & WHOLE:
        return tuple(things)
    return ()


def by_noun(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Things by their nouns alone, equal ones counted together."""
    nouns = list(dict.fromkeys(map(noun, things)))
    alike = [[t for t in things if noun(t) == one] for one in nouns]
    return tuple(Thing(frozenset([noun(ts[0])]), sum(t.count for t in ts), ts[0].said.split()[-1]) for ts in alike)


def noun(t: Thing) -> str:
    return stem(t.said.split()[-1])


def _with_noun(old: Thing, new: Thing) -> Thing:
    said = " ".join([*new.said.split()[:-1], *old.said.split()[:-1], new.said.split()[-1]])
    return Thing(frozenset(map(stem, said.split())), old.count, said, old.does)


def _with_look(old: Thing, looks: Thing) -> Thing:
    """The thing with a new look, by its noun alone: what the look takes the place of is not known."""
    said = f"{looks.said} {old.said.split()[-1]}"
    return Thing(looks.words | {noun(old)}, old.count, said, old.does)
