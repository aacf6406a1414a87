"""DPG-Bench (Hu et al., arXiv 2403.05135): dense prompts, asked about question by question.

Rules are those of dpg_bench/compute_dpg_bench.py of github.com/TencentQQGYLab/ELLA, commit 3c228f1. It leaves the
first row of the table out, takes categories from the raw answers about the last cell of a grid, and skips what fails;
"official" repeats that, "ours" does not.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from openlance.config.values import lines_of, read_text
from openlance.errors import UserError
from openlance.eval.estimate import mean
from openlance.eval.records import Record, Score, clusters, counted, file_in, judged, results_in
from openlance.eval.sampling import Job

PROMPTS = 1065
BOUNDS = (0.0, 100.0)
CELLS = 4  # images of one prompt, in a grid of 2 x 2, read line by line
WHOLE = {"all": CELLS * PROMPTS}
FOLDER = "images"  # the official script takes every file in it for a grid
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
# A line of the official *_detail.txt: file, cell, question, answer; questions have commas of their own.
DETAIL = re.compile(r"(?P<file>.+?), \((?P<x>\d+), (?P<y>\d+), \d+, \d+\), (?P<question>.*), (?P<answer>[^,]*)$")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of dpg_bench.csv.

    Args:
        number: Within its prompt.
        text: What is asked; "yes" is right.
        needs: Numbers of the questions that it makes sense with.
        category: Such as "attribute - color".
    """

    number: int
    text: str
    needs: tuple[int, ...] = ()
    category: str = ""


def questions(path: Path) -> dict[str, list[Question]]:
    """Read dpg_bench.csv: the questions of every prompt, in its order.

    Raises:
        UserError: It is no such table.
    """
    found = dict[str, list[Question]]()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                needs = (int(part) for part in row["dependency"].split(","))
                one = Question(
                    number=int(row["proposition_id"]), text=row["question_natural_language"],
                    needs=tuple(need for need in needs if need), category=row["tuple"].split("(")[0].strip(),
                )  # fmt: skip
                found.setdefault(row["item_id"], []).append(one)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        wanted = f"expected a table with the columns {', '.join(COLUMNS)}"
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}): {wanted}") from None
    if not found:
        raise UserError(f"{path} has no questions: expected a table with the columns {', '.join(COLUMNS)}")
    return found


def table_in(checkout: Path) -> dict[str, list[Question]]:
    """The questions of a checkout."""
    return questions(file_in(checkout, "dpg_bench.csv", "dpg_bench"))


def jobs(checkout: Path) -> list[Job]:
    """What is asked: the files of dpg_bench/prompts in the checkout, each a grid of four images.

    Raises:
        UserError: There are none, or one without questions.
    """
    folder, table = file_in(checkout, "prompts", "dpg_bench"), table_in(checkout)
    files = sorted(folder.glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise UserError(f"{folder} has no prompts: expected dpg_bench/prompts/*.txt of ELLA")
    unasked = [file.stem for file in files if file.stem not in table]
    if unasked:
        raise UserError(f"{checkout}: dpg_bench.csv has no questions about {unasked[0]}: get the whole file of ELLA")
    return [
        Job(
            group="all", key=file.stem, task="t2i", prompt=read_text(file).strip(), samples=CELLS,
            file=f"{FOLDER}/{file.stem}.png", grid=True, found=asked_of(table, file.stem),
        )
        for file in files
    ]  # fmt: skip


def asked_of(table: Mapping[str, Sequence[Question]], key: str) -> dict[str, Any]:
    """What a record says of the questions about a prompt, so that it can be added up without the table."""
    return {"questions": [asdict(question) for question in table[key]], "first": key == next(iter(table))}


def _questions(record: Record) -> list[Question]:
    return [Question(**said | {"needs": tuple(said["needs"])}) for said in record.found["questions"]]


def standing(asked: Sequence[Question], answers: Mapping[int, float]) -> dict[int, float]:
    """Answers (1: yes) with those set to 0 whose question needs one that is 0 by now, in the order of the table."""
    held = dict(answers)
    for question in asked:
        if any(held[need] == 0 for need in question.needs):
            held[question.number] = 0.0
    return held


def value(record: Record) -> float:
    """The share of a cell's questions that hold, in percent."""
    held = standing(_questions(record), _answers(record))
    return 100 * sum(held.values()) / len(held)


def why(record: Record) -> str:
    """The questions that were denied."""
    return "; ".join(q.text for q in _questions(record) if record.found["answers"].get(str(q.number)) == "no")


def _answers(record: Record) -> dict[int, float]:
    return {int(number): float(said == "yes") for number, said in record.found["answers"].items()}


def fault(record: Record) -> str:
    """Why a judgement cannot be read; empty if it can."""
    said = record.found["answers"]
    if any(str(question.number) not in said for question in _questions(record)):
        return "questions without an answer"
    return "" if set(said.values()) <= {"yes", "no"} else "an answer that is neither yes nor no"


def score(records: Sequence[Record], expected: Mapping[str, int] = WHOLE) -> Score:
    """Add up records whose `found` has "answers", texts by the number of the question as text, and what `asked_of`
    says of the questions; `k` is the cell."""
    kept, failed = judged(records, fault)
    groups = dict[str, dict[str, list[float]]]()
    for record in kept:
        asked = _questions(record)
        held = standing(asked, _answers(record))
        for question in asked:
            for name in _categories(question):
                groups.setdefault(name, {}).setdefault(record.key, []).append(100 * held[question.number])
    ours = {name: mean(each.values(), BOUNDS) for name, each in sorted(groups.items())}
    return Score(
        benchmark="dpg", official=_official([record for record in records if not record.failed]),
        ours=ours | {"total": mean(clusters(kept, value).get("all", []), BOUNDS)},
        found=counted(kept), expected=expected, whole=WHOLE, failed=failed,
        notes=["official categories are of raw answers about the last cell alone, ours of all cells with dependencies"],
    )  # fmt: skip


def _official(records: Sequence[Record]) -> dict[str, float]:
    """The numbers of the official script, with its omissions."""
    cells = dict[str, list[Record]]()
    for record in sorted(records, key=lambda one: one.k):
        cells.setdefault(record.key, []).append(record)
    groups, prompts = dict[str, list[float]](), list[float]()
    for found in cells.values():
        asked = _questions(found[0])[found[0].found["first"] :]  # the first row of the table is dropped
        numbers = {question.number for question in asked}
        answers = [_answers(record) for record in found]
        unanswered = any(not numbers <= each.keys() for each in answers)
        if not asked or unanswered or any(need not in numbers for question in asked for need in question.needs):
            continue  # the script raises and goes on
        scores = list[float]()
        for each in answers:
            held = standing(asked, {number: each[number] for number in numbers})
            scores.append(sum(held.values()) / len(held))
        prompts.append(sum(scores) / len(scores))
        for question in asked:
            for name in _categories(question):
                groups.setdefault(name, []).append(answers[-1][question.number])
    means = {name: 100 * sum(values) / len(values) for name, values in sorted(groups.items())}
    return means | {"total": 100 * sum(prompts) / len(prompts) if prompts else float("nan")}


def _categories(question: Question) -> tuple[str, ...]:
    """The broad and the detailed category."""
    broad = question.category.split("-")[0].strip()
    return (broad,) if broad == question.category else (broad, question.category)


def imported(results: Path, checkout: Path | None) -> list[Record]:
    """Read the *_detail.txt of compute_dpg_bench.py, which has a line for every answer, with the table of the checkout.

    Raises:
        UserError: It is no such file, or it answers what the table does not ask.
    """
    if checkout is None:
        raise UserError("DPG-Bench's details are read with its questions: give checkout=FOLDER, with dpg_bench.csv")
    found, table = dict[tuple[str, int], dict[str, str]](), table_in(checkout)
    path = results_in(results, "*_detail.txt", f"{FOLDER}/*_detail.txt")
    for number, line in enumerate(lines_of(read_text(path).rstrip()), 1):
        parts = DETAIL.match(line)
        if parts is None:
            raise UserError(f"{path}, line {number}: expected file, cell, question and answer of DPG-Bench's details")
        key = PurePath(parts["file"]).name.split(".")[0]
        answers = found.setdefault((key, 2 * (int(parts["y"]) > 0) + (int(parts["x"]) > 0)), {})
        asked = [str(q.number) for q in table.get(key, []) if q.text == parts["question"]]
        new = [name for name in asked if name not in answers]  # a prompt may have the same question twice
        if not new:
            why = "is answered twice" if asked else "is not in the table"
            raise UserError(f"{path}, line {number}: this question about {key} {why}")
        answers[new[0]] = parts["answer"]
    return [
        Record(group="all", key=key, k=cell, found={"answers": said, **asked_of(table, key)})
        for (key, cell), said in found.items()
    ]
