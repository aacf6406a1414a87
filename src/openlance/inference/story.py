"""Stories: several results in one call, images, videos and texts in turn, each made with what came before it in view.

story = pipe.story(["draw a red circle", "describe the picture", "make the circle green", "describe the picture"])
story.save("story")  # story.md with its images and videos beside it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.config import values
from openlance.inference import turns
from openlance.inference.dialogue import Dialogue, Turn
from openlance.inference.inputs import listed
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

PAGE = "story.md"


@dataclass(frozen=True)
class Story:
    """What came of each line, in order; image or video k was made with seed + k, where it was checked in its first
    draw."""

    lines: tuple[str, ...]
    turns: tuple[Turn, ...]
    seed: int

    @property
    def results(self) -> list[Clip | str]:
        """An image or video (a Clip of one or more frames), or a text, of each line."""
        return [_result(turn) for turn in self.turns]

    def save(self, folder: str | Path) -> Path:
        """Write a page in Markdown, and its images and videos beside it.

        Args:
            folder: Made if it is not there; files of the same names are replaced.

        Returns:
            The page.

        Raises:
            UserError: If the place cannot be written.
        """
        from openlance.media.files import atomic_path

        folder, parts = values.path_of("the folder", folder), list[str]()
        for n, (line, turn) in enumerate(zip(self.lines, self.turns, strict=True)):
            result = _result(turn)
            parts.append(f"> {line}")
            if isinstance(result, Clip):
                name = f"{n}{'.png' if result.frames == 1 else '.mp4'}"
                result.save(folder / name)
                parts.append(f"![{turn.prompt}]({name})" if result.frames == 1 else f"[{turn.prompt}]({name})")
            else:
                parts.append(result)
        with atomic_path(folder / PAGE) as path:
            path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        return folder / PAGE


def _result(turn: Turn) -> Clip | str:
    if turn.answer is not None:
        return turn.answer
    assert turn.picture is not None
    return turn.picture


def _check(talk: Dialogue, texts: Sequence[str]) -> None:
    """Raise a UserError for a line of which nothing can be made by then."""
    table = talk.table
    for text in texts:
        wanted = turns.wanted(text, table)
        if wanted.spec.makes == "text":
            table = wanted.clips
            continue
        given = talk.how[wanted.spec.makes].get("num_frames") or 1
        frames = max([given, *(clip.frames for clip in wanted.clips)]) if wanted.spec.makes == "video" else 1
        table = (Clip(np.zeros((frames, 1, 1, 3), np.uint8)),)  # in the place of what will be made


def tell(pipe: LancePipeline, lines: Sequence[str], image: MediaInput | None = None, **how: Any) -> Story:
    """Fill the targets of a story one after the other.

    Args:
        pipe: The model.
        lines: What comes next, in free words as `Dialogue.say` takes them.
        image: An image or video to begin with.
        **how: Of `Dialogue`.

    Raises:
        UserError: On bad input, which is looked for before anything is made.
    """
    texts = listed(lines, "line", "draw a red circle")
    talk = Dialogue(pipe, **how)
    if image is not None:
        talk.show(image)
    _check(talk, texts)
    return Story(tuple(texts), tuple(talk.say(text) for text in texts), talk.seed)
