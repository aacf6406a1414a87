"""What an instruction changes of what is there: which things it names, what becomes of them, and what has to stay.

    change_of("make the red circle blue", read("a red circle and a green star on a black background"))

What is there comes from a description in words, so that no thing, color or shape is known here by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from openlance.text.phrases import (
    EMPTY,
    MOTION,
    RELATION,
    SAME,
    WORD,
    Reading,
    Relation,
    Thing,
    motion_in,
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
ONE, ALL = frozenset("it object shape thing".split()), frozenset("them objects shapes things everything".split())
WHOLE = ONE | ALL | frozenset("picture image photo video clip color colour colors colours".split())
NEW = re.compile(
    r"\b(?:(?:in)?to|with|by|for|put|make (?:the [\w ]+?|it)) "
    r"(?P<said>(?:an?|one|two|three|four|five) [\w -]+?)(?= in place of |$)"
)
ALL_BUT = re.compile(r"\b(?:everything|all)(?: else)? (?:but|except)(?: for)? ")
STOP = re.compile(r"^(?:stop|halt|freeze|pause)\b")
TURNED = re.compile(r"^reverse the motion\b|\bdo the opposite$|\b(?:the other way|backwards?)$")
OPPOSITE = {
    "left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows",
    "still": "still",
}  # fmt: skip
# What makes all of a picture look otherwise, where it is said of "it".
TONE = re.compile(
    r"\b(?:(?:dark|bright|light|warm|cool|soft|sharp|dull)er|(?:dark|bright|light)en|invert|negative|black and white"
    r"|monochrome|sepia|gr[ae]yscale|tone)\b"
)
SIZED = re.compile(r"\b(\w+)[ -](?:sized|coloured|colored)\b")
JOINED = re.compile(r"^(?: and|,| as well as|,? and also)(?: the| both| all(?: the)?)? *$")
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
        unclear: Things that the instruction is about as well, by their nouns; what becomes of them is not known.
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
    unclear: tuple[Thing, ...] = ()
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
        return (*self.stay, *(self.named if self.adds else ()), *self.new, *self.unclear)


def change_of(instruction: str, source: Reading) -> Change:
    """Read an instruction against a description of what it changes."""
    texts = quoted(instruction)
    plain = re.sub("^please ", "", " ".join(instruction.lower().split()).rstrip(" .!"))
    plain = SIZED.sub(r"\1", plain)
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
    new = None if cut else NEW.search(plain)
    does = MOTION.search(plain)
    about = plain[: cut.start()] if cut else _without(plain, new or does)
    named = _named(about, source.things)
    if others := ALL_BUT.search(about):
        kept = _named(about[others.end() :], source.things)
        named = tuple(t for t in source.things if t not in kept) if kept else ()
    elif not named and not TONE.search(plain):
        named = _by_pronoun(about, source.things)
    if not named:
        return replace(same, stay=by_noun(source.things), whole=True, ground="")
    left = replace(same, named=named, stay=tuple(t for t in source.things if t not in named))
    if REMOVE.match(plain):
        return left
    if MOVE.match(plain):
        return _gone_to(plain, replace(left, new=named), cut, source.things)
    beside = [t for t in left.stay if t in _mentioned(about, source.things)]
    became = () if beside else _become(plain, named, new, does)
    if became:
        return replace(left, new=became)
    return replace(
        left, stay=tuple(t for t in left.stay if t not in beside), unclear=tuple(map(_bare, (*named, *beside)))
    )


def _without(plain: str, found: re.Match[str] | None) -> str:
    """An instruction but for what becomes of things."""
    if found is None:
        return plain
    start, end = found.span("said") if "said" in found.re.groupindex else found.span()
    return f"{plain[:start]} {plain[end:]}"


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


def _become(
    plain: str, named: Sequence[Thing], into: re.Match[str] | None, does: re.Match[str] | None
) -> tuple[Thing, ...]:
    """What becomes of named things: another thing, or they themselves with another motion or look; empty where that is
    not known."""
    if STOP.match(plain):
        return tuple(replace(t, does="still") for t in named)
    if TURNED.search(plain):
        return tuple(replace(t, does=OPPOSITE.get(t.does, t.does)) for t in named)
    new = thing(into["said"]) if into and (SWAP.match(plain) or not TONE.search(plain)) else None
    if new is not None:
        return (_with_noun(named[0], new, swapped=bool(SWAP.match(plain))),)
    if does is not None:
        return tuple(replace(t, does=motion_in(does)) for t in named)
    known = {word for t in named for word in t.words}
    first, *others = words_in(plain) or [""]
    # An instruction begins with what is done, which is a look of a thing only where another word says so: "enlarge".
    said = [w for w in ([first] if first in SAME else []) + others if stem(w) not in known]
    looks = None if TONE.search(plain) else thing(" ".join(w for w in said if w not in VERBS | EMPTY | WHOLE))
    return () if looks is None else tuple(_with_look(t, looks) for t in named)


def _named(text: str, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Things that words speak of first, and those that "and" joins to them."""
    found, end = list[Thing](), 0
    for start, stop, meant in _mentions(text, things):
        if found and not JOINED.match(text[end:start]):
            break
        found, end = [*found, *(t for t in meant if t not in found)], stop
    return tuple(found)


def _mentioned(text: str, things: Sequence[Thing]) -> list[Thing]:
    return [t for _, _, meant in _mentions(text, things) for t in meant]


def _mentions(text: str, things: Sequence[Thing]) -> Iterator[tuple[int, int, list[Thing]]]:
    """Where words speak of things, and of which: those that have all of a phrase's words, as far as they are words of
    things here."""
    known, nouns = {word for t in things for word in t.words}, {noun(t) for t in things}
    run, start = list[str](), 0
    for found in re.finditer(WORD, text):
        word = stem(found[0])
        start = start if run else found.start()
        run = [*run, word] if word in known else []
        if word in nouns:
            meant = [t for t in things if t.words.issuperset(run) and noun(t) == word]
            if meant:
                yield start, found.end(), meant
            run = []


def _by_pronoun(text: str, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """All things where words speak of them together, and "it" where there is but one."""
    words = set(words_in(text))
    return tuple(things) if words & ALL or (words & ONE and sum(t.count for t in things) == 1) else ()


def by_noun(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Things by their nouns alone; those that do the same are counted together."""
    names = list(dict.fromkeys((noun(t), t.does) for t in things))
    alike = [[t for t in things if (noun(t), t.does) == name] for name in names]
    return tuple(replace(_bare(ts[0]), count=sum(t.count for t in ts)) for ts in alike)


def _bare(t: Thing) -> Thing:
    """A thing by its noun alone."""
    return replace(t, words=frozenset([noun(t)]), said=t.said.split()[-1])


def noun(t: Thing) -> str:
    return stem(t.said.split()[-1])


def _with_noun(old: Thing, new: Thing, swapped: bool) -> Thing:
    """Another thing in the place of one, which does what that did; where one becomes it, looks that nothing is said of
    stay."""
    looks = [] if swapped or len(new.said.split()) > 1 else old.said.split()[:-1]
    said = " ".join([*looks, new.said])
    does, count = new.does or old.does, new.count if swapped else old.count
    return Thing(frozenset(map(stem, said.split())), count, said, does)


def _with_look(old: Thing, looks: Thing) -> Thing:
    """The thing with a new look, by its noun alone: what the look takes the place of is not known."""
    bare = _bare(old)
    return replace(bare, words=looks.words | bare.words, said=f"{looks.said} {bare.said}")
