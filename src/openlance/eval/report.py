"""Results of runs beside each other and beside the rows that papers print: what a report says, and its Markdown.

    text = markdown(sections([Path("results/geneval"), Path("results/geneval-50-steps")]))

The page with images is `report_page.page`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from openlance.config.values import differences
from openlance.errors import UserError
from openlance.eval.benchmarks import BENCHMARKS, records_of, score_of
from openlance.eval.estimate import Difference, Estimate, paired
from openlance.eval.judging import read_who
from openlance.eval.published import Published, published
from openlance.eval.records import Record, Score, items, judged, number, read_object, read_records
from openlance.eval.sampling import MANIFEST, Job, braced, check_inside, read_items, read_manifest
from openlance.eval.suite import HELDOUT, Row, summary, with_second

WORLD = "world "  # before the names of suites of our own
SAME = 0.0005  # of a scale: official and our numbers that differ by less are printed once


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One run on one benchmark.

    Args:
        name: What a report calls it.
        score: What it came to.
        records: Its judgements; empty where a score alone is known.
        folder: Of its results.
        jobs: What was asked, by group and key.
        made: How, as far as the folder says.
    """

    name: str
    score: Score
    records: Sequence[Record] = ()
    folder: Path | None = None
    jobs: Mapping[tuple[str, str], Job] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def value(self, record: Record) -> float:
        """What a record adds to the mean of its group."""
        one = BENCHMARKS.get(self.score.benchmark)
        return one.rules.value(record) if one else float(record.found["right"])

    def why(self, record: Record) -> str:
        """What was said of it."""
        if record.failed:
            return f"not judged: {record.failed}"
        one = BENCHMARKS.get(self.score.benchmark)
        if one:
            return one.rules.why(record)
        return "; ".join(f"{name}: {said}" for name, said in record.found.items() if name not in HEADING and said)

    def heading(self, record: Record) -> str:
        """What was asked."""
        job = self.jobs.get(record.place[:2])
        said = [record.found.get(name) for name in ASKED] + [job.prompt if job else "", record.key]
        return next(str(text) for text in said if text)

    @cached_property
    def places(self) -> dict[tuple[str, str, int], Record]:
        """Its records by what they are about."""
        return {record.place: record for record in self.records}

    @cached_property
    def judged(self) -> list[Record]:
        """Its records with a judgement that can be read."""
        one = BENCHMARKS.get(self.score.benchmark)
        return judged(self.records, one.rules.fault if one else lambda record: "")[0]

    @cached_property
    def values(self) -> dict[tuple[str, str, int], float]:
        """Their values, by what they are about."""
        return {record.place: self.value(record) for record in self.judged}

    @cached_property
    def means(self) -> dict[str, dict[str, float]]:
        """Means of its items, by group and key."""
        found = items(self.judged, self.value)
        return {group: {k: sum(v) / len(v) for k, v in each.items()} for group, each in found.items()}


ASKED = ("prompt", "question", "instruction")  # what a record calls it
HEADING = (*ASKED, "file", "right", "second")  # of a record of a suite of our own: shown elsewhere


@dataclass(frozen=True, kw_only=True)
class Section:
    """The runs on one benchmark, and what papers print."""

    title: str
    unit: str
    runs: Sequence[Evaluated]
    rows: Sequence[Published] = ()

    @property
    def printed(self) -> list[Published]:
        """Rows with sub-scores, which stand beside those of runs."""
        return [row for row in self.rows if row.values]

    @property
    def scale(self) -> tuple[float, float]:
        """Least and greatest value that there can be."""
        return {"share": (0.0, 1.0), "of 10": (0.0, 10.0), "of 5": (1.0, 5.0)}.get(self.unit, (0.0, 100.0))

    @property
    def names(self) -> list[str]:
        """Of its numbers: the groups, then totals."""
        groups = [name for row in self.rows for name in row.values]
        groups += [name for run in self.runs for name in [*run.score.ours, *run.score.official]]
        totals = [name for row in self.rows for name in row.totals]
        return [name for name in dict.fromkeys(groups) if name not in totals and name != "total"] + [
            name for name in dict.fromkeys([*totals, "total"]) if name != "total"
        ] + ["total"]  # fmt: skip

    def said(self, value: float) -> str:
        """A number as this benchmark prints it."""
        return "" if math.isnan(value) else f"{value:.{3 if self.unit == 'share' else 2}f}"

    def ours(self, run: Evaluated, name: str) -> Estimate | None:
        """A number of ours, if there is one."""
        found = run.score.ours.get(name)
        return None if found is None or math.isnan(found.value) else found

    def official(self, run: Evaluated, name: str) -> str:
        """The official number where it is another than ours."""
        value, ours = run.score.official.get(name), self.ours(run, name)
        low, high = self.scale
        same = value is None or (ours is not None and abs(ours.value - value) < SAME * (high - low))
        return "" if same or value is None else self.said(value)

    @property
    def pairs(self) -> list[tuple[Evaluated, dict[str, Difference]]]:
        """Each further run against the first, on the items of both."""
        first, *others = self.runs
        found = [(other, _compared(first, other)) for other in others]
        return [(other, each) for other, each in found if each]

    @property
    def settings(self) -> dict[str, list[str]]:
        """In what the runs were made differently: their values, by name."""
        told = [run.made for run in self.runs if run.made]
        names = dict.fromkeys(name for one in told for other in told for name in differences(one, other))
        return {name: [_shown(run.made, name) for run in self.runs] for name in names if name != "versions"}


def _shown(made: Mapping[str, Any], name: str) -> str:
    value: Any = made
    for part in name.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return value if isinstance(value, str) else json.dumps(value)


def _compared(first: Evaluated, other: Evaluated) -> dict[str, Difference]:
    one, two = first.means, other.means
    found = {group: paired({group: one[group]}, two) for group in one}
    found = {group: difference for group, difference in found.items() if difference.n}
    if len(found) > 1 and first.score.benchmark != "vbench":  # whose total is no mean of its groups
        found["total"] = paired({group: each for group, each in one.items() if group != HELDOUT}, two)
    return found


def sections(given: Sequence[str], checkout: Path | None = None) -> list[Section]:
    """Read results: folders of `openlance bench sample`, files of official scorers as BENCH=PATH, and JSON of
    `openlance bench score` and of suites of our own.

    Raises:
        UserError: For what is none of these.
    """
    runs = [run for text, name in zip(given, _names(given)) for run in _read(text, name, checkout)]
    found = list[Section]()
    for benchmark in dict.fromkeys(run.score.benchmark for run in runs):
        known = BENCHMARKS.get(benchmark)
        found.append(
            Section(
                title=known.title if known else benchmark, unit=known.unit if known else "share",
                runs=[run for run in runs if run.score.benchmark == benchmark],
                rows=[row for row in published() if row.benchmark == benchmark],
            )
        )  # fmt: skip
    return found


def _names(given: Sequence[str]) -> list[str]:
    """What to call each: the last part of its path, and more where that is not enough."""
    paths = [Path(text.rpartition("=")[2]).absolute() for text in given]
    twice = [text for text, path in zip(given, paths) if paths.count(path) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: give every run once")
    alike = len({path.with_suffix("") for path in paths}) < len(paths)
    parts = [path.parts if alike else (*path.parent.parts, path.name.removesuffix(".json")) for path in paths]
    depths = range(1, max(map(len, parts), default=0) + 1)
    return next(names for depth in depths if len(set(names := ["/".join(p[-depth:]) for p in parts])) == len(parts))


def _read(text: str, name: str, checkout: Path | None) -> list[Evaluated]:
    benchmark, mark, place = text.partition("=")
    if not mark or benchmark not in BENCHMARKS:
        benchmark, place = "", text
    path = Path(place)
    if not path.exists():
        raise UserError(
            f"there is no {path}: give a folder of openlance bench sample, or BENCH=PATH of official results"
        )
    folder = path if path.is_dir() else path.parent
    if not benchmark and path.is_file():
        return _from_json(path, name)
    made = read_manifest(folder)
    benchmark = benchmark or made.get("benchmark", "")
    if not benchmark:
        raise UserError(f"{path} has no {MANIFEST}: say whose results it has, for example geneval={path}")
    made |= {"judge": who} if (who := read_who(folder)) else {}
    if benchmark not in BENCHMARKS:
        return _from_suite(benchmark, folder, name, made)
    records = records_of(benchmark, path, checkout)
    score = score_of(benchmark, records, folder, checkout)
    return [
        Evaluated(name=name, score=score, records=records, folder=folder, jobs=read_items(folder), made=made)
    ]  # fmt: skip


def _from_json(path: Path, name: str) -> list[Evaluated]:
    wanted = "the JSON of openlance bench score or bench world"
    data = read_object(path, wanted)
    try:
        if "benchmark" in data:
            return [Evaluated(name=name, score=Score.of_data(data))]
        runs = {task: Evaluated(name=name, score=_of_rows(task, rows)) for task, rows in data.items()}
        return [one for task, run in runs.items() for one in _both(run, data[task])]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not {wanted} ({type(error).__name__}: {error})") from None


def _from_suite(benchmark: str, folder: Path, name: str, made: Mapping[str, Any]) -> list[Evaluated]:
    """Images and verdicts of a suite of our own: one benchmark for each of its tasks."""
    tasks = dict[str, list[Record]]()
    file = folder / "records.jsonl"
    for record in read_records(file):
        tasks.setdefault(record.group.partition(" ")[0], []).append(record)
    try:
        return [one for task, records in tasks.items() for one in _task(task, records, folder, name, made)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        said = f"{file} is of no suite of ours ({type(error).__name__}: {error})"
        raise UserError(f"{said}: expected a folder of images that openlance bench world wrote") from None


def _task(task: str, given: Sequence[Record], folder: Path, name: str, made: Mapping[str, Any]) -> list[Evaluated]:
    right, pairs = dict[str, list[bool]](), dict[str, list[tuple[bool, bool]]]()
    records = [replace(record, group=record.group.partition(" ")[2]) for record in judged(given)[0]]
    for record in records:
        said, second = record.found["right"], record.found.get("second", False)
        if not (isinstance(said, bool) and isinstance(second, bool)):
            raise ValueError(f"{record.key} is not said to be right or wrong")
        check_inside(record.found["file"])
        right.setdefault(record.group, []).append(said)
        if "second" in record.found:
            pairs.setdefault(record.group, []).append((said, second))
    rows = with_second(summary(right), pairs)
    jobs = {
        (r.group, r.key): Job(group=r.group, key=r.key, task="", prompt="", file=braced(r.found["file"]))
        for r in records
    }
    score = _of_rows(task, rows)
    asked = {
        group.partition(" ")[2]: n for group, n in made.get("expected", {}).items() if group.startswith(f"{task} ")
    }
    score = replace(score, expected=asked or score.expected, whole=asked or score.whole)
    return _both(Evaluated(name=name, score=score, records=records, folder=folder, jobs=jobs, made=made), rows)


def _both(first: Evaluated, rows: Mapping[str, Row]) -> list[Evaluated]:
    """A run by its first judge and, where there is one, by the second, as if it were another run."""
    own = {name: row["second"] for name, row in rows.items() if "second" in row}
    if not own:
        return [first]
    agree = rows["mean"]["agree"]
    score = _of_rows(first.score.benchmark.removeprefix(WORLD), own)
    judged_, whole = sum(score.found.values()), sum(first.score.found.values())
    low, high = (f"{bound:.3f}" for bound in agree["ci95"])
    note = (
        f"it can judge {judged_} of {whole} results, and these scores are of them alone; of {agree['n']} in its total"
    )
    note += f" it says of {agree['mean']:.3f} ({low} to {high}) what {first.name}'s judge says"
    said = [replace(r, found={**r.found, "right": r.found["second"]}) for r in first.records if "second" in r.found]
    return [first, replace(first, name=f"{first.name}, second judge", records=said, score=replace(score, notes=[note]))]


def _of_rows(task: str, rows: Mapping[str, Row]) -> Score:
    ours = {
        "total" if name == "mean" else name: Estimate(
            value=number(row["mean"]), low=number(row["ci95"][0]), high=number(row["ci95"][1]), n=int(number(row["n"]))
        )
        for name, row in rows.items()
    }
    counts = {name: one.n for name, one in ours.items() if name != "total"}
    return Score(benchmark=f"{WORLD}{task}", official={}, ours=ours, found=counts, expected=counts, whole=counts)


# Markdown.


def cells(*values: str) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def markdown(found: Sequence[Section], title: str = "Scores") -> str:
    """The tables of a report."""
    return "\n\n".join([f"# {title}", *("\n\n".join(_section(one)) for one in found)]) + "\n"


def _section(one: Section) -> list[str]:
    columns = ["", *(f"{run.name} (95 %)" for run in one.runs), *(f"{row.model}, printed" for row in one.printed)]
    lines = [cells(*columns), cells(*["---"] * len(columns))]
    for name in one.names:
        own = [_cell(one, run, name) for run in one.runs]
        printed = [({**row.values, **row.totals}).get(name) for row in one.printed]
        lines.append(cells(name, *own, *("" if value is None else f"{value:g}" for value in printed)))
    parts = [
        f"## {one.title}",
        "\n".join(lines),
        f"Unit: {one.unit}. In brackets: the official number where it differs.",
    ]
    for run in one.runs:
        said = verdict(run.score) if one.rows else f"{sum(run.score.found.values())} results judged"
        parts.append("\n".join([f"{run.name}: {said}", "", *(f"- {why}" for why in reasons(run.score))]).rstrip())
    if one.rows:
        parts.append("\n".join(["Printed totals:", "", *(f"- {line}" for line in recomputed(one))]))
    if one.settings:
        head = ["made with", *(run.name for run in one.runs)]
        rows = [cells(name, *values) for name, values in one.settings.items()]
        parts.append("\n".join([cells(*head), cells(*["---"] * len(head)), *rows]))
    for other, differences_ in one.pairs:
        head = [f"{other.name} less {one.runs[0].name}", "difference", "95 %", "p", "items"]
        rows = [cells(*paired_cells(one, name, d)) for name, d in differences_.items()]
        parts.append("\n".join([cells(*head), cells(*["---"] * len(head)), *rows]))
    return parts


def _cell(one: Section, run: Evaluated, name: str) -> str:
    ours, official = one.ours(run, name), one.official(run, name)
    if ours is None:
        return f"[{official}]" if official else ""
    spread = "" if math.isnan(ours.low) else f" ({one.said(ours.low)} to {one.said(ours.high)})"
    return one.said(ours.value) + spread + (f" [{official}]" if official else "")


def paired_cells(one: Section, name: str, d: Difference) -> list[str]:
    """One line of the table of differences."""
    spread = "" if math.isnan(d.low) else f"{one.said(d.low)} to {one.said(d.high)}"
    sign = "+" if d.value > 0 else ""
    return [name, sign + one.said(d.value), spread, f"{d.p:.3f}" if d.p >= 0.001 else "< 0.001", str(d.n)]


def verdict(score: Score) -> str:
    """Whether it may stand beside published rows."""
    return "comparable with the published rows" if not score.differs else "not comparable with the published rows"


def reasons(score: Score) -> list[str]:
    """Why it may not, and what a reader has to know."""
    return [*score.differs, *(f"note: {note}" for note in score.notes)]


def recomputed(one: Section) -> list[str]:
    """Whether the totals that are printed follow from the printed parts."""
    lines = list[str]()
    for row in one.rows:
        wrong = [
            f"{name} {printed:g} is printed, {follows:.2f} follows"
            for name, (printed, follows) in row.differences.items()
        ]
        right = [f"{name} {value:g} follows" for name, value in row.totals.items() if name not in row.differences]
        lines.append(f"{row.model} ({row.source}): {', '.join([*right, *wrong])}")
    if one.runs[0].score.benchmark == "dpg":
        lines.append("the total of DPG-Bench is of other answers than its categories: what follows is their mean")
    return lines
