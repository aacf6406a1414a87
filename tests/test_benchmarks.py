"""Every benchmark can be imported: they call each other and the package, and most run seldom."""

import importlib
import sys
from pathlib import Path

from torch.multiprocessing import start_processes

FOLDER = Path(__file__).parents[1] / "benchmarks"


def imports(_: int, names: list[str]) -> None:
    sys.path.insert(0, str(FOLDER))
    for name in names:
        importlib.import_module(name)


def test_every_benchmark_can_be_imported():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    start_processes(imports, (names,), nprocs=1, start_method="fork")  # what they change stays there
