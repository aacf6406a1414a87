"""The process that scores: it makes the rewards from their words, and answers one request after the other.

It is started apart from the program that trains (no fork, and the user's script is not run again), so that it holds
no torch unless a reward needs it and can be ended at any time.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from openlance.data.pool import follow
from openlance.errors import UserError
from openlance.rl.rewards.registry import make_reward
from openlance.rl.rewards.reward import Drawn, Reward

# What the process runs: the parent's path of modules comes first, then all else.
PROGRAM = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from openlance.rl.rewards import worker; "
PROGRAM += "worker.main(sys.stdin.buffer)"


def main(requests: BinaryIO) -> None:
    """Answer requests until there are no more: (entry, None) loads a reward, (entry, results) scores with it."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reward prints must not come between the answers
    follow(pickle.load(requests))
    if hasattr(os, "nice"):  # threads of one product wait for one another: what takes a core from one of them stops all
        os.nice(10)
    rewards: dict[str, Reward] = {}
    while True:
        try:
            entry, drawn = pickle.load(requests)
        except EOFError:
            return
        answer: Any = None
        try:
            if drawn is None:
                rewards[entry] = make_reward(entry)
                rewards[entry].load()
            else:
                answer = scored(rewards[entry], drawn)
        except UserError as error:
            answer = error.args[0]
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def scored(reward: Reward, drawn: Sequence[Drawn]) -> list[dict[str, float] | str]:
    """Score results; those that could not be are sentences. Where a batch fails, each is tried alone."""
    try:
        values = list(reward(drawn))
    except Exception as error:  # noqa: BLE001  rewards are anybody's code: what they raise is named and counted
        if len(drawn) > 1:
            return [found for one in drawn for found in scored(reward, [one])]
        return [f"raised {type(error).__name__}: {error}"]
    if len(values) != len(drawn):
        return [f"returned {len(values)} scores for {len(drawn)} results"] * len(drawn)
    return [checked(reward, value) for value in values]


def checked(reward: Reward, value: float | Mapping[str, float]) -> dict[str, float] | str:
    """Return a score as facts by name, or a sentence that says what is wrong with it."""
    facts = value if isinstance(value, Mapping) else {reward.name: value}
    low, high = reward.range
    found = dict[str, float]()
    for name, one in facts.items():
        said = "returned" if name == reward.name else f"returned for {name}"
        try:
            found[name] = float(one)
        except (TypeError, ValueError):
            return f"{said} {type(one).__name__} where a number is expected"
        if not math.isfinite(found[name]):
            return f"{said} {found[name]}"
        if not low <= found[name] <= high:
            return f"{said} {found[name]:g}, outside its range from {low:g} to {high:g}"
    return found or "returned no fact"
