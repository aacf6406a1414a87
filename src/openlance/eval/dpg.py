"""DPG-Bench (Hu et al., arXiv 2403.05135): dense prompts, asked about question by question.

Rules are those of dpg_bench/compute_dpg_bench.py of github.com/TencentQQGYLab/ELLA, commit 3c228f1. It leaves the
first row of the table out, takes categories from the raw answers about the last cell of a grid, and skips what fails;
"official" repeats that, "ours" does not.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from openlance.config.values import lines_of, read_text
from openlance.errors import UserError
from openlance.eval.estimate import Estimate, mean
from openlance.eval.records import Record, Score, counted, file_in, judged
from openlance.eval.sampling import Job

PROMPTS = 1065
CELLS = 4  # images of one prompt, in a grid of 2 x 2, read line by line
WHOLE = {"all": CELLS * PROMPTS}
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
        UserError: There are none.
    """
    folder = file_in(checkout, "prompts", "dpg_bench")
    files = sorted(folder.glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise UserError(f"{folder} has no prompts: expected dpg_bench/prompts/*.txt of ELLA")
    return [
        Job(
            group="all", key=file.stem, task="t2i", prompt=read_text(file).strip(), samples=CELLS,
            file=f"{file.stem}.png", grid=True,
        )
        for file in files
    ]  # fmt: skip


def standing(asked: Sequence[Question], answers: Mapping[int, float]) -> dict[int, float]:
    """Answers (1: yes) with those set to 0 whose question needs one that is 0 by now, in the order of the table."""
    held = dict(answers)
    for question in asked:
        if any(held[need] == 0 for need in question.needs):
            held[question.number] = 0.0
    return held


def score(
    records: Sequence[Record], table: Mapping[str, Sequence[Question]], expected: Mapping[str, int] = WHOLE
) -> Score:
    """Add up records whose `found` has "answers", texts by the number of the question as text; `k` is the cell."""
    cells, answered = dict[str, dict[int, dict[int, float]]](), list[Record]()
    for record in records:
        if record.key not in table:
            raise UserError(f"{record.key} is no prompt of the table of questions: give the table that was asked")
        if not record.failed:
            answers = {int(number): float(said == "yes") for number, said in record.found["answers"].items()}
            cells.setdefault(record.key, {})[record.k] = answers
            if any(question.number not in answers for question in table[record.key]):
                record = replace(record, failed="questions without an answer")
        answered.append(record)
    kept, failed = judged(answered)
    whole = {key: {k: cells[key][k] for k in ks} for key, ks in _cells_of(kept).items()}
    ours, prompts = _ours(whole, table)
    return Score(
        benchmark="dpg", official=_official(cells, table), ours=ours | {"total": mean(prompts).scaled(100)},
        found=counted(kept), expected=expected, whole=WHOLE, failed=failed,
        notes=["official categories are of raw answers about the last cell alone, ours of all cells with dependencies"],
    )  # fmt: skip


def _cells_of(records: Sequence[Record]) -> dict[str, list[int]]:
    found = dict[str, list[int]]()
    for record in records:
        found.setdefault(record.key, []).append(record.k)
    return found


def _ours(
    cells: Mapping[str, Mapping[int, Mapping[int, float]]], table: Mapping[str, Sequence[Question]]
) -> tuple[dict[str, Estimate], list[list[float]]]:
    """Categories, and the scores of every prompt's cells."""
    groups, prompts = dict[str, dict[str, list[float]]](), list[list[float]]()
    for key, found in cells.items():
        scores = list[float]()
        for answers in found.values():
            held = standing(table[key], answers)
            scores.append(sum(held.values()) / len(held))
            for question in table[key]:
                for name in _categories(question):
                    groups.setdefault(name, {}).setdefault(key, []).append(held[question.number])
        prompts.append(scores)
    return {name: mean(items.values()).scaled(100) for name, items in sorted(groups.items())}, prompts


def _official(
    cells: Mapping[str, Mapping[int, Mapping[int, float]]], table: Mapping[str, Sequence[Question]]
) -> dict[str, float]:
    """The numbers of the official script, with its omissions."""
    first = next(iter(table))
    groups, prompts = dict[str, list[float]](), list[float]()
    for key, found in cells.items():
        asked = list(table[key])[1:] if key == first else list(table[key])
        numbers = {question.number for question in asked}
        unanswered = any(not numbers <= answers.keys() for answers in found.values())
        if not asked or unanswered or any(need not in numbers for question in asked for need in question.needs):
            continue  # the script raises and goes on
        scores = list[float]()
        for _, answers in sorted(found.items()):
            held = standing(asked, {number: answers[number] for number in numbers})
            scores.append(sum(held.values()) / len(held))
        prompts.append(sum(scores) / len(scores))
        last = found[max(found)]
        for question in asked:
            for name in _categories(question):
                groups.setdefault(name, []).append(last[question.number])
    means = {name: 100 * sum(values) / len(values) for name, values in sorted(groups.items())}
    return means | {"total": 100 * sum(prompts) / len(prompts) if prompts else float("nan")}


def _categories(question: Question) -> tuple[str, ...]:
    """The broad and the detailed category."""
    broad = question.category.split("-")[0].strip()
    return (broad,) if broad == question.category else (broad, question.category)


def imported(path: Path, table: Mapping[str, Sequence[Question]]) -> list[Record]:
    """Read the *_detail.txt of compute_dpg_bench.py, which has a line for every answer.

    Raises:
        UserError: It is no such file, or it answers what the table does not ask.
    """
    found = dict[tuple[str, int], dict[str, str]]()
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
    return [Record(group="all", key=key, k=cell, found={"answers": said}) for (key, cell), said in found.items()]
