"""What an instruction is about, found by the model: the region of an edit for which nobody gives one.

The model says what it sees, and a noun of that in the instruction is what is meant; it says where that is; and one step
of the plain edit shows whether most of the image is about to change. Only the little words of English are known here,
nothing of what images show. Where any of this leaves a doubt, the edit is a plain one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from openlance.inference.inputs import batches
from openlance.inference.locating import located
from openlance.sequence.segment import Kind, Region, Segments, any_video, prompt_in, source_in

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
# Of a clip, words that say how something moves: it leaves the place where it is seen.
MOTIONS = set(
    "move moves moving motion stop stops still stay stays stand rest grow grows growing shrink shrinks shrinking "
    "reverse reverses opposite direction faster slower speed start starts begin begins rise rises fall falls drift "
    "slide".split()
)
# How far the latents outside of a found region may move in the first estimate, in standard deviations of latents: the
# middle of them. With nano it is under .65 where a thing changes, in a picture of one thing under .45, above .72 where
# the background does, and above .53 where a tone does (202 edits): what is not named needs less to be doubted.
MOVED, MOVED_UNNAMED = 0.68, 0.5


class Named(NamedTuple):
    """What is meant, in words with which the model can look for it, and whether by its own noun; or why that cannot be
    said."""

    name: str = ""
    why: str = ""
    said: bool = True


def regions(pipe: Methods, requests: Sequence[Segments]) -> list[Region]:
    """Find where each edit may change its source; with a reason where that is everywhere."""
    firsts = [clip.with_pixels(clip.pixels[:1]) for clip in (source_in(r, Kind.PATCHES) for r in requests)]
    captions = pipe.caption(firsts) if firsts else []
    meant = [
        named(prompt_in(request), caption, moving=any_video([request]))
        for request, caption in zip(requests, captions, strict=True)
    ]
    asked = [n for n, one in enumerate(meant) if one.name]
    boxed = dict(zip(asked, located(pipe, [requests[n] for n in asked], [meant[n].name for n in asked]), strict=True))
    sure = {n: region for n, region in boxed.items() if region is not None}
    moved = dict(zip(sure, moving_outside(pipe, [requests[n] for n in sure], list(sure.values())), strict=True))
    found = list[Region]()
    for n, one in enumerate(meant):
        region = boxed.get(n)
        if region is None:
            found.append(_whole(one.why or f"the model does not find {one.name}"))
        elif moved[n] > (MOVED if one.said else MOVED_UNNAMED):
            found.append(_whole("the rest of it is about to change as well"))
        else:
            found.append(Region(region.inside, f"auto: {region.said}"))
    return found


def _whole(why: str) -> Region:
    return Region(None, f"auto: the whole, since {why}")


def moving_outside(pipe: Methods, requests: Sequence[Segments], found: Sequence[Region]) -> list[float]:
    """Measure how far one step of the plain edit, from noise, moves the latents outside of a region away from the
    source: the middle of them, in standard deviations; 0 where there are none."""
    moved, regions = list[float](), iter(found)
    for some, _ in batches(requests, pipe.defaults.batch):
        encoded = pipe.encode(some)
        made = pipe.fill_latents(encoded, pipe.sampling(encoded, num_inference_steps=1), [0] * len(some))
        for latents, request in zip(made, encoded, strict=True):
            far = (latents - source_in(request).to(latents)).abs().mean(-1).cpu()
            outside = far[torch.from_numpy(~next(regions).cells(far.shape))]
            moved.append(float(outside.median()) if len(outside) else 0.0)
    return moved


def named(instruction: str, caption: str, *, moving: bool = False) -> Named:
    """Find which of the things in a caption an instruction is about; `moving`: in a video."""
    words, (things, main) = _words(instruction), _phrases(caption)
    places = [word for word in words if word in PLACES]
    if places:
        return Named(why=f"it says where something is to be ({places[0]!r})")
    motions = [word for word in words if word in MOTIONS] if moving else []
    if motions:
        return Named(why=f"it says how something moves ({motions[0]!r})")
    best: tuple[tuple, str] | None = None
    for thing in things:
        for at, word in enumerate(words):
            if _singular(word) == _singular(thing[-1]) and (group := _group(words, at))[0] not in ONE:
                said = sum(word in thing for word in group[1:-1])
                unsaid = len(group) - 2 - said if group[0] in KNOWN else 0
                rank = (-unsaid, said, sum(w in words for w in thing[1:-1]), -at)
                own = " ".join(group[1:]) if group[0] in KNOWN else " ".join(thing[1:])
                if best is None or rank > best[0]:
                    best = rank, f"the {own}"
                if group[0] in MANY or _singular(word) != word:
                    return Named(why=f"it is about several {word}")
    if best is None:
        if len(main) != 1 or not (IT | KNOWN) & set(words):
            return Named(why="it names nothing that is seen")
        if main[0][0] not in ONE | KNOWN:
            return Named(why=f"there are several {main[0][-1]}")
        return Named("the " + " ".join(main[0][1:]), said=False)
    return Named(best[1])


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
