"""A plain folder of captioned media: pictures or clips with a text file of the same name beside each, or a
metadata.jsonl whose lines name files (`file_name`, as Hugging Face's imagefolder) and texts.

    pictures/dog.png  pictures/dog.txt
    pictures/metadata.jsonl    {"file_name": "dog.png", "text": "a dog"}
                               {"input_image": "a.png", "output_image": "b.png", "instruction": "make it red"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.values import lines_of, read_text
from openlance.data.columns import Layout
from openlance.data.fit import Fit
from openlance.data.source import Row, Sample, shuffled
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

METADATA = ("metadata.jsonl", "captions.jsonl")
# Rows of a part: small enough that a folder spreads over ranks and workers, large enough for a shard of latents.
BLOCK = 64


@dataclass(frozen=True)
class FolderSource:
    """A folder read as rows of paths; a part is a block of rows."""

    folder: Path
    layout: Layout
    light = False

    @cached_property
    def found(self) -> list[Row]:
        """All rows in the order of the file or of the names. UserError if there are none."""
        table = next((self.folder / name for name in METADATA if (self.folder / name).is_file()), None)
        rows = list(_from_names(self.folder, self.layout) if table is None else _from_metadata(table))
        if not rows:
            raise UserError(
                f"{self.folder} holds no captioned pictures or clips: put a text file of the same name beside each, "
                f"or a {METADATA[0]} with file_name and text"
            )
        return rows

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[list[int]]:
        order = shuffled(range(len(self.found)), rng)
        return [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]

    def rows(self, part: list[int]) -> Iterator[Row]:
        return (self.found[number] for number in part)

    def stamp(self, part: list[int]) -> str:
        return "\n".join(f"{row.place} {row.values} {self._sizes(row)}" for row in self.rows(part))

    def _sizes(self, row: Row) -> list[int]:
        media = [self.folder / v for k, v in row.values.items() if k.endswith("_bytes") and isinstance(v, str)]
        return [path.stat().st_size for path in media if path.is_file()]

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        return self.layout.sample(row, self.folder, fit, aliases=True)

    def __str__(self) -> str:
        return str(self.folder)


def _from_metadata(table: Path) -> Iterator[Row]:
    for number, line in enumerate(lines_of(read_text(table))):
        if not line.strip():
            continue
        try:
            values = json.loads(line, strict=False)  # texts may hold tabs as they are
        except (ValueError, RecursionError) as error:
            raise UserError(f"{table}, row {number}, is not JSON ({error}): write one object per line") from error
        if not isinstance(values, dict):
            raise UserError(f"{table}, row {number}, is not an object: write {{'file_name': .., 'text': ..}}")
        yield Row(f"{table}, row {number}", _with_medium(values))


def _with_medium(values: dict[str, Any]) -> dict[str, Any]:
    """`file_name` under the name of the column that it fills."""
    name = values.pop("file_name", None)
    if isinstance(name, str):
        values["video_bytes" if name.lower().endswith(VIDEO_SUFFIXES) else "image_bytes"] = name
    return values


def _from_names(folder: Path, layout: Layout) -> Iterator[Row]:
    """Media that have a text beside them: a caption, or a question and its answer on two lines."""
    media = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES)
    for path in media:
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            continue
        text = read_text(beside).strip()
        values = {"caption": text} if layout.columns.text == "caption" else _asked(text)
        yield Row(str(path), values | _with_medium({"file_name": str(path.relative_to(folder))}))


def _asked(text: str) -> dict[str, str]:
    """A text of one line is a description to give; of two, a question and its answer."""
    question, _, answer = text.rpartition("\n")
    return {"caption_q": question.strip(), "caption_a": answer.strip()}
