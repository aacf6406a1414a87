"""Imports go down the floors only: a file may use strictly lower floors and its own folder, nothing else of ours. No
modules import each other in a circle, and what plugs in is imported by nobody by name."""

import ast
import functools
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "openlance"
FLOORS = [
    {"errors"},
    {"config"},
    {"sequence", "text", "media", "flow"},
    {"checkpoint"},
    {"model"},
    {"vae", "data"},
    {"runtime"},
    {"inference"},
    {"rl"},
    {"planning"},
    {"training", "compat", "eval"},
    {"cli"},
    {"serve"},
]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
PUBLIC = {"__init__", "__main__"}  # the package's face names what lies below; only the top floor shows it to users
FLOOR_OF[""] = FLOOR_OF["cli"] - 1  # `import openlance`


parsed = functools.cache(ast.parse)  # the same files are asked several things


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
    found = sorted(imported(parsed(source), ["openlance", *parts[:-1]]))
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


def modules(folder: Path) -> dict[str, str]:
    """Source by the dotted name of its module, below a folder."""
    files = {p.relative_to(folder).with_suffix("").as_posix().replace("/", "."): p for p in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): p.read_text(encoding="utf-8") for name, p in files.items()}


def uses(source: str, known: dict[str, str]) -> set[str]:
    """Modules that a file imports when it runs, those inside functions included."""
    tree = parsed(source)
    types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(n) for node in types for n in ast.walk(node)}
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in skipped:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & known.keys()) or {str(node.module)}
    return found & known.keys()


def circles(known: dict[str, str]) -> list[list[str]]:
    """Groups of modules that import each other: what is left when modules that import nothing, or that nothing
    imports, are taken away again and again."""
    edges = {name: uses(source, known) - {name} for name, source in known.items()}
    while True:
        used = set[str]().union(*edges.values())
        ends = {name for name, to in edges.items() if not to or name not in used}
        if not ends:
            return [sorted(edges)] if edges else []
        edges = {name: to - ends for name, to in edges.items() if name not in ends}


def test_no_import_circles():
    assert circles(modules(SOURCE)) == []


def test_a_circle_is_found_also_inside_functions_and_not_among_types():
    a, b = "def f():\n    from x.b import g", "import x.a"
    assert circles({"x.a": a, "x.b": b, "x.c": "import x.a"}) == [["x.a", "x.b"]]
    assert circles({"x.a": "if TYPE_CHECKING:\n    from x.b import g", "x.b": b}) == []


def test_what_plugs_in_is_imported_by_nobody_by_name():
    world = {name: "" for name in modules(SOURCE) if not name.startswith("openlance")}
    assert {"toyworld.source", "lance_parity.run"} <= world.keys() and {
        name: found for name, source in modules(PACKAGE).items() if (found := uses(source, world))
    } == {}


def options() -> set[str]:
    """The options of all commands of ours."""
    files = [
        path for path in SOURCE.rglob("*.py") if path.is_relative_to(PACKAGE / "cli") or PACKAGE not in path.parents
    ]
    return {flag for path in files for flag in re.findall(r'"(--[a-zA-Z][\w-]+)', path.read_text(encoding="utf-8"))}


def flags_in(source: str, known: set[str]) -> set[str]:
    """Options of ours that the strings of a file name."""
    texts = [n.value for n in ast.walk(parsed(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]+", text)} & known


def test_only_the_command_line_knows_flags():
    known = options()
    assert {"--seed", "--model", "--nothing"} - known == {"--nothing"} and flags_in("x = f'{y}: use --seed 3'", known)
    below = {name: source for name, source in modules(PACKAGE).items() if not name.startswith(("cli", "serve"))}
    assert {name: found for name, source in below.items() if (found := flags_in(source, known))} == {}
