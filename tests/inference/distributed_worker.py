"""Several processes that draw together: test_distributed.py starts them and compares what they wrote.

distributed_worker.py COUNT FOLDER OUT
"""

import os
import socket
import sys
from pathlib import Path

import numpy as np
import torch

from openlance.inference.lance_pipeline import LancePipeline
from openlance.media import Clip

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)


def draw(pipe: LancePipeline) -> dict[str, torch.Tensor]:
    """Latents of every kind of request: branches of one size and of several, with and without guidance."""
    from openlance.config.sampling import Sampling
    from openlance.sequence import tasks

    source, small = Clip(PICTURE), Clip(PICTURE[:, :32])
    size = (5, 32, 64)
    requests = {
        "picture": [tasks.text_to_visual("a red circle", [], (1, 64, 64))],
        "two sizes": [tasks.text_to_visual("a", [], (1, 32, 32)), tasks.text_to_visual("a dog", [], (1, 64, 32))],
        "clip": [tasks.text_to_visual("a red circle moves", [], size)],
        "animated": [tasks.image_to_video("it moves", [tasks.Views(small, small)], size)],
        "edited": [tasks.edit("make it blue", [tasks.Views(source, source)], (1, 64, 64))],
    }
    settings = {
        "usual": Sampling(num_inference_steps=2),
        "three branches": Sampling(num_inference_steps=2, image_guidance_scale=2.0),
        "no guidance": Sampling(num_inference_steps=2, guidance_scale=1.0),
        "step cache": Sampling(num_inference_steps=4, step_cache=0.2, solver="dpm++"),
    }
    return {
        f"{name}, {how}": torch.cat([z.flatten() for z in pipe.fill_latents(r, sampling, list(range(len(r))))])
        for name, r in requests.items()
        for how, sampling in settings.items()
    }


def work(rank: int, environment: dict[str, str], folder: str, out: Path) -> None:
    """One of the processes, as torchrun would start it."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    pipe = LancePipeline(folder)
    pipe.enable_parallelism()
    assert pipe.shared is not None
    found = draw(pipe)
    found["nobody's seed"] = torch.from_numpy(np.asarray(pipe.generate("a dog", height=32, width=32)[0]).copy())
    torch.save(found, out / f"rank{rank}.pt")
    assert torch.distributed.get_rank() == rank and pipe.processes.agreed(rank) == 0
    pipe.disable_parallelism()


if __name__ == "__main__":
    count, folder, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    torch.multiprocessing.start_processes(work, (place, folder, out), nprocs=count, start_method="fork")
