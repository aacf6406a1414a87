"""A tiny model of the real classes, and tasks for it. Its weights are random, norms and biases included, so that the
two streams differ in everything and a wrong path shows.

The laws are stated on the CPU, also where there is a GPU, unless CUDA_VISIBLE_DEVICES says otherwise.
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# ruff: noqa: E402  (torch reads the variable when it is imported)
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing import start_processes

from openlance.checkpoint.formats import folder_of, read_config, write_config
from openlance.checkpoint.tensors import read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import NO_QUIRKS, ModelConfig, VAEConfig, ViTConfig
from openlance.config.sampling import DISTILLED, PromptStyle
from openlance.media.clip import Clip
from openlance.model.lance import Lance
from openlance.runtime.distributed import Distributed
from openlance.sequence import tasks
from openlance.sequence.pack import Pack, pack
from openlance.sequence.segment import LATENTS, PATCHES, Kind, Segments
from openlance.text.tokenizer import SequenceCodec, Tokenizer, train_tokenizer
from openlance.training.objective import Losses, Noised, Pass, noised, objective

# Few tests, and the longest: their files begin first, so that at the end no worker waits for another.
LONGEST = (
    "inference/test_distributed.py", "training/test_parallel.py", "toyworld/test_nano.py", "rl/test_learning.py",
    "cli/test_train_lora.py", "inference/test_regions.py", "cli/test_faults.py",
)  # fmt: skip
SENTENCES = [
    "a red circle left of a blue square on a white background",
    "how many small striped triangles are there? three of them.",
    "make the yellow star larger and move it above the ring",
    "system user assistant describe the image by its color",
]
CHANNELS = 4
CONFIG = ModelConfig(
    vocab_size=320,
    width=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=64,
    rope_theta=1e4,
    rope_sections=(2, 3, 3),
    latent_channels=CHANNELS,
    time_features=16,
    vit=ViTConfig(patch_size=4, window_size=16, fullatt_block_indexes=(0,), depth=1, out_hidden_size=48),
    vae=VAEConfig(
        z_dim=CHANNELS, dim_mult=(1, 1), temporal_downsample=(True,), mean=(0.0,) * CHANNELS, std=(1.0,) * CHANNELS
    ),
    quirks=NO_QUIRKS,
)  # 4 pixels per latent side and 2 frames per latent frame, 8 pixels per ViT cell


@dataclass(frozen=True)
class Tiny:
    """A model with its tokenizer, and plain stand-alone maps from clips to what a ViT and a VAE would give."""

    model: Lance
    codec: SequenceCodec
    style = PromptStyle(image="Draw.", video="Animate.", edit="Edit.", subject="Place.", question="Look.")
    size = (1, 16, 16)  # 4 x 4 latents, 2 x 2 ViT cells
    channels = CHANNELS

    @property
    def vocabulary(self) -> int:
        return len(self.codec.tokenizer)

    def build(self, seed: int = 0, streams: tuple[str, ...] = ("und", "gen"), **changes) -> "Tiny":
        """The same with a model of another seed, without a stream, or with other settings."""
        config = replace(self.model.config, **changes)
        model, generator = Lance(config, streams), torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1 + 0.3 * noise
        model.embed.weight.data *= 5
        return Tiny(model.eval(), SequenceCodec(self.codec.tokenizer, config))

    def clip(self, seed: int, frames: int = 1, height: int = 16, width: int = 16) -> Clip:
        """Noise: what a picture shows does not matter here."""
        return Clip(np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))

    def draw(self, prompt: str = "a red circle", seed: int | None = 3) -> Segments:
        return self.put("t2i", prompt, [], self.size, self._target(seed))

    def animate(self, prompt: str = "the star moves", seed: int | None = 5) -> Segments:
        target = None if seed is None else self.clip(seed, 5)
        return self.put("i2v", prompt, [self.clip(4)], (5, 16, 16), target)

    def bridge(self, prompt: str = "the star moves", seed: int | None = 5) -> Segments:
        target = None if seed is None else self.clip(seed, 5)
        return self.put("flf2v", prompt, [self.clip(4), self.clip(10)], (5, 16, 16), target)

    def edit(self, prompt: str = "make it blue", seed: int | None = 6) -> Segments:
        return self.put("image_edit", prompt, [self.clip(1)], self.size, self._target(seed))

    def place(self, prompt: str = "the ring on white", seed: int | None = 7) -> Segments:
        return self.put("image_idip", prompt, [self.clip(2), self.clip(9, height=8)], self.size, self._target(seed))

    def answer(self, question: str = "how many squares?", text: str | None = "three of them.") -> Segments:
        return self.put("x2t_image", question, [self.clip(8)], (1, 1, 1), text)

    def put(self, task: str, prompt: str, clips: list[Clip], size: tuple[int, int, int], fill) -> Segments:
        """A request or sample whose media have their sizes already."""
        return tasks.request(task, prompt, [tasks.Views(c, c) for c in clips], size, fill, self.style)

    def samples(self) -> list[Segments]:
        """One filled sample of every family of tasks."""
        return [self.draw(), self.animate(), self.bridge(), self.edit(), self.place(), self.answer()]

    def _target(self, seed: int | None) -> Clip | None:
        return None if seed is None else self.clip(seed)

    def pack(self, samples: list[Segments], draws: int = 1) -> Pack:
        return pack(samples, self.codec, self.model.config.position, draws)

    def see(self, clip: Clip) -> Tensor:
        """(T, Y, X, D): the pixels of each ViT cell, mixed by a fixed matrix."""
        stride, width = self.model.config.vit.stride, self.model.config.width
        mix = torch.randn(stride * stride * 3, width, generator=torch.Generator().manual_seed(1)) * 0.1
        return _cells(clip, self.codec.patch_grid(clip.pixels.shape[:3]), stride) @ mix

    def keep(self, clip: Clip) -> Tensor:
        """(T, Y, X, C), likewise."""
        stride = self.model.config.vae.stride
        mix = torch.randn(stride * stride * 3, CHANNELS, generator=torch.Generator().manual_seed(2)) * 0.3
        return _cells(clip, self.codec.latent_grid(clip.pixels.shape[:3]), stride) @ mix

    def encoded(self, segments: Segments) -> Segments:
        """The same in model space, targets included."""

        def made(kind: Kind, value):
            return (self.see if kind is Kind.PATCHES else self.keep)(value) if isinstance(value, Clip) else value

        return [replace(s, value=made(s.kind, s.value), given=made(s.kind, s.given)) for s in segments]

    def media(self, packed: Pack) -> tuple[Tensor | None, Tensor | None]:
        """Features of all patches and clean latents of all latents of a pack, targets included, in row order."""
        found = [replace(v, segment=self.encoded([v.segment])[0]).clean() for v in packed.visuals]
        seen = [x for v, x in zip(packed.visuals, found) if v.kind == PATCHES]
        kept = [x for v, x in zip(packed.visuals, found) if v.kind == LATENTS]
        return torch.cat(seen) if seen else None, torch.cat(kept) if kept else None

    def noised(self, packed: Pack, seed: int = 0) -> Noised | None:
        """Noise and a time per target, drawn in the order of the rows."""
        clean = self.media(packed)[1]
        if clean is None:
            return None
        generator = torch.Generator().manual_seed(seed)
        times = torch.rand(int(packed.rows.target.max()) + 1, generator=generator)
        return noised(packed, clean, times, torch.randn(clean.shape, generator=generator))

    def losses(self, packed: Pack, noise: Noised | None) -> Losses:
        layout = self.model.layout(packed.rows)
        return objective(self.model, Pass(layout, noise, self.media(packed)[0], self.vocabulary))

    def hidden(self, packed: Pack, noise: Noised | None) -> Tensor:
        """(L, D) final hidden rows of a whole pack in row order."""
        layout = self.model.layout(packed.rows)
        x, times = (noise.x, noise.times) if noise is not None else (None, None)
        streams = self.model(layout, patches=self.media(packed)[0], latents=x, times=times)
        return self.model.restore(layout, streams)


def _cells(medium: Clip, grid: tuple[int, int, int], stride: int) -> Tensor:
    """The pixels of each cell in the first frame that it stands for, as (T, Y, X, values) in [-1, 1]."""
    t, y, x = grid
    frames = torch.from_numpy(medium.pixels[:: max(medium.frames // t, 1)][:t]).float() / 127.5 - 1
    cut = frames.reshape(t, y, stride, x, stride, 3).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(t, y, x, -1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))
    if "OPENLANCE_NIGHTLY" not in os.environ:
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(pytest.mark.skip(reason="OPENLANCE_NIGHTLY=1 runs it, as `make nightly` does"))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(SENTENCES, CONFIG.vocab_size))


@pytest.fixture(scope="session")
def tiny(tokenizer: Tokenizer) -> Tiny:
    assert len(tokenizer) <= CONFIG.vocab_size
    return Tiny(Lance(CONFIG), SequenceCodec(tokenizer, CONFIG)).build()


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with two of its six layers: a checkpoint for laws that do not ask how well it draws, in less than half the
    time."""
    nano = folder_of("nano")
    whole = shutil.ignore_patterns(DISTILLED)  # of six layers
    folder = Path(shutil.copytree(nano, tmp_path_factory.mktemp("models") / "shallow", ignore=whole))
    write_config(folder, replace(read_config(nano), layers=2))
    tensors = read_tensors(nano / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not re.search(r"\blayers\.[2-9]\.", name)}
    write_tensors(folder / "model.safetensors", kept)
    return folder


@pytest.fixture(scope="session")
def on_two_processes() -> Callable[[Callable[[], object]], None]:
    """Do something on two processes of one group. They are what torchrun would have started, but forked: they need not
    import everything again."""

    def run(task: Callable[[], object]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        start_processes(_of_a_group, (2, port, task), nprocs=2, start_method="fork")

    return run


def _of_a_group(rank: int, count: int, port: int, task: Callable[[], object]) -> None:
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in said.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(1)
    task()
    Distributed.leave()


class ChatServer(ThreadingHTTPServer):
    """A real server on this machine that speaks OpenAI's chat form.

    asked: what it was sent, as (path, key, body). answer: prompt -> the text that it answers. reply: a status and a
    body in the place of that.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatAnswers)
        self.asked: list[tuple[str, str | None, dict]] = []
        self.answer = lambda prompt: f"{prompt} in soft light"
        self.reply: tuple[int, bytes] | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        """The prompts that it was asked to rewrite, in order."""
        return [said(body)[0] for _, _, body in self.asked]

    @property
    def shown(self) -> list[list[str]]:
        """The pictures that came with each of them, as addresses."""
        return [said(body)[1] for _, _, body in self.asked]


def said(body: dict) -> tuple[str, list[str]]:
    content = body["messages"][0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = parts[0]["text"].rpartition("Prompt: ")[2]
    return text, [part["image_url"]["url"] for part in parts[1:]]


class ChatAnswers(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        text = self.server.answer(said(body)[0])
        usual = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
        status, content = self.server.reply or (200, json.dumps(usual).encode())
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
