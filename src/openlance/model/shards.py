"""Which files make up one model: a single one, or the shards that an index lists."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from openlance.errors import UserError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
# In the order in which the released code looks for them in a checkpoint folder.
FOLDER_NAMES = ("model.safetensors", "ema.safetensors")
# Names that the weights of a part have in its folder, by what wrote them.
STEMS = ("model", "diffusion_pytorch_model", "ema")


def files_of(path: Path) -> list[Path]:
    """A file itself, the shards of an index, or what makes up the one model of a folder. UserError if there is none."""
    if path.is_file():
        return [path] if path.suffix != ".json" else shards_of(path)
    if not path.is_dir():
        raise UserError(f"there are no weights at {path}: give a .safetensors file or a folder that holds one")
    for name in FOLDER_NAMES:
        if (path / name).is_file():
            return [path / name]
    indices, singles = sorted(path.glob("*.safetensors.index.json")), sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return shards_of(indices[0])
    if len(indices) > 1 or len(singles) > 1:
        raise UserError(f"{path} holds several models ({first([f.name for f in indices or singles])}): name one file")
    if singles:
        return singles
    pickles = [f.name for f in sorted(path.iterdir()) if f.suffix in PICKLE_SUFFIXES]
    hint = f"; {pickles[0]} is a pickle, name it and pass --allow-pickle if you trust it" if pickles else ""
    raise UserError(f"{path} holds no .safetensors file: give a folder that does{hint}")


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, all of them plain names beside it."""
    names = sorted(set(weight_map(index).values()))
    if any(Path(n).name != n for n in names):
        raise UserError(f"{index} names shards outside of its folder: get the file again")
    missing = [n for n in names if not (index.parent / n).is_file()]
    if missing or not names:
        raise UserError(f"{index} names shards that are not there ({first(missing) or 'none at all'}): get them first")
    return [index.parent / n for n in names]


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard of an index; UserError if it is none."""
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) for file in table.values()):
            raise TypeError("a shard has no name")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight shards ({error!r}): get the file again") from error
    return table


def listed_files(weights: Path) -> list[Path]:
    """A file itself, or an index and its shards, whether they are there or not."""
    if weights.suffix != ".json" or not weights.is_file():
        return [weights]
    return [weights, *(weights.parent / name for name in sorted(set(weight_map(weights).values())))]


def weights_in(folder: Path, stems: tuple[str, ...] = STEMS) -> Path:
    """The file of the weights in the folder of a part, or the index of its shards; the usual name if there is none."""
    return first_file(folder, *(f"{stem}.safetensors{end}" for stem in stems for end in ("", ".index.json")))


def first_file(folder: Path, *names: str) -> Path:
    """The first of these files that is there, or else the first."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def first(names: Iterable[str], count: int = 5) -> str:
    listed = list(names)
    rest = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + rest
