"""VBench's own reader, and the one of its measures that needs no weights, on a folder of `openlance bench sample`.
It takes packages from the registry, so `make nightly` alone runs it."""

import json
import subprocess
from pathlib import Path

import pytest

from openlance.eval.benchmarks import BENCHMARKS, scored
from openlance.eval.sampling import Run, sample
from openlance.eval.vbench import FLICKERING

pytestmark = pytest.mark.nightly
# What its reader and this measure do not import is left out; newer torchvisions want the very build of torch that they
# were made for, this one does not.
LEFT_OUT = ("boto3", "fairscale", "fvcore", "lvis", "pycocoevalcap", "pyiqa", "scikit-learn", "tensorboard")
OVERRIDES = ["torch==2.13.0", "torchvision==0.15.2", *(f"{name}; python_version < '3'" for name in LEFT_OUT)]
DIMENSIONS = ("subject consistency", "color", FLICKERING)
LINES = """import sys, torch, vbench
folder, info, *names = sys.argv[1:]
bench = vbench.VBench(torch.device("cpu"), info, folder)
bench.build_full_info_json(f"{folder}/videos", "listed", names)
bench.evaluate(f"{folder}/videos", "measured", dimension_list=["temporal_flickering"])
"""


@pytest.fixture(scope="module")
def python(environment):
    """The Python of an environment with VBench."""
    return environment(["vbench==0.1.5"], OVERRIDES, pinned=False)


def test_vbench_reads_and_measures_what_sample_made(nano, python, tmp_path):
    ask = [python, "-c", "import vbench; print(vbench.__path__[0])"]
    package = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    every = BENCHMARKS["vbench"].rules.jobs(package)
    asked = {name: next(job for job in every if name in job.judged) for name in DIMENSIONS}
    run = Run(benchmark="vbench", size=(5, 32, 32), sampling={"num_inference_steps": 2, "shift": 3.0})
    sample(nano, list(asked.values()), tmp_path, run)
    names = [name.replace(" ", "_") for name in DIMENSIONS]
    line = [python, "-c", LINES, str(tmp_path), str(package / "VBench_full_info.json"), *names]
    subprocess.run(line, check=True, capture_output=True)
    listed = {
        one["prompt_en"]: one["video_list"] for one in json.loads((tmp_path / "listed_full_info.json").read_text())
    }
    for job in asked.values():
        assert sorted(listed[job.prompt]) == sorted(str(tmp_path / job.file.format(k=k)) for k in range(5))
    score = scored("vbench", tmp_path)
    assert score.found == {FLICKERING: 5} and 0 < score.official[FLICKERING] < 100
    assert score.official[FLICKERING] == pytest.approx(score.ours[FLICKERING].value)
    assert "color: 0 judged, asked for were 5" in score.incomplete
