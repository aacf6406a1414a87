"""VBench (Huang et al., arXiv 2311.17982): sixteen dimensions of generated videos, and their total.

Weights, limits and formula are those of scripts/constant.py and cal_final_score.py of github.com/Vchitect/VBench,
commit 45e79ec. The dimensions are measured by its own package, in an environment of its own. Where a dimension is
missing, the official total takes 0 for it; ours is none then.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from openlance.config.values import read_text
from openlance.errors import UserError
from openlance.eval.estimate import Estimate, mean
from openlance.eval.records import Record, Score, clusters, counted, file_in, judged, number, read_object
from openlance.eval.sampling import Job, braced


@dataclass(frozen=True)
class Dimension:
    """A measure, 0 to 1.

    Args:
        low: Its value that counts as 0.
        high: Its value that counts as 1.
        videos: That it is measured on: 5 of every prompt.
        weight: In its half of the total.
    """

    low: float
    high: float
    videos: int
    weight: float = 1.0


FLICKERING = "temporal flickering"
QUALITY = {
    "subject consistency": Dimension(0.1462, 1.0, 72 * 5),
    "background consistency": Dimension(0.2615, 1.0, 86 * 5),
    FLICKERING: Dimension(0.6293, 1.0, 75 * 5),
    "motion smoothness": Dimension(0.706, 0.9975, 72 * 5),
    "dynamic degree": Dimension(0.0, 1.0, 72 * 5, weight=0.5),
    "aesthetic quality": Dimension(0.0, 1.0, 93 * 5),
    "imaging quality": Dimension(0.0, 1.0, 93 * 5),
}
SEMANTIC = {
    "object class": Dimension(0.0, 1.0, 79 * 5),
    "multiple objects": Dimension(0.0, 1.0, 82 * 5),
    "human action": Dimension(0.0, 1.0, 100 * 5),
    "color": Dimension(0.0, 1.0, 85 * 5),
    "spatial relationship": Dimension(0.0, 1.0, 84 * 5),
    "scene": Dimension(0.0, 0.8222, 86 * 5),
    "appearance style": Dimension(0.0009, 0.2855, 90 * 5),
    "temporal style": Dimension(0.0, 0.364, 100 * 5),
    "overall consistency": Dimension(0.0, 0.364, 93 * 5),
}
DIMENSIONS = QUALITY | SEMANTIC
WHOLE = {name: one.videos for name, one in DIMENSIONS.items()}
BOUNDS = (0.0, 100.0)
FOLDER = "videos"  # VBench takes the ending of its first file for that of all, so nothing else may stand there
PROMPTS = 944  # different ones; two of the 946 entries occur twice
SAMPLES, SAMPLES_FLICKERING = 5, 25  # of a prompt; of the latter a static filter keeps five at most
LONGEST_NAME = 240  # bytes of a file's name, its number and ending left out
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


def jobs(checkout: Path) -> list[Job]:
    """What is asked: vbench/VBench_full_info.json of the checkout or of the installed package. A prompt that occurs
    twice is asked once.

    Raises:
        UserError: It is not there, or of another form.
    """
    file = file_in(checkout, "VBench_full_info.json", "vbench")
    asked = dict[str, list[str]]()
    try:
        for one in json.loads(read_text(file)):
            asked.setdefault(one["prompt_en"], []).extend(name.replace("_", " ") for name in one["dimension"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not of VBench ({type(error).__name__}: {error})") from None
    wrong = [str(p) for p in asked if not isinstance(p, str) or "/" in p or len(p.encode()) > LONGEST_NAME]
    if wrong:
        raise UserError(f"{file}: {wrong[0][:60]!r} cannot be the name of a file, as VBench needs it")
    return [
        Job(
            group="all",
            key=prompt,
            task="t2v",
            prompt=prompt,
            samples=SAMPLES_FLICKERING if FLICKERING in dimensions else SAMPLES,
            file=f"{FOLDER}/{braced(prompt)}-{{k}}.mp4",
            counts=dict.fromkeys(dimensions, SAMPLES),
        )
        for prompt, dimensions in asked.items()
    ]


def totals(measured: Mapping[str, float], *, normalized: bool = True) -> dict[str, float]:
    """Quality, semantic and total, in percent, of sixteen measures (0 to 1).

    Args:
        measured: By dimension.
        normalized: False leaves the limits of the dimensions out, which is not the official formula.
    """

    def half(dimensions: Mapping[str, Dimension]) -> float:
        total = 0.0
        for name, one in dimensions.items():
            value = measured[name]
            total += one.weight * ((value - one.low) / (one.high - one.low) if normalized else value)
        return 100 * total / sum(one.weight for one in dimensions.values())

    quality, semantic = half(QUALITY), half(SEMANTIC)
    total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return {"quality": quality, "semantic": semantic, "total": total}


def value(record: Record) -> float:
    """The measure of a video, in percent."""
    return 100.0 * record.found["value"]


def why(record: Record) -> str:
    """Nothing is said beside the measure."""
    return ""


def fault(record: Record) -> str:
    """Every judgement can be read."""
    return ""


def score(records: Sequence[Record], expected: Mapping[str, int] = WHOLE) -> Score:
    """Add up records whose `found` has a video's "value", and of its dimension the "average" as VBench has it (0 to 1)
    and "of", the number of videos that were looked at, 0 where it is not known. A color has no measure where no object
    is found, and the static filter leaves out videos that move: these are no missing results."""
    kept, failed = judged(records)
    each = counted(kept)
    seen = dict[str, int]()
    for record in kept:
        seen[record.group] = max(seen.get(record.group, 0), record.found.get("of", 0))
    found = {name: max(count, seen[name]) for name, count in each.items()}
    moving = max(expected.get(FLICKERING, 0) - found[FLICKERING], 0) if FLICKERING in found else 0
    still = {name: count - (moving if name == FLICKERING else 0) for name, count in WHOLE.items()}
    asked = {name: count - (moving if name == FLICKERING else 0) for name, count in expected.items()}
    measured = {record.group: float(record.found["average"]) for record in kept}
    missing = [name for name in DIMENSIONS if name not in measured]
    ours = {name: mean(values, BOUNDS) for name, values in clusters(kept, value).items()}
    parts = {name: one.value / 100 for name, one in ours.items()}
    whole = totals(parts) if not missing else {"total": math.nan}
    notes = [f"the official total takes 0 for {', '.join(missing)}"] if missing else []
    notes += [
        f"{name}: {found[name] - count} of {found[name]} videos have no measure and are in no mean"
        for name, count in each.items() if found[name] > count
    ]  # fmt: skip
    if moving:
        notes.append(f"{FLICKERING} is of {found[FLICKERING]} videos, {moving} less than five of every prompt")
    return Score(
        benchmark="vbench", found=found, expected=asked, whole=still, failed=failed, notes=notes,
        official={name: 100 * value for name, value in measured.items()}
        | totals({name: measured.get(name, 0.0) for name in DIMENSIONS}),
        ours=ours | {n: Estimate(value=v, low=math.nan, high=math.nan, n=len(kept)) for n, v in whole.items()},
    )  # fmt: skip


def imported(path: Path, checkout: Path | None = None) -> list[Record]:
    """Read eval_results.json of VBench, or a folder of such files: the measure of every video by dimension.

    Raises:
        UserError: There is none, it is not of this form, or a dimension occurs twice.
    """
    files = sorted(path.rglob("*eval_results.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} has no eval_results.json: expected what vbench evaluate writes")
    found, seen = list[Record](), set[str]()
    for file in files:
        data, looked = read_object(file, "eval_results.json of VBench"), _looked_at(file)
        twice = sorted({name.replace("_", " ") for name in data} & seen)
        if twice:
            raise UserError(f"{file}: {twice[0]} is measured twice: keep one result of it")
        try:
            for name, (average, videos) in data.items():
                dimension = name.replace("_", " ")
                if dimension not in DIMENSIONS:
                    raise ValueError(f"{name} is no dimension")
                seen.add(dimension)
                said = {"average": number(average), "of": looked[dimension]}
                found += [_measured(dimension, said, video) for video in videos]
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not of VBench ({type(error).__name__}: {error})") from None
    return found


def _looked_at(results: Path) -> Counter[str]:
    """Videos that were there, by dimension, as VBench lists them beside its results; none where the list is missing."""
    name, ending, _ = results.name.rpartition("eval_results.json")
    file, found = results.with_name(f"{name}full_info.json"), Counter[str]()
    if not ending or not file.is_file():
        return found
    try:
        for one in json.loads(read_text(file)):
            for dimension in one["dimension"]:
                found[dimension.replace("_", " ")] += len(one["video_list"])
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not of VBench ({type(error).__name__}: {error})") from None
    return found


def _measured(dimension: str, said: Mapping[str, Any], video: Mapping[str, Any]) -> Record:
    """The record of one video, PROMPT-k.mp4."""
    prompt, _, k = PurePath(video["video_path"]).stem.rpartition("-")
    scale = 100.0 if dimension == "imaging quality" else 1.0  # its videos are in percent there, its average is not
    value = number(video["video_results"]) / scale
    return Record(group=dimension, key=prompt, k=int(k), found={**said, "value": value, "prompt": prompt})
