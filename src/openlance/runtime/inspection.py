"""What lies at a path: the form of a checkpoint, its parts, what is missing or wrong, and which tasks it can do."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openlance.checkpoint.formats import INSIDE, Files, check_hashes, find
from openlance.checkpoint.names import COMPUTED, released_names
from openlance.checkpoint.tensors import (
    NAMES,
    PICKLE_SUFFIXES,
    TensorSource,
    check_finite,
    compare,
    first,
    listed_files,
    open_tensors,
)
from openlance.errors import UserError
from openlance.runtime.expected import Shapes, expected
from openlance.runtime.quantization import stored_shapes
from openlance.sequence import tasks
from openlance.sequence.segment import Kind


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of weights. dtypes: numbers by type; bytes: on disk; fault: what is wrong, in one sentence, or ""; note:
    why it was not looked into, or ""."""

    name: str
    files: list[str]
    tensors: int = 0
    numbers: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    fault: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """remedy: what completes or mends it, or ""; tasks: what it can do with the parts that are good."""

    path: str
    form: str
    parts: list[Part]
    missing: list[str]
    remedy: str
    tasks: list[str]
    hashes: int  # files that were compared with what the hub has

    @property
    def complete(self) -> bool:
        return not self.missing and not any(part.fault for part in self.parts)

    def as_data(self) -> dict[str, Any]:
        return {"path": self.path, "form": self.form, "complete": self.complete, **asdict(self)}


def inspect(path: Path, *, allow_pickle: bool = False, values: bool = False) -> Report:
    """Look at a checkpoint folder of any form, or at one file of weights. Names and shapes are compared with what the
    configuration asks for, files with the hashes that the hub gave; `values` reads every number too.

    UserError if there is nothing that could be looked at.
    """
    if not path.exists():
        raise UserError(f"there is nothing at {path}: give a checkpoint folder, or get one with `openlance download`")
    if path.is_file():
        source = open_tensors(path, allow_pickle=allow_pickle)
        return Report(path=str(path), form="file", parts=[_part("file", path, source, "")], missing=[], remedy="",
                      tasks=[], hashes=check_hashes(path))  # fmt: skip
    files = find(path)
    parts, hashes = [], 0
    for name, weights, prefix in weights_of(files):
        part, compared = _look(files, name, weights, prefix, allow_pickle, values)
        parts.append(part)
        hashes += compared
    missing = [str(p) for p in files.missing()]
    good = {part.name.split()[0] for part in parts if not part.fault}
    wrong = bool(missing) or any(part.fault for part in parts)
    return Report(
        path=str(path), form=files.form, parts=parts, missing=missing, remedy=files.remedy if wrong else "",
        tasks=[name for name in tasks.TASKS if needs(name) <= good], hashes=hashes,
    )  # fmt: skip


def weights_of(files: Files) -> list[tuple[str, Path, str]]:
    """(part, its file, prefix of its names there), the decoder for clips after that for pictures."""
    decoders = [("decoder", files.decoder(), "")]
    if len(files.decoders) > 1:
        decoders.append(("decoder for clips", files.decoder(clips=True), ""))
    try:
        tower, prefix = files.vit_of()
    except UserError:  # the decoder's file is damaged, which is said where it is looked at
        tower, prefix = files.vit, ""
    return [*decoders, ("vit", tower, prefix), ("vae", files.vae, "")]


def _look(
    files: Files, name: str, weights: Path, prefix: str, allow_pickle: bool, values: bool
) -> tuple[Part, int]:  # fmt: skip
    """One part and how many of its files have a known hash; what is wrong with it becomes its fault."""
    names = [str(p) for p in listed_files(weights)]
    if files.missing(weights):
        return Part(name=name, files=names, fault="missing"), 0
    compared = 0
    try:
        compared = check_hashes(weights)
        if weights.suffix in PICKLE_SUFFIXES and not allow_pickle:
            note = "a pickle, which is only opened with --allow-pickle"
            return Part(name=name, files=names, bytes=weights.stat().st_size, note=note), compared
        source, plan, wanted = opened(files, name, weights, prefix, allow_pickle)
        fault = ""
        try:
            compare(source, plan, wanted)
            for tensor in source.shapes if values else ():
                check_finite(tensor, source.read(tensor), source.origin)
        except UserError as error:
            fault = str(error)
        return _part(name, weights, source, fault), compared
    except UserError as error:
        return Part(name=name, files=names, fault=str(error)), compared


def opened(
    files: Files, name: str, weights: Path, prefix: str, allow_pickle: bool
) -> tuple[TensorSource, dict[str, str], Shapes]:
    """A part (a row of `weights_of`) as its file has it: its tensors, the released name of each, and the shapes that
    the configuration asks for by that. UserError if the file cannot be read."""
    kind, wan = name.split()[0], released_names(files.config.vae)
    source = open_tensors(weights, allow_pickle=allow_pickle).only(lambda n: _counts(n, kind, prefix))
    wanted = expected(files.config, [kind])[kind]
    plan = {n: _released(n, kind, prefix, wan) for n in source.shapes}
    return source, plan, stored_shapes(source, wanted) if kind == "decoder" else wanted


def _counts(name: str, kind: str, prefix: str) -> bool:
    """Whether a tensor of a part's file belongs to the part: a decoder's file may hold more."""
    return name not in COMPUTED and not name.startswith(INSIDE) if kind == "decoder" else name.startswith(prefix)


def _released(name: str, kind: str, prefix: str, wan: Any) -> str:
    if kind != "vae":
        return name[len(prefix) :]
    ours = wan.to_ours(name)
    return ours if ours.startswith("unknown:") else wan.to_released(ours)


def _part(name: str, weights: Path, source: TensorSource, fault: str) -> Part:
    dtypes: Counter[str] = Counter()
    for tensor, shape in source.shapes.items():
        dtypes[NAMES.get(source.read(tensor).dtype, "other")] += math.prod(shape)
    files = listed_files(weights)
    return Part(
        name=name, files=[str(p) for p in files], tensors=len(source.shapes), numbers=sum(dtypes.values()),
        dtypes=dict(dtypes), bytes=sum(p.stat().st_size for p in files), fault=fault,
    )  # fmt: skip


def needs(task: str) -> set[str]:
    """The parts without which a task cannot run, read from its template."""
    kinds = {s.kind for s in tasks.outline(tasks.TASKS[task])}
    return {"decoder"} | {part for kind, part in ((Kind.PATCHES, "vit"), (Kind.LATENTS, "vae")) if kind in kinds}


def summary(report: Report) -> str:
    """One line that says how it stands."""
    if report.form == "file":
        return f"{report.path}: a file of weights, no checkpoint"
    if report.complete:
        return f"{report.path}: a complete checkpoint in the {report.form} form"
    lost = [Path(p).name for p in report.missing]
    wrong = [part.name for part in report.parts if part.fault and part.fault != "missing"]
    said = [f"missing: {first(lost)}"] * bool(lost) + [f"wrong: {', '.join(wrong)}"] * bool(wrong)
    return f"{report.path}: an incomplete checkpoint in the {report.form} form ({'; '.join(said)}); {report.remedy}"
