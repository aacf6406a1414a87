"""Do rewards rise? Each objective on nano with the simplest reward, how red a picture is, for as many rounds.

    python benchmarks/rewards.py --rounds 40 --folder runs/rewards      # goes on where it was stopped

A null run shuffles its rewards among the results of each request: what it shows is not learning.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

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
    parser.add_argument("--folder", type=Path, required=True, help="of the runs, which go on in it")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines, rows, data = {}, [], {}
    for name in args.only:
        out = args.folder / name
        stage = replace(STAGE, steps=args.rounds, rl=RUNS[name])
        run_stage(stage, Settings(out=out, model=folder_of("nano"), save_every=10))
        log = read_log(out / "log.jsonl")
        lines[name] = line_of(log, "reward")
        ends = [statistics.fmean(row["reward"] for row in part) for part in (log[:3], log[-3:])]
        cpu = sum(row["cpu_seconds"] for row in log)
        share = {kind: sum(row[f"{kind}_seconds"] for row in log) for kind in ("rollout", "reward", "update")}
        whole = sum(share.values())
        data[name] = {"first": ends[0], "last": ends[1], "cpu_seconds": cpu, "rewards": [r["reward"] for r in log]}
        data[name] |= {"shares": {kind: seconds / whole for kind, seconds in share.items()}}
        shares = " / ".join(f"{seconds / whole:.0%}" for seconds in share.values())
        rows.append([name, f"{ends[0]:+.3f}", f"{ends[1]:+.3f}", f"{ends[1] - ends[0]:+.3f}", f"{cpu:.0f}", shares])
    columns = ["objective", "first 3 rounds", "last 3", "gain", "CPU s", "rollouts / rewards / updates"]
    per = f"{args.rounds} rounds of a few prompts, {RL.group} results each, {RL.num_inference_steps} steps, no guidance"
    path = write_results(
        "rewards", {"rounds": args.rounds, "runs": data}, f"{per}.\n\n" + markdown(columns, rows), args.out
    )
    path.with_suffix(".svg").write_text(drawing([lines], args.rounds), encoding="utf-8")
    path.write_text(
        path.read_text(encoding="utf-8") + f"\n![Redness over the rounds]({path.stem}.svg)\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
