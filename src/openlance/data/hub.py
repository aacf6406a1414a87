"""Datasets of the Hugging Face `datasets` package, streamed: `hf:NAME` or `hf:NAME:SPLIT`, where NAME is on the hub or
a folder that `datasets.load_dataset` understands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openlance.data.columns import Layout
from openlance.data.fit import Fit
from openlance.data.source import Row, Sample, shuffled
from openlance.errors import UserError


@dataclass(frozen=True)
class HubSource:
    """Rows of one split; a part is one of the shards that `datasets` cuts it into. Media stay undecoded until a worker
    has them. config: arguments of `load_dataset` beyond the name."""

    name: str
    layout: Layout
    split: str = "train"
    config: tuple[tuple[str, Any], ...] = ()
    light = False

    @cached_property
    def data(self) -> Any:
        """The streaming dataset, checked. UserError if it cannot be opened or has other columns."""
        try:
            import datasets
        except ImportError as error:
            raise UserError("reading Hugging Face datasets needs their package: pip install datasets") from error
        try:
            data = datasets.load_dataset(self.name, split=self.split, streaming=True, **dict(self.config))
        except (OSError, ValueError) as error:  # ValueError also covers the package's own errors of configuration
            first = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"the dataset {self.name!r} cannot be opened ({first}): check its name and split"
            ) from error
        names = data.column_names or list(next(iter(data), {}))
        self.layout.check(self, self.layout.renamed(dict.fromkeys(names), aliases=True))
        kinds = (datasets.Image, getattr(datasets, "Video", datasets.Image))
        for column, feature in (data.features or {}).items():
            if isinstance(feature, kinds):
                data = data.cast_column(column, type(feature)(decode=False))
        return data

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[int]:
        return shuffled(range(self.data.num_shards), rng)

    def rows(self, part: int) -> Iterator[Row]:
        shard = self.data.shard(num_shards=self.data.num_shards, index=part)
        for number, values in enumerate(shard):
            yield Row(f"{self}, shard {part}, row {number}", values)

    def stamp(self, part: int) -> str:
        return f"{part} of {self.data.num_shards}"

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        return self.layout.sample(row, Path("."), fit, aliases=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "data"}  # workers only decode

    def __str__(self) -> str:
        return f"hf:{self.name}:{self.split}"
