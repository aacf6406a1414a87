"""What the pages say was measured stands in benchmarks/results: shares, times, memory and percentages in sentences.

Tables between `<!-- name -->` marks are written by scripts from the results, and have tests of their own. A number in a
sentence is looked for in the results that its section links to; in the log, which covers them all, in any of them. What
is no measurement (a setting, a size, a convention), or not one of a benchmark, is named in OTHERS.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SPEC = importlib.util.spec_from_file_location("tools_words", ROOT / "tools" / "words.py")
words = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(words)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)
LINK = re.compile(r"\((?:\.\./)*benchmarks/results/([\w.-]+?)\.(?:md|json|svg)\)")
# A share with two or more digits, or a number with a unit in which something is measured.
UNITS = {"%": 100, "points": 100, "ms": 1e3, "s": 1, "seconds": 1, "minutes": 1 / 60, "dB": 1, "GB": 1e-9, "MB": 1e-6,
         "KB": 1e-3}  # fmt: skip
MEASURED = re.compile(
    rf"(?<![\w.,/-])(?:(0\.\d\d+)(?![\w.]*\w)|(\d[\d,]*(?:\.\d+)?) ?(?:CPU )?({'|'.join(UNITS)})(?!\w))"
)


def blank(match):
    return re.sub(r"[^\n]", " ", match[0])


def sections(page):
    """(first line, text without code, names of linked results) of the sections of a page."""
    line = 1
    for part in re.split(r"(?m)^(?=#)", page.read_text("utf-8")):
        links = set(LINK.findall(part))
        yield line, words.CODE.sub(blank, MADE.sub(blank, part)), links
        line += part.count("\n")


def measured(page):
    """(line, number, unit, names of linked results) of everything that reads as measured."""
    for line, text, links in sections(page):
        for found in MEASURED.finditer(text):
            yield line + text.count("\n", 0, found.start()), found[1] or found[2], found[3] or "", links


def values(found):
    """Every number of a JSON value, those in its strings (printed tables) included."""
    if isinstance(found, dict):
        yield from (one for value in found.values() for one in values(value))
    elif isinstance(found, list):
        yield from (one for value in found for one in values(value))
    elif isinstance(found, str):
        yield from (float(one.replace(",", "")) for one in re.findall(r"\d[\d,]*(?:\.\d+)?", found))
    elif isinstance(found, (int, float)):
        yield float(found)


def numbers(name):
    """The numbers of a result, from its data and from its table."""
    for path in RESULTS.glob(f"{name}.*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text("utf-8")
            yield from values(json.loads(text) if path.suffix == ".json" else text)


def stands(number, unit, pool):
    """Whether a number is one of a pool, rounded as it is printed."""
    value, digits = float(number.replace(",", "")), len(number.partition(".")[2])
    return any(
        abs(one * scale - value) <= 0.5 * 10**-digits + 1e-9 for one in pool for scale in {1, UNITS.get(unit, 1)}
    )


# Page: number: what it is, or what measured it.
OTHERS: dict[str, dict[str, str]] = {
    "every page": {
        "95 %": "the level of every interval",
        **dict.fromkeys(
            ("12 GB", "16 GB", "24 GB"), "sizes of GPUs, held to `openlance plan` by the table between fit marks"
        ),
    },
    "docs/compatibility.md": {
        "8 MB": "the limit for tests/golden",
        **dict.fromkeys(("0.81", "0.93", "0.89"), "openlance verify on the vectors at full precision"),
        "8 %": "openlance verify on the golden vectors: guided velocities, cached and uncached",
    },
    "docs/evaluation.md": {"40 %": "the share of a peak that benchmarks/cost.py assumes"},
    "docs/howto/checking.md": {"0.98": "a setting"},
    "docs/howto/checkpoints.md": dict.fromkeys(("18 GB", "11.4 GB"), "openlance plan, as in tutorials/released-3b.md"),
    "docs/howto/data.md": {"0.001": "the default of --max-broken"},
    "docs/howto/serving.md": {**dict.fromkeys(("5 %", "2 %"), "settings of benchmarks/soak.py")},
    "docs/howto/speed.md": {"36 KB": "36 layers, keys and values, 2 heads of 128 numbers, 2 bytes"},
    "docs/howto/stages.md": dict.fromkeys(("0.25", "0.05", "0.95"), "settings of the recipes"),
    "docs/nano.md": dict.fromkeys(("3 %", "15 %"), "settings of the world's placement"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_was_measured_stands_in_the_results(page):
    name = page.relative_to(ROOT).as_posix()
    every = {path.stem for path in RESULTS.iterdir()} if name == "docs/log.md" else set()
    known, lost = OTHERS["every page"] | OTHERS.get(name, {}), []
    pools = {}
    for line, number, unit, links in measured(page):
        if f"{number} {unit}".strip() in known:
            continue
        of = frozenset(links | every)
        if of not in pools:
            pools[of] = {one for stem in of for one in numbers(stem)}
        if not stands(number, unit, pools[of]):
            lost.append(f"{name}:{line}: {number} {unit}")
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_named_is_there(name):
    pages = PAGES if name == "every page" else [ROOT / name]
    there = {f"{number} {unit}".strip() for page in pages for _, number, unit, _ in measured(page)}
    assert set(OTHERS[name]) <= there


def test_a_number_that_no_result_has_is_found():
    pool = list(numbers("2026-11-25-foreign"))
    assert stands("300", "", pool) and stands("0.86", "", pool) and stands("86", "%", pool)
    assert not stands("0.84", "", pool) and not stands("3.7", "points", pool)
