"""Nobody asks which task is running: what a token does follows from its segment, and only the templates know tasks.

A lookup by name (`TASKS[name]`, a command of that name) is fine; a comparison, a `match` case or a `startswith` is not.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "openlance"
TEMPLATES = PACKAGE / "sequence" / "tasks.py"
ALIASES = {"t2t", "vqa", "idip", "subject", "i2t", "v2t", "x2t"}
AFFIX = {"startswith", "endswith", "removeprefix", "removesuffix", "__contains__", "__eq__", "fullmatch", "find"}


def task_names() -> set[str]:
    """Keys of the table of tasks and the names of the templates in it, read from the source itself."""
    table = next(
        node.value
        for node in ast.parse(TEMPLATES.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TASKS"
    )
    return {key.value for key in table.keys} | {ast.unparse(value) for value in table.values} | ALIASES


NAMES = task_names()


def strings(node: ast.AST) -> set[str]:
    """Whole string constants below a node; a name inside a longer sentence is not one."""
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def names_in_tests(source: str) -> list[str]:
    """`line: code` of every place where a value is tested against the name of a task."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            hit = any(strings(side) & NAMES for side in sides if not isinstance(side, (ast.Subscript, ast.Call)))
        elif isinstance(node, ast.MatchValue):
            hit = bool(strings(node) & NAMES)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in AFFIX:
            given = {text.strip("_") for arg in node.args for text in strings(arg)}
            hit = any(len(text) > 2 and text in NAMES for text in given)
        else:
            continue
        if hit:
            found.append(f"{getattr(node, 'lineno', node)}: {ast.unparse(node)}")
    return found


FILES = [p.relative_to(PACKAGE).as_posix() for p in sorted(PACKAGE.rglob("*.py")) if p != TEMPLATES]


@pytest.mark.parametrize("path", FILES)
def test_no_task_is_tested_outside_the_templates(path):
    assert names_in_tests((PACKAGE / path).read_text(encoding="utf-8")) == []


def test_the_names_are_read_from_the_templates():
    assert {"t2i", "t2v", "i2v", "image_edit", "x2t_image", "x2t_video", "text_to_visual"} <= NAMES


@pytest.mark.parametrize(
    "source",
    [
        "if task == 't2i': pass",
        "x = 1 if 'i2v' != kind else 2",
        "if task in ('t2v', 'video_edit'): pass",
        "while not (a or task in {'x2t_image'}): pass",
        "match task:\n    case 'image_edit': pass",
        "match task:\n    case 'a' | 't2i': pass",
        "if task.startswith('x2t_'): pass",
    ],
)
def test_a_tested_name_is_found(source):
    assert names_in_tests(source)


@pytest.mark.parametrize(
    "source",
    ["make = TASKS['t2i']", "table = {'t2i': draw}", "if len(TASKS['t2i']) > 2: pass", "print('t2i == fine')"],
)
def test_a_lookup_is_fine(source):
    assert not names_in_tests(source)
