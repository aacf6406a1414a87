"""Do rewards rise? Each objective on nano with the simplest reward, how red a picture is, for as many rounds.

    python benchmarks/rewards.py --rounds 40 --folder runs/rewards      # goes on where it was stopped
    python benchmarks/rewards.py --runs one=runs/one two=runs/two       # what other runs came to

A null run shuffles its rewards among the results of each request: what it shows is not learning.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, write_results

from openlance.checkpoint.formats import folder_of
from openlance.config.train import UNDERSTANDING, Rewarding, Stage
from openlance.training.curves import drawing, line_of
from openlance.training.files import Settings, read_log
from openlance.training.run import run_stage

RL = Rewarding(
    rewards={"redness": 1.0}, group=6, num_inference_steps=4, solver="dpm++", times=(6, 1, 3, 2), window_size=2,
    window="drawn", workers=1,
)  # fmt: skip
STAGE = Stage(
    name="redness", steps=40, lr=1e-3, eps=1e-12, betas=(0.9, 0.99), ema=0.0, text_weight=0.0, mixture={"t2i": 1.0},
    source="world", pack_tokens=(450, 600), max_sample_tokens=200, dtype="auto", rl=RL, sides=(64, 64),
    frozen=UNDERSTANDING,
)  # fmt: skip
# Deviations of redness inside a request are near 0.1, so advantages are divided by them.
RUNS: dict[str, Rewarding] = {
    "nft": replace(RL, objective="nft", scale="round", settings={"beta": 0.5, "most": 2.0}),
    "awm": replace(RL, objective="awm", scale="round"),
    "grpo": replace(RL, objective="grpo", scale="round", stochastic="sde", noise=0.7),
    "grpo-guard": replace(RL, objective="grpo-guard", scale="round", settings={"clip": 1e-2}),
    "best-of-n": replace(RL, objective="best-of-n"),
    "null": replace(RL, objective="nft", scale="round", settings={"beta": 0.5, "most": 2.0}, shuffle=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="of the runs, which go on in it")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument(
        "--runs", nargs="*", default=[], metavar="NAME=FOLDER", help="finished runs of any kind instead"
    )
    parser.add_argument("--part", default="", help="what the result is called beside its date")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.runs:
        logs = {name: read_log(Path(folder) / "log.jsonl") for name, _, folder in (r.partition("=") for r in args.runs)}
        shown(logs, "Rounds of requests that are never the same", args)
        return
    if args.folder is None:
        parser.error("say where with --folder, or which with --runs")
    logs = {}
    for name in args.only:
        out = args.folder / name
        stage = replace(STAGE, steps=args.rounds, rl=RUNS[name])
        run_stage(stage, Settings(out=out, model=folder_of("nano"), save_every=10))
        logs[name] = read_log(out / "log.jsonl")
    per = f"{args.rounds} rounds of a few prompts, {RL.group} results each, {RL.num_inference_steps} steps, no guidance"
    shown(logs, per, args)


def shown(logs: dict[str, list[dict[str, float]]], what: str, args: argparse.Namespace) -> None:
    """Write what runs came to, as a table and a figure. Means are of three rounds, or of a third of them if that is
    more: where requests differ from round to round, so do their rewards."""
    lines, rows, data = {}, [], dict[str, dict[str, Any]]()
    for name, log in logs.items():
        log = list({row["step"]: row for row in log}.values())  # a round that was repeated after a stop counts once
        part = max(3, len(log) // 3)
        lines[name] = line_of(log, "reward")
        rewards = [row["reward"] for row in log]
        pieces = rewards[:part], rewards[-part:]
        ends = [statistics.fmean(piece) for piece in pieces]
        error = math.hypot(*(statistics.stdev(piece) / part**0.5 for piece in pieces))
        cpu = sum(row["cpu_seconds"] for row in log)
        share = {kind: sum(row[f"{kind}_seconds"] for row in log) for kind in ("rollout", "reward", "update")}
        whole = sum(share.values())
        data[name] = {"first": ends[0], "last": ends[1], "cpu_seconds": cpu, "rewards": rewards}
        data[name] |= {"shares": {kind: seconds / whole for kind, seconds in share.items()}, "error": error}
        shares = " / ".join(f"{seconds / whole:.0%}" for seconds in share.values())
        gain = f"{ends[1] - ends[0]:+.3f} +- {error:.3f}"
        told = [row["signal"] for row in log if "signal" in row]
        data[name]["signal"] = told
        signal = f"{statistics.fmean(told):+.2f}" if told else "not logged"
        results = f"{statistics.fmean(row['results'] for row in log):.0f}"
        rows.append([name, len(log), results, f"{ends[0]:+.3f}", f"{ends[1]:+.3f}", gain, signal, f"{cpu:.0f}", shares])
    columns = ["run", "rounds", "results of one", "first rounds", "last rounds", "gain", "signal", "CPU s"]
    columns.append("rollouts / rewards / updates")
    longest = max(len(run["rewards"]) for run in data.values())
    said = "A gain has its standard error, by how rewards of rounds differ; signal is the mean of what the logs say."
    table = f"{what}.\n\n{markdown(columns, rows)}\n{said}\n"
    path = write_results("rewards", {"rounds": longest, "runs": data}, table, args.out, args.part)
    path.with_suffix(".svg").write_text(drawing([lines], longest), encoding="utf-8")
    path.write_text(
        path.read_text(encoding="utf-8") + f"\n![Rewards over the rounds]({path.stem}.svg)\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
