"""Which rewards there are, and how a choice of them is written.

    ocr:1,similarity=models/clip:0.3,my_reward.py:score:0.5
    {ocr: 1, similarity=models/clip: 0.3, my_reward.py:score: 0.5}

An entry is NAME, NAME=ARGUMENT or FILE.py:FUNCTION, and its weight, 1 where none stands. Names are ours or those that
installed packages add (`config.plugins`, group `rewards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from openlance.config.plugins import plugin, plugins
from openlance.config.values import number, unknown
from openlance.errors import UserError
from openlance.rl.rewards.reward import Reward

BUILT_IN = {
    "ocr": "openlance.rl.rewards.ocr:Ocr",
    "redness": "openlance.rl.rewards.redness:Redness",
    "similarity": "openlance.rl.rewards.similarity:Similarity",
}
EXAMPLE = "ocr:1,my_reward.py:score:0.5"


@dataclass(frozen=True)
class Weighted:
    """A reward, how it was written, and what it counts."""

    said: str
    reward: Reward
    weight: float


def known_rewards() -> dict[str, type[Reward]]:
    """List the rewards that have a name, in its order."""
    return {name: _named(name) for name in sorted(BUILT_IN.keys() | plugins("rewards").keys())}


def parse_rewards(said: str | Mapping[str, float]) -> tuple[Weighted, ...]:
    """Read a choice of rewards, as text or as a mapping from entries to weights.

    Raises:
        UserError: If one is unknown, a weight is no number or 0, or two have one name.
    """
    pairs = list(said.items()) if isinstance(said, Mapping) else [_split(entry) for entry in said.split(",")]
    found = [Weighted(entry, make_reward(entry), _weight(entry, weight)) for entry, weight in pairs]
    if not found:
        raise UserError("no reward is given", expected="rewards with their weights", fix={"rewards": EXAMPLE})
    names = [one.reward.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the reward {twice} is given twice: give it once, with one weight")
    return tuple(found)


def make_reward(entry: str) -> Reward:
    """Make a reward of an entry without its weight. UserError if there is none of that name."""
    name, _, argument = entry.partition("=")
    if "=" not in entry and ".py:" in entry:
        from openlance.rl.rewards.function import from_file

        return from_file(entry)
    return _named(name)(argument)


def _named(name: str) -> type[Reward]:
    if name in BUILT_IN:
        module, _, own = BUILT_IN[name].partition(":")
        return getattr(import_module(module), own)
    found = plugin("rewards", name)
    if found is None:
        known = sorted(BUILT_IN.keys() | plugins("rewards").keys())
        raise UserError(unknown("reward", name, known) + "; a function of your own is FILE.py:FUNCTION")
    return found


def _split(entry: str) -> tuple[str, float | str]:
    """An entry and its weight: what stands behind the last colon, unless that is the function of a file."""
    head, colon, last = entry.strip().rpartition(":")
    whole = not colon or (head.endswith(".py") and not _is_number(last))
    return (entry.strip(), 1.0) if whole else (head, last)


def _is_number(text: str) -> bool:
    return text[:1] in set("+-.0123456789")  # no name begins so


def _weight(entry: str, said: object) -> float:
    value = number(f"the weight of {entry}", said)
    if value == 0:
        raise UserError(f"the weight of {entry} is 0: give another number, or leave {entry} out")
    return value
