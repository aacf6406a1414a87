"""Nobody asks which task is running: what a token does follows from its segment, and only the templates know tasks.

A lookup by name (`TASKS[name]`, a command of that name) is fine; a comparison, a `match` case or a `startswith` is not.
"""

import ast
from pathlib import Path

import pytest

from openlance.sequence.tasks import TASKS

PACKAGE = Path(__file__).parents[1] / "src" / "openlance"
TEMPLATES = PACKAGE / "sequence" / "tasks.py"
ALIASES = {"t2t", "vqa", "idip", "subject", "i2t", "v2t", "x2t"}
AFFIX = {"startswith", "endswith", "removeprefix", "removesuffix", "__contains__", "__eq__", "fullmatch", "find"}
NAMES = set(TASKS) | {spec.template.__name__ for spec in TASKS.values()} | ALIASES


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


def tables_of_tasks(source: str) -> list[str]:
    """`line: keys` of every table keyed by two or more names of tasks. Weights of a mixture are no table of tasks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        keys: list[ast.AST | None] = []
        if isinstance(node, ast.Dict):
            numbers = all(isinstance(v, ast.Constant) and isinstance(v.value, (int, float)) for v in node.values)
            keys = [] if numbers else list(node.keys)
        elif isinstance(node, ast.Call):  # dict(t2i=...), dict.fromkeys(("t2i", "t2v")), dict([("t2i", ..)])
            name = ast.unparse(node.func)
            if name == "dict":
                keys = [ast.Constant(k.arg) for k in node.keywords]
            if (
                name in ("dict", "dict.fromkeys", "zip")
                and node.args
                and isinstance(node.args[0], (ast.Tuple, ast.List))
            ):
                keys += [e.elts[0] if isinstance(e, ast.Tuple) and e.elts else e for e in node.args[0].elts]
        named = {k.value for k in keys if isinstance(k, ast.Constant) and k.value in TASKS}
        if len(named) > 1:
            found.append(f"{node.lineno}: {', '.join(sorted(named))}")
    return found


FILES = [p.relative_to(PACKAGE).as_posix() for p in sorted(PACKAGE.rglob("*.py")) if p != TEMPLATES]


@pytest.mark.parametrize("path", FILES)
def test_no_task_is_tested_outside_the_templates(path):
    assert names_in_tests((PACKAGE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES)
def test_there_is_one_table_of_tasks(path):
    assert tables_of_tasks((PACKAGE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "T = {'t2i': draw, 'i2v': move}",
        "T = dict(t2i=draw, t2v=film)",
        "T = dict.fromkeys(('t2i', 't2v'), 'x')",
        "T = dict([('image_edit', a), ('video_edit', b)])",
        "T = dict(zip(['t2i', 't2v'], made))",
    ],
)
def test_a_second_table_is_found(source):
    assert tables_of_tasks(source)


def test_weights_and_single_names_are_no_table():
    assert not tables_of_tasks("mixture = {'t2i': 30, 't2v': 8.0}\nx = {'t2i': draw, 'other': y}\nTASKS['t2i']")


def test_the_names_are_read_from_the_table():
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
    "source", ["make = TASKS['t2i']", "table = {'t2i': draw}", "if len(TASKS['t2i']) > 2: pass", "print('t2i == fine')"]
)
def test_a_lookup_is_fine(source):
    assert not names_in_tests(source)
