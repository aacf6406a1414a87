"""GEdit-Bench (Liu et al., arXiv 2504.17761): real edits, judged by VIEScore (Ku et al., arXiv 2312.14867).

Rules are those of GEdit-Bench/ in github.com/stepfun-ai/Step1X-Edit, commit 570eba6. There an answer that cannot be
read becomes a random number; here it is a failure, which is counted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from openlance.errors import UserError
from openlance.eval.estimate import Estimate, macro, mean
from openlance.eval.records import Record, Score, clusters, counted, judged

GROUPS = {
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
BOUNDS = (0.0, 10.0)
MEASURES = ("semantics", "quality", "overall")


def combined(semantics: Sequence[float], quality: Sequence[float]) -> dict[str, float]:
    """VIEScore of one edit: the least of either kind of grades (0 to 10), and the root of their product."""
    least = {"semantics": float(min(semantics)), "quality": float(min(quality))}
    return least | {"overall": math.sqrt(least["semantics"] * least["quality"])}


def score(records: Sequence[Record], expected: Mapping[str, int] = GROUPS) -> Score:
    """Add up records whose `found` has "semantics", "quality" and "overall" of `combined`, and "intersection"."""
    kept, failed = judged(records)
    both = [record for record in kept if record.found.get("intersection")]
    ours = dict[str, Estimate]()
    for name in MEASURES:
        groups = clusters(kept, name)
        if name == "overall":
            ours |= {group: mean(values, BOUNDS) for group, values in groups.items()}
        ours[name] = macro(groups, BOUNDS)
    if both:
        ours["overall, intersection"] = macro(clusters(both, "overall"), BOUNDS)
    ours["total"] = ours.pop("overall")
    return Score(
        benchmark="gedit", official={name: one.value for name, one in ours.items()}, ours=ours,
        found=counted(kept), expected=expected, whole=GROUPS, failed=failed,
    )  # fmt: skip


def imported(folder: Path, language: str = "en") -> list[Record]:
    """Read the <model>_<group>_gpt_score.csv files of test_gedit_score.py.

    Raises:
        UserError: There are none, or they are not of this form.
    """
    found, ends = list[Record](), {f"_{group}_gpt_score.csv": group for group in GROUPS}
    files = {
        path: group for path in sorted(folder.glob("*.csv")) for end, group in ends.items() if path.name.endswith(end)
    }
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
                    grades = combined([float(row["sementics_score"])], [float(row["quality_score"])])
                    shared = row["intersection_exist"] == "True"
                    key = PurePath(row["edited_image"]).stem
                    found.append(Record(group=group, key=key, found=grades | {"intersection": shared}))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not of GEdit-Bench's scorer ({type(error).__name__}: {error})") from None
    return found
