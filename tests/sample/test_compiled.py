"""A compiled step gives the latents of the plain one. The compiler behind it is torch's; here its tracer runs alone."""

import pytest
import torch

from openlance.errors import UserError
from openlance.sample import compiled as module
from openlance.sample.guidance import Sampling
from openlance.sample.visual import denoise


def draw(tiny, compile, **changes):
    sampling = Sampling(num_inference_steps=2, guidance_scale=3.0, compile=compile, **changes)
    requests = [tiny.edit(seed=None)]
    return denoise(tiny.model, tiny.codec, requests, sampling, see=tiny.see, encode=tiny.encode, seeds=[3])[0]


def test_compiled_equals_plain(tiny):
    fresh = tiny.build(seed=1)
    twin = module.compiled(fresh.model, backend="eager")
    assert twin is not fresh.model and twin.layers[0].und is fresh.model.layers[0].und, "weights are shared"
    torch.testing.assert_close(draw(fresh, True), draw(fresh, False), rtol=0, atol=1e-5)
    assert module.compiled(fresh.model) is twin and fresh.model.state_dict().keys() == tiny.model.state_dict().keys()


def test_without_a_compiler_it_says_so(tiny, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compiler"):
        draw(tiny.build(seed=2), True)
