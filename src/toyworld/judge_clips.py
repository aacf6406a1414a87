"""Which facts of a prompt hold in a clip, from its pixels alone.

    text, facts = caption_clip(clip, rng)
    judge_clip(pixels, facts)            # {Count(...): True, Moves(...): False, ...}
    verdict(pixels, facts)               # Verdict(objects=True, motion=False)

Every frame is taken apart as a picture (`analyse`); what was found is followed from frame to frame by place, colour and
shape. A thing is what most of its frames show, and its motion is the line through its places and sizes: a jump in the
middle or trembling about one place is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from openlance.errors import UserError
from toyworld.analyse import UNKNOWN, Analysis, Found, analyse
from toyworld.clips import ClipFact, Moves
from toyworld.facts import Count, Fact, Thing, holds
from toyworld.judge import nothing_else
from toyworld.motion import DIRECTIONS, STILL
from toyworld.scene import Object, Scene, extent

LEAST_WAY = 0.10  # shorter sides over the whole clip; true motions go at least twice as far
LEAST_GROWTH = 0.20  # logarithm of last over first radius; true ones reach twice as much
LEAST_FIT = 0.6  # share of the variance of place or size that a line through the frames explains
FARTHEST = 0.3  # shorter sides, colour and shape included, between two frames of one thing
SEEN = 0.8  # share of the frames in which a thing must be seen to count as there
STRAY = 0.3  # share of the frames in which something that was not asked for may not be seen
_MOST_TRACKS = 6


@dataclass(eq=False)
class Track:
    """One thing through the frames: what was found of it, by the number of the frame."""

    found: dict[int, Found] = field(default_factory=dict)

    def vote(self, name: str) -> str:
        """What most frames say of its "shape", "color", "fill" or "size", clear frames louder."""
        votes: dict[str, float] = {}
        for one in self.found.values():
            votes[getattr(one, name)] = votes.get(getattr(one, name), 0.0) + max(one.score, 0.05)
        return max(votes, key=lambda value: votes[value])

    def thing(self) -> Thing:
        return Thing(*(self.vote(name) for name in ("shape", "color", "fill", "size")))


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenClip:
    """A clip taken apart: its tracks, the longest first, its background, the number of frames and width / height."""

    tracks: tuple[Track, ...]
    background: str
    frames: int
    aspect: float

    def lasting(self, share: float) -> list[Track]:
        """What is seen in at least this share of the frames."""
        return [t for t in self.tracks if len(t.found) >= share * self.frames]

    def scene(self, share: float) -> Scene:
        """What lasts, each at its mean place."""
        objects = []
        for track in self.lasting(share):
            x, y, r = (float(np.mean([getattr(o, name) for o in track.found.values()])) for name in "xyr")
            look = {name: track.vote(name) for name in ("shape", "color", "fill", "size")}
            objects.append(Object(**look, x=x, y=y, r=r))
        return Scene(objects=tuple(objects), background=self.background, aspect=self.aspect)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """objects: all things are there with their looks, on their background, and nothing else is; motion: the things,
    as far as they can be recognised by colour or shape, move as said."""

    objects: bool
    motion: bool


def watch(pixels: np.ndarray) -> SeenClip:
    """Take a clip, uint8 (T, H, W, 3), apart. Raises ValueError for any other array."""
    if pixels.ndim != 4:
        raise UserError(f"a clip to judge is uint8 (frames, height, width, 3), not {pixels.dtype} {pixels.shape}")
    return follow([analyse(frame) for frame in pixels], pixels.shape[2] / pixels.shape[1])


def follow(frames: Sequence[Analysis], aspect: float) -> SeenClip:
    """Join what single frames show to things that last."""
    tracks: list[Track] = []
    for number, frame in enumerate(frames):
        pairs = [(_distance(t, o, aspect), i, j) for i, t in enumerate(tracks) for j, o in enumerate(frame.objects)]
        taken: set[int] = set()
        going_on: set[int] = set()
        for cost, i, j in sorted(pairs):
            if cost <= FARTHEST and i not in going_on and j not in taken:
                tracks[i].found[number] = frame.objects[j]
                going_on.add(i)
                taken.add(j)
        tracks += [Track({number: o}) for j, o in enumerate(frame.objects) if j not in taken]
    background = Counter(frame.background for frame in frames).most_common(1)[0][0]
    tracks.sort(key=lambda t: -len(t.found))
    return SeenClip(tracks=tuple(tracks), background=background, frames=len(frames), aspect=aspect)


def _distance(track: Track, o: Found, aspect: float) -> float:
    """How far something found lies from where a track was seen last; another colour or shape counts as a way."""
    last = track.found[max(track.found)]
    width, height = extent(aspect)
    way = float(np.hypot((o.x - last.x) * width, (o.y - last.y) * height))
    return way + 0.25 * (o.color != last.color) + 0.08 * (o.shape != last.shape)


def motion_of(track: Track, frames: int, aspect: float) -> str:
    """One of MOTIONS; "unknown" where it goes askew, moves and grows at once, or jumps."""
    if len(track.found) < 3:
        return UNKNOWN
    width, height = extent(aspect)
    when = np.array(list(track.found)) / max(frames - 1, 1)
    seen = list(track.found.values())
    dx, dy, growth = (
        _drift(when, np.array(values))
        for values in ([o.x * width for o in seen], [o.y * height for o in seen], np.log([o.r for o in seen]))
    )
    along, across = (dx, dy) if abs(dx[0]) >= abs(dy[0]) else (dy, dx)
    moves, grows = abs(along[0]) >= LEAST_WAY, abs(growth[0]) >= LEAST_GROWTH
    if not moves and not grows:
        return STILL
    if moves and abs(along[0]) / LEAST_WAY >= abs(growth[0]) / LEAST_GROWTH:
        clear = along[1] >= LEAST_FIT and abs(across[0]) <= 0.5 * abs(along[0])
        direction = (int(np.sign(dx[0])), 0) if along is dx else (0, int(np.sign(dy[0])))
        name = next(name for name, way in DIRECTIONS.items() if way == direction)
        return name if clear and abs(growth[0]) < 2 * LEAST_GROWTH else UNKNOWN
    clear = growth[1] >= LEAST_FIT and abs(along[0]) < 2 * LEAST_WAY
    return ("growing" if growth[0] > 0 else "shrinking") if clear else UNKNOWN


def _drift(when: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(change over the whole clip, share of the variance explained) of the best line through values at times 0..1."""
    slope, start = np.polyfit(when, values, 1)
    spread = float(((values - values.mean()) ** 2).sum())
    left = float(((values - start - slope * when) ** 2).sum())
    return float(slope), 1 - left / spread if spread > 1e-12 else 0.0


def judge_clip(pixels: np.ndarray, facts: Iterable[ClipFact]) -> dict[ClipFact, bool]:
    """Which facts hold in a clip, uint8 (T, H, W, 3). Raises ValueError for an array that is no clip."""
    return judge_seen(watch(pixels), facts)


def judge_seen(seen: SeenClip, facts: Iterable[ClipFact]) -> dict[ClipFact, bool]:
    """As judge_clip, of a clip that was taken apart already."""
    facts = tuple(facts)
    there, ever, moves = seen.scene(SEEN), seen.scene(STRAY), [f for f in facts if isinstance(f, Moves)]
    right = _moved_as_said(seen, moves)
    return {
        fact: right[fact] if isinstance(fact, Moves) else holds(ever if _is_total(fact) else there, fact)
        for fact in facts
    }


def _is_total(fact: Fact) -> bool:
    return isinstance(fact, Count) and fact.thing == Thing()


def _moved_as_said(seen: SeenClip, said: list[Moves]) -> dict[Moves, bool]:
    """Pair the things named with the tracks most like them, then compare motions; a thing without a like track did not
    move as said."""
    wanted = [(fact, fact.thing) for fact in said for _ in range(fact.n)]
    tracks: list[Track | None] = list(seen.lasting(0.5)[:_MOST_TRACKS])
    motions = {id(t): motion_of(t, seen.frames, seen.aspect) for t in tracks if t is not None}
    likeness = {(i, id(t)): _likeness(thing, t) for i, (_, thing) in enumerate(wanted) for t in tracks if t is not None}

    def worth(choice: tuple[Track | None, ...]) -> float:
        total = 0.0
        for i, track in enumerate(choice):
            like = likeness.get((i, id(track)), 0.0)
            total += like + 0.01 * (like > 0 and motions[id(track)] == wanted[i][0].motion)  # equal things: either way
        return total

    best = max(permutations(tracks + [None] * len(wanted), len(wanted)), key=worth) if wanted else ()
    hits = Counter(
        fact for i, (fact, _) in enumerate(wanted)
        if likeness.get((i, id(best[i])), 0.0) > 0 and motions[id(best[i])] == fact.motion
    )  # fmt: skip
    return {fact: hits[fact] == fact.n for fact in said}


def _likeness(thing: Thing, track: Track) -> float:
    """How much a track looks like the thing named; 0 without its colour and its shape."""
    color, shape = track.vote("color") == thing.color, track.vote("shape") == thing.shape
    if not (color or shape):
        return 0.0
    return 2.0 * color + 1.5 * shape + 0.5 * (thing.fill in (None, track.vote("fill")))


def verdict(pixels: np.ndarray, facts: Iterable[ClipFact]) -> Verdict:
    """Whether a clip shows what is named and nothing else, and whether it moves as said."""
    facts = tuple(facts)
    moves = [f for f in facts if isinstance(f, Moves)]
    looks = nothing_else(f for f in facts if not isinstance(f, Moves))
    right = judge_seen(watch(pixels), (*looks, *moves))
    return Verdict(objects=all(right[f] for f in looks), motion=all(right[f] for f in moves))
