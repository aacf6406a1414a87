"""Lists of names in pages and helps are those of the registries."""

import re
from pathlib import Path

from openlance.sequence.tasks import TASKS
from toyworld.suites.bench import SUITES
from toyworld.suites.world_command import world

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tasks_in_the_first_pages_are_all_there_are():
    found = re.search(r"Tasks: `([^`]*)`", (DOCS / "start.md").read_text(encoding="utf-8"))
    assert found is not None and sorted(found[1].split()) == sorted(TASKS)


def test_every_suite_is_in_the_help_and_on_the_page():
    page = (
        (DOCS / "evaluation.md")
        .read_text(encoding="utf-8")
        .partition("## Suites of nano's world")[2]
        .partition("\n## ")[0]
    )
    said = set(re.findall(r"[a-z0-9_.]+", (world.__doc__ or "").partition("What is drawn")[0]))
    assert set(re.findall(r"`([^`]+)`", page)) - {"t2i", "t2v"} == set(SUITES) - {"t2i", "t2v"}
    assert {name.strip(".") for name in said} >= set(SUITES)
