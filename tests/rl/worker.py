"""Runs of stages one after another, for the tests beside it, on all processes of one torchrun:

torchrun --nproc-per-node 2 tests/rl/worker.py RUNS.json      # a list of {"stage": FILE, "steps": N, ...}, see `main`
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from openlance.config.train import read_stage
from openlance.runtime.distributed import Distributed
from openlance.training.files import Settings
from openlance.training.run import run_stage


def main(runs: list[dict]) -> None:
    torch.set_num_threads(1)
    for said in runs:
        places = {name: Path(said.pop(name)) for name in ("stage", "out", "model")}
        stage = replace(read_stage(places.pop("stage")), steps=said.pop("steps"))
        run_stage(stage, Settings(**places, **said))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
    Distributed.leave()
