"""ImgEdit-Bench, basic suite (Ye et al., arXiv 2505.20275): edits of nine types, three grades of a judge for each.

Rules are those of Benchmark/Basic in github.com/PKU-YuanGroup/ImgEdit, commit 547185d. There a grade that is not
written as a bare number is left out of the mean; ours takes an edit's three grades or counts a failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openlance.errors import UserError
from openlance.eval.estimate import Estimate, macro, mean
from openlance.eval.records import Record, Score, Sources, clusters, counted, file_in, judged, read_object, results_in
from openlance.eval.sampling import Job
from openlance.media import read_media

WHOLE = {
    "extract": 117, "style": 100, "add": 95, "adjust": 94, "background": 94, "replace": 92, "remove": 86, "action": 36,
    "compose": 23,
}  # fmt: skip
FOLDERS = ("Benchmark/Basic", "Basic")
BOUNDS = (1.0, 5.0)
GRADES = 3
PARTS = ("id", "prompt", "edit_type")  # of an item
GRADE = re.compile(r":\s*\**\s*([1-5])(?!\d|\.\d)(?:\s*/\s*5)?", re.MULTILINE)


def official_grade(answer: str) -> float | None:
    """The mean grade by the official script, to two decimals: of the lines "name: digits" alone; None without any."""
    parts = [line.strip().split(": ") for line in answer.splitlines()]
    grades = [int(part[1]) for part in parts if len(part) == 2 and part[1].isdigit()]
    return round(sum(grades) / len(grades), 2) if grades else None


def strict_grade(answer: str) -> float | None:
    """The mean of three grades 1 to 5, also written 4/5 or "2 (fair)"; None unless there are just three."""
    grades = [int(one) for one in GRADE.findall(answer)]
    return sum(grades) / GRADES if len(grades) == GRADES else None


def score(records: Sequence[Record], expected: Mapping[str, int] = WHOLE) -> Score:
    """Add up records whose `found` has the judge's "answer"."""
    kept, failed = judged(records, fault)
    groups = clusters(kept, value)
    ours: dict[str, Estimate] = {name: mean(values, BOUNDS) for name, values in groups.items()}
    return Score(
        benchmark="imgedit", official=_official(records), ours=ours | {"total": macro(groups, BOUNDS)},
        found=counted(kept), expected=expected, whole=WHOLE, failed=failed,
        notes=["the official code has no total: it is the mean of the nine types"],
    )  # fmt: skip


def value(record: Record) -> float:
    """The mean grade of an edit. A record without three grades has none and is none of `judged`."""
    grade = strict_grade(record.found["answer"])
    assert grade is not None
    return grade


def why(record: Record) -> str:
    """What the judge said."""
    return " ".join(record.found["answer"].split())


def fault(record: Record) -> str:
    """Why a judgement cannot be read; empty if it can."""
    return "" if strict_grade(record.found["answer"]) is not None else "an answer without three grades"


def _official(records: Sequence[Record]) -> dict[str, float]:
    types = dict[str, list[float]]()
    for record in records:
        grade = None if record.failed else official_grade(record.found["answer"])
        if grade is not None:
            types.setdefault(record.group, []).append(grade)
    means = {name: round(sum(grades) / len(grades), 2) for name, grades in types.items()}
    return means | {"total": sum(means.values()) / len(means) if means else float("nan")}


def items(path: Path) -> dict[str, dict[str, Any]]:
    """Read basic_edit.json: id (the source's path), prompt and edit_type of every key.

    Raises:
        UserError: It is no such file.
    """
    found = read_object(path, "basic_edit.json of ImgEdit")
    for key, one in found.items():
        if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in PARTS):
            raise UserError(f"{path}: {key} lacks {' or '.join(PARTS)}: expected basic_edit.json of ImgEdit")
    return found


def items_in(checkout: Path) -> dict[str, dict[str, Any]]:
    """The items of a checkout."""
    return items(file_in(checkout, "basic_edit.json", *FOLDERS))


def jobs(checkout: Path) -> list[Job]:
    """What is asked: Basic/basic_edit.json of the checkout, and the images that it names, below the same folder.

    Raises:
        UserError: Something is missing.
    """
    file = file_in(checkout, "basic_edit.json", *FOLDERS)
    found, sources = list[Job](), Sources(file.parent)
    for key, one in items(file).items():
        source = sources.path(one["id"], "singleturn", "origin_img", "../..")
        found.append(
            Job(
                group=one["edit_type"], key=key, task="image_edit", prompt=one["prompt"],
                media=(partial(read_media, source),), file=f"{key}.png",
            )
        )  # fmt: skip
    sources.tell()
    return found


def imported(results: Path, checkout: Path | None) -> list[Record]:
    """Read result.json of basic_bench.py, the judge's answer by key, with the checkout that has basic_edit.json.

    Raises:
        UserError: It is no such file, or a key is none of the benchmark's.
    """
    if checkout is None:
        raise UserError("ImgEdit's result.json is read with its types: give checkout=FOLDER, with basic_edit.json")
    found, path, edits = list[Record](), results_in(results, "result.json"), items_in(checkout)
    for key, answer in read_object(path, "result.json of ImgEdit").items():
        if key not in edits:
            raise UserError(f"{path}: {key} is no key of the benchmark: give the basic_edit.json that was used")
        failed = "" if isinstance(answer, str) else "an error of the judge"
        said = {"prompt": edits[key]["prompt"], **({"answer": answer} if not failed else {})}
        found.append(Record(group=edits[key]["edit_type"], key=key, found=said, failed=failed))
    return found
