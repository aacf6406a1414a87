"""What an instruction is about, found by the model: the region of an edit for which nobody gives one.

The model says what it sees, and a noun of that in the instruction is what is meant; it says where that is; and one step
of the plain edit shows whether most of the picture is about to change. Only the little words of English are known here,
nothing of what pictures show. Where any of this leaves a doubt, the edit is a plain one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from openlance.inference.inputs import batches
from openlance.inference.locating import located
from openlance.sequence.segment import Kind, Region, Segments, prompt_in, source_in

if TYPE_CHECKING:
    from openlance.inference.methods import Methods

ONE, KNOWN = {"a", "an", "another", "one", "some"}, {"the", "this", "that", "these", "those", "its"}
MANY = {"all", "both", "every", "each", "two", "three", "four", "five", "six", "several", "many"}
IT = {"it", "this", "that"}
# What ends a group of words about one thing.
BETWEEN = set("and or but on in of with to by for from at into as is are be should must so than not".split())
APART = {"", ",", ".", ";", "and", "or", "is", "are"}  # what stands between things side by side
# Words that say where something is to be: what comes or moves there needs room outside of what is named.
PLACES = set(
    "left right up down upward upwards downward downwards top bottom corner center centre middle side edge border "
    "above below over under underneath beneath beside next near nearer closer between behind front outside around "
    "towards toward further farther higher lower upper".split()
)
# A latent whose first estimate is so far from the source (in standard deviations of latents) changes; where more than
# such a share does, it is not a thing that changes but the picture. Backgrounds and tones change .97 or more of nano's,
# things .57 or less, in 95 of 100 edits each.
CHANGED, MOST = 0.6, 0.62


class Named(NamedTuple):
    """What is meant, in words with which the model can look for it; or why that cannot be said."""

    name: str = ""
    why: str = ""


def regions(pipe: Methods, requests: Sequence[Segments]) -> list[Region]:
    """Find where each edit may change its source; with a reason where that is everywhere."""
    firsts = [clip.with_pixels(clip.pixels[:1]) for clip in (source_in(r, Kind.PATCHES) for r in requests)]
    captions = pipe.caption(firsts) if firsts else []
    meant = [named(prompt_in(request), caption) for request, caption in zip(requests, captions, strict=True)]
    asked = [n for n, one in enumerate(meant) if one.name]
    boxed = dict(zip(asked, located(pipe, [requests[n] for n in asked], [meant[n].name for n in asked]), strict=True))
    there = [n for n in asked if boxed[n] is not None]
    shares = dict(zip(there, changing(pipe, [requests[n] for n in there]), strict=True))
    found = list[Region]()
    for n, one in enumerate(meant):
        region = boxed.get(n)
        if region is None:
            found.append(_whole(one.why or f"the model does not find {one.name}"))
        elif shares[n] > MOST:
            found.append(_whole("most of it is about to change"))
        else:
            found.append(Region(region.inside, f"auto: {region.said}"))
    return found


def _whole(why: str) -> Region:
    return Region(None, f"auto: the whole, since {why}")


def changing(pipe: Methods, requests: Sequence[Segments]) -> list[float]:
    """Measure the share of latents that one step of the plain edit, from noise, moves away from the source."""
    shares = list[float]()
    for some, _ in batches(requests, pipe.defaults.batch):
        encoded = pipe.encode(some)
        how = pipe.sampling(encoded, num_inference_steps=1)
        made = pipe.fill_latents(encoded, how, [0] * len(some))
        for latents, request in zip(made, encoded, strict=True):
            moved = (latents - source_in(request).to(latents)).abs().mean(-1) > CHANGED
            shares.append(float(moved.float().mean()))
    return shares


def named(instruction: str, caption: str) -> Named:
    """Find which of the things in a caption an instruction is about."""
    words, (things, main) = _words(instruction), _phrases(caption)
    places = [word for word in words if word in PLACES]
    if places:
        return Named(why=f"it says where something is to be ({places[0]!r})")
    best: tuple[tuple, list[str], str] | None = None
    for thing in things:
        for at, word in enumerate(words):
            if _singular(word) == _singular(thing[-1]) and (group := _group(words, at))[0] not in ONE:
                said = sum(word in thing for word in group[1:-1])
                unsaid = len(group) - 2 - said if group[0] in KNOWN else 0
                rank = (-unsaid, said, sum(w in words for w in thing[1:-1]), -at)
                own = " ".join(group[1:]) if group[0] in KNOWN else " ".join(thing[1:])
                if best is None or rank > best[0]:
                    best = rank, thing, f"the {own}"
                if group[0] in MANY or _singular(word) != word:
                    return Named(why=f"it is about several {word}")
    if best is None:
        if len(main) != 1 or not (IT | KNOWN) & set(words):
            return Named(why="it names nothing that is seen")
        best = (), main[0], "the " + " ".join(main[0][1:])
    if best[1][0] not in ONE | KNOWN:
        return Named(why=f"there are several {best[1][-1]}")
    return Named(name=best[2])


def _words(text: str) -> list[str]:
    """Words and stops in lower case, without what is quoted."""
    return re.findall(r"[\w'-]+|[^\w\s]", re.sub(r"[\"“][^\"”]*[\"”]", " ", text.lower()))


def _phrases(caption: str) -> tuple[list[list[str]], list[list[str]]]:
    """The things of a caption, groups of words that begin with an article or number and have a noun at their end; and
    those among them that no preposition makes a part or the surroundings of others."""
    found, main, group, before = list[list[str]](), list[list[str]](), list[str](), ""
    for word in [*_words(caption), "."]:
        if not word[0].isalnum() or word in BETWEEN:
            if len(group) > 1:
                found.append(group)
                main += [group] if before in APART else []
            group, before = [], word
        elif group or word in ONE | KNOWN | MANY or word.isdigit():
            group = [*group, word]
    return found, main


def _group(words: list[str], at: int) -> list[str]:
    """The words about one thing that end with a noun; the first is its article, or empty."""
    first = at
    while first and words[first - 1][0].isalnum() and words[first - 1] not in BETWEEN | ONE | KNOWN | MANY:
        first -= 1
    article = words[first - 1] if first and words[first - 1] in ONE | KNOWN | MANY else ""
    if first > 1 and words[first - 2] in MANY:  # "all the rings"
        article = words[first - 2]
    return [article, *words[first : at + 1]]


def _singular(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
