"""A process that runs for long keeps a bounded number of compiled kernels."""

import subprocess
import sys

import pytest

from openlance.model.precision import fast_bfloat16
from openlance.runtime.machine import STATUS

ROWS = """
import re
import torch
from openlance.runtime.machine import STATUS, steady_memory
steady_memory()
def now():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", STATUS.read_text())[1]) / 1000
weights = [torch.randn(n, k, dtype=torch.bfloat16) for n, k in ((192, 192), (512, 192), (192, 512), (64, 192))]
inputs = torch.randn(3000, 512, dtype=torch.bfloat16)
def multiply(first, last):
    for rows in range(first, last):
        for weight in weights:
            torch.nn.functional.linear(inputs[: 5 * rows, : weight.shape[1]].contiguous(), weight)
with torch.inference_mode():
    multiply(200, 300)
    before = now()
    multiply(300, 500)
print(now() - before)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="this system does not say how much a process holds")
@pytest.mark.skipif(not fast_bfloat16("cpu"), reason="this CPU keeps no kernels by row counts of bfloat16")
def test_products_of_ever_new_row_counts_do_not_fill_the_memory():
    """Without the bound, 200 row counts of four products keep 200 to 400 MB where bfloat16 is in hardware."""
    shown = subprocess.run([sys.executable, "-c", ROWS], capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 100
