"""How long a newcomer waits: the help text, the first picture of a cold process, and the next ones.

    python benchmarks/startup.py                 # nano; random weights of its form where nano is not there

Cold means a new process; files may be in the page cache, as they are right after installing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import PROMPTS, RESULTS, checkpoint, markdown, spread, timed, verdict, write_results

HELP, COLD, WARM = 0.6, 8.0, 1.0


def command(*arguments: str) -> list[str]:
    """The installed command beside this Python, or its module."""
    installed = Path(sys.executable).parent / "openlance"
    start = [str(installed)] if installed.is_file() else [sys.executable, "-m", "openlance.cli.main"]
    return [*start, *arguments]


def run(*arguments: str) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"openlance {' '.join(arguments)} failed:\n{done.stderr}")


def measure(folder: str, scratch: Path, repeat: int) -> dict[str, list[float]]:
    picture = str(scratch / "out.png")
    times = {
        "help": [timed(lambda: run("--help")) for _ in range(repeat)],
        "cold": [
            timed(lambda: run("generate", "t2i", PROMPTS[0], "--model", folder, "--seed", "7", "-o", picture))
            for _ in range(repeat)
        ],
        "cold answer": [
            timed(lambda: run("ask", picture, "how many squares are there?", "--model", folder)) for _ in range(repeat)
        ],
    }
    import openlance

    pipe = openlance.load(folder)
    pipe.generate(PROMPTS[0], seed=7)
    times["warm"] = [timed(lambda: pipe.generate(PROMPTS[0], seed=7)) for _ in range(repeat)]
    pipe.ask(picture, "how many squares are there?")
    times["warm answer"] = [timed(lambda: pipe.ask(picture, "how many squares are there?")) for _ in range(repeat)]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", default="nano", help='a shipped model, a folder, or "random"')
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, what = checkpoint(args.model, Path(scratch) / "model")
        times = measure(folder, Path(scratch), args.repeat)
    middle = {name: statistics.median(t) for name, t in times.items()}
    limits = {"help": HELP, "cold": COLD, "warm": WARM}
    names = {
        "help": "`openlance --help`",
        "cold": "text to image, new process",
        "cold answer": "a question, new process",
        "warm": "text to image, warm",
        "warm answer": "a question, warm",
    }
    rows = [[names[n], f"{t:.2f}", verdict(t, limits[n]) if n in limits else ""] for n, t in middle.items()]
    head = f"Model: {what}. Medians of {args.repeat}, wall time in seconds.\n\n"
    data = {"model": what, "seconds": {name: spread(t) for name, t in times.items()}}
    write_results("startup", data, head + markdown(["", "s", "wanted"], rows), args.out)


if __name__ == "__main__":
    main()
