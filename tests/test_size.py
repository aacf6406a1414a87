"""A file holds one idea and a function fits one screen."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 500, 80
FILES = [p.relative_to(ROOT).as_posix() for top in ("src", "tests", "benchmarks") for p in (ROOT / top).rglob("*.py")]


def long_functions(source: str) -> list[str]:
    """Functions of `FUNCTION_LINES` lines or more, decorators and docstring counted."""
    defs = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    first = {n: min([n.lineno, *(d.lineno for d in n.decorator_list)]) for n in defs}
    return [
        f"{n.name}: {n.end_lineno - first[n] + 1} lines" for n in defs if n.end_lineno - first[n] >= FUNCTION_LINES - 1
    ]


@pytest.mark.parametrize("path", sorted(FILES))
def test_files_and_functions_stay_small(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count("\n") <= FILE_LINES, "this file holds two ideas: name them and split it"
    assert long_functions(source) == []


def test_a_long_function_is_found():
    assert long_functions("def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1))
    assert not long_functions("def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 2))
