"""Suites of nano's world in the form of reports, with the second judge beside the first, as a dated result.

    openlance bench world --tasks t2i,image_edit,subject,vqa --samples 40 --seed 23 --images outputs/world
    python benchmarks/world.py outputs/world

The page with the images is that of `openlance bench report outputs/world`.
"""

import argparse
from pathlib import Path

from common import RESULTS, write_results

from openlance.eval.report import markdown, sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of openlance bench world --images")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = sections([str(args.folder)])
    made = found[0].runs[0].made
    said = f"{made['model']}, {made['placement']} placement, {made['size']}, "
    said += f"{made['samples']} a category, seed {made['seed']}"
    scores = {one.title: {run.name: run.score.as_data() for run in one.runs} for one in found}
    table = f"{said}.\n\n{markdown(found).partition(chr(10) * 2)[2]}"
    write_results("world", {"made": made, "scores": scores}, table, args.out)


if __name__ == "__main__":
    main()
