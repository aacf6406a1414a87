"""Edits of a picture: an instruction, the scenes before and after, and what must be true once it is done.

    edit = sample_edit(np.random.default_rng(0), kind="move")
    edit.instruction                     # "move the red circle to the top left corner"
    before, after = edit.pictures(64, 64)
    edit.asked, edit.kept                # facts of the picture after: what is new, and what must have stayed

An instruction names an object only by words that mean no other. The judge is `toyworld.judge_edits`.
"""

from dataclasses import dataclass

import numpy as np

from openlance.errors import UserError
from toyworld.edit_kinds import CHANGES
from toyworld.edit_places import Rng, at
from toyworld.edit_words import dress
from toyworld.facts import Background, Fact, Lettering, holds
from toyworld.render import render
from toyworld.scene import Scene, is_heldout, is_valid, pick, sample_scene

KINDS = tuple(CHANGES)
WHOLE = ("background", "tone")  # kinds that name no object and change all of a picture
HELDOUT_KINDS = ("recolour", "reshape", "add", "replace", "move")
# The scenes that each kind of edit starts from, as categories of sample_scene.
_USUAL = ("mixed", "mixed", "attribute", "position", "color")
_ABOUT = {
    "recolour": (*_USUAL, *_USUAL, "count", "text"), "refill": (*_USUAL, "count"), "text": ("text",),
    "remove": ("mixed", "mixed", "attribute", "position"), "background": (*_USUAL, "count", "text"),
    "tone": (*_USUAL, "count", "text"),
}  # fmt: skip
_ATTEMPTS = 500


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit. asked: what is true after it; kept: what was true before and still is."""

    kind: str
    before: Scene
    after: Scene
    instruction: str
    asked: tuple[Fact, ...]
    kept: tuple[Fact, ...]

    def pictures(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The pictures before and after, uint8 (height, width, 3)."""
        return render(self.before, height, width), render(self.after, height, width)


def edit_scene(scene: Scene, rng: Rng, kind: str, *, heldout: bool = False) -> Edit | None:
    """Draw an edit of a kind, one of KINDS, of a scene; None where this draw has none: draw again, or another scene.

    heldout: whether the scene after shows a combination that is never trained; the scene before is taken as it is.
    """
    if kind not in CHANGES:
        raise UserError(f"the kind of edit {kind!r} is unknown: use one of {', '.join(KINDS)}")
    change = CHANGES[kind](scene, rng)
    if change is None or not is_valid(change.after) or is_heldout(change.after) != heldout:
        return None
    if not all(holds(change.after, fact) for fact in change.asked):
        return None
    stay = [at(o) for i, o in enumerate(scene.objects) if i not in change.touched]
    ground = [Background(scene.background)] if change.after.background == scene.background else []
    text, read = change.after.text, any(isinstance(fact, Lettering) for fact in change.asked)
    letters = [] if text is None or read else [Lettering(text.string, text.color)]
    said = f"please {change.said}" if rng.random() < 0.08 else change.said
    return Edit(
        kind=kind, before=scene, after=change.after, instruction=dress(said, rng),
        asked=tuple(change.asked), kept=(*stay, *change.stay, *ground, *letters),
    )  # fmt: skip


def sample_edit(
    rng: Rng, *, kind: str | None = None, placement: str | float = "free", heldout: bool = False, aspect: float = 1.0
) -> Edit:
    """Draw an edit and the scene it starts from; arguments as in `sample_scene`, `kind` is one of KINDS.

    With `heldout` the picture before is of the trained kind and the one after is not; only HELDOUT_KINDS have that.
    """
    known = HELDOUT_KINDS if heldout else KINDS
    kind = kind or pick(rng, known)
    if kind not in known:
        raise UserError(f"no {'held out ' if heldout else ''}edit of kind {kind!r}: use one of {', '.join(known)}")
    for _ in range(_ATTEMPTS):
        category = pick(rng, _ABOUT.get(kind, _USUAL))
        scene = sample_scene(rng, placement=placement, category=category, aspect=aspect)
        for _ in range(6):
            edit = edit_scene(scene, rng, kind, heldout=heldout)
            if edit is not None:
                return edit
    raise AssertionError(f"no edit of kind {kind} found in {_ATTEMPTS} scenes")
