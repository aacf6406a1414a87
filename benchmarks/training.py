"""Compute of a training run from its logs, as a dated JSON, and into the model card of nano.

python benchmarks/training.py --vae VAE=runs/nano/vae/log.jsonl --log questions=LOG --log joint=LOG --card
python benchmarks/training.py --before EARLIER.json --log more=LOG --card             # a run that went on from there
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

from common import RESULTS, put

COLUMNS = ("phase", "steps", "processes", "cpu_minutes", "text", "flow")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(name: str, rows: list[dict], processes: int) -> dict:
    """Steps, CPU minutes over all processes, and the mean losses of the last tenth of a stretch of a log."""
    last = rows[-max(len(rows) // 10, 1) :]
    means = {k: sum(r[k] for r in last) / len(last) for k in ("text", "flow", "dense")}
    minutes = processes * sum(r["cpu_seconds"] for r in rows) / 60
    return {
        "phase": name,
        "steps": int(rows[-1]["step"] - rows[0]["step"]) + 1,
        "processes": processes,
        "cpu_minutes": round(minutes, 1),
    } | {k: round(v, 4) for k, v in means.items()}


def of_vae(name: str, path: Path) -> dict:
    """Steps and wall minutes of a run of the VAE; a log's seconds begin anew where the run was resumed."""
    rows = rows_of(path)
    ends = [a["seconds"] for a, b in zip(rows, [*rows[1:], {"seconds": 0.0}]) if b["seconds"] < a["seconds"]]
    return {"phase": name, "steps": rows[-1]["step"], "wall_minutes": round(sum(ends) / 60, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", action="append", default=[], help="name=log.jsonl of a run of the VAE")
    parser.add_argument("--before", type=Path, help="a result of this script: what came before")
    parser.add_argument("--log", action="append", default=[], help="name:processes:from-to=log.jsonl, lines counted")
    parser.add_argument("--card", action="store_true", help="write the table into the shipped model card as well")
    options = parser.parse_args()
    if not (options.vae or options.before):
        parser.error("give --vae, the run that came first, or --before")
    before = json.loads(options.before.read_text()) if options.before else {"vae": [], "phases": []}
    vae, found = before["vae"], before["phases"]
    vae += [of_vae(name, Path(path)) for name, _, path in (one.partition("=") for one in options.vae)]
    for given in options.log:
        label, _, path = given.partition("=")
        name, processes, part = [*label.split(":"), "1", "-"][:3] if label.count(":") < 2 else label.split(":")
        low, _, high = part.partition("-")
        rows = rows_of(Path(path))[int(low or 0) : int(high) if high else None]
        found.append(summary(name, rows, int(processes)))
    date = datetime.date.today().isoformat()
    said = [f"{a.partition('=')[0]}={Path(a).name}" if "=" in a else Path(a).name for a in sys.argv[1:]]
    result = {"date": date, "command": " ".join(["training.py", *said]), "vae": vae, "phases": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{date}-nano-training.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| phase | steps | processes | CPU minutes | text loss | flow loss |", "|---|---|---|---|---|---|"]
    lines += [f"| {r['phase']} | {r['steps']} | 1 | {r['wall_minutes']:.0f} (wall) | | |" for r in vae]
    lines += [
        "| " + " | ".join(f"{r[k]:.3f}" if k in ("text", "flow") else f"{r[k]}" for k in COLUMNS) + " |" for r in found
    ]
    lines.append(f"| total of the backbone | | | {sum(r['cpu_minutes'] for r in found):.0f} | | |")
    text = "\n".join(lines)
    print(text)
    if options.card:
        import openlance

        put(Path(openlance.__file__).parent / "assets" / "nano" / "README.md", "compute", text + "\n")


if __name__ == "__main__":
    main()
