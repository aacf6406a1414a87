"""Whether an edit was done, from the pixels of the picture before and of the answer: what was asked happened, and
everything else stayed.

    verdict = judge_edit(edit, before, answer)     # verdict.asked, verdict.kept

Kept means: every object that the edit does not name is where it was and looks as it did, nothing else has come up, and
the pixels that the edit does not touch agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openlance.errors import UserError
from toyworld import segment_pixels as seg
from toyworld.analyse import Analysis
from toyworld.edit_places import SLACK
from toyworld.edits import Edit
from toyworld.facts import Within, holds
from toyworld.judge import analyse, judge, seen_scene
from toyworld.read_text import read_text
from toyworld.render import pixel_box
from toyworld.scene import Scene

# Decibels over the pixels that an edit does not touch. A perfect edit has 25 or more after a round trip through nano's
# VAE (160 of 160, half of them over 38); a ground of a neighbouring colour has 13 to 16.
KEPT_PSNR = 20.0
RIM = 3.0 / 64  # pixels this near to a change may change with it, in shorter sides: a VAE blurs
FEWEST_PIXELS = 0.02  # a part of the picture under which no PSNR is taken


@dataclass(frozen=True, kw_only=True)
class EditVerdict:
    """What became of an edit."""

    asked: bool
    kept: bool

    @property
    def right(self) -> bool:
        return self.asked and self.kept


def judge_edit(
    edit: Edit,
    before: np.ndarray,
    answer: np.ndarray,
    seen: Analysis | None = None,
    read: Callable[[np.ndarray, np.ndarray], str] = read_text,
) -> EditVerdict:
    """Judge an answer, uint8 (H, W, 3), to an edit of the picture `before` of the same size; `seen`: its analysis
    where that is known already; `read` reads its text where a fact is about that.

    Raises ValueError where the sizes differ, and UserError where a text is asked for and no reader is installed.
    """
    if before.shape != answer.shape:
        raise UserError(f"the answer has the shape {answer.shape} and the picture before {before.shape}: resize one")
    seen = seen or analyse(answer)
    verdicts = judge(answer, (*edit.asked, *edit.kept), seen, read)
    kept = all(verdicts[fact] for fact in edit.kept) and _nothing_new(edit, seen, answer.shape[:2])
    mask = untouched(edit, seen, answer.shape[:2])
    kept = kept and (mask.mean() < FEWEST_PIXELS or psnr(before[mask], answer[mask]) >= KEPT_PSNR)
    return EditVerdict(asked=all(verdicts[fact] for fact in edit.asked), kept=bool(kept))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in decibels of two uint8 arrays of one shape."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def untouched(edit: Edit, seen: Analysis, size: tuple[int, int]) -> np.ndarray:
    """Pixels, bool (H, W), that a right answer leaves as they are: those that the edit does not change, and that
    nothing which it moved or added has come to cover."""
    before, after = edit.pictures(*size)
    rim = max(round(RIM * min(size)), 1)
    changed = (before != after).any(-1)
    stay = [fact for fact in edit.kept if isinstance(fact, Within)]
    for o, found in zip(seen_scene(seen, edit.before.aspect).objects, seen.objects, strict=True):
        if edit.before.text is None and not any(holds(Scene(objects=(o,)), fact) for fact in stay):
            x0, y0, x1, y1 = (round(v) for v in found.box)
            changed[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
    # A change of background leaves the inner part of objects, which is thin: one pixel of rim must do.
    return ~seg.dilate(changed, 1 if edit.before.background != edit.after.background else rim)


def _nothing_new(edit: Edit, seen: Analysis, size: tuple[int, int]) -> bool:
    """No more objects than the edit accounts for; a text stays where it is, in its colour unless asked."""
    if edit.before.text is None or edit.after.text is None:
        return len(seen.objects) <= max(len(edit.before.objects), len(edit.after.objects))
    if not seen.paint.any():
        return False
    rows, columns = (np.flatnonzero(seen.paint.any(axis)) for axis in (1, 0))
    x0, y0, x1, y1 = pixel_box(edit.after.text, *size)
    short, recoloured = min(size), edit.before.text.color != edit.after.text.color
    off = abs(rows[0] + rows[-1] + 1 - y0 - y1) / 2, abs(columns[0] + columns[-1] + 1 - x0 - x1) / 2
    return max(off) <= 1.5 * SLACK * short and (recoloured or seen.ink == edit.before.text.color)
