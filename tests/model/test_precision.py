"""Half precision where a device is slow at it: stored in few bits, multiplied in float32."""

import pytest
import torch
from torch import nn

from openlance.model.precision import ROWS, widen


def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)).bfloat16()


def test_a_widened_layer_rounds_once():
    plain, wide, x = layer(), widen(layer()), torch.randn(ROWS, 64).bfloat16()
    exact = (x.double() @ plain[0].weight.double().T + plain[0].bias.double()).bfloat16()
    first = []
    wide[0].register_forward_hook(lambda *_: first.append(_[2]))
    assert wide(x).dtype == torch.bfloat16 and torch.equal(first[0], exact)
    torch.testing.assert_close(wide(x), plain(x), rtol=0.02, atol=0.02)


def test_few_rows_and_what_comes_after_are_as_ever():
    plain, wide, few = layer(), widen(layer()), torch.randn(ROWS - 1, 64).bfloat16()
    assert torch.equal(wide(few), plain(few))
    with pytest.raises(RuntimeError):
        wide(torch.randn(ROWS, 63).bfloat16())
    assert torch._C._len_torch_function_stack() == 0
