"""Weight files, read strictly: every tensor has exactly one place, every place is filled, every number is finite.

Axes are those of the files. A pickle can run code when it is opened, so it is refused unless asked for, and then only
tensors are taken from it (torch.load(weights_only=True)).
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openlance.errors import UserError
from openlance.media.files import atomic_path

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
# In the order in which the released code looks for them in a checkpoint folder.
FOLDER_NAMES = ("model.safetensors", "ema.safetensors")

Rename = Callable[[str], str | None]


class _NoInit(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor") if not args else args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules built inside have shapes but no memory, for `load_into`. Initialisers are left out: on the meta device
    they do nothing, but the first of them would import torch's compiler, which takes seconds."""
    with torch.device("meta"), _NoInit():
        yield


@dataclass(frozen=True)
class TensorSource:
    """Tensors that can be looked up before any is read: shapes by name, and a way to read one."""

    origin: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Stream (name, tensor), one tensor in memory at a time."""
        return ((name, self.read(name)) for name in self.shapes)

    def only(self, keep: Callable[[str], bool]) -> TensorSource:
        """The tensors whose names pass; the others are never read."""
        return TensorSource(self.origin, {n: s for n, s in self.shapes.items() if keep(n)}, self.read)

    @staticmethod
    def of(tensors: Mapping[str, Tensor], origin: str = "the given tensors") -> TensorSource:
        """Wrap tensors that are already in memory; reading one gives a copy, so that no two models share it."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return TensorSource(origin, shapes, lambda name: tensors[name].detach().clone())


def open_tensors(path: str | Path, *, allow_pickle: bool = False) -> TensorSource:
    """The tensors of a file, or of a folder that holds one file or the shards of one index, without reading them yet.

    UserError if there is nothing, the file is damaged, or it is a pickle and allow_pickle is False.
    """
    files = _weight_files(Path(path))
    sources = [_open_file(file, allow_pickle) for file in files]
    shapes: dict[str, tuple[int, ...]] = {}
    owner: dict[str, TensorSource] = {}
    for file, source in zip(files, sources, strict=True):
        twice = sorted(source.shapes.keys() & shapes.keys())
        if twice:
            raise UserError(f"{_first(twice)} occur in {file} and in another shard: give a folder with one model only")
        shapes.update(source.shapes)
        owner.update(dict.fromkeys(source.shapes, source))
    return TensorSource(str(path), shapes, lambda name: owner[name].read(name))


def read_tensors(
    path: str | Path, keep: Callable[[str], bool] | None = None, *, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """All tensors of open_tensors(path) whose names pass `keep`, in memory; every one is checked to be finite."""
    source = open_tensors(path, allow_pickle=allow_pickle)
    return {name: _finite(name, t, source.origin) for name, t in (source.only(keep) if keep else source)}


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; it appears whole or not at all."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        ready = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(ready, temporary, dict(metadata or {}))


def load_into(
    module: nn.Module,
    source: TensorSource | Mapping[str, Tensor],
    rename: Rename | Mapping[str, str | None] = lambda name: name,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Fill every parameter and persistent buffer of a module; each tensor is used once and has the shape of its place.

    rename: released name -> name in the module, None for a tensor that is dropped on purpose; a mapping must know every
    name. dtype, device: given to a module made on the meta device; otherwise the module keeps its own.
    All names and shapes are compared before anything is read, so a wrong file leaves the module as it was.
    UserError naming the first five tensors that are missing, unexpected or misshapen, or one that is not finite.
    """
    tensors = source if isinstance(source, TensorSource) else TensorSource.of(source)
    places = module.state_dict(keep_vars=True)
    plan = _plan(tensors, rename)
    _compare(tensors, plan, {name: tuple(place.shape) for name, place in places.items()})
    for name, target in plan.items():
        value = _finite(name, tensors.read(name), tensors.origin)
        place = places[target]
        if place.is_meta:
            _assign(module, target, value.to(device=device, dtype=dtype if value.is_floating_point() else None))
        else:
            with torch.no_grad():
                place.copy_(value)


def _plan(tensors: TensorSource, rename: Rename | Mapping[str, str | None]) -> dict[str, str]:
    """Source name -> name in the module, for the tensors that are used."""
    if isinstance(rename, Mapping):
        unknown = sorted(tensors.shapes.keys() - rename.keys())
        if unknown:
            raise UserError(
                f"{tensors.origin} does not fit (unexpected: {_first(unknown)}): give the weights made for this model"
            )
    lookup = rename.__getitem__ if isinstance(rename, Mapping) else rename
    plan: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in tensors.shapes:
        target = lookup(name)
        if target is None:
            continue
        if target in taken:
            raise UserError(f"{tensors.origin} holds {target} twice, as {taken[target]} and {name}: remove one of them")
        plan[name], taken[target] = target, name
    return plan


def _compare(tensors: TensorSource, plan: Mapping[str, str], places: Mapping[str, tuple[int, ...]]) -> None:
    """UserError unless names and shapes agree both ways."""
    missing = sorted(places.keys() - plan.values())
    unexpected = sorted(name for name, target in plan.items() if target not in places)
    misshapen = sorted(
        f"{name} (is {_by(tensors.shapes[name])}, needs {_by(places[target])})"
        for name, target in plan.items()
        if target in places and tensors.shapes[name] != places[target]
    )
    found = (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
    faults = "; ".join(f"{fault}: {_first(names)}" for fault, names in found if names)
    if faults:
        raise UserError(f"{tensors.origin} does not fit this model ({faults}): give the weights made for it")


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a real tensor in the place of one on the meta device."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, leaf)
    is_parameter = isinstance(old, nn.Parameter)
    setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value)


def _weight_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that make up one model."""
    if path.is_file():
        return [path] if path.suffix != ".json" else _shards(path)
    if not path.is_dir():
        raise UserError(f"there are no weights at {path}: give a .safetensors file or a folder that holds one")
    for name in FOLDER_NAMES:
        if (path / name).is_file():
            return [path / name]
    indices, singles = sorted(path.glob("*.safetensors.index.json")), sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _shards(indices[0])
    if len(indices) > 1 or len(singles) > 1:
        raise UserError(f"{path} holds several models ({_first([f.name for f in indices or singles])}): name one file")
    if singles:
        return singles
    pickles = [f.name for f in sorted(path.iterdir()) if f.suffix in PICKLE_SUFFIXES]
    hint = f"; {pickles[0]} is a pickle, name it and pass --allow-pickle if you trust it" if pickles else ""
    raise UserError(f"{path} holds no .safetensors file: give a folder that does{hint}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them plain names beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight shards ({error!r}): get the file again") from error
    if any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise UserError(f"{index} names shards outside of its folder: get the file again")
    missing = [n for n in names if not (index.parent / n).is_file()]
    if missing or not names:
        raise UserError(f"{index} names shards that are not there ({_first(missing) or 'none at all'}): get them first")
    return [index.parent / n for n in names]


def _open_file(path: Path, allow_pickle: bool) -> TensorSource:
    from safetensors import SafetensorError, safe_open

    if _is_pickle(path):
        return _open_pickle(path, allow_pickle)
    try:
        with safe_open(path, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): get the file again") from error
    handle = safe_open(path, framework="pt")
    return TensorSource(str(path), shapes, handle.get_tensor)


def _is_pickle(path: Path) -> bool:
    """Told by content, since a suffix can say anything: torch writes zip archives, older versions bare pickles."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in PICKLE_SUFFIXES


def _open_pickle(path: Path, allow_pickle: bool) -> TensorSource:
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is opened: give a .safetensors file, or pass "
            f"--allow-pickle to take only its tensors"
        )
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is a pickle under a wrong name: rename it to {path.stem}.pth")
    try:
        # A zip archive is mapped, so that what is not used is not read either.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not a readable file of tensors ({reason}): get the file again") from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise UserError(f"{path} holds more than a table of tensors: give a plain state dict")
    return TensorSource.of(loaded, str(path))


def _finite(name: str, value: Tensor, origin: str) -> Tensor:
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise UserError(f"{origin} holds numbers that are not finite in {name}: get the file again or train it anew")
    return value


def _first(names: Iterable[str], count: int = 5) -> str:
    listed = list(names)
    rest = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + rest


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
