"""A source of grey pictures, a stage for it, and files of pictures and clips."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from openlance.config.train import Resolution, Stage
from openlance.data.source import BrokenRow, Row, Sample, shuffled
from openlance.media.clip import Clip
from openlance.sequence.tasks import request


@dataclass(frozen=True)
class Greys:
    """`count` rows in parts of `block`; row n is a grey picture whose prompt is n words long. `bad` rows are broken."""

    count: int = 200
    block: int = 8
    bad: frozenset = frozenset()
    light = False

    def parts(self, epoch, rng):
        return shuffled(range(0, self.count, self.block), rng)

    def rows(self, part) -> Iterator[Row]:
        return (Row(f"greys, row {n}", n) for n in range(part, min(part + self.block, self.count)))

    def stamp(self, part):
        return f"{part} of {self.count}"

    def sample(self, row, fit, rng):
        if row.values in self.bad:
            raise BrokenRow(row.place, "it is broken")
        side = 16 if (fit.front.transform.base("image") or (0,))[0] == 16 else 32
        clip = Clip(np.full((1, side, side, 3), row.values % 256, np.uint8))
        words = " ".join(["circle"] * (1 + row.values % 11))
        return Sample(request("t2i", words, [], (1, side, side), clip, fit.front.style), row.place)


@pytest.fixture
def greys():
    return Greys


def make_stage(**changes) -> Stage:
    values = {
        "name": "test", "steps": 40, "lr": 1e-3, "mixture": {"t2i": 3, "image_edit": 1}, "pack_tokens": (400, 420),
        "max_sample_tokens": 300, "resolutions": (Resolution(image=(16, 16), video=(16, 16)),), "drop_text": 0.2,
    }  # fmt: skip
    return Stage(**values | changes)


@pytest.fixture
def stage():
    return make_stage


def png(value: int = 0, height: int = 24, width: int = 24) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def picture():
    return png


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> bytes:
    from openlance.media.write import write_video

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = np.stack([np.full((32, 32, 3), 20 * n, np.uint8) for n in range(9)])
    write_video(path, Clip(frames))
    return path.read_bytes()
