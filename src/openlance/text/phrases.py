"""What plain English sentences name, for requests and for descriptions alike: things and how many, their words, how
they stand to each other, where they are, and texts in quotation marks.

    read('two small red circles above a star on a white background').things

No list of what there is in the world: a thing is any noun phrase, and two phrases mean the same if their words do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»|「([^「」]+)」|『([^『』]+)』|(?<!\w)['‘]([^'‘’]+)['’](?!\w)"
)
NUMBERS = {
    "no": 0, "a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "pair": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
# Words that add nothing to what a phrase names.
EMPTY = frozenset(
    "a an the this that these those of is are be there here to it its i would like want me please just exactly only"
    " both also plus together which who has have having by some more draw paint show make generate create put picture"
    " image photo drawing video clip animation scene showing with one each given".split()
)
# Words for which another one is usual in descriptions.
SAME = {
    "gray": "grey", "big": "large", "huge": "large", "bigger": "large", "larger": "large", "tiny": "small",
    "little": "small", "smaller": "small", "hollow": "outlined", "filled": "solid", "stripy": "striped",
    "center": "centre", "middle": "centre", "upper": "top", "lower": "bottom", "word": "text", "letters": "text",
    "shrink": "small", "enlarge": "large", "fill": "solid", "stripes": "striped", "outline": "outlined",
}  # fmt: skip
WORD = r"[\w-]+"
DIGITS = 9  # of a number that are read: nobody counts as many
BESIDE = {
    "left": r"(?:to the |on the )?left of", "right": r"(?:to the |on the )?right of", "above": r"above|over|on top of",
    "below": r"below|under|beneath|underneath",
}  # fmt: skip
OPENING = re.compile(
    r"^(?:please )?(?:(?:draw|paint|show|make|generate|create|imagine)(?: me)? )?(?:there (?:is|are) )?"
    r"(?:(?:an? |the )?(?:picture|image|photo|drawing|video|clip|animation) (?:of|with|showing|that shows) )?"
)
RELATION = re.compile("|".join(rf"(?P<{name}>{form})" for name, form in BESIDE.items()))
# What a thing does, where a sentence says it: its way, or one of the other groups.
MOTION = re.compile(
    r" (?:(?:that |which )?(?:is |are ))?(?:(?:mov(?:e|es|ing)|go(?:es|ing)?|slid(?:e|es|ing)) (?:to the )?"
    r"(?P<way>left|right|up|down)(?:wards?)?"
    r"|(?P<grows>grow(?:s|ing)?|get(?:s|ting)? (?:bigger|larger))|(?P<shrinks>shrink(?:s|ing)?|get(?:s|ting)? smaller)"
    r"|(?P<still>(?:stay(?:s|ing)?|stand(?:s|ing)?) (?:still|in place)))$"
)
PLACE = re.compile(
    r"\b(?:at|in|on) the (?P<down>top|bottom|upper|lower)?[ -]?(?P<across>left|right|centre|center|middle)?"
    r"(?: corner| side| edge)?(?= *$)"
)
GROUND = re.compile(
    r"(?:,|,? (?:on|with|against)) (?:an? |the )?(?P<words>[\w-]+(?: [\w-]+)?) background$|,? on (?P<bare>[\w-]+)$"
)
AGAIN = re.compile(r"\s*(?:the|this|that|these|those)\b")
APART = re.compile(r",? and also |,? and |, *| while | plus | together with ")


def stem(word: str) -> str:
    """Cut a word's ending, so that "crosses" and "cross", "outlined" and "outline" are one."""
    word = SAME.get(word, word)
    if word.endswith(("sses", "xes", "ches", "shes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        word = word[:-1]
    cut = next((word[: -len(end)] for end in ("ing", "ed") if word.endswith(end)), word)
    word = cut if re.search("[aeiou].", cut) else word
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


@dataclass(frozen=True)
class Thing:
    """A noun phrase.

    Args:
        words: Without endings.
        count: How many are meant.
        said: How it is written, the noun last.
        does: Which way it moves, "grows", "shrinks", "still"; empty where nothing is said of that.
    """

    words: frozenset[str]
    count: int
    said: str
    does: str = ""

    @property
    def several(self) -> str:
        """The phrase for more than one."""
        if self.count != 1:
            return self.said
        return self.said + ("es" if self.said.endswith(("s", "x", "ch", "sh")) else "s")

    @property
    def one(self) -> str:
        """The phrase with its article."""
        return f"{'an' if self.said[0] in 'aeiou' else 'a'} {self.said}"

    def means(self, other: Thing) -> bool:
        """Whether all that is said here is said of the other too."""
        return self.words <= other.words

    def meant(self, things: Iterable[Thing]) -> list[Thing]:
        """Pick those that the phrase fits."""
        return [other for other in things if self.means(other)]


@dataclass(frozen=True)
class Relation:
    a: Thing
    side: str  # a key of BESIDE
    b: Thing


@dataclass(frozen=True)
class Place:
    thing: Thing
    down: str  # "top", "centre", "bottom"
    across: str  # "left", "centre", "right"


@dataclass(frozen=True)
class Reading:
    """What a sentence says; ground is the look of the background, empty where it says none."""

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    places: tuple[Place, ...] = ()
    texts: tuple[str, ...] = ()
    ground: str = ""


def quoted(text: str) -> list[str]:
    """What stands in quotation marks of any kind, without them."""
    return [" ".join("".join(found).split()) for found in QUOTED.findall(text)]


def words_in(text: str) -> list[str]:
    return re.findall(WORD, text)


def thing(phrase: str) -> Thing | None:
    """Read a noun phrase; None where nothing is named."""
    count, found = 1, list[str]()
    moves = MOTION.search(phrase.rstrip())
    for word in words_in(phrase[: moves.start()] if moves else phrase):
        if word.isdecimal():
            count = int(word[:DIGITS])
        elif word in NUMBERS:
            count = max(NUMBERS[word], count) if word != "no" else 0
        elif word not in EMPTY:
            found.append(word)
    if not found:
        return None
    said = " ".join(SAME.get(word, word) for word in found)
    return Thing(frozenset(map(stem, found)), count, said, motion_in(moves) if moves else "")


def motion_in(found: re.Match[str]) -> str:
    """What MOTION has found, as `Thing.does` has it."""
    return found["way"] or found.lastgroup or ""


def read(text: str) -> Reading:
    """Read a request or a description."""
    texts = tuple(quoted(text))
    plain = " ".join(QUOTED.sub(" text ", text).lower().split()).rstrip(" .!")
    plain = OPENING.sub("", plain, count=1)
    ground, found = "", GROUND.search(plain)
    if found is not None and found.start() > 0:
        named = thing(found["words"] or found["bare"])
        ground, plain = named.said if named else "", plain[: found.start()]
    things, relations, places = list[Thing](), list[Relation](), list[Place]()
    before: Thing | None = None
    for part in APART.split(plain):
        for side, phrase in _sides(part):
            place = place_in(phrase)
            one = thing(PLACE.sub("", phrase) if place else phrase)
            if one is None or (texts and stem("text") in one.words):
                continue
            at = [n for n, t in enumerate(things) if one.means(t)] if AGAIN.match(phrase) else []
            if len(at) == 1:  # spoken of before
                things[at[0]] = replace(things[at[0]], does=one.does or things[at[0]].does)
                one = things[at[0]]
            if place is not None:
                places.append(Place(one, *place))
            if side and before is not None:
                pair = (one, before) if phrase.lstrip().startswith("it ") else (before, one)
                relations.append(Relation(pair[0], side, pair[1]))
            before = one
            if not at:
                things.append(one)
    return Reading(tuple(things), tuple(relations), tuple(places), texts, ground)


def place_in(phrase: str) -> tuple[str, str] | None:
    """The row and column of the place at the end of a phrase, such as "top" and "left"; None where it names none."""
    found = PLACE.search(phrase)
    if found is None or not (found["down"] or found["across"]):
        return None
    down, across = (SAME.get(found[k] or "", found[k] or "centre") for k in ("down", "across"))
    return down, across


def _sides(part: str) -> Iterator[tuple[str, str]]:
    """Phrases of a part, each with how the one before stands to it."""
    at, side = 0, ""
    for found in RELATION.finditer(part):
        yield side, part[at : found.start()]
        at, side = found.end(), found.lastgroup or ""
    yield side, part[at:]
