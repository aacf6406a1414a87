"""What a scorer found about each result of a benchmark, and the score that records come to."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from openlance.config.values import lines_of, read_text
from openlance.errors import UserError
from openlance.eval.estimate import Estimate
from openlance.media.files import atomic_path, notice


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was found about one result.

    Args:
        group: Task, tag or category of the benchmark.
        key: Of the item within the group.
        k: Which of the item's results.
        found: What the scorer says, in the benchmark's own terms.
        failed: Why there is no judgement; empty if there is one.
    """

    group: str
    key: str
    k: int = 0
    found: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""

    def __post_init__(self) -> None:
        texts = isinstance(self.group, str) and isinstance(self.key, str) and isinstance(self.failed, str)
        if not texts or type(self.k) is not int or self.k < 0 or not isinstance(self.found, Mapping):
            raise ValueError(f"a record of {self.group!r}, {self.key!r}, {self.k!r} with fields of other types")

    @property
    def place(self) -> tuple[str, str, int]:
        """Which result it is about."""
        return self.group, self.key, self.k


@dataclass(frozen=True, kw_only=True)
class Score:
    """What records come to.

    Args:
        benchmark: Its name.
        official: The numbers of the official aggregation, by name; "total" is the headline.
        ours: Numbers with intervals; "total" is the headline.
        found: Results with a judgement, by group.
        expected: Results that were asked for, by group.
        whole: Results of the published benchmark, by group.
        failed: Reasons why there is no judgement, counted.
        notes: What a reader has to know of this score.
        made: In what its results or judgements are not those of the papers.
    """

    benchmark: str
    official: Mapping[str, float]
    ours: Mapping[str, Estimate]
    found: Mapping[str, int]
    expected: Mapping[str, int]
    whole: Mapping[str, int]
    failed: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    made: Sequence[str] = ()

    @property
    def incomplete(self) -> list[str]:
        """What is missing from what was asked for, in sentences; empty if nothing is."""
        failed = [f"{count} without a judgement: {why}" for why, count in self.failed.items()]
        return differences_of(self.found, self.expected, "judged, asked for were") + failed

    @property
    def differs(self) -> list[str]:
        """Why this is not the published benchmark; empty if it is."""
        parts = differences_of(self.expected, self.whole, "asked for, the benchmark has")
        return [*self.incomplete, *parts, *self.made]

    def as_data(self) -> dict[str, Any]:
        return asdict(self) | {"incomplete": self.incomplete, "differs": self.differs}

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Score:
        """The score of `as_data`. ValueError, KeyError, TypeError or AttributeError for anything else."""
        names = {one.name for one in fields(cls)}
        ours = {name: Estimate(**one) for name, one in data["ours"].items()}
        counts = [data[name].values() for name in ("found", "expected", "whole", "failed")]
        numbers = [data["official"].values(), *(asdict(one).values() for one in ours.values()), *counts]
        texts = [data["benchmark"], *data["notes"], *data["made"]]
        if not all(isinstance(text, str) for text in texts) or not all(
            type(one) in (int, float) for each in numbers for one in each
        ):
            raise ValueError("fields of other types")
        return cls(**{name: value for name, value in data.items() if name in names} | {"ours": ours})


def differences_of(found: Mapping[str, int], wanted: Mapping[str, int], words: str) -> list[str]:
    """Groups whose numbers are not those that are wanted, in sentences."""
    groups = dict.fromkeys([*wanted, *found])
    pairs = {group: (found.get(group, 0), wanted.get(group, 0)) for group in groups}
    return [f"{group}: {one} {words} {other}" for group, (one, other) in pairs.items() if one != other]


def judged(
    records: Iterable[Record], fault: Callable[[Record], str] = lambda record: ""
) -> tuple[list[Record], dict[str, int]]:
    """Set apart what failed, counted by its reason. What failed once and was made later, by another process, did not.

    Args:
        records: What was found.
        fault: Why a judgement cannot be read; empty if it can.

    Raises:
        UserError: Two records are about one result.
    """
    found = list(records)
    made = {record.place for record in found if not record.failed}
    # Of what failed in several processes one record is enough.
    failed_once = {record.place: record for record in found if record.failed and record.place not in made}
    told = [record for record in found if not record.failed]
    kept = [*failed_once.values(), *(replace(record, failed=fault(record)) for record in told)]
    twice = [place for place, count in Counter(record.place for record in kept).items() if count > 1]
    if twice:
        group, key, k = twice[0]
        raise UserError(
            f"{len(twice)} results are recorded twice, first {group}/{key} (result {k}): keep one record of each"
        )
    failed = Counter(record.failed for record in kept if record.failed)
    return [record for record in kept if not record.failed], dict(failed)


def items(records: Iterable[Record], value: Callable[[Record], float]) -> dict[str, dict[str, list[float]]]:
    """Values by group and item."""
    found = dict[str, dict[str, list[float]]]()
    for record in records:
        found.setdefault(record.group, {}).setdefault(record.key, []).append(value(record))
    return found


def clusters(records: Iterable[Record], value: Callable[[Record], float]) -> dict[str, list[list[float]]]:
    """Values by group, those of one item together."""
    return {group: list(each.values()) for group, each in items(records, value).items()}


def counted(records: Iterable[Record]) -> dict[str, int]:
    """Records by group."""
    return dict(Counter(record.group for record in records))


def file_in(checkout: Path, name: str, *folders: str) -> Path:
    """Find a file of a benchmark: the path itself, or in it or one of these folders of it.

    Raises:
        UserError: It is in none of them.
    """
    places = [checkout / name, *(checkout / folder / name for folder in folders)]
    found = [checkout] if checkout.name == Path(name).name and checkout.exists() else [p for p in places if p.exists()]
    if not found:
        raise UserError(
            f"{checkout} has no {name}: give checkout=FOLDER, the benchmark's own, with {folders[0]}/{name} in it"
        )
    return found[0]


class Sources:
    """Media of a checkout. Those that are missing are counted and named once; reading one says so again.

    Args:
        checkout: Folder of the benchmark.
    """

    def __init__(self, checkout: Path) -> None:
        self.checkout, self.count, self.missing = checkout, 0, list[str]()

    def path(self, name: str, *folders: str) -> Path:
        """Where a medium is, as `file_in` finds it; where it should be if it is missing."""
        self.count += 1
        try:
            return file_in(self.checkout, name, *folders)
        except UserError:
            self.missing.append(name)
            return self.checkout / name

    def tell(self) -> None:
        """Say what is missing. UserError if all of it is."""
        if not self.missing:
            return
        said = f"{self.checkout} has no {self.missing[0]}"
        if len(self.missing) == self.count:
            raise UserError(f"{said}, nor any other of its {self.count} media: unpack them there")
        notice(f"{said}; {len(self.missing)} of {self.count} media are missing, and their results will be")


def results_in(results: Path, *patterns: str) -> Path:
    """Find an official scorer's file: the path itself, or the one in it of such a name.

    Raises:
        UserError: There is none, or there are several.
    """
    found = [results] if results.is_file() else sorted(p for pattern in patterns for p in results.glob(pattern))
    if len(found) != 1:
        what = f"{len(found)} files" if found else "no file"
        raise UserError(
            f"{results} has {what} like {patterns[0]}: give the one that the official scorer wrote, or let"
            " openlance bench judge write its own"
        )
    return found[0]


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object whose keys are all different.

    Args:
        path: A file.
        what: It should be, for the error.

    Raises:
        UserError: It is missing, no such object, or has a key twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f"{len(twice)} keys occur twice, first {twice[0]!r}")
        return dict(pairs)

    text = read_text(path)
    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): expected {what}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(found).__name__}: expected {what}")
    return found


def number(value: Any) -> float:
    """A finite number. ValueError for anything else, as for the text of one."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{value!r} is no number")


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one record a line."""
    with atomic_path(path) as file:
        file.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line.

    Raises:
        UserError: There is no such file, or a line of it is none.
    """
    found = list[dict[str, Any]]()
    for at, line in enumerate(lines_of(read_text(path)), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {at}: no JSON ({error})") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}, line {at}: expected a JSON object, found {type(data).__name__}")
        found.append(data)
    return found


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote.

    Raises:
        UserError: It is no file of records.
    """
    found = list[Record]()
    for data in read_lines(path):
        try:
            found.append(Record(**data))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is no file of records ({error}): let openlance bench write it anew") from None
    return found
