"""The pages of docs/uses from their first command to their last, with the time that each command takes.

    python benchmarks/uses.py FOLDER --docs            # all of them, in a folder that is empty or not there
    python benchmarks/uses.py FOLDER style edits       # some; those that were timed there before are not run again

Commands are those of the pages, as they stand there; docs/make_uses.py FOLDER makes the pages' images of what
they leave. The table goes into docs/howto/finetune.md.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, put, record, recorded, verdict, write_results

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "uses"
TABLE = ROOT / "docs" / "howto" / "finetune.md"
RECORDS = "uses.jsonl"  # in the folder
MOST = 10.0  # minutes that a page may take
# Page: its title, what is learned, and from which data.
USES = {
    "style": ("A style", "how everything looks", "captioned images"),
    "subject": ("A subject", "one thing and its word (DreamBooth)", "five images"),
    "edits": ("Edit pairs", "a kind of edit", "images before and after"),
    "clips": ("Videos", "a motion", "captioned videos"),
    "questions": ("Questions", "what was never asked", "images, questions, answers"),
}


def commands(page: str) -> list[str]:
    """Its indented lines that call openlance or Python."""
    lines = re.sub(r"\\\n\s*", "", page).splitlines()
    return [line.strip() for line in lines if re.match(r" {4}(openlance|python) ", line)]


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """Run a page's commands there; the program ends where one fails."""
    found = []
    here = str(Path(sys.executable).parent)
    around = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for command in commands((PAGES / f"{name}.md").read_text("utf-8")):
        print(f"{name}: {command}", flush=True)
        began, cpu = time.monotonic(), spent()
        subprocess.run(command, shell=True, cwd=folder, env=around, check=True)
        found.append({"command": command, "seconds": time.monotonic() - began, "cpu_seconds": spent() - cpu})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("uses", nargs="*", default=list(USES), metavar="USE", help=f"of {', '.join(USES)}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the table into docs/howto/finetune.md as well")
    args = parser.parse_args()
    if unknown := [name for name in args.uses if name not in USES]:
        parser.error(f"{unknown[0]} is no page of docs/uses: use {', '.join(USES)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "examples", args.folder / "examples", dirs_exist_ok=True)
    for name in args.uses:
        if name not in {row["name"] for row in recorded(args.folder / RECORDS)}:
            record(args.folder / RECORDS, {"name": name, "steps": run(name, args.folder)})
    timed = {row["name"]: row["steps"] for row in recorded(args.folder / RECORDS)}
    pages = {name: timed[name] for name in USES if name in timed}
    rows, whole = [], dict[str, dict[str, float]]()
    for name, made in pages.items():
        title, learned, data = USES[name]
        training = [step for step in made if " train " in step["command"]]
        parts = {"minutes": made, "training minutes": training}
        whole[name] = {key: sum(step["seconds"] for step in steps) / 60 for key, steps in parts.items()}
        whole[name]["CPU minutes"] = sum(step["cpu_seconds"] for step in made) / 60
        rows.append([f"[{title}](../uses/{name}.md)", learned, data, *(f"{v:.1f}" for v in whole[name].values())])
    table = markdown(["page", "what is learned", "data", *next(iter(whole.values()))], rows)
    longest = max(minutes["minutes"] for minutes in whole.values())
    text = f"{table}\n\nLongest page: {longest:.1f} minutes, {verdict(longest, MOST)}.\n"
    write_results("uses", {"pages": pages, "whole": whole}, text.replace("../uses/", "../../docs/uses/"), args.out)
    if args.docs:
        put(TABLE, "uses", table)


if __name__ == "__main__":
    main()
