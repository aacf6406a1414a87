"""A reward of the user's own, `FILE.py:NAME`: a function of a prompt and an image, or a `Reward` class.

def score(prompt, image):            # image: a Pillow image; a list of them for a video
    return 1.0                       # any finite number, or several by name: {"sharp": 0.7, "bright": 0.2}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from math import inf
from pathlib import Path
from typing import Any

from openlance.errors import UserError
from openlance.rl.rewards.reward import Drawn, Reward


class Function(Reward):
    """A function of a file.

    Args:
        name: Of the file and the function, `my_reward.score`.
        function: Takes a prompt and an image, or a list of images for a video.
    """

    range = (-inf, inf)
    cost = "the function's own"
    exploits = "unknown: look at what is rewarded most"

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def __call__(self, drawn: Sequence[Drawn]) -> list[float | Mapping[str, float]]:
        seen = ((one.prompt, one.images()) for one in drawn)
        return [self.function(prompt, images if len(images) > 1 else images[0]) for prompt, images in seen]


def from_file(entry: str) -> Reward:
    """Make the reward that a file defines.

    Args:
        entry: FILE.py:NAME.

    Raises:
        UserError: If the file is not there or does not run, or has nothing of that name that could score.
    """
    file, _, name = entry.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"the reward {entry} is not there: {path} is no file; write FILE.py:FUNCTION")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001  it is the user's file: whatever it raises is named
        raise UserError(f"the reward {entry} cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Reward):
        made = found()
        made.name = made.name or f"{path.stem}.{name}"
        return made
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"{path} has no function {name}: it has {', '.join(names) or 'none'}; write def {name}(prompt, image)"
        )
    return Function(f"{path.stem}.{name}", found)
