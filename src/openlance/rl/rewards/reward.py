"""What every reward is made of: what it sees, what it says, and what it tells about itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import Clip

if TYPE_CHECKING:
    from PIL.Image import Image

STILLS = 3  # frames of a clip that a reward for pictures looks at


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One result as a reward sees it.

    Args:
        prompt: The prompt, or the instruction of an edit.
        media: What was drawn; an image is a video of one frame.
        sources: What was given: the image or video to edit, the given objects, in their order.
        truth: What the source of the request knows about a right result, such as the request of a procedural world.
    """

    prompt: str
    media: Clip
    sources: tuple[Clip, ...] = ()
    truth: Any = None

    def stills(self) -> list[np.ndarray]:
        """Return the image, uint8 (H, W, 3); of a video its first, middle and last frame."""
        places = np.linspace(0, self.media.frames - 1, min(self.media.frames, STILLS), dtype=int)
        return [self.media.pixels[at] for at in places]

    def images(self) -> list[Image]:
        """Return every frame as a Pillow image."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.media.pixels]


@dataclass(frozen=True)
class Score:
    """What all rewards say of one result.

    Args:
        facts: Values by name: the reward's, or `reward.fact` where it tells several apart.
        weights: What each counts in the total, by the same names.
    """

    facts: Mapping[str, float]
    weights: Mapping[str, float] = field(repr=False)

    @property
    def total(self) -> float:
        """The weighted sum of the facts."""
        return math.fsum(self.weights[name] * value for name, value in self.facts.items())


class Reward:
    """Says what results are worth. One process makes one of it and calls it many times.

    Attributes:
        name: As it stands in logs and in front of its weight.
        range: The smallest and the largest value of each of its facts; others count as failures.
        facts: Its facts and what each weighs in its mean. Empty: it returns one number, or all weigh the same.
        cost: What a result costs, in words.
        exploits: What is known to raise it without making results better.
        takes: What is written behind its name, "a folder" in `name=FOLDER`; empty where nothing is.

    Args:
        argument: What is written behind the name.

    Raises:
        UserError: If it takes none, or needs one.
    """

    name = ""
    range: tuple[float, float] = (0.0, 1.0)
    facts: Mapping[str, float] = {}
    cost = ""
    exploits = ""
    takes = ""

    def __init__(self, argument: str = "") -> None:
        self.argument = argument
        if argument and not self.takes:
            raise UserError(f"the reward {self.name} takes nothing after its name, got {self.name}={argument}")

    def check(self, prompt: str, truth: Any = None) -> None:
        """Refuse a request whose results cannot be scored, before they are drawn; costs nothing and loads nothing.

        Raises:
            UserError: What the prompt lacks.
        """

    def load(self) -> None:
        """Load what scoring takes, such as a model; called once in each worker, before the first call.

        Raises:
            UserError: What is not there, and where it can be had.
        """

    def __call__(self, drawn: Sequence[Drawn]) -> Sequence[float | Mapping[str, float]]:
        """Score results.

        Returns:
            As many as were given, in their order: a number within `range`, or one per fact.
        """
        raise NotImplementedError

    def weights(self, facts: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
        """Weigh the facts of a result so that they add up to `weight` times their weighted mean."""
        own = {name: self.facts.get(name, 1.0) for name in facts}
        return {name: weight * one / sum(own.values()) for name, one in own.items()}
