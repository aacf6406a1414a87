"""GenEval (Ghosh et al., arXiv 2310.11513): are the objects there, in number, color and place?

Rules and constants are those of evaluation/evaluate_images.py and summary_scores.py of github.com/djghosh13/geneval,
commit af4902f. What finds the objects and their colors is a scorer's business.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from openlance.errors import UserError
from openlance.eval.estimate import macro, mean
from openlance.eval.records import Record, Score, clusters, counted, file_in, judged, read_lines, results_in
from openlance.eval.sampling import Job

SAMPLES = 4
PROMPTS = {
    "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
}  # fmt: skip
WHOLE = {tag: SAMPLES * count for tag, count in PROMPTS.items()}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
# COCO's names that the prompts call otherwise.
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
CONFIDENT = 0.3  # an object counts from this score on
CONFIDENT_COUNTING = 0.9  # and in "counting" from this one on
MOST_OBJECTS = 16  # of a class
NEAR = 0.1  # share of both sizes by which centers may differ and still be level
LEVEL = 1e-3
TURN = 0.5  # least share of a direction for its name


@dataclass(frozen=True)
class Found:
    """An object in an image: its box, in pixels from the upper left corner, and how sure the detector is (0 to 1)."""

    box: tuple[float, float, float, float]
    score: float = 1.0


Objects = Mapping[str, Sequence[Found]]  # by class
Colors = Callable[[Sequence[Found], str], Sequence[str]]  # the color of each of some objects of a class


def jobs(checkout: Path) -> list[Job]:
    """What is asked, from prompts/evaluation_metadata.jsonl of the checkout.

    Raises:
        UserError: It is not there, or of another form.
    """
    lines = read_lines(file_in(checkout, "evaluation_metadata.jsonl", "prompts"))
    try:
        return [
            Job(
                group=line["tag"], key=f"{number:05}", task="t2i", prompt=line["prompt"], samples=SAMPLES,
                file=f"{number:05}/samples/{{k:05}}.png",
                beside={f"{number:05}/metadata.jsonl": json.dumps(line).encode},
            )
            for number, line in enumerate(lines)
        ]  # fmt: skip
    except KeyError as error:
        raise UserError(f"{checkout}: a line lacks {error}: expected evaluation_metadata.jsonl of GenEval") from None


def kept(detected: Objects, tag: str) -> dict[str, list[Found]]:
    """The objects that count, the surest first; classes without any are left out. There is no suppression of
    overlapping boxes."""
    least = CONFIDENT_COUNTING if tag == "counting" else CONFIDENT
    best = {
        name: sorted((one for one in found if one.score > least), key=lambda one: -one.score)[:MOST_OBJECTS]
        for name, found in detected.items()
    }
    return {name: found for name, found in best.items() if found}


def relations(a: Found, b: Found) -> set[str]:
    """Where a is relative to b: of "left of", "right of", "above", "below"; none if they are about level."""
    offset, reduced = list[float](), list[float]()
    for axis in range(2):
        low_a, high_a, low_b, high_b = a.box[axis], a.box[axis + 2], b.box[axis], b.box[axis + 2]
        away = (low_a + high_a) / 2 - (low_b + high_b) / 2
        sizes = abs(high_a - low_a) + abs(high_b - low_b)
        offset.append(away)
        reduced.append(math.copysign(max(abs(away) - NEAR * sizes, 0.0), away))
    if all(abs(way) < LEVEL for way in reduced):
        return set()
    dx, dy = (way / math.hypot(*offset) for way in reduced)
    named = {"left of": dx < -TURN, "right of": dx > TURN, "above": dy < -TURN, "below": dy > TURN}
    return {name for name, holds in named.items() if holds}


def judge(metadata: Mapping[str, Any], objects: Objects, colors: Colors) -> list[str]:
    """What is wrong with an image, in sentences; nothing if it is right.

    Args:
        metadata: A line of the benchmark's evaluation_metadata.jsonl.
        objects: What `kept` keeps.
        colors: Asked for objects of which a color is wanted.
    """
    wrong, groups = list[str](), list[Sequence[Found] | None]()
    for wanted in metadata.get("include", []):
        name, count = wanted["class"], wanted["count"]
        found = list(objects.get(name, []))[:count]  # the surest alone are looked at
        faults = [f"expected {name}>={count}, found {len(found)}"] if len(found) < count else []
        if not faults and "color" in wanted:
            shown = list(colors(found, name))
            if shown.count(wanted["color"]) < count:
                faults.append(f"expected {wanted['color']} {name}>={count}, found {', '.join(shown)}")
        if not faults and "position" in wanted:
            faults += _misplaced(name, found, wanted["position"], groups)
        wrong += faults
        groups.append(None if faults else found)
    for unwanted in metadata.get("exclude", []):
        number = len(objects.get(unwanted["class"], []))
        if number >= unwanted["count"]:
            wrong.append(f"expected {unwanted['class']}<{unwanted['count']}, found {number}")
    return wrong


def _misplaced(
    name: str, found: Sequence[Found], position: tuple[str, int], groups: Sequence[Sequence[Found] | None]
) -> list[str]:
    where, target = position
    others = groups[target]
    if others is None:
        return [f"no target for {name} to be {where}"]
    for one in found:
        for other in others:
            seen = relations(one, other)
            if where not in seen:
                return [f"expected {name} {where} its target, found {' and '.join(sorted(seen)) or 'neither'}"]
    return []


def value(record: Record) -> float:
    """1 if an image is right."""
    if not isinstance(record.found["right"], bool):
        raise ValueError(f"right is {record.found['right']!r}, not true or false")
    return float(record.found["right"])


def why(record: Record) -> str:
    """What is wrong with it."""
    return str(record.found.get("why", ""))


def fault(record: Record) -> str:
    """Every judgement can be read."""
    return ""


def score(records: Sequence[Record], expected: Mapping[str, int] = WHOLE) -> Score:
    """Add up records whose `found` has "right"."""
    kept_, failed = judged(records)
    groups = clusters(kept_, value)
    ours = {tag: mean(values) for tag, values in groups.items()} | {"total": macro(groups)}
    return Score(
        benchmark="geneval",
        official={name: one.value for name, one in ours.items()},
        ours=ours,
        found=counted(kept_),
        expected=expected,
        whole=WHOLE,
        failed=failed,
    )


def imported(results: Path, checkout: Path | None = None) -> list[Record]:
    """Read the results.jsonl of evaluate_images.py.

    Raises:
        UserError: It is no such file.
    """
    found, path = list[Record](), results_in(results, "results*.jsonl")
    for number, line in enumerate(read_lines(path), 1):
        try:
            name = PurePath(line["filename"])
            key, k = name.parent.parent.name, int(name.stem)
            if not isinstance(line["correct"], bool):
                raise TypeError(f"correct is {line['correct']!r}")
            said = {"right": line["correct"], "prompt": line["prompt"], "why": line["reason"]}
            detected = json.loads(line["details"])
            found.append(Record(group=line["tag"], key=key, k=k, found=said | {"objects": detected}))
        except (KeyError, ValueError, TypeError) as error:
            message = f"{path}, line {number}: not of GenEval's evaluate_images.py ({type(error).__name__}: {error})"
            raise UserError(message) from None
    return found
