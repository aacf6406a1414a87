"""Subject-driven clips: "the given object moves left while a blue square stays still", with a picture of the object.

subject = sample_clip_subject(np.random.default_rng(0), n=1)
subject.references                   # scenes with one object each, on their own backgrounds
subject.prompt, subject.facts        # what is asked, and what must hold (judge_clips.verdict)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from openlance.errors import UserError
from toyworld.clips import ClipFact, Moves, caption_clip
from toyworld.facts import Count, Thing
from toyworld.motion import ClipScene, sample_clip
from toyworld.scene import Scene
from toyworld.subjects import ONE, TWO, alone
from toyworld.words import said

_ABOUT = {1: ("color", "attribute"), 2: ("attribute",)}
_ATTEMPTS = 500


@dataclass(frozen=True, kw_only=True)
class ClipSubject:
    """references: one scene per given object; facts: what must hold in the clip, of which `clip` is a true one."""

    references: tuple[Scene, ...]
    clip: ClipScene
    prompt: str
    facts: tuple[ClipFact, ...]


def sample_clip_subject(
    rng: np.random.Generator, *, n: int = 1, placement: str | float = "free", aspect: float = 1.0, frames: int = 9
) -> ClipSubject:
    """Draw a request with n (1 or 2) given objects; keywords as in `sample_clip`."""
    if n not in _ABOUT:
        raise UserError(f"{n} given objects cannot be drawn: use 1 or 2")
    for _ in range(_ATTEMPTS):
        category = _ABOUT[n][int(rng.integers(len(_ABOUT[n])))]
        clip = sample_clip(rng, placement=placement, category=category, aspect=aspect, frames=frames)
        objects = clip.scene.objects
        order = rng.permutation(len(objects))
        given = [objects[i] for i in order[:n]]
        unlike = len({(o.shape, o.color) for o in objects}) == len(objects)
        if len(given) == n and unlike and all(o.size == "medium" for o in given):
            break
    else:
        raise AssertionError(f"no request with {n} given objects found in {_ATTEMPTS} clips")
    words = TWO[int(rng.integers(len(TWO)))] if n == 2 else (ONE[int(rng.integers(len(ONE)))],)
    names = {said(o): word for o, word in zip(given, words, strict=True)}
    prompt, facts = caption_clip(clip, rng, names=names)
    looks = {said(o): Thing(o.shape, o.color, o.fill) for o in given}  # known from the pictures, whatever is said
    told = tuple(
        replace(f, thing=looks.get(f.thing, f.thing)) if isinstance(f, Count | Moves) else f for f in facts
    )  # fmt: skip
    references = tuple(alone(o, rng, aspect) for o in given)
    return ClipSubject(references=references, clip=clip, prompt=prompt, facts=told)
