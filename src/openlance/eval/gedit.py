"""GEdit-Bench (Liu et al., arXiv 2504.17761): real edits, judged by VIEScore (Ku et al., arXiv 2312.14867).

Rules are those of GEdit-Bench/ in github.com/stepfun-ai/Step1X-Edit, commit 570eba6. There an answer that cannot be
read becomes a random number; here it is a failure, which is counted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from openlance.errors import UserError
from openlance.eval.estimate import Estimate, macro, mean
from openlance.eval.records import Record, Score, clusters, counted, judged, number
from openlance.eval.sampling import Job, braced
from openlance.media import read_media
from openlance.media.write import encode_image

WHOLE = {
    "background_change": 40,
    "color_alter": 40,
    "material_alter": 40,
    "motion_change": 40,
    "ps_human": 70,
    "style_change": 60,
    "subject-add": 60,
    "subject-remove": 57,
    "subject-replace": 60,
    "text_change": 99,
    "tone_transfer": 40,
}  # fmt: skip  (English; a key is unique within its group alone)
COLUMNS = ("key", "task_type", "instruction", "instruction_language", "Intersection_exist", "input_image_raw")
BOUNDS = (0.0, 10.0)
MEASURES = ("semantics", "quality", "overall")


def jobs(checkout: Path, language: str = "en") -> list[Job]:
    """What is asked: the Parquet files of stepfun-ai/GEdit-Bench, downloaded into the checkout.

    Raises:
        UserError: There are none, or they are of another form.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("GEdit-Bench is read with pyarrow: pip install 'openlance[train]'") from error
    files = sorted(checkout.rglob("*.parquet"))
    if not files:
        raise UserError(f"{checkout} has no Parquet files: download the dataset stepfun-ai/GEdit-Bench into it")
    found = list[Job]()
    for file in files:
        try:
            table = pq.ParquetFile(file)
        except (OSError, ValueError) as error:  # pyarrow's own errors are either
            raise UserError(f"{file} is no Parquet file or is cut off ({error}): download it again") from None
        lacks = [name for name in COLUMNS if name not in table.schema_arrow.names]
        if lacks:
            raise UserError(f"{file} has no column {lacks[0]}: expected those of stepfun-ai/GEdit-Bench")
        number = 0
        for batch in table.iter_batches(batch_size=16, columns=list(COLUMNS[:-1])):
            for row in batch.to_pylist():
                if row["instruction_language"] == language:
                    found.append(_job(file, number, row))
                number += 1
    return found


def _job(file: Path, number: int, row: dict[str, Any]) -> Job:
    group, key, language = row["task_type"], row["key"], row["instruction_language"]
    place = f"fullset/{group}/{language}/{key}"
    source = partial(_image, file, number)
    return Job(
        group=group, key=key, task="image_edit", prompt=row["instruction"],
        media=(lambda: read_media(source(), f"{group}/{key}"),), file=braced(place) + ".png",
        beside={f"{place}_SRCIMG.png": lambda: encode_image(read_media(source(), f"{group}/{key}"))},
        found={"intersection": bool(row["Intersection_exist"])},
    )  # fmt: skip


def _image(file: Path, number: int) -> bytes:
    """The source of a row, as it was uploaded."""
    import pyarrow.parquet as pq

    table, row = pq.ParquetFile(file), number
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if number < rows:
            found = table.read_row_group(group, columns=[COLUMNS[-1]]).column(0)[number].as_py()
            if not isinstance(found, dict) or not isinstance(found.get("bytes"), bytes):
                raise UserError(f"{file}, row {row}: no image: download it again")
            return found["bytes"]
        number -= rows
    raise UserError(f"{file} has become shorter: download it again")


def combined(semantics: Sequence[float], quality: Sequence[float]) -> dict[str, float]:
    """VIEScore of one edit: the least of either kind of grades (0 to 10), and the root of their product."""
    least = {"semantics": float(min(semantics)), "quality": float(min(quality))}
    return least | {"overall": math.sqrt(least["semantics"] * least["quality"])}


def _grade(name: str, record: Record) -> float:
    grade = number(record.found[name])
    if not BOUNDS[0] <= grade <= BOUNDS[1]:
        raise ValueError(f"{name} is {grade:g}, which is 0 to 10")
    return grade


def value(record: Record) -> float:
    """The overall grade of an edit."""
    return _grade("overall", record)


def why(record: Record) -> str:
    """Its two halves, and what the judge said."""
    said = record.found.get("said", {}).values()
    return "; ".join(
        [f"{name} {record.found[name]:g}" for name in MEASURES[:2]] + [" ".join(one.split()) for one in said]
    )


def fault(record: Record) -> str:
    """Every judgement can be read."""
    return ""


def score(records: Sequence[Record], expected: Mapping[str, int] = WHOLE) -> Score:
    """Add up records whose `found` has "semantics", "quality" and "overall" of `combined`, and "intersection"."""
    kept, failed = judged(records)
    both = [record for record in kept if record.found.get("intersection")]
    ours = dict[str, Estimate]()
    for name in MEASURES:
        groups = clusters(kept, partial(_grade, name))
        if name == "overall":
            ours |= {group: mean(values, BOUNDS) for group, values in groups.items()}
        ours[name] = macro(groups, BOUNDS)
    if both:
        ours["overall, intersection"] = macro(clusters(both, value), BOUNDS)
    ours["total"] = ours.pop("overall")
    return Score(
        benchmark="gedit", official={name: one.value for name, one in ours.items()}, ours=ours,
        found=counted(kept), expected=expected, whole=WHOLE, failed=failed,
    )  # fmt: skip


def imported(folder: Path, checkout: Path | None = None, language: str = "en") -> list[Record]:
    """Read the <model>_<group>_gpt_score.csv files of test_gedit_score.py.

    Raises:
        UserError: There are none, or they are not of this form.
    """
    found, ends = list[Record](), {f"_{group}_gpt_score.csv": group for group in WHOLE}
    each = sorted(folder.rglob("*.csv")) if folder.is_dir() else [folder]
    files = {path: group for path in each for end, group in ends.items() if path.name.endswith(end)}
    if not files:
        raise UserError(
            f"{folder} has no files like MODEL_text_change_gpt_score.csv: expected eval_results_new of GEdit-Bench"
        )
    for path, group in files.items():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row["instruction_language"] != language:
                        continue
                    found.append(_imported(group, row))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not of GEdit-Bench's scorer ({type(error).__name__}: {error})") from None
    return found


def _imported(group: str, row: Mapping[str, str]) -> Record:
    """The record of a row; a row without grades is a failure."""
    said = {"intersection": row["intersection_exist"] == "True", "prompt": row["instruction"]}
    key, scores = PurePath(row["edited_image"]).stem, (row["sementics_score"], row["quality_score"])
    if any(score.strip().lower() in ("", "nan") for score in scores):
        return Record(group=group, key=key, found=said, failed="a row without scores")
    semantics, quality = map(float, scores)
    if not (0 <= semantics <= 10 and 0 <= quality <= 10):
        raise ValueError(f"{key} has the scores {semantics:g} and {quality:g}, which are 0 to 10")
    return Record(group=group, key=key, found=combined([semantics], [quality]) | said)
