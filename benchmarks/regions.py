"""Edits of the region that the model finds against plain ones, on the same requests with the same noise.

    python benchmarks/regions.py run --records regions.jsonl --samples 80      # goes on where it stopped
    python benchmarks/regions.py run --records checked.jsonl --ways checked --samples 80
    python benchmarks/regions.py run --records clips.jsonl --clips --only local --samples 80
    python benchmarks/regions.py locate --seed 77 --samples 20
    python benchmarks/regions.py report --records regions.jsonl checked.jsonl clips.jsonl --docs
    python benchmarks/regions.py picture                        # docs/images/regions.png
    python benchmarks/regions.py drift --scores drift.json      # of `openlance bench drift --json drift.json`

A round has one request of every kind, so what is there at any time is even over kinds. Records of several ways of one
edit, also from several files, are told together. A thing is found right if its box and the true one overlap by more
than half. CPU seconds are those of this process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, markdown, paired, points, put, record, recorded, write_results
from PIL import Image, ImageDraw, ImageFont

import openlance
from openlance.config.values import read_text
from openlance.eval.suite import row
from openlance.inference.auto import regions
from openlance.media import Clip, as_clip
from openlance.rl.rewards.ocr import rapid_ocr
from openlance.sequence import tasks
from toyworld.clip_edits import CLIP_EDITS, judge_clip_edit
from toyworld.edits import KINDS
from toyworld.judge_edits import judge_edit
from toyworld.questions import iou
from toyworld.render import pixel_box
from toyworld.scene import Scene
from toyworld.suites.asked import Asked
from toyworld.suites.clips import clip_edits
from toyworld.suites.drift import write_figure
from toyworld.suites.edits import edits

LOCAL = ("recolour", "refill", "reshape", "remove", "replace", "resize")  # change one thing where it stands
# What a call says.
WAYS: dict[str, dict[str, Any]] = {
    "none": {"region": "none"}, "auto": {"region": "auto"}, "checked": {"region": "auto", "check": 4}
}  # fmt: skip
SURE = {"no fault": True, "a fault": False}  # what a check says of what it returns
SIDE = 64  # of the pictures of `picture`
LEAST = 20  # edits of a kind that are told apart
PAGE = RESULTS.parents[1] / "docs" / "howto" / "editing.md"
CARD = Path(openlance.__file__).parent / "assets" / "nano" / "README.md"
BOX = re.compile(r"\(([-\d., e]+)\)")


def meant(before: Scene, after: Scene, size: int) -> list[list[float]]:
    """Boxes of the things that an edit changes."""
    return [list(pixel_box(o, size, size)) for o in before.objects if o not in after.objects]


def rounds(clips: bool, seed: int, samples: int, size: int, only: str = "all") -> Iterator[list[tuple[str, Any]]]:
    """One edit of every kind at a time; only: all, local, or other."""
    asked = Asked(samples=samples, seed=seed, placement="free", height=size, width=size)
    kinds = [kind for kind in (CLIP_EDITS if clips else KINDS) if only == "all" or (kind in LOCAL) == (only == "local")]
    makers = {kind: (clip_edits if clips else edits)(kind, asked) for kind in kinds}
    for _ in range(samples):
        yield [(kind, next(maker)) for kind, maker in makers.items()]


def run(args: argparse.Namespace) -> None:
    pipe, kind_of_judge = openlance.load(args.model), judge_clip_edit if args.clips else judge_edit
    rapid_ocr()  # says now that it is missing
    done = {line["round"] for line in recorded(args.records)}
    for n, made in enumerate(rounds(args.clips, args.seed, args.samples, args.size, args.only)):
        if n in done or n % args.of != args.part:
            continue
        instructions = [edit.instruction for _, edit in made]
        sources = [
            edit.clips(args.size, args.size)[0] if args.clips else edit.pictures(args.size, args.size)[0]
            for _, edit in made
        ]
        given = [Clip(s) if args.clips else Image.fromarray(s) for s in sources]
        found: dict[str, Any] = {}
        for way in args.ways:
            began = time.process_time()
            results = [as_clip(r) for r in pipe.edit(given, instructions, seed=args.seed + 1000 * n, **WAYS[way])]
            found[way] = time.process_time() - began, results
        for k, (kind, edit) in enumerate(made):
            first = edit.first if args.clips else edit
            line = {
                "clips": args.clips, "round": n, "kind": kind, "instruction": instructions[k],
                "meant": meant(first.before, first.after, args.size) if kind in (*LOCAL, "move") else [],
                "seed": args.seed,
            }  # fmt: skip
            for way, (seconds, results) in found.items():
                pixels = results[k].pixels if args.clips else results[k].pixels[0]
                verdict, own = kind_of_judge(edit, sources[k], pixels), results[k].made.settings.get("check")
                line[way] = {"asked": verdict.asked, "kept": verdict.kept, "seconds": seconds / len(made)}
                if way != "none":
                    line["region"] = results[k].made.region
                if own is not None:
                    line[way] |= {name: own[name] for name in ("draw", "draws", "facts", "fine")}
            record(args.records, line)


def records(files: list[Path]) -> list[dict[str, Any]]:
    """Every edit once, with all the ways that were recorded of it."""
    found: dict[tuple, dict[str, Any]] = {}
    for line in (line for file in files for line in recorded(file)):
        key = line["clips"], line["seed"], line["round"], line["kind"]
        found[key] = found.get(key, {"here": line["kind"] in LOCAL}) | line
    return list(found.values())


def compared(lines: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """Shares of plain edits and of another way, with what was gained and lost."""
    out: dict[str, Any] = {"n": len(lines)}
    for part in ("right", "asked", "kept"):
        out[part] = paired(*([_value(line[one], part) for line in lines] for one in ("none", way)))
    out["seconds"] = {one: float(np.mean([line[one]["seconds"] for line in lines])) for one in ("none", way)}
    if looked := [line[way] for line in lines if "fine" in line[way]]:
        out["draws"] = float(np.mean([one["draws"] for one in looked]))
        for name, fine in SURE.items():
            out[name] = _share([_value(one, "right") for one in looked if one["fine"] == fine])
    return out


def _share(values: list[bool]) -> dict[str, Any]:
    return row(sum(values), len(values)) if values else {"mean": None, "n": 0, "ci95": None}


def _value(verdict: dict[str, Any], part: str) -> bool:
    return verdict["asked"] and verdict["kept"] if part == "right" else verdict[part]


def found_right(line: dict[str, Any]) -> bool:
    """Whether the region begins with the box of the thing that is meant."""
    numbers = BOX.search(line["region"])
    box = tuple(float(v) for v in numbers[1].split(",")) if numbers else ()
    return len(box) == 4 and any(iou(box, tuple(true)) > 0.5 for true in line["meant"])  # type: ignore[arg-type]


def is_plain(line: dict[str, Any]) -> bool:
    return "the whole, since" in line["region"]


def locating(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How often a region is taken where one thing changes in its place, and is the right one; and the whole where
    something else is to happen."""
    one = [line for line in lines if line["here"] and len(line["meant"]) == 1]
    other = [line for line in lines if not line["here"]]
    taken = [line for line in one if not is_plain(line)]
    return {
        "region, where one thing changes in its place": _share([not is_plain(line) for line in one]),
        "right thing, of these regions": _share([found_right(line) for line in taken]),
        "right thing, of all where one thing changes": _share([found_right(line) for line in one]),
        "whole, where something else is to happen": _share([is_plain(line) for line in other]),
    }


def told(where: dict[str, Any]) -> str:
    """A table of `locating`."""
    rows = [
        [name, f"{v['mean']:.3f} ({v['ci95'][0]:.2f} to {v['ci95'][1]:.2f})", v["n"]]
        for name, v in where.items()
        if v["n"]
    ]
    return markdown(["what the model finds by itself", "share", "n"], rows)


def locate(args: argparse.Namespace) -> None:
    """Only look for regions, on requests of any seed."""
    pipe, lines = openlance.load(args.model), []
    spec = tasks.the_task(tasks.edit, "image")
    for made in rounds(False, args.seed, args.samples, args.size):
        requests = [
            pipe.front.request(spec, edit.instruction, [Clip(edit.pictures(args.size, args.size)[0][None])])
            for _, edit in made
        ]
        for (kind, edit), region in zip(made, regions(pipe, requests), strict=True):
            things = meant(edit.before, edit.after, args.size) if kind in (*LOCAL, "move") else []
            said = {"kind": kind, "instruction": edit.instruction, "region": region.said}
            lines.append(said | {"here": kind in LOCAL, "meant": things})
    where = locating(lines)
    head = f"Seed {args.seed}, {args.samples} edits of each of {len(KINDS)} kinds, {args.model}.\n\n"
    write_results("regions", {"locating": where, "lines": lines}, head + told(where), args.out, f"locate-{args.seed}")


def report(args: argparse.Namespace) -> None:
    lines = records(args.records)
    data: dict[str, Any] = {}
    text = ""
    for clips in sorted({line["clips"] for line in lines}):
        mine = [line for line in lines if line["clips"] == clips and "none" in line]
        data["clips" if clips else "images"] = own = dict[str, Any]()
        seeds = sorted({line["seed"] for line in mine})
        text += f"{'Videos' if clips else 'Images'}, seeds {seeds}. CPU seconds are of one edit.\n\n"
        for way in [way for way in WAYS if way != "none" and any(way in line for line in mine)]:
            there = [line for line in mine if way in line]
            kinds = list(dict.fromkeys(line["kind"] for line in there))
            groups = {kind: [line for line in there if line["kind"] == kind] for kind in kinds}
            groups = {kind: some for kind, some in groups.items() if len(some) >= LEAST}
            local, others = [x for x in there if x["here"]], [x for x in there if not x["here"]]
            groups |= {"the six local kinds": local} | ({"all kinds": there} if others else {})
            own[way] = {name: compared(some, way) for name, some in groups.items() if some}
            text += table(own[way], way) + "\n"
        own["locating"] = locating([line for line in mine if "auto" in line])
        text += told(own["locating"]) + "\n"
    write_results("regions", data, text, args.out)
    if args.docs:
        put(PAGE, "regions", text)
        put(CARD, "regions", summary(data))


def summary(data: dict[str, dict[str, Any]]) -> str:
    """What a model card says: all kinds, plain and in the ways that were recorded."""
    rows, whole = [], "all kinds"
    for of, name in (("images", "images"), ("clips", "videos")):
        for way, how in {"auto": "in the region that the model finds", "checked": "there, with `check=4`"}.items():
            if whole in (found := data.get(of, {}).get(way, {})):
                c = found[whole]
                parts = [f"{c[part]['old']:.2f}, {c[part]['new']:.2f}" for part in ("right", "asked", "kept")]
                rows.append([f"{name} {how}", c["n"], *parts, points(c["right"]), f"{c['right']['p']:.2g}"])
    head = ["edits of", "n", "right: plain, so", "asked", "kept", "points (95 %)", "p"]
    return f"Paired, free placement, 64x64, {datetime.date.today()}.\n\n{markdown(head, rows)}"


def table(found: dict[str, dict[str, Any]], way: str) -> str:
    """Rows of `compared` by what they are of."""
    rows = []
    for name, c in found.items():
        right, kept, spent = c["right"], c["kept"], c["seconds"]
        cells = [name, c["n"], f"{right['old']:.3f}", f"{right['new']:.3f}", points(right)]
        cells += [f"+{right['gained']} -{right['lost']}", f"{right['p']:.2g}", f"{kept['old']:.3f}"]
        cells += [f"{kept['new']:.3f}", f"{spent[way]:.2f} for {spent['none']:.2f}"]
        if "draws" in c:
            shares = ("-" if c[name]["mean"] is None else f"{c[name]['mean']:.2f}" for name in SURE)
            cells += [f"{c['draws']:.2f}", " / ".join(shares)]
        rows.append(cells)
    says = {"auto": "region", "checked": "region, `check=4`"}[way]
    names = ["kind", "n", "right, plain", f"right, {says}", "points (95 %)", "changed", "p", "kept, plain"]
    names += [f"kept, {says}", "CPU s", "draws", "no fault / fault"]
    return markdown(names[: len(rows[0])], rows)


def pictured(args: argparse.Namespace) -> None:
    """A picture of the first edits of the local kinds, nothing picked: before, plain, and of the region."""
    pipe = openlance.load(args.model)
    (made,) = rounds(False, args.seed, 1, SIDE, "local")
    given = [Image.fromarray(edit.pictures(SIDE, SIDE)[0]) for _, edit in made]
    told = [edit.instruction for _, edit in made]
    ways = [pipe.edit(given, told, seed=args.seed, region=way) for way in ("none", "auto")]
    font, gap, side = ImageFont.load_default(13), 12, 2 * SIDE
    page = Image.new("RGB", (gap + len(told) * (side + gap), 3 * (side + gap) + 62), "white")
    pen = ImageDraw.Draw(page)
    for n, (text, *pictures) in enumerate(zip(told, given, *ways, strict=True)):
        x = gap + n * (side + gap)
        for line, picture in enumerate(pictures):
            place = x, gap + line * (side + gap)
            page.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), place)
        if numbers := BOX.search(as_clip(pictures[-1]).made.region):
            frame = [2 * float(v) for v in numbers[1].split(",")]
            pen.rectangle([x + frame[0], gap + frame[1], x + frame[2], gap + frame[3]], outline="magenta")
        pen.multiline_text((x, 3 * (side + gap) + gap), "\n".join(textwrap.wrap(text, 19)), "black", font)
    page.save(args.picture)


def drifted(args: argparse.Namespace) -> None:
    """Tables and the figure of what `openlance bench drift --json` wrote."""
    found = json.loads(read_text(args.scores))
    names = list(next(iter(found.values()))[0])
    head = ["edits", *(f"{name}, {way}" for way in found for name in names)]
    turns = range(len(next(iter(found.values()))))
    rows = [[turn + 1, *(f"{rows[turn][name]:.3g}" for rows in found.values() for name in names)] for turn in turns]
    write_figure(found, args.figure)
    text = "Of `openlance bench drift --samples 8`: eight images, one thing of each recoloured ten times.\n\n"
    write_results("regions", found, text + markdown(head, rows), args.out, "drift")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    go = commands.add_parser("run")
    go.add_argument("--records", type=Path, required=True)
    go.add_argument("--model", default="nano")
    go.add_argument("--clips", action="store_true")
    go.add_argument("--ways", nargs="+", choices=list(WAYS), default=["none", "auto"])
    go.add_argument("--only", choices=("all", "local", "other"), default="all", help="kinds")
    go.add_argument("--samples", type=int, default=80, help="of every kind")
    go.add_argument("--seed", type=int, default=2027)
    go.add_argument("--size", type=int, default=64)
    go.add_argument("--part", type=int, default=0, help="of the rounds, where several processes share them")
    go.add_argument("--of", type=int, default=1)
    go.set_defaults(do=run)
    look = commands.add_parser("locate")
    look.add_argument("--model", default="nano")
    look.add_argument("--samples", type=int, default=20, help="of every kind")
    look.add_argument("--seed", type=int, default=2028)
    look.add_argument("--size", type=int, default=64)
    look.add_argument("--out", type=Path, default=RESULTS)
    look.set_defaults(do=locate)
    row_of_edits = commands.add_parser("drift")
    row_of_edits.add_argument("--scores", type=Path, required=True, help="JSON of openlance bench drift")
    row_of_edits.add_argument("--figure", type=Path, default=RESULTS.parents[1] / "docs" / "images" / "drift.svg")
    row_of_edits.add_argument("--out", type=Path, default=RESULTS)
    row_of_edits.set_defaults(do=drifted)
    show = commands.add_parser("picture")
    show.add_argument("--model", default="nano")
    show.add_argument("--seed", type=int, default=1)
    show.add_argument("--picture", type=Path, default=RESULTS.parents[1] / "docs" / "images" / "regions.png")
    show.set_defaults(do=pictured)
    tell = commands.add_parser("report")
    tell.add_argument("--records", type=Path, nargs="+", required=True)
    tell.add_argument("--out", type=Path, default=RESULTS)
    tell.add_argument("--docs", action="store_true", help="put the tables into docs/howto/editing.md as well")
    tell.set_defaults(do=report)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
