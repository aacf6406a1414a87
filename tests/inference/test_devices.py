"""Whatever is drawn, asked or learned, everything that meets lies on one device.

This file is also a program, which does it on a device that refuses tensors of the CPU (`other_device.py`) and on the
CPU, and writes down what came out: test_devices.py FOLDER OUT
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils import backend_registration

from openlance.config.sampling import Decoding, Sampling
from openlance.inference.lance_pipeline import LancePipeline
from openlance.media import Clip
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segment

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot register a device that is written in Python",
)
TESTS = Path(__file__).parents[1]

# x: a matrix of the CPU; there: moves it.
REFUSED = {
    "sum": lambda x, there: there(x) + x,
    "sum in place": lambda x, there: x.sum().add_(there(x).sum()),
    "product": lambda x, there: there(x) @ x,
    "list": lambda x, there: torch.cat([x, there(x)]),
    "condition": lambda x, there: torch.where(x > 0, there(x), 0.0),
    "index": lambda x, there: x[there(x[0]).long()],
    "values": lambda x, there: there(x).index_put_((x[0].long(),), x),
    "rows": lambda x, there: there(x).index_select(0, x[0].long()),
    "layer": lambda x, there: torch.nn.Linear(2, 2)(there(x)),
    "generator": lambda x, there: there(x).normal_(generator=torch.Generator()),
    "NumPy": lambda x, there: np.asarray(there(x)),
}
ACCEPTED = {
    "copy": lambda x, there: x.copy_(there(x)),
    "a number": lambda x, there: (x.sum() * there(x)).add_(x.sum()),
    "index of the CPU": lambda x, there: there(x)[x[0].long()],
    "list as index": lambda x, there: there(x)[[1, 0]],
    "made there": lambda x, there: torch.tensor([1.0, 2.0], device="other") + there(x),
}


def drawn(folder: Path, device: str) -> dict[str, torch.Tensor]:
    """Latents of every kind of request under guidance, frames of one, and answers."""
    pipe = LancePipeline(folder, device=device)
    source = Clip(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8))
    views = tasks.Views(source, source)
    ready = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))  # latents, always of the CPU
    size, usual = (1, 16, 16), Sampling(num_inference_steps=2, guidance_scale=3.0)
    picture = tasks.text_to_visual("a red circle", [], size)
    edit = tasks.edit("make it blue", [views], size)
    requests = {
        "picture": (picture, usual),
        "picture, uncached": (picture, replace(usual, cached=False)),
        "edit": (edit, replace(usual, image_guidance_scale=2.0)),
        "edit, uncached": (edit, replace(usual, cached=False)),
        "edit of latents": ([Segment(Kind.LATENTS, Role.SOURCE, ready, size), *picture], usual),
        "clip": (tasks.image_to_video("it moves", [views], (5, 16, 16)), usual),
    }
    found = {name: pipe.fill_latents([r], sampling, [7])[0] for name, (r, sampling) in requests.items()}
    r, sampling = requests["picture"]
    found["led away"] = pipe.fill_latents([r], sampling, [], noise=[ready.reshape(16, 4)], negatives=["a star"])[0]
    found["frames"] = torch.from_numpy(pipe.decode_latents([found["clip"]])[0].pixels)
    for name, temperature in (("likeliest answer", 0.0), ("drawn answer", 1.0)):
        words, generator = Decoding(max_new_tokens=4, temperature=temperature), torch.Generator().manual_seed(3)
        asked = tasks.understand("how many?", [views], (1, 1, 1))
        found[name] = torch.tensor(pipe.fill_ids([asked], words, generator)[0])
        words = replace(words, top_k=5, repetition_penalty=1.5, stop=("never",))
        found[f"{name}, penalised"] = torch.tensor(pipe.fill_ids([asked], words, generator)[0])
    return found


def learned(device: str) -> dict[str, torch.Tensor]:
    """Weights after a step on a pack that draws, asks, edits and animates, and the losses of that step."""
    from worker import STAGE, learner, preparer, sample, weights

    from openlance.runtime.distributed import Distributed
    from openlance.training.trainer import Trainer

    # With a small eps a weight whose gradient is nothing but rounding would make a whole first step.
    stage, processes = replace(STAGE, eps=1e-2), Distributed(device=torch.device(device))
    run = Trainer(stage, learner(), processes)
    prepare = preparer(stage, processes)
    outcome = run.update([prepare([sample(n, np.random.default_rng(n)) for n in range(4)], 0)])
    assert all(outcome.values.values())
    return weights(run) | {name: torch.tensor(value) for name, value in outcome.values.items()}


def main(folder: Path, out: Path) -> None:
    sys.path += [str(TESTS), str(TESTS / "training")]
    from other_device import MixedDevices, OtherDevice

    refused = []
    with OtherDevice():
        for name, work in (REFUSED | ACCEPTED).items():
            try:
                work(torch.eye(2), lambda x: x.to("other"))
            except MixedDevices:
                refused.append(name)
        there = drawn(folder, "other") | learned("other")
        other = {name: value.cpu() for name, value in there.items()}
    places = {name: value.device.type for name, value in there.items()}
    cpu = drawn(folder, "cpu") | learned("cpu")
    torch.save({"refused": refused, "places": places, "other": other, "cpu": cpu}, out)


@pytest.fixture(scope="module")
def found(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "found.pt"
    line = [sys.executable, __file__, str(checkpoint.folder), str(out)]
    subprocess.run(line, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return torch.load(out, weights_only=True)


def test_the_device_refuses_what_a_gpu_refuses_and_nothing_else(found):
    assert found["refused"] == list(REFUSED)


def test_drawing_asking_and_learning_keep_to_their_device_and_give_what_the_cpu_gives(found):
    assert found["other"].keys() == found["cpu"].keys()
    assert {found["places"][name] for name in ("picture", "edit", "clip", "lance.embed.weight")} == {"other"}
    for name, expected in found["cpu"].items():
        atol = 1 if expected.dtype == torch.uint8 else 1e-5  # a rounding may turn the last digit of a pixel
        torch.testing.assert_close(found["other"][name], expected, rtol=0, atol=atol, msg=name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
