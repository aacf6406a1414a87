"""Reading a folder of golden vectors: pairs of X.json (facts and a table of tensors) and X.safetensors."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from openlance.checkpoint.tensors import TensorSource, open_tensors
from openlance.config.values import read_json
from openlance.errors import UserError

# Tensors may be stored as X.safetensors.xz, which is how a compact copy stays small.
COMPRESSED = ".safetensors.xz"


@dataclass
class GoldenFile:
    """Facts and tensors of one file, and which of them have been looked at."""

    name: str
    facts: dict[str, Any]
    source: TensorSource
    seen: set[str] = field(default_factory=set)
    folder: Path = Path()  # that it lies in

    def __contains__(self, name: str) -> bool:
        return name in self.source.shapes

    def names(self) -> list[str]:
        return list(self.source.shapes)

    def take(self, name: str) -> Tensor:
        """A tensor; from now on it counts as used."""
        self.seen.add(name)
        return self.source.read(name)

    def get(self, name: str) -> Tensor | None:
        return self.take(name) if name in self else None

    def fact(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return self.facts.get(key, default)

    @property
    def half(self) -> bool:
        """Whether it holds vectors in bfloat16, whose inputs are those of another file."""
        return self.facts.get("dtype") == "bfloat16" and "inputs_from" in self.facts

    def absent(self) -> list[str]:
        """Tensors that the JSON lists and the file lacks."""
        return sorted(set(self.facts.get("tensors", {})) - self.source.shapes.keys())


@dataclass(frozen=True)
class GoldenSet:
    """A folder: its files, and where weights, tokenizer and the inputs of bfloat16 vectors are.

    Attributes:
        inputs: The folder that was named for the latter, if any.
        scratch: A folder for plain copies of compressed tensors, which lives as long as the set is open.
    """

    files: list[GoldenFile]
    weights: Path
    tokenizer: Path
    inputs: Path | None
    scratch: Path

    def inputs_of(self, file: GoldenFile) -> GoldenFile:
        """Open the float32 case that a file in bfloat16 names.

        Raises:
            UserError: It is not where it should be.
        """
        name = f"{Path(str(file.facts['inputs_from'])).name}.json"
        places = [self.inputs] if self.inputs is not None else [file.folder.parent / "cases", file.folder / "cases"]
        found = next((place / name for place in places if (place / name).is_file()), None)
        if found is None:
            raise UserError(f"{places[0]} has no {name}, which {file.name} is about: name its folder with --inputs DIR")
        return _golden_file(found, self.scratch)


@contextmanager
def open_folder(
    folder: Path, weights: Path | None = None, tokenizer: Path | None = None, inputs: Path | None = None
) -> Iterator[GoldenSet]:
    """The golden files of a root (with weights/, tokenizer/, cases/ and bf16/) or of a flat folder.

    UserError if there are none, a file of a pair is missing, or weights or tokenizer are not to be found.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds golden vectors, for example tests/golden")
    with TemporaryDirectory(prefix="openlance-verify-") as scratch:
        places = (folder, folder / "cases", folder / "bf16")
        jsons = [p for place in places for p in sorted(place.glob("*.json")) if _is_golden(p)]
        if not jsons:
            raise UserError(f"{folder} holds no golden vectors: expected X.json with X.safetensors, there or in cases/")
        weights = _beside(folder, weights, "weights", Path(scratch))
        files = [_golden_file(p, Path(scratch)) for p in jsons]
        tokenizer = _beside(folder, tokenizer, "tokenizer", Path(scratch))
        yield GoldenSet(files, weights, tokenizer, inputs, Path(scratch))


def _is_golden(path: Path) -> bool:
    """A JSON file of vectors has a table of tensors; configurations have none."""
    tensors = path.with_suffix(".safetensors")
    if tensors.is_file() or tensors.with_name(tensors.name + ".xz").is_file():
        return isinstance(read_json(path).get("tensors"), dict)
    return '"tensors":' in path.read_text(encoding="utf-8", errors="replace")


def _golden_file(path: Path, scratch: Path) -> GoldenFile:
    scratch = scratch / f"of-{path.absolute().parent.name}"  # names may stand in several folders
    tensors = _unpacked(path.with_suffix(".safetensors"), scratch)
    if not tensors.is_file():
        raise UserError(f"{path} has no {path.stem}.safetensors beside it: restore the file")
    file = GoldenFile(path.stem.removeprefix("case_"), read_json(path), open_tensors(tensors), folder=path.parent)
    if file.half:
        file.name += ".bf16"
    return file


def _beside(folder: Path, given: Path | None, name: str, scratch: Path) -> Path:
    """The folder that was given, or the one in the root or one level above; with compressed tensors a plain copy."""
    places = [given] if given is not None else [folder / name, folder.parent / name]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"there is no folder {places[0]}: name it with --{name} DIR")
    packed = list(found.glob(f"*{COMPRESSED}"))
    if not packed:
        return found
    copy = scratch / name
    copy.mkdir()
    for path in sorted(found.iterdir()):
        if path.suffix == ".json":
            (copy / path.name).write_bytes(path.read_bytes())
    for path in packed:
        _unpacked(path.with_suffix(""), copy)
    return copy


def _unpacked(path: Path, into: Path) -> Path:
    """X.safetensors, or a plain copy of X.safetensors.xz."""
    packed = path.with_name(path.name + ".xz")
    if path.is_file() or not packed.is_file():
        return path
    copy = into / path.name
    into.mkdir(exist_ok=True)
    try:
        copy.write_bytes(lzma.decompress(packed.read_bytes()))
    except lzma.LZMAError as error:
        raise UserError(f"{packed} is damaged ({error}): get the file again") from error
    return copy
