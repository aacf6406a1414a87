"""How long the Studio takes from its command to the first picture in the browser, in a new process each time.

    python benchmarks/studio.py                  # needs the extra `browser` and Chromium

The browser's own start is left out: people have one open.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, markdown, spread, verdict, write_results

FIRST = 10.0  # seconds
WORDS = "draw a red circle left of a blue square"
PARTS = ("address", "page", "preview", "picture")


def once(browser, folder: str) -> dict[str, float]:
    """Seconds from the command until its address is there, the page can be used, a preview and the picture are seen."""
    page, began = browser.new_page(), time.perf_counter()
    page.set_default_timeout(120_000)
    line = [sys.executable, "-m", "openlance.cli.main", "studio", "--no-browser", "--port", "0", "--folder", folder]
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=unbuffered)
    try:
        found = (re.search(r"http://\S+", said) for said in process.stdout or ())
        page.goto(next(match[0] for match in found if match), wait_until="commit")
        times = {"address": time.perf_counter() - began}
        page.wait_for_selector("#chips button")
        times["page"] = time.perf_counter() - began
        page.fill("#say textarea", WORDS)
        page.keyboard.press("Enter")
        for name, shown in (("preview", "#log .back img"), ("picture", "#log .back .note")):
            page.wait_for_selector(shown)
            times[name] = time.perf_counter() - began
        return times
    finally:
        page.close()
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or sys.exit("there is no Chromium: install it first")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        runs = [once(browser, f"{scratch}/{n}") for n in range(args.repeat)]
        browser.close()
    times = {name: [run[name] for run in runs] for name in PARTS}
    middle = {name: statistics.median(t) for name, t in times.items()}
    rows = [[name, f"{t:.1f}", verdict(t, FIRST) if name == "picture" else ""] for name, t in middle.items()]
    head = f"nano. Medians of {args.repeat}, wall time in seconds from the command on.\n\n"
    data = {"seconds": {name: spread(t) for name, t in times.items()}}
    write_results("studio", data, head + markdown(["until", "s", "wanted"], rows), args.out)


if __name__ == "__main__":
    main()
