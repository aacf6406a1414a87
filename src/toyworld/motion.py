"""Scenes that move: every object has one motion of constant speed, and at no moment does anything leave the picture,
touch, or show a combination that is never trained.

    clip = sample_clip(np.random.default_rng(0), frames=9)
    clip.at(0)                     # the Scene of the first frame
    render_clip(clip, 64, 64)      # uint8 (9, 64, 64, 3)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from openlance.errors import UserError
from toyworld.render import render
from toyworld.scene import Object, Scene, extent, half_box, heldout_pair, is_heldout, is_valid, sample_scene
from toyworld.vocabulary import BORDER, SIZES

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
RESIZING = ("growing", "shrinking")
STILL = "still"
MOTIONS = (*DIRECTIONS, *RESIZING, STILL)
REVERSED = {
    "left": "right", "right": "left", "up": "down", "down": "up", "growing": "shrinking", "shrinking": "growing",
}  # fmt: skip
FRAMES = (5, 9, 13, 17)  # 1 + 4 k, as the temporal stride of the VAE wants
WAY = (0.22, 0.40)  # how far a moving object goes, in shorter sides
GROWTH = (1.5, 1.9)  # the larger radius of a growing or shrinking object over the smaller one
MOVING = {"color": 0.42, "attribute": 0.33, "two": 0.1, "mixed": 0.15}  # of the scenes that move
_MOST_OBJECTS = 3  # four have no room to move
_ATTEMPTS = 4000


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What one object does. kind: one of MOTIONS; amount: the way in shorter sides, or the larger radius over the
    smaller one; begins: share of the clip after which it moves, at constant speed until the end; appears: share of
    the clip before which it cannot be seen."""

    kind: str = STILL
    amount: float = 0.0
    begins: float = 0.0
    appears: float = 0.0

    def moved(self, o: Object, when: float, aspect: float) -> Object:
        """The object, given as it is at first, at a share `when` in [0, 1] of the clip."""
        done = max(when - self.begins, 0.0) / (1.0 - self.begins)
        if self.kind in RESIZING:
            last = self.amount if self.kind == "growing" else 1 / self.amount
            return replace(o, r=o.r * (1 + (last - 1) * done))
        (dx, dy), (width, height) = DIRECTIONS.get(self.kind, (0, 0)), extent(aspect)
        return replace(o, x=o.x + dx * self.amount * done / width, y=o.y + dy * self.amount * done / height)


@dataclass(frozen=True, kw_only=True)
class ClipScene:
    """A scene as it is at first, one motion per object, and the number of frames, one of FRAMES."""

    scene: Scene
    motions: tuple[Motion, ...]
    frames: int = 9

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if len(self.motions) != len(self.scene.objects):
            raise UserError(f"{len(self.motions)} motions for {len(self.scene.objects)} objects: give one for each")

    def at(self, frame: int) -> Scene:
        """The scene of one frame: where everything stands, and what has appeared by then."""
        when, aspect = frame / (self.frames - 1), self.scene.aspect
        pairs = zip(self.scene.objects, self.motions, strict=True)
        here = tuple(m.moved(o, when, aspect) for o, m in pairs if when >= m.appears)
        return replace(self.scene, objects=here)

    def scenes(self) -> list[Scene]:
        return [self.at(frame) for frame in range(self.frames)]


def check_frames(frames: int) -> None:
    """UserError unless a clip of the world can have so many frames."""
    if frames not in FRAMES:
        raise UserError(
            f"a clip of the world has {', '.join(map(str, FRAMES[:-1]))} or {FRAMES[-1]} frames, not {frames}"
        )


def render_clip(clip: ClipScene, height: int, width: int) -> np.ndarray:
    """The frames of a clip, uint8 (frames, height, width, 3). Raises ValueError under 8 pixels a side."""
    return np.stack([render(scene, height, width) for scene in clip.scenes()])


def clip_is_valid(clip: ClipScene) -> bool:
    """Everything stays inside the picture and nothing ever touches."""
    return all(is_valid(scene) for scene in clip.scenes())


def clip_is_heldout(clip: ClipScene) -> bool:
    """Whether any frame shows a combination that is never trained."""
    return any(is_heldout(scene) for scene in clip.scenes())


def sample_clip(
    rng: np.random.Generator,
    *,
    placement: str | float = "free",
    category: str | None = None,
    heldout: bool = False,
    aspect: float = 1.0,
    frames: int = 9,
) -> ClipScene:
    """Draw a clip in which at least one thing moves (one in twenty stands still as a whole); equal things move alike.

    placement, aspect: as in `sample_scene`, for the middle of the clip. category: one of `sample_scene`'s but "text".
    heldout: False never shows a held out combination, True always a held out pair of colour and shape.
    """
    check_frames(frames)
    names, weights = list(MOVING), list(MOVING.values())
    for _ in range(_ATTEMPTS):
        kind = category or names[int(rng.choice(len(names), p=weights))]
        if heldout:
            kind = {"two": "attribute"}.get(kind, kind)
        middle = sample_scene(rng, placement=placement, category=kind, heldout=heldout, aspect=aspect)
        if not 0 < len(middle.objects) <= _MOST_OBJECTS or (heldout and not heldout_pair(middle)):
            continue
        for k in range(6):
            # Pairs stand beside each other or one above the other: only one of the two leaves room to a motion.
            clip = set_in_motion(_mirrored(middle) if k % 2 else middle, draw_motions(middle, rng), frames)
            if clip_is_valid(clip) and (heldout or not clip_is_heldout(clip)):
                return clip
    raise AssertionError(f"no clip of category {category} found in {_ATTEMPTS} attempts")


def _mirrored(scene: Scene) -> Scene:
    """Columns as rows and rows as columns."""
    return replace(scene, objects=tuple(replace(o, x=o.y, y=o.x) for o in scene.objects))


def draw_motions(scene: Scene, rng: np.random.Generator) -> list[Motion]:
    """A motion per object, equal things alike."""
    standstill, lead = rng.random() < 0.05, int(rng.integers(len(scene.objects)))
    drawn: dict[tuple[str, str], Motion] = {}
    order = [scene.objects[lead], *scene.objects]
    for i, o in enumerate(order):
        key = (o.shape, o.color)
        if key not in drawn:
            moves = not standstill and (i == 0 or rng.random() < 0.55)
            drawn[key] = draw_motion(rng) if moves else Motion()
    return [drawn[o.shape, o.color] for o in scene.objects]


# What changes its size needs more room and is turned down more often, so it is drawn more often.
_DRAWN = (*DIRECTIONS, *RESIZING, *RESIZING)


def draw_motion(rng: np.random.Generator, kinds: tuple[str, ...] = _DRAWN) -> Motion:
    """A motion of one of the kinds, with how far or how much."""
    kind = kinds[int(rng.integers(len(kinds)))]
    low, high = GROWTH if kind in RESIZING else WAY
    return Motion(kind=kind, amount=0.0 if kind == STILL else float(low + (high - low) * rng.random()))


def set_in_motion(middle: Scene, motions: list[Motion], frames: int) -> ClipScene:
    """The clip that looks like `middle` half way, moved inwards where a path would leave the picture.

    What grows or shrinks counts as medium, and its fill is solid where it would be too small to be seen.
    """
    pairs = zip(middle.objects, motions, strict=True)
    first = tuple(_first(o, m, middle.aspect) for o, m in pairs)
    return ClipScene(scene=replace(middle, objects=first), motions=tuple(motions), frames=frames)


def _first(o: Object, motion: Motion, aspect: float) -> Object:
    """An object at the begin of a motion in whose middle it is where it is given."""
    if motion.kind in RESIZING:
        half = motion.amount**0.5
        thin = o.shape in ("star", "cross", "triangle")
        r = SIZES["medium"] * (1 / half if motion.kind == "growing" else half)
        return replace(o, size="medium", fill="solid" if thin else o.fill, r=r)
    if motion.kind == STILL:
        return o
    (dx, dy), (width, height), (hx, hy) = DIRECTIONS[motion.kind], extent(aspect), half_box(o)
    half_x, half_y = abs(dx) * motion.amount / 2, abs(dy) * motion.amount / 2
    x = np.clip(o.x * width, hx + BORDER + half_x, width - hx - BORDER - half_x)
    y = np.clip(o.y * height, hy + BORDER + half_y, height - hy - BORDER - half_y)
    return replace(o, x=float(x - dx * half_x) / width, y=float(y - dy * half_y) / height)
