"""Two checkouts of this project against each other, for changes that must not change anything.

    python benchmarks/yardstick.py hashes -o before.json              # every result of the world benchmark, as a hash
    python benchmarks/yardstick.py compare before.json after.json     # which of them differ
    python benchmarks/yardstick.py files                              # files and functions that a request passes
    python benchmarks/yardstick.py lines                              # lines of code, folder by folder
    python benchmarks/yardstick.py history v1 v2 HEAD                 # both, commit by commit
    python benchmarks/yardstick.py timer --before ../other --pairs 20 # CPU seconds, the two checkouts taking turns

Each checkout runs in processes of its own with its `src` first on the path. `timer` and `history` write a dated result.
Where results of two commits differ, `history` makes those of the task again, with no other task before them.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from importlib import import_module
from pathlib import Path
from typing import Any

from common import markdown, write_results

HERE = Path(__file__).resolve().parents[1]
LOSS = 0.03  # a change counts as a loss if the 95 % interval of its ratio lies wholly above this
# Student's t for a two-sided 95 % interval, by degrees of freedom; beyond the table the normal quantile is near enough.
STUDENT = {9: 2.262, 11: 2.201, 14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045, 39: 2.023}


# What runs inside a checkout.


def results(tasks: str, samples: int, seed: int) -> dict[str, str]:
    """The hash of every result of `bench world`: what was said, whether it was right, and all pixels."""
    import torch
    from tqdm import tqdm

    import openlance

    # Where the suites were in a checkout from before they had a package of their own.
    own = (Path(openlance.__file__).parents[1] / "toyworld").is_dir()
    suites = import_module("toyworld.suites.bench" if own else "openlance.eval.world")
    torch.set_num_threads(1)  # sums of several threads end in other last digits under load
    found: dict[str, str] = {}
    with tqdm(unit="result", disable=None) as bar:

        def on_scored(scored: Any) -> None:
            said = json.dumps([scored.said, scored.right], sort_keys=True)
            pixels = scored.image.convert("RGB").tobytes()
            digest = hashlib.blake2b(said.encode() + pixels, digest_size=8).hexdigest()
            found[f"{scored.task}/{scored.category}/{scored.index}"] = digest
            bar.update()

        bench = suites.Bench(tasks=suites.named_tasks(tasks), samples=samples, seed=seed)
        suites.run(openlance.load("nano"), bench, on_scored)
    return found


def _importing(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def touched(what: str) -> dict[str, list[str]]:
    """Functions by file that a request passes, loading included; what runs while a module is imported is left out."""
    import openlance

    found: dict[str, set[str]] = {}
    marker = f"{os.sep}openlance{os.sep}"

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or marker not in code.co_filename or code.co_name.startswith("<") or _importing(frame):
            return
        found.setdefault(code.co_filename.rpartition(marker)[2], set()).add(code.co_qualname)

    sys.setprofile(note)
    WORK[what](openlance.load("nano"))
    sys.setprofile(None)
    return {file: sorted(names) for file, names in sorted(found.items())}


@functools.cache
def _picture(side: int = 64) -> Any:
    """A red circle left of a blue square."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((side // 8, side // 3, side // 8 * 3, side // 12 * 7), fill="red")
    pen.rectangle((side // 8 * 5, side // 3, side // 8 * 7, side // 12 * 7), fill="blue")
    return picture


WORK = {
    "t2i": lambda pipe: pipe.generate("a red circle left of a blue square", seed=7),
    "t2i, eight": lambda pipe: pipe.generate(["a red circle left of a blue square"] * 8, seed=7),
    "edit": lambda pipe: pipe.edit(_picture(), "make the circle green", seed=7),
    "question": lambda pipe: pipe.ask(_picture(), "how many squares are there?"),
}


def _step() -> Any:
    """One training step of nano's last stage on pictures and questions of the world, as `openlance train` does it."""
    from contextlib import ExitStack
    from dataclasses import replace

    import openlance
    from openlance.config.train import stage

    home = "training" if importlib.util.find_spec("openlance.training") else "train"  # the older name of the folder
    runs = importlib.import_module(f"openlance.{home}.run")

    folder = Path(openlance.__file__).parent / "assets" / "nano"
    chosen = replace(stage("sft-iii", "nano"), mixture={"t2i": 2.0, "image_edit": 1.0, "x2t_image": 1.0}, accumulate=1)
    settings = runs.Settings(out=Path(tempfile.mkdtemp()), model=folder)
    stack = ExitStack()
    if hasattr(runs, "begin"):
        processes, base = runs.begin((chosen,), settings)
    else:  # before these two were one
        processes, base = runs.joined((chosen,), settings), runs.prepared_base(chosen, settings)
    run, work = runs.prepare(chosen, settings, base, processes, stack, None)
    packs = [next(work.batches) for _ in range(4)]
    numbers = iter(range(1 << 30))

    def step() -> None:
        at = next(numbers)
        run.update([work.prepare(packs[at % len(packs)], at % len(packs))])

    return step


def serve() -> None:
    """Answer lines of standard input: the name of a piece of work gives the CPU seconds that it took here."""
    import openlance

    pipe, ready = openlance.load("nano"), dict[str, Any]()
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = _step() if name == "training step" else lambda n=name: WORK[n](pipe)
            ready[name]()
            ready[name]()
        began = time.process_time()
        ready[name]()
        print(json.dumps({"cpu": time.process_time() - began, "peak": _peak()}), flush=True)


def _peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# What drives them.


def _line(checkout: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join([str(checkout / "src"), str(HERE / "benchmarks")])
    return [sys.executable, str(Path(__file__).resolve()), *words], os.environ | {"PYTHONPATH": path}


class Checkout:
    """A process that holds nano and does one piece of work when asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        line, environment = _line(folder, "serve")
        self.process = subprocess.Popen(line, env=environment, stdin=-1, stdout=-1, text=True)

    def cpu(self, name: str) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        if name == "cold start":
            return self._cold()
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            sys.exit(f"{self.folder} stopped at {name}")
        return json.loads(said)

    def _cold(self) -> dict[str, float]:
        """A new process that draws one picture, from `openlance` to the file."""
        _, environment = _line(self.folder)
        with tempfile.TemporaryDirectory() as folder:
            words = ["generate", "t2i", "a red circle", "--seed", "7", "-o", f"{folder}/a.png"]
            before = os.times()
            subprocess.run([sys.executable, "-m", "openlance.cli.main", *words], env=environment, check=True, stdout=-3)
            after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        return {"cpu": spent, "peak": 0.0}

    def close(self) -> None:
        self.process.terminate()


SILENT = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
)  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NAMES = (*WORK, "cold start", "training step")


def timer(before: Path, pairs: int, names: tuple[str, ...]) -> None:
    """Pairs, the order within a pair alternating; the geometric mean of their ratios and its interval."""
    old, new = Checkout(before), Checkout(HERE)
    rows, data = [], {}
    for name in names:
        ratios, times, peaks = [], {"before": [], "after": []}, {}
        for n in range(pairs):
            order = (("before", old), ("after", new)) if n % 2 else (("after", new), ("before", old))
            spent = {}
            for which, checkout in order:
                said = checkout.cpu(name)
                spent[which], peaks[which] = said["cpu"], said["peak"]
                times[which].append(said["cpu"])
            ratios.append(math.log(spent["after"] / spent["before"]))
        mean, half = statistics.mean(ratios), _half(ratios)
        low, middle, high = (math.exp(mean + d) for d in (-half, 0.0, half))
        data[name] = {"pairs": pairs, "ratio": middle, "interval": [low, high], "seconds": times, "peak_mb": peaks}
        lost = "LOSS" if low > 1 + LOSS else "no"
        medians = [f"{statistics.median(times[which]):.3f}" for which in ("before", "after")]
        peak = " / ".join(f"{peaks[which]:.0f}" for which in ("before", "after")) if peaks["after"] else "-"
        rows.append([name, *medians, f"{middle:.3f}", f"{low:.3f} .. {high:.3f}", peak, lost])
    old.close()
    new.close()
    head = ["work", "CPU s before", "after", "ratio", "95 %", "peak MB so far, before / after", "loss above 3 %"]
    against = subprocess.run(
        ["git", "-C", str(before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    write_results("yardstick", {"before": against, "work": data}, f"Against {against}.\n\n" + markdown(head, rows))


def lines(source: Path) -> dict[str, int]:
    """Lines of code below a folder, without blanks, comments and docstrings, by package or folder of a package."""
    found: dict[str, int] = {}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        own = {n for t in tokens if t.type not in SILENT for n in range(t.start[0], t.end[0] + 1)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                own -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        place = "/".join(path.relative_to(source).parts[:-1][:2])
        found[place] = found.get(place, 0) + len(own)
    return found


def _half(values: list[float]) -> float:
    freedom = len(values) - 1
    t = STUDENT.get(freedom) or STUDENT.get(max((k for k in STUDENT if k <= freedom), default=9), 2.262)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def compare(before: Path, after: Path) -> int:
    """Print what differs, by task; 1 if anything does."""
    old, new = (json.loads(path.read_text(encoding="utf-8"))["results"] for path in (before, after))
    by_task: dict[str, list[str]] = {}
    for name in sorted(old.keys() | new.keys()):
        by_task.setdefault(name.partition("/")[0], []).extend([name] * (old.get(name) != new.get(name)))
    for task, names in by_task.items():
        total = sum(name.startswith(f"{task}/") for name in old)
        print(f"{task}: {len(names)} of {total} differ" + (f": {', '.join(names[:6])}" if names else ""))
    return int(any(by_task.values()))


def _hashes(checkout: Path, tasks: str, said: argparse.Namespace) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "hashes.json"
        words = ["hashes", "-o", str(path), "--tasks", tasks, "--samples", str(said.samples), "--seed", str(said.seed)]
        line, environment = _line(checkout, *words)
        subprocess.run(line, env=environment, check=True)
        return json.loads(path.read_text(encoding="utf-8"))["results"]


def _files(checkout: Path) -> dict[str, list[int]]:
    line, environment = _line(checkout, "files")
    said = subprocess.run(line, env=environment, check=True, stdout=-1, text=True).stdout.splitlines()
    counts = (re.fullmatch(r"(.+): (\d+) files, (\d+) functions", row) for row in said)
    return {found[1]: [int(found[2]), int(found[3])] for found in counts if found}


def history(commits: list[str], said: argparse.Namespace) -> None:
    """Hashes and files touched of some commits of this repository, each against the one before it."""
    git, rows, data = ["git", "-C", str(HERE)], list[list[Any]](), list[dict[str, Any]]()
    last: tuple[Path, dict[str, str]] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        for commit in commits:
            described = subprocess.run([*git, "log", "-1", "--format=%h %s", commit], check=True, stdout=-1, text=True)
            name, _, title = described.stdout.strip().partition(" ")
            folder = Path(scratch) / name
            subprocess.run([*git, "worktree", "add", "--detach", str(folder), name], check=True, stdout=-3, stderr=-3)
            kept = None if said.reuse is None else said.reuse / f"{name}.json"
            if kept is not None and kept.is_file():
                found = json.loads(kept.read_text(encoding="utf-8"))["results"]
            else:
                found = _hashes(folder, said.tasks, said)
                if kept is not None:
                    kept.write_text(json.dumps({"results": found}), encoding="utf-8")
            files = _files(folder)
            differ = sorted(key for key in found if last is not None and last[1].get(key) != found[key])
            tasks = sorted({key.partition("/")[0] for key in differ})
            alone = list[str]()
            if last is not None and tasks:
                old, new = (_hashes(where, ",".join(tasks), said) for where in (last[0], folder))
                alone = sorted(key for key in new if old.get(key) != new[key])
            data.append({"commit": name, "title": title, "differ": differ, "alone": alone, "files": files})
            counts = [f"{a} / {b}" for a, b in files.values()]
            rows.append([name, title, len(found), len(differ), len(alone), *counts])
            print(rows[-1], flush=True)
            last = folder, found
        for folder in Path(scratch).iterdir():
            subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)
    head = ["commit", "", "results", "differ from the commit above", "of these tasks alone"]
    head += [f"{name}: files / functions" for name in files]
    write_results("yardstick", {"commits": data}, markdown(head, rows), part="history")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("hashes", "compare", "files", "lines", "timer", "history", "serve"))
    parser.add_argument("paths", nargs="*", help="files of compare, commits of history")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reuse", type=Path, help="folder of <commit>.json that `hashes` wrote, for history")
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--work", default=";".join(NAMES), help="with semicolons")
    said = parser.parse_args()
    if said.what == "serve":
        serve()
    elif said.what == "lines":
        for folder, count in lines(Path(__file__).parents[1] / "src").items():
            print(f"{count:7,} {folder}")
    elif said.what == "compare":
        sys.exit(compare(*map(Path, said.paths)))
    elif said.what == "history":
        history(said.paths, said)
    elif said.what == "timer":
        timer(said.before, max(said.pairs, 10), tuple(said.work.split(";")))
    elif said.what == "files":
        for name in WORK:
            found = touched(name)
            print(f"{name}: {len(found)} files, {sum(map(len, found.values()))} functions")
            if said.output is not None:
                said.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        found = {"tasks": said.tasks, "samples": said.samples, "seed": said.seed}
        found["results"] = results(said.tasks, said.samples, said.seed)
        whole = hashlib.blake2b(json.dumps(found["results"], sort_keys=True).encode(), digest_size=8).hexdigest()
        print(f"{len(found['results'])} results, {whole}")
        if said.output is not None:
            said.output.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
