"""Three hundred requests of the soak, with its restarts: nothing is lost, and nothing is answered with a defect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_a_short_soak(tmp_path):
    line = [sys.executable, SOAK, "--requests", "300", "--minutes", "0", "--every", "0.2", "--out", tmp_path]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.json")
    told = json.loads(file.read_text())
    assert told["requests"] >= 300 and len(told["lives"]) == 3 and told["audits"][-1]["there"] > 20
    assert [end["signal"] for end in told["ends"]] == ["SIGTERM", "SIGKILL", "SIGTERM"]
    assert told["kinds"]["malformed"] and told["codes"]["not_found"] and told["statuses"]["200"] > 300
    assert next(tmp_path.glob("*.svg")).read_text().count("<polyline") == 3
