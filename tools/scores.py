"""Write nano's scores into README and docs: `python tools/scores.py` fills what stands between <!-- scores --> marks.

Every number is read from the newest result in benchmarks/results, and a test holds the pages to that. Run it after
`benchmarks/nano.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/nano.md")
# What is done, its command and Python, and its scores: a task of the benchmark, and how objects are placed.
ROWS = (
    ("answer questions about images; about videos", "`ask`, `caption`", "vqa free", "video_vqa free"),
    ("draw an image from a prompt; where objects stand as usual", "`generate t2i`", "t2i free", "t2i loose"),
    ("edit an image; in a region that is given", "`edit`", "image_edit free", "image_inpaint free"),
    ("edit a video", "`edit`", "video_edit free"),
    ("make a video from a prompt", "`generate t2v`", "t2v free"),
    ("animate an image, also to a last frame", "`generate i2v`, `flf2v`", "i2v free"),
    ("continue an image beyond its borders; a video to either side", "`generate outpaint`, `generate extend`",
     "outpaint free", "extend free"),
    ("place a given subject in a new scene", "`generate subject`", "subject free"),
    ("a dialogue of three turns, all of them right", "`chat`, `story`", "multi_turn free"),
)  # fmt: skip


def newest(name: str) -> dict[str, Any]:
    """The newest dated result of a benchmark."""
    dated = re.compile(rf"\d{{4}}-\d\d-\d\d-{re.escape(name)}\.json")
    path = max(path for path in RESULTS.iterdir() if dated.fullmatch(path.name))
    return json.loads(path.read_text("utf-8"))


def score(found: dict[str, Any], task: str, placement: str) -> str:
    """A share of right results, with two digits."""
    sizes = (row for row in found["rows"] if row["placement"] == placement and row["size"] == "64x64")
    return next(f"{row['scores'][task]['mean']['mean']:.2f}" for row in sizes if task in row["scores"])


def table() -> str:
    """The tasks with nano's share of right results."""
    found = newest("nano")
    lines = ["| what | command and Python | nano: share right |", "|---|---|---|"]
    for what, command, *scored in ROWS:
        shares = "; ".join(score(found, *one.split()) for one in scored)
        lines.append(f"| {what} | {command} | {shares} |")
    return "\n".join(lines)


def filled(page: str, made: Callable[[], str] = table) -> str:
    """A page with its table as the results have it."""
    return re.sub(r"(?s)(<!-- scores -->\n).*?(?=<!-- /scores -->)", lambda m: f"{m[1]}{made()}\n", page)


def main() -> None:
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
