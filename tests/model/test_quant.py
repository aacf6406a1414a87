"""INT8 weights: near the real ones, half the memory, and only where they are wanted."""

import torch
from torch import nn

from openlance.model.quant import Int8Linear, quantise


def test_a_row_is_exact_to_half_a_level():
    linear = nn.Linear(64, 8)
    made = Int8Linear(linear)
    error = (made.weight.float() * made.scale[:, None] - linear.weight).abs()
    assert bool((error <= made.scale[:, None] / 2 + 1e-7).all())
    x = torch.randn(5, 64)
    torch.testing.assert_close(made(x), linear(x), rtol=0, atol=0.02)


def test_only_the_experts_change_and_shrink(tiny):
    model = tiny.build(seed=4).model
    before = model.state_dict()
    saved = quantise(model)
    changed = {name for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    assert len(changed) == 2 * 2 * 7 and all(name.startswith("layers.") for name in changed)
    assert saved > 0.6 * sum(before[f"{name}.weight"].numel() * 4 for name in changed)
    assert torch.equal(model.latent_in.weight, before["latent_in.weight"])


@torch.no_grad()
def test_what_is_drawn_stays_near(tiny):
    exact, small = tiny.build(seed=4), tiny.build(seed=4)
    quantise(small.model)
    packed = exact.pack([exact.edit()])
    noise = exact.noised(packed)
    a, b = (t.hidden(packed, noise) for t in (exact, small))
    assert float((a - b).norm() / a.norm()) < 0.05
    assert not torch.equal(a, b)
