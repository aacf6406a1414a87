"""A model that looks at its own results: questions that follow from a request, and how likely it finds the answers.

    facts = facts_of(pipe, [request])       # what should hold in each result, with the question that tells
    verdicts = judged(pipe, videos, facts)   # what does, by the model's own answers

A checkpoint that writes freely makes the questions itself; for the others they follow from the words of the request,
and of an edit from its own description of the source as well (`text.phrases`, `text.instructions`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from typing import TYPE_CHECKING, TypeAlias

from openlance.config.sampling import Decoding, later_seed
from openlance.data.front import NO_SIZE
from openlance.media.clip import Clip, Verdict
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segments, any_video, prompt_in
from openlance.text.instructions import Change, change_of, noun
from openlance.text.phrases import Reading, Relation, Thing, read

if TYPE_CHECKING:
    from openlance.inference.engine import Engine

# Probabilities of a fact's answer: from the first on the model is sure, below the second it finds a fault, as another
# answer is likelier (docs/howto/checking.md).
SURE, FAULT = math.log(0.98), math.log(0.5)
TINY = 1e-30  # the least probability that is told apart
ASTRAY = math.log(0.01)  # what a thing in the wrong place counts as
NEAR = 0.08  # how far the middle of a thing that stays may be from where it was, in widths and heights
STEP = 0.1  # how far a thing goes at least that is moved
SLACK = 0.05  # how far over the line of a third of the picture a middle may be
APART = 1_000_000  # seeds between the draws of one request; torch's generators on CPUs read the lower half of a seed
ALIKE, WORD, MOST_SPELLINGS = {"O": "O0", "0": "0O", "I": "I1", "1": "1I"}, 5, 8
ANSWER = Decoding(max_new_tokens=96)
LIST = Decoding(max_new_tokens=512)
ASK = (
    "An image or video is made from the request below. List the questions whose answers tell whether it was made as"
    " asked: one for each thing, number, color, place, motion and text that it names{kept}. Each has to be answered by"
    ' yes if all is well. Answer with a JSON list of strings alone, such as ["Is there a dog?"].\n\nRequest: {prompt}'
)
KEPT = ", and one for each thing in the picture given with it that has to stay as it is"

Middle: TypeAlias = tuple[float, float]  # in widths and heights


@dataclass(frozen=True)
class Fact:
    """What should hold in a result.

    Args:
        says: In words, for people.
        question: What the model is asked about the result.
        answer: What it should answer; empty where it is asked for a box.
        alike: Other answers that are as right.
        where: Whether the middle of the box that it answers is right; None where it gives none.
    """

    says: str
    question: str
    answer: str = ""
    where: Callable[[Middle | None], bool] | None = None
    alike: tuple[str, ...] = ()


# From words to facts.


def shown(reading: Reading, moves: bool = False, alone: bool = True) -> list[Fact]:
    """What should be seen in a result that words describe; alone: whether they name all that there is."""
    facts = [fact for thing in reading.things for fact in _thing(thing, reading.things, moves)]
    if alone and reading.things and not reading.texts:
        facts.append(_total(reading.things, moves))
    facts += [_written(text) for text in reading.texts]
    if reading.ground:
        facts.append(_ground(reading.ground))
    facts += [_relation(relation) for relation in reading.relations]
    return facts + [
        _located(p.thing, partial(_in_cell, p.down, p.across), f"at the {p.down} {p.across}") for p in reading.places
    ]


def _thing(thing: Thing, all_things: Sequence[Thing], moves: bool = False, perhaps: int = 0) -> list[Fact]:
    """What should be seen of a thing among all that there are, which may be called by its words too; perhaps: of how
    many others it is not known whether they may."""
    meant = thing.meant(all_things)
    says = f"{thing.count} {thing.said}" if thing.count != 1 else thing.one
    if moves:
        alike = len({other.does for other in meant}) <= 1
        return [Fact(f"{says}: {thing.does or 'still'}", *_motion(thing))] if alike else []
    count = sum(other.count for other in meant)
    more = tuple(str(count + n + 1) for n in range(perhaps))
    facts = [Fact(says, f"how many {thing.several} are there?", str(count), alike=more)]
    return facts + ([Fact(says, f"is there {thing.one}?", "yes")] if thing.count == 1 else [])


def _motion(thing: Thing) -> tuple[str, str]:
    """A question about a motion, and its answer."""
    the = f"the {thing.said}"
    does = {"grows": "growing", "shrinks": "shrinking"}
    if thing.does in does:
        return f"is {the} {does[thing.does]}?", "yes"
    if thing.does in ("", "still"):
        return f"what does {the} do?", "it stays still"
    return f"does {the} move {thing.does}?", "yes"


def _total(things: Sequence[Thing], moves: bool = False) -> Fact:
    when = " at the start" if moves else ""
    return Fact("nothing else", f"how many objects are there{when}?", str(sum(t.count for t in things)))


def _written(text: str) -> Fact:
    """A text; letters that look like digits, O and I, may be read as those where no word tells them apart."""
    letters = [ALIKE.get(letter, letter) for letter in text]
    spellings = ["".join(found) for found in islice(product(*letters), MOST_SPELLINGS)] if len(text) < WORD else []
    return Fact(f'the text "{text}"', "read the text", text, alike=tuple(s for s in spellings if s != text))


def _ground(look: str) -> Fact:
    return Fact(f"a {look} background", "what color is the background?", look)


def _relation(r: Relation) -> Fact:
    return Fact(f"{r.a.said} {r.side} {r.b.said}", f"where is the {r.a.said} relative to the {r.b.said}?", r.side)


def _located(thing: Thing, where: Callable[[Middle | None], bool], says: str) -> Fact:
    return Fact(f"the {thing.said} {says}", f"locate the {thing.said}", where=where)


def _in_cell(down: str, across: str, at: Middle | None) -> bool:
    thirds = {"left": 0, "top": 0, "centre": 1, "right": 2, "bottom": 2}
    return at is not None and all(
        thirds[name] / 3 - SLACK <= x <= (thirds[name] + 1) / 3 + SLACK for name, x in zip((across, down), at)
    )


def changed(change: Change, at: dict[str, Middle | None], moves: bool = False) -> list[Fact]:
    """What should be seen after an edit; at: where the things were, by what they are called. Of a video, in which they
    move, only what there is and what it does."""
    after = change.after
    clear = (*change.new, *change.stay, *([] if moves else change.unclear))
    facts = [fact for thing in clear for fact in _thing(thing, after, moves, _perhaps(thing, change))]
    if after and not change.texts:
        facts.append(_total(after, moves))
    if moves:
        return facts
    facts += [Fact(f"no {t.said}", f"is there {t.one}?", "no") for t in _gone(change)]
    if change.ground:
        facts.append(_ground(change.ground))
    facts += [_written(text) for text in change.texts]
    facts += [_located(t, partial(_near, at.get(t.said)), "where it was") for t in change.stay if _alone(t, after)]
    if change.relation is not None:
        facts.append(_relation(change.relation))
    was = at.get(change.named[0].said) if len(change.named) == 1 else None
    for thing in change.new:
        if not _alone(thing, after) or _perhaps(thing, change):
            continue
        if change.place is not None:
            facts.append(_located(thing, partial(_in_cell, *change.place), "where it was asked for"))
        elif was is not None and not change.relation:
            where = partial(_near, was) if change.way is None else partial(_moved, was, change.way)
            facts.append(_located(thing, where, "where it was" if change.way is None else "moved"))
    return facts


def _perhaps(thing: Thing, change: Change) -> int:
    """Count the things of a kind that may have looked before as one looks now: a description does not say of everything
    that it is not striped."""
    if thing not in change.new:
        return 0
    return sum(t.count for t in change.stay if noun(t) == noun(thing) and not thing.means(t))


def _alone(thing: Thing, things: Sequence[Thing]) -> bool:
    """Whether a phrase fits one thing only, so that it can be located."""
    return sum(other.count for other in thing.meant(things)) == 1


def _gone(change: Change) -> list[Thing]:
    """Named things that are no more afterwards, as far as their words tell."""
    return [
        t for t in change.named if t.count == 1 and not any(t.words <= {*o.words, *_look(t, o)} for o in change.after)
    ]


def _look(old: Thing, new: Thing) -> frozenset[str]:
    """Words of a thing that a new look of the same kind of thing leaves open."""
    return old.words if noun(old) == noun(new) else frozenset()


def _near(was: Middle | None, at: Middle | None) -> bool:
    return was is None or (at is not None and max(abs(a - b) for a, b in zip(at, was)) <= NEAR)


def _moved(was: Middle | None, way: tuple[int, int], at: Middle | None) -> bool:
    return was is None or (at is not None and sum((a - b) * w for a, b, w in zip(at, was, way)) >= STEP)


# Questions to the model.


def facts_of(pipe: Engine, requests: Sequence[Segments]) -> list[list[Fact]]:
    """Find what should hold in the result of each request."""
    given = [[s.value for s in r if s.role is Role.SOURCE and s.kind is Kind.PATCHES] for r in requests]
    shown_to = [[clip for clip in clips if isinstance(clip, Clip)] for clips in given]
    sources: dict[int, Clip] = {n: clips[-1] for n, clips in enumerate(shown_to) if clips}
    own = writes(pipe)
    lists = [_listed(pipe, request, sources.get(n)) if own else None for n, request in enumerate(requests)]
    by_words = [n for n in sources if lists[n] is None]
    told = _answers(pipe, [(sources[n], "") for n in by_words])
    changes = {n: change_of(prompt_in(requests[n]), read(text)) for n, text in zip(by_words, told)}
    still = {n: c for n, c in changes.items() if sources[n].frames == 1}
    places = [(n, t.said) for n, c in still.items() for t in (*c.stay, *c.named) if _alone(t, (*c.stay, *c.named))]
    boxes = _answers(pipe, [(sources[n], f"locate the {said}") for n, said in places])
    at: dict[int, dict[str, Middle | None]] = {n: {} for n in changes}
    for (n, said), box in zip(places, boxes, strict=True):
        at[n][said] = middle(box, sources[n])
    found = list[list[Fact]]()
    for n, request in enumerate(requests):
        facts, moves = lists[n], any_video([request[-1:]])
        if facts is None and n in changes:
            facts = changed(changes[n], at[n], moves)
        elif facts is None:
            facts = shown(read(prompt_in(request)), moves, alone=request[-1].given is None)
        found.append(list(dict.fromkeys(facts)))
    return found


def writes(pipe: Engine) -> bool:
    """Whether a checkpoint answers in free words; one that lists its tasks was trained for these alone."""
    return not pipe.defaults.tasks


def _listed(pipe: Engine, request: Segments, source: Clip | None) -> list[Fact] | None:
    """The questions that the model writes down; None where it writes something else."""
    text = ASK.format(prompt=prompt_in(request), kept=KEPT if source is not None else "")
    about = tasks.the_task(tasks.understand, "image")
    asked = tasks.understand(text, [], NO_SIZE) if source is None else pipe.front.request(about, text, [source])
    return listed(pipe.fill_text([asked], LIST)[0])


def listed(answer: str) -> list[Fact] | None:
    """Read a JSON list of questions, also between other words. None if there is none, or it is empty."""
    try:
        questions = json.loads(answer[max(answer.find("["), 0) : answer.rfind("]") + 1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(questions, list) or not questions or not all(isinstance(q, str) and q.strip() for q in questions):
        return None
    return [Fact(q.strip(), q.strip(), "yes") for q in questions]


def _asked(pipe: Engine, clip: Clip, question: str) -> Segments:
    return pipe.front.request(tasks.the_task(tasks.understand, tasks.kind_of(clip.frames)), question, [clip])


def _answers(pipe: Engine, pairs: Sequence[tuple[Clip, str]]) -> list[str]:
    """Greedy answers, each question of a video asked once."""
    known = {(clip.key, question): (clip, question) for clip, question in pairs}
    found = dict[tuple[bytes, str], str]()
    for some in _batches(pipe, list(known)):
        requests = [_asked(pipe, *known[key]) for key in some]
        found |= dict(zip(some, pipe.fill_text(requests, ANSWER), strict=True))
    return [found[clip.key, question] for clip, question in pairs]


def _likely(pipe: Engine, triples: Sequence[tuple[Clip, str, str]]) -> list[float]:
    """Logarithms of the probabilities of answers."""
    found = list[float]()
    for some in _batches(pipe, list(triples)):
        requests = [[*_asked(pipe, clip, question)[:-1], tasks.reply(answer)] for clip, question, answer in some]
        found += pipe.likelihoods(requests)
    return found


def _batches(pipe: Engine, items: list) -> list[list]:
    per = 4 * pipe.defaults.batch
    return [items[n : n + per] for n in range(0, len(items), per)]


def middle(answer: str, clip: Clip) -> Middle | None:
    """The middle of the first box of an answer in Qwen2.5-VL's form, in widths and heights; None without one."""
    found = re.search(r'"bbox_2d"\s*:\s*\[([^\]]*)\]', answer)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", found[1]) if found else []
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return (x1 + x2) / 2 / clip.width, (y1 + y2) / 2 / clip.height


def judged(pipe: Engine, clips: Sequence[Clip], facts: Sequence[Sequence[Fact]]) -> list[Verdict]:
    """Say of each result, as of the only draw, which of its facts hold."""
    pairs = [(clip, fact) for clip, own in zip(clips, facts, strict=True) for fact in own]
    asked = [(clip, f) for clip, f in pairs if f.where is None]
    spelled = [(n, clip, f.question, answer) for n, (clip, f) in enumerate(asked) for answer in (f.answer, *f.alike)]
    shares = [0.0] * len(asked)
    for (n, _, _, _), score in zip(
        spelled, _likely(pipe, [(clip, question, answer) for _, clip, question, answer in spelled]), strict=True
    ):
        shares[n] += math.exp(score)
    told = iter([math.log(max(share, TINY)) for share in shares])
    boxes = iter(_answers(pipe, [(clip, f.question) for clip, f in pairs if f.where is not None]))
    scores = iter(
        [next(told) if f.where is None else 0.0 if f.where(middle(next(boxes), c)) else ASTRAY for c, f in pairs]
    )
    verdicts = list[Verdict]()
    for own in facts:
        mine = [next(scores) for _ in own]
        faults = dict.fromkeys(f.says for f, score in zip(own, mine, strict=True) if score < FAULT)
        unsure = dict.fromkeys(
            f.says for f, score in zip(own, mine, strict=True) if score < SURE and f.says not in faults
        )
        count = len(dict.fromkeys(f.says for f in own))
        verdicts.append(
            Verdict(draw=1, draws=1, facts=count, faults=tuple(faults), unsure=tuple(unsure), score=sum(mine))
        )
    return verdicts


# Drawing again.


def draw_seed(seed: int, draw: int) -> int:
    """Return the seed of a draw, from 1 on, of a request with a seed."""
    return later_seed(seed, (draw - 1) * APART)


@dataclass(eq=False, kw_only=True)
class Search:
    """A request that is drawn until the model is sure that nothing is wrong with its result.

    Args:
        request: With its media as videos, without turns before it.
        seed: Of the first draw.
        most: Draws at most.
        facts: What should hold, once it is known.
        draws: How many were made.
        best: The first result of which the model is sure, or else the one whose right answers are the likeliest; its
            `verdict` and its record say what was found.
    """

    request: Segments
    seed: int
    most: int
    facts: list[Fact] | None = None
    draws: int = 0
    best: Clip | None = None

    @property
    def next_seed(self) -> int:
        return draw_seed(self.seed, self.draws + 1)

    @property
    def verdict(self) -> Verdict | None:
        return None if self.best is None else self.best.verdict

    @property
    def done(self) -> bool:
        return self.verdict is not None and (self.verdict.fine or self.draws >= self.most)

    def add(self, clip: Clip, verdict: Verdict) -> None:
        """Take in one more draw."""
        self.draws += 1
        best, found = self.best, self.verdict
        if best is None or found is None or verdict.fine or verdict.score > found.score:
            best, found = clip, replace(verdict, draw=self.draws)
        found, made = replace(found, draws=self.draws), best.made
        if made is not None:
            made = replace(made, settings=dict(made.settings) | {"check": found.as_data()})
        self.best = replace(best, verdict=found, made=made)


def look(pipe: Engine, searches: Sequence[Search], clips: Sequence[Clip]) -> None:
    """Let the model look at one more draw of each."""
    new = [search for search in searches if search.facts is None]
    for search, facts in zip(new, facts_of(pipe, [search.request for search in new]), strict=True):
        search.facts = facts
    for search, clip, verdict in zip(searches, clips, judged(pipe, clips, [s.facts or [] for s in searches])):
        search.add(clip, verdict)


def checked(
    pipe: Engine, requests: Sequence[Segments], seeds: Sequence[int], most: int,
    make: Callable[[list[int], list[int]], list[Clip]], stops: Callable[[], bool] = lambda: False,
) -> list[Clip]:  # fmt: skip
    """Draw each request until the model is sure that nothing is wrong with its result (`Search`).

    Args:
        pipe: The model that looks.
        requests: With their media as videos.
        seeds: Of the first draw of each; that of draw k is `draw_seed(seed, k)`.
        most: Draws of a request, at least 1.
        make: Draws the requests of these numbers with these seeds.
        stops: Whether to draw no more.
    """
    searches = [Search(request=r, seed=s, most=most) for r, s in zip(requests, seeds, strict=True)]
    while left := [n for n, search in enumerate(searches) if not search.done]:
        mine = [searches[n] for n in left]
        look(pipe, mine, make(left, [search.next_seed for search in mine]))
        if stops():
            break
    return [search.best for search in searches if search.best is not None]
