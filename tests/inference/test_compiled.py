"""A compiled or recorded step gives the latents of the plain one. The compiler behind it is torch's; here its tracer
runs alone, and a tape of calls stands in for a CUDA graph."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openlance.config.sampling import Sampling
from openlance.errors import UserError
from openlance.inference import compiled as module
from openlance.inference import visual
from openlance.inference.visual import denoise

ASK = {"aten::_local_scalar_dense", "aten::nonzero", "aten::unique_dim", "aten::_unique2", "aten::equal"}


class Tape(TorchDispatchMode):
    """What a CUDA graph does: it holds each call with the memory it reads and writes, and makes all of them again. It
    refuses, as that does, a call whose answer the host waits for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ASK:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @classmethod
    def record(cls, run):
        with cls() as tape:
            out = run()
        return tape.replay, out


def draw(tiny, compile, num_inference_steps=2, **changes):
    sampling = Sampling(num_inference_steps=num_inference_steps, guidance_scale=3.0, compile=compile, **changes)
    return denoise(tiny.model, tiny.codec, [tiny.encoded(tiny.edit(seed=None))], sampling, seeds=[3])[0]


def test_compiled_equals_plain(tiny):
    fresh = tiny.build(seed=1)
    twin = module.compiled(fresh.model, backend="eager")
    assert twin is not fresh.model and twin.layers[0].und.q is fresh.model.layers[0].und.q, "weights are shared"
    torch.testing.assert_close(draw(fresh, True), draw(fresh, False), rtol=0, atol=1e-5)
    assert module.compiled(fresh.model) is twin and fresh.model.state_dict().keys() == tiny.model.state_dict().keys()


def test_without_a_compiler_it_says_so(tiny, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compiler"):
        draw(tiny.build(seed=2), True)


def on_tape(monkeypatch, tiny, record):
    """The same model, whose compiled steps are recorded although it is on a CPU."""
    monkeypatch.setattr(visual, "can_record", lambda model, rows: True)
    monkeypatch.setattr(visual, "Recorded", partial(module.Recorded, record=record))
    module.compiled(tiny.model, backend="eager")
    return tiny


@pytest.mark.parametrize("cached", [True, False])
def test_recorded_equals_plain(tiny, monkeypatch, cached):
    fresh, tapes = tiny.build(seed=3), []

    def record(run):
        tapes.append(Tape.record(run))
        return tapes[-1]

    settings = {"num_inference_steps": 9, "interval": (0.3, 0.9), "cached": cached}
    plain = draw(fresh, False, **settings)
    torch.testing.assert_close(draw(on_tape(monkeypatch, fresh, record), True, **settings), plain, rtol=0, atol=1e-5)
    assert len(tapes) == 2, "one with guidance and one without"


def test_a_pass_is_recorded_at_its_second_call(tiny):
    ran, x = [], (torch.randn(2, 3), torch.randn(4, 3))

    def run(streams):
        ran.append(len(ran))
        return streams[0] * 2, streams[1] + 1

    recorded = module.Recorded(run, Tape.record)
    found = [recorded((x[0] * n, x[1] * n)) for n in range(4)]
    assert len(ran) == 2
    for n, (und, gen) in enumerate(found):
        assert torch.equal(und, x[0] * n * 2) and torch.equal(gen, x[1] * n + 1)


def test_where_it_cannot_be_recorded_it_goes_on(tiny, monkeypatch):
    def record(run):
        return Tape.record(lambda: (run(), torch.ones(3).nonzero())[0])

    fresh = tiny.build(seed=4)
    plain = draw(fresh, False, num_inference_steps=4)
    with pytest.warns(UserWarning, match="kernel by kernel: operation not permitted"):
        found = draw(on_tape(monkeypatch, fresh, record), True, num_inference_steps=4)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
