"""Every published tensor has its place, name by name and shape by shape; no weights are made."""

import json
import math
from pathlib import Path

import pytest

from openlance.config.model import ModelConfig
from openlance.runtime.inspection import expected

MANIFEST = json.loads((Path(__file__).parent / "manifest.json").read_text(encoding="utf-8"))
NUMBERS = {"decoder": 6_176_817_200, "vit": 668_684_288, "vae": 704_688_668}


def published(part: str) -> dict[str, tuple[int, ...]]:
    entry = MANIFEST[part]
    names = {n: s for n, s in entry["shapes"].items() if "#" not in n}
    for pattern, shape in entry["shapes"].items():
        if "#" in pattern:
            names |= {pattern.replace("#", str(n)): shape for n in range(entry["layers"])}
    return {name: tuple(shape) for name, shape in names.items()}


@pytest.mark.parametrize("part", NUMBERS)
def test_the_published_checkpoint_fits_tensor_by_tensor(part):
    wanted = published(part)
    assert expected(ModelConfig(), [part])[part] == wanted
    assert sum(math.prod(shape) for shape in wanted.values()) == NUMBERS[part]
