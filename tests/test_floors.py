"""Imports go down the floors only: a file may use strictly lower floors and its own folder, nothing else of ours."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "openlance"
FLOORS = [
    {"errors"},
    {"config"},
    {"sequence", "text", "media", "flow", "world"},
    {"checkpoint"},
    {"model"},
    {"vae", "data"},
    {"runtime"},
    {"planning", "inference", "training"},
    {"compat", "eval", "rl"},
    {"cli", "serve"},
]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
PUBLIC = {"__init__", "__main__"}  # the package's face names what lies below; only the top floor shows it to users
FLOOR_OF[""] = len(FLOORS) - 2  # `import openlance`


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """First name below `openlance` of every import in a file, those inside functions included."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, node.module] if node.module else base)
            names += [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            names += [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return {(name.split(".") + [""])[1] for name in names if name.split(".")[0] == "openlance"}


def breaches(source: str, path: str) -> list[str]:
    """What a file at `path` (relative to the package) imports from its own floor's neighbours or from above."""
    parts = Path(path).with_suffix("").parts
    own = parts[0]
    if own in PUBLIC:
        return []
    if own not in FLOOR_OF:
        return [f"{path}: `{own}` has no floor yet, give it one in {Path(__file__).name}"]
    found = sorted(imported(ast.parse(source), ["openlance", *parts[:-1]]))
    wrong = [name for name in found if name != own and FLOOR_OF.get(name, len(FLOORS)) >= FLOOR_OF[own]]
    return [f"{path} (floor {FLOOR_OF[own]}) imports openlance.{name}" for name in wrong]


@pytest.mark.parametrize("path", [p.relative_to(PACKAGE).as_posix() for p in sorted(PACKAGE.rglob("*.py"))])
def test_every_import_goes_down(path):
    assert breaches((PACKAGE / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    "path, line",
    [
        ("sequence/pack.py", "from openlance.model.lance import Lance"),
        ("sequence/pack.py", "def f():\n    from ..inference import engine"),
        ("sequence/pack.py", "from ..media.clip import Clip"),
        ("model/vit.py", "import openlance.data.stream"),
        ("media/clip.py", "import openlance"),
        ("media/clip.py", "importlib.import_module('openlance.serve.http')"),
    ],
)
def test_an_upward_import_is_found(path, line):
    assert breaches(line, path)


@pytest.mark.parametrize(
    "path, line",
    [
        ("model/lance.py", "from openlance.sequence import rows\nfrom .layers import Norm\nimport torch"),
        ("cli/main.py", "from openlance.errors import UserError\nfrom . import errors"),
        ("cli/ask.py", "import openlance"),
    ],
)
def test_a_downward_import_is_fine(path, line):
    assert breaches(line, path) == []
