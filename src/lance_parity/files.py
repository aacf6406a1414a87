"""Reading a folder of golden vectors: pairs of X.json (facts and a table of tensors) and X.safetensors."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from safetensors.torch import load

from openlance.checkpoint.tensors import TensorSource, open_tensors
from openlance.config.values import read_json
from openlance.errors import UserError

# Tensors may be stored as X.safetensors.xz, which is how a compact copy stays small.
PACKED = ".xz"


@dataclass
class GoldenFile:
    """Facts and tensors of one file.

    Attributes:
        inputs: The float32 file that has the inputs of a file in half precision.
        seen: Names of those that have been looked at.
    """

    name: str
    facts: dict[str, Any]
    source: TensorSource
    inputs: GoldenFile | None = None
    seen: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.source.shapes or name in self.facts

    def names(self) -> list[str]:
        """List the tensors, then the facts."""
        return [*self.source.shapes, *self.facts]

    def matching(self, pattern: str) -> list[tuple[str, dict[str, Any]]]:
        """List the names that fit a pattern such as `vit.{name}.pixels{n}`, each with what its fields stand for.

        Args:
            pattern: Fields of one letter stand for numbers, others for any text.
        """
        fields = [f"(?P<{x}>{'[0-9]+' if len(x) == 1 else '.+?'})" for x in re.findall(r"{(\w+)}", pattern)]
        literal = [re.escape(part) for part in re.split(r"{\w+}", pattern)]
        regex = literal[0] + "".join(a + b for a, b in zip(fields, literal[1:]))
        found = [m for m in (re.fullmatch(regex, name) for name in self.names()) if m]
        return [(m[0], {x: int(text) if len(x) == 1 else text for x, text in m.groupdict().items()}) for m in found]

    def take(self, name: str) -> Any:
        """Read a tensor or a fact; from now on it counts as used.

        Raises:
            KeyError: There is none.
        """
        self.seen.add(name)
        return self.source.read(name) if name in self.source.shapes else self.facts[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Read a tensor or a fact if there is one that is not null."""
        found = self.take(name) if name in self else None
        return default if found is None else found

    def absent(self) -> list[str]:
        """List the tensors that the JSON names and the file lacks."""
        return sorted(set(self.facts.get("tensors", {})) - self.source.shapes.keys())


class GoldenSet(NamedTuple):
    """A folder: its files, and where weights and tokenizer are."""

    files: list[GoldenFile]
    weights: Path
    tokenizer: Path


@contextmanager
def open_folder(
    folder: Path, weights: Path | None = None, tokenizer: Path | None = None, inputs: Path | None = None
) -> Iterator[GoldenSet]:
    """Open the golden files of a root (with weights/, tokenizer/, cases/ and bf16/) or of a flat folder.

    Args:
        folder: The root or the flat folder.
        weights: Folder of the model; left out, weights/ in or beside the folder.
        tokenizer: Likewise.
        inputs: Folder of the float32 files that have the inputs of those in half precision; left out, cases/ in or
            beside theirs.

    Raises:
        UserError: There are none, a file of a pair is missing, or weights or tokenizer are not to be found.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds golden vectors, for example tests/golden")
    jsons = [p for place in (folder, folder / "cases", folder / "bf16") for p in sorted(place.glob("*.json"))]
    # Vectors have a table of tensors, configurations have none.
    files = [_golden_file(p, inputs) for p in jsons if '"tensors":' in p.read_text(encoding="utf-8", errors="replace")]
    if not files:
        raise UserError(f"{folder} holds no golden vectors: expected X.json with X.safetensors, there or in cases/")
    weights, tokenizer = _beside(folder, weights, "weights"), _beside(folder, tokenizer, "tokenizer")
    with TemporaryDirectory(prefix="openlance-verify-") as scratch:
        yield GoldenSet(files, _plain(weights, Path(scratch)), tokenizer)


def _golden_file(path: Path, inputs: Path | None) -> GoldenFile:
    tensors, facts, name = path.with_suffix(".safetensors"), read_json(path), path.stem.removeprefix("case_")
    packed = tensors.with_name(tensors.name + PACKED)
    if not tensors.is_file() and not packed.is_file():
        raise UserError(f"{path} has no {tensors.name} beside it: restore the file")
    source = open_tensors(tensors) if tensors.is_file() else TensorSource.of(load(_unpacked(packed)))
    if facts.get("dtype") != "bfloat16" or "inputs_from" not in facts:
        return GoldenFile(name, facts, source)
    other = f"{Path(str(facts['inputs_from'])).name}.json"
    places = [inputs] if inputs is not None else [path.parent.parent / "cases", path.parent / "cases"]
    found = next((place / other for place in places if (place / other).is_file()), None)
    if found is None:
        raise UserError(f"{places[0]} has no {other}, which {path} is about: pass its folder as inputs=DIR")
    return GoldenFile(f"{name}.bf16", facts, source, _golden_file(found, None))


def _beside(folder: Path, given: Path | None, name: str) -> Path:
    """The folder that was given, or the one in the root or one level above."""
    places = [given] if given is not None else [folder / name, folder.parent / name]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"there is no folder {places[0]}: pass it as {name}=DIR")
    return found


def _plain(folder: Path, scratch: Path) -> Path:
    """A folder of weights, or a copy in which what is compressed is not."""
    packed = list(folder.glob(f"*{PACKED}"))
    if not packed:
        return folder
    for path in folder.glob("*.json"):
        (scratch / path.name).write_bytes(path.read_bytes())
    for path in packed:
        (scratch / path.stem).write_bytes(_unpacked(path))
    return scratch


def _unpacked(path: Path) -> bytes:
    try:
        return lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise UserError(f"{path} is damaged ({error}): get the file again") from error
