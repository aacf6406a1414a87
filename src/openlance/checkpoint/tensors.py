"""Weight files, read strictly: every tensor has exactly one place, every place is filled, every number is finite. One
model is a single file, or the shards that an index lists; files are mapped, so that what is not used is not read.

Axes are those of the files. A pickle can run code when it is opened, so it is refused unless asked for, and then only
tensors are taken from it (torch.load(weights_only=True)).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openlance.config.values import read_json
from openlance.errors import UserError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
# In the order in which the released code looks for them in a checkpoint folder.
FOLDER_NAMES = ("model.safetensors", "ema.safetensors")
# Names that the weights of a part have in its folder, by what wrote them.
STEMS = ("model", "diffusion_pytorch_model", "ema")


def files_of(path: Path) -> list[Path]:
    """List a file itself, the shards of an index, or what makes up the one model of a folder; UserError if there is
    none."""
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
    hint = f"; {pickles[0]} is a pickle, name it and pass allow_pickle=True if you trust it" if pickles else ""
    raise UserError(f"{path} holds no .safetensors file: give a folder that does{hint}")


def shards_of(index: Path) -> list[Path]:
    """List the files that an index names; UserError if there are none, or some are not there."""
    _, *shards = listed_files(index)
    missing = [file.name for file in shards if not file.is_file()]
    if missing or not shards:
        raise UserError(f"{index} names shards that are not there ({first(missing) or 'none at all'}): get them first")
    return shards


def weight_map(index: Path) -> dict[str, str]:
    """Read tensor name -> shard, a plain name beside it, from an index; UserError if it is none."""
    try:
        table = read_json(index)["weight_map"]
        if any(Path(file).name != file for file in table.values()):
            raise TypeError("it names shards outside of its folder")
    except (UserError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight shards ({error}): get the file again") from error
    return table


def listed_files(weights: Path) -> list[Path]:
    """List a file itself, or an index and its shards, whether they are there or not."""
    if weights.suffix != ".json" or not weights.is_file():
        return [weights]
    return [weights, *(weights.parent / name for name in sorted(set(weight_map(weights).values())))]


def weights_in(folder: Path, stems: tuple[str, ...] = STEMS) -> Path:
    """Find the file of the weights in the folder of a part, or the index of its shards; the usual name if there is
    none."""
    return first_file(folder, *(f"{stem}.safetensors{end}" for stem in stems for end in ("", ".index.json")))


def first_file(folder: Path, *names: str) -> Path:
    """Find the first of these files that is there, or else take the first."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def first(names: Iterable[str], count: int = 5) -> str:
    """List the first names, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + rest


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


# Elements that are checked, converted and let go of at a time: little beside any model, much beside a system call.
PIECE = 1 << 22

Rename = Callable[[str], str | None]
Placing = torch.device | str | None | Callable[[str], torch.device]


class _NoInit(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor") if not args else args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules built inside have shapes but no memory, for `load_into`. Initializers are left out: on the meta device
    they do nothing, but the first of them would import torch's compiler, which takes seconds."""
    with torch.device("meta"), _NoInit():
        yield


@dataclass(frozen=True)
class TensorSource:
    """Tensors that can be looked up before any is read.

    Args:
        origin: What errors call it.
        shapes: By name.
        read: Gives a tensor by its name.
        release: Is told that a tensor, or a contiguous piece of it, has been used: what is mapped from a file may leave
            memory, what lives in memory has nowhere to go.
        checked: Names that were found finite, so that a source that is kept and read again is not checked again.
    """

    origin: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    release: Callable[[str, Tensor], None] = lambda name, view: None
    checked: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Stream (name, tensor), one tensor in memory at a time."""
        return ((name, self.read(name)) for name in self.shapes)

    @property
    def has_scales(self) -> bool:
        """Whether there may be quantized matrices (`runtime.quantization`): their scales stand beside them."""
        return any(name.endswith(".scale") for name in self.shapes)

    def only(self, keep: Callable[[str], bool]) -> TensorSource:
        """Pick the tensors whose names pass; the others are never read."""
        return replace(self, shapes={n: s for n, s in self.shapes.items() if keep(n)})

    @staticmethod
    def of(tensors: Mapping[str, Tensor], origin: str = "the given tensors") -> TensorSource:
        """Wrap tensors that are already in memory; reading one gives a copy, so that no two models share it."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return TensorSource(origin, shapes, lambda name: tensors[name].detach().clone())


def open_tensors(path: str | Path | TensorSource, *, allow_pickle: bool = False) -> TensorSource:
    """Open the tensors of a file, or of a folder that holds one file or the shards of one index; nothing is read yet.

    Args:
        path: The file or folder; a source that is open already stays as it is.
        allow_pickle: Take tensors from pickles, too.

    Raises:
        UserError: If there is nothing, the file is damaged, or it is a pickle that is not allowed.
    """
    if isinstance(path, TensorSource):
        return path
    owner: dict[str, TensorSource] = {}
    for file in files_of(Path(path)):
        source = _open_pickle(file, allow_pickle) if _is_pickle(file) else _open_mapped(file)
        if twice := sorted(source.shapes.keys() & owner.keys()):
            raise UserError(f"{first(twice)} occur in {file} and in another shard: give a folder with one model only")
        owner |= dict.fromkeys(source.shapes, source)
    shapes = {name: source.shapes[name] for name, source in owner.items()}
    read, release = (lambda name: owner[name].read(name)), (lambda name, view: owner[name].release(name, view))
    return TensorSource(str(path), shapes, read, release)


def read_tensors(
    path: str | Path, keep: Callable[[str], bool] | None = None, *, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """Read all tensors of open_tensors(path) whose names pass `keep`; every one is checked to be finite."""
    source = open_tensors(path, allow_pickle=allow_pickle)
    found = dict(source.only(keep) if keep else source)
    for name, tensor in found.items():
        check_finite(name, tensor, source.origin)
    return found


def load_into(
    module: nn.Module,
    source: TensorSource | Mapping[str, Tensor],
    rename: Rename | Mapping[str, str | None] = lambda name: name,
    *,
    dtype: torch.dtype | Callable[[str], torch.dtype] | None = None,
    device: Placing = None,
) -> None:
    """Fill every parameter and persistent buffer of a module; each tensor is used once and has the shape of its place.

    All names and shapes are compared before anything is read, so a wrong file leaves the module as it was.

    Args:
        module: The module.
        source: The tensors.
        rename: Released name -> name in the module, None for a tensor that is dropped on purpose; a mapping must know
            every name.
        dtype: Of floating-point tensors in a module made on the meta device, or a function of the name in the module;
            any other module keeps its own.
        device: Likewise.

    Raises:
        UserError: If tensors are missing, unexpected or misshapen, of which it names five, or one is not finite.
    """
    tensors = source if isinstance(source, TensorSource) else TensorSource.of(source)
    places = module.state_dict(keep_vars=True)
    plan = _plan(tensors, rename)
    compare(tensors, plan, {name: tuple(place.shape) for name, place in places.items()})
    filled = dict[str, Tensor]()
    for name, target in plan.items():
        place = places[target]
        if place.is_meta:
            wanted = dtype if dtype is None or isinstance(dtype, torch.dtype) else dtype(target)
            kept = None if place.dtype.itemsize == 1 else wanted  # codes are not numbers to be converted
            filled[target] = stream(tensors, name, kept, device(target) if callable(device) else device)
        else:
            value = tensors.read(name)
            check_finite(name, value, tensors.origin)
            with torch.no_grad():
                place.copy_(value)
            tensors.release(name, value)
    module.load_state_dict(filled, strict=False, assign=True)


def stream(
    tensors: TensorSource, name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Read one tensor to its device in its final form (dtype is for floating-point ones), checked to be finite; beside
    it only a piece of the source is in memory. What needs no change stays a view of the file."""
    value = tensors.read(name)
    dtype = dtype if dtype is not None and value.is_floating_point() else value.dtype
    device = torch.device(device or "cpu")
    stays = value.dtype == dtype and value.device == device
    out = value if stays else torch.empty(value.shape, dtype=dtype, device=device)
    if stays and name in tensors.checked:
        return value
    for source, place in zip(value.reshape(-1).split(PIECE), out.reshape(-1).split(PIECE), strict=True):
        if name not in tensors.checked:
            check_finite(name, source, tensors.origin)
        if not stays:
            place.copy_(source)
        tensors.release(name, source)
    tensors.checked.add(name)
    return out


def _plan(tensors: TensorSource, rename: Rename | Mapping[str, str | None]) -> dict[str, str]:
    """Source name -> name in the module, for the tensors that are used."""
    plan, taken = dict[str, str](), dict[str, str]()
    for name in tensors.shapes:
        target = rename.get(name, f"unknown:{name}") if isinstance(rename, Mapping) else rename(name)
        if target is None:
            continue
        if target in taken:
            raise UserError(f"{tensors.origin} holds {target} twice, as {taken[target]} and {name}: remove one of them")
        plan[name], taken[target] = target, name
    return plan


def misfits(
    tensors: TensorSource, plan: Mapping[str, str], places: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """Names that are "missing", "unexpected" or of a "wrong shape", where they are to go by `plan` to `places`."""
    missing = sorted(places.keys() - plan.values())
    unexpected = sorted(name for name, target in plan.items() if target not in places)
    both = {name: (tensors.shapes[name], places[target]) for name, target in plan.items() if target in places}
    misshapen = sorted(f"{n} (is {_by(own)}, needs {_by(place)})" for n, (own, place) in both.items() if own != place)
    return {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen}


def compare(tensors: TensorSource, plan: Mapping[str, str], places: Mapping[str, tuple[int, ...]]) -> None:
    """UserError unless names and shapes agree both ways."""
    if faults := "; ".join(f"{n}: {first(names)}" for n, names in misfits(tensors, plan, places).items() if names):
        raise UserError(f"{tensors.origin} does not fit this model ({faults}): give the weights made for it")


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the entries of a safetensors file by name, and where its data begin."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    return header, start


def _open_mapped(path: Path) -> TensorSource:
    """Tensors of one file as writable private views: a change stays in this process, the file is never written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # checks the header against itself and against the length of the file
            pass
        header, start = read_header(path)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): get the file again") from error
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path} holds {name} as {entry['dtype']}, which is not read here: convert it to BF16")
    base = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr()

    def read(name: str) -> Tensor:
        entry = header[name]
        (begin, end), dtype = entry["data_offsets"], DTYPES[entry["dtype"]]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start + begin).reshape(entry["shape"])

    def release(name: str, view: Tensor) -> None:
        """Pages of an unchanged view leave memory, and are read again when touched; a changed one would lose its
        changes."""
        page, begin = mmap.PAGESIZE, view.data_ptr() - base
        first, last = -(-begin // page) * page, (begin + view.nbytes) // page * page
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    return TensorSource(str(path), {name: tuple(entry["shape"]) for name, entry in header.items()}, read, release)


def _is_pickle(path: Path) -> bool:
    """Detect a pickle by its content, since a suffix can say anything: torch writes zip archives, older versions bare
    pickles."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in PICKLE_SUFFIXES


def _open_pickle(path: Path, allow_pickle: bool) -> TensorSource:
    if not allow_pickle:
        safe = "give a .safetensors file, or pass allow_pickle=True to take only its tensors"
        raise UserError(f"{path} is a pickle, which can run code when it is opened: {safe}")
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
    return TensorSource(str(path), {name: tuple(t.shape) for name, t in loaded.items()}, loaded.__getitem__)


def check_finite(name: str, value: Tensor, origin: str) -> None:
    """Check that all values are finite, or raise UserError. Least and largest show it in one pass without a copy."""
    if not value.is_floating_point() or not value.numel():
        return
    for bound in torch.aminmax(value if value.dtype.itemsize > 1 else value.float()):
        if not bool(torch.isfinite(bound)):
            raise UserError(f"{origin} holds values that are not finite in {name}: get or train the weights again")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


# A short name for what weights are, quick enough to be worked out beside every image.

WHOLE = 1 << 26  # bytes up to which a file is read in full
ENDS = 1 << 20  # bytes that are read at both ends of a larger one
SAMPLE = 1 << 12  # bytes that are read of each of its tensors


def fingerprint(*weights: Path) -> str:
    """Hash files of weights, or indices and their shards: 16 hexadecimal digits of BLAKE2b.

    It is the same on every machine and under every name. A file of up to 64 MiB counts whole. Of a larger one count its
    length, its first and last MiB, which hold the header of a safetensors file and the checksums of a zip archive
    (.pth), and the first 4096 bytes of each tensor of a safetensors file: training changes these, a flipped bit need
    not.

    Args:
        *weights: Files, in the order in which they count.

    Raises:
        OSError: If one cannot be read.
        UserError: If one is a damaged safetensors file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in (file for part in weights for file in listed_files(part)):
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            for begin, count in _sampled(path, path.stat().st_size):
                file.seek(begin)
                digest.update(file.read(count))
    return digest.hexdigest()


def _sampled(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """(place, number) of the bytes of a file that count."""
    if size <= WHOLE:
        yield 0, size
        return
    yield 0, ENDS
    if path.suffix == ".safetensors":
        entries, start = read_header(path)
        for begin, end in sorted(entry["data_offsets"] for entry in entries.values()):
            yield start + begin, min(SAMPLE, end - begin)
    yield size - ENDS, ENDS
