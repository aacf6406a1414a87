"""What lies at a path: the form of a checkpoint, its parts, what is missing or wrong, and which tasks it can do; and
what should lie there: every tensor of a configuration by its released name, which files are held against."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from openlance.checkpoint import tensors
from openlance.checkpoint.formats import COMPUTED, INSIDE, Files, check_hashes, find, released_name, released_names
from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.model.lance import Lance
from openlance.runtime.quantization import stored_shapes
from openlance.sequence import tasks
from openlance.sequence.segment import Kind

Shapes = dict[str, tuple[int, ...]]
PARTS = ("decoder", "vit", "vae")


def expected(config: ModelConfig, parts: Iterable[str] = PARTS) -> dict[str, Shapes]:
    """Give the shapes by released name of each of the wanted parts; no weights are made."""
    from openlance.model.vit import ViT
    from openlance.vae.autoencoder import Wan

    of: dict[str, tuple[Callable[[], nn.Module], Callable[[str], str]]] = {
        "decoder": (lambda: Lance(config), released_name),
        "vit": (lambda: ViT(config.vit).tower, str),
        "vae": (lambda: Wan(config.vae), released_names(config.vae).to_released),
    }
    with tensors.unfilled():
        made = {part: of[part][0]() for part in parts}
    return {part: {of[part][1](n): tuple(p.shape) for n, p in m.named_parameters()} for part, m in made.items()}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of weights.

    Attributes:
        dtypes: Its parameters by type.
        bytes: On disk.
        fault: What is wrong, in one sentence, or "".
        note: Why it was not looked into, or "".
    """

    name: str
    files: list[str]
    tensors: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    fault: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found at a path.

    Attributes:
        remedy: What completes or mends it, or "".
        tasks: What it can do with the parts that are good.
        hashes: Files that were compared with what the hub has.
    """

    path: str
    form: str
    parts: list[Part]
    missing: list[str]
    remedy: str
    tasks: list[str]
    hashes: int

    @property
    def complete(self) -> bool:
        return not self.missing and not any(part.fault for part in self.parts)

    def as_data(self) -> dict[str, Any]:
        return {"path": self.path, "form": self.form, "complete": self.complete, **asdict(self)}


def inspect(path: Path, *, allow_pickle: bool = False, values: bool = False) -> Report:
    """Look at a checkpoint folder of any form, or at one file of weights.

    Names and shapes are compared with what the configuration asks for, files with the hashes that the hub gave.

    Args:
        path: Of the folder or file.
        allow_pickle: Whether pickles are opened.
        values: Whether every number is read and checked to be finite.

    Raises:
        UserError: If there is nothing that could be looked at.
    """
    if not path.exists():
        raise UserError(f"there is nothing at {path}: give a checkpoint folder, or get one with `openlance download`")
    if path.is_file():
        part = _filled(Part(name="file", files=[]), path, tensors.open_tensors(path, allow_pickle=allow_pickle))
        return Report(path=str(path), form="file", parts=[part], missing=[], remedy="", tasks=[],
                      hashes=check_hashes(path))  # fmt: skip
    files = find(path)
    looked = [_look(files, *row, allow_pickle, values) for row in weights_of(files)]
    parts, missing = [part for part, _ in looked], [str(p) for p in files.missing()]
    good = {part.name.split()[0] for part in parts if not part.fault}
    wrong = bool(missing) or any(part.fault for part in parts)
    return Report(
        path=str(path), form=files.form, parts=parts, missing=missing, remedy=files.remedy if wrong else "",
        tasks=[name for name in tasks.TASKS if needs(name) <= good], hashes=sum(compared for _, compared in looked),
    )  # fmt: skip


def weights_of(files: Files) -> list[tuple[str, Path, str]]:
    """List (part, its file, prefix of its names there), the decoder for videos after that for images."""
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
    part, compared = Part(name=name, files=[str(p) for p in tensors.listed_files(weights)]), 0
    if files.missing(weights):
        return replace(part, fault="missing"), 0
    try:
        compared = check_hashes(weights)
        if weights.suffix in tensors.PICKLE_SUFFIXES and not allow_pickle:
            note = "a pickle, which is only opened with allow_pickle=True"
            return replace(part, bytes=weights.stat().st_size, note=note), compared
        source, plan, wanted = opened(files, name, weights, prefix, allow_pickle)
        part = _filled(part, weights, source)
        tensors.compare(source, plan, wanted)
        for tensor in source.shapes if values else ():
            tensors.check_finite(tensor, source.read(tensor), source.origin)
    except UserError as error:
        part = replace(part, fault=str(error))
    return part, compared


def opened(
    files: Files, name: str, weights: Path, prefix: str, allow_pickle: bool
) -> tuple[tensors.TensorSource, dict[str, str], Shapes]:
    """Open a part (a row of `weights_of`).

    Returns:
        Its tensors as the file has them, the released name of each, and the shapes that the configuration asks for by
        that.

    Raises:
        UserError: If the file cannot be read.
    """
    kind, wan = name.split()[0], released_names(files.config.vae)

    def own(n: str) -> bool:  # a decoder's file may hold more
        return n not in COMPUTED and not n.startswith(INSIDE) if kind == "decoder" else n.startswith(prefix)

    def released(n: str) -> str:
        if kind != "vae":
            return n[len(prefix) :]
        ours = str(wan.to_ours(n))
        return ours if ours.startswith("unknown:") else wan.to_released(ours)

    source = tensors.open_tensors(weights, allow_pickle=allow_pickle).only(own)
    wanted = expected(files.config, [kind])[kind]
    plan = {n: released(n) for n in source.shapes}
    return source, plan, stored_shapes(source, wanted) if kind == "decoder" else wanted


def _filled(part: Part, weights: Path, source: tensors.TensorSource) -> Part:
    dtypes: Counter[str] = Counter()
    for tensor, shape in source.shapes.items():
        dtypes[tensors.NAMES.get(source.read(tensor).dtype, "other")] += math.prod(shape)
    files = tensors.listed_files(weights)
    return replace(
        part, files=[str(p) for p in files], tensors=len(source.shapes), parameters=sum(dtypes.values()),
        dtypes=dict(dtypes), bytes=sum(p.stat().st_size for p in files),
    )  # fmt: skip


def needs(task: str) -> set[str]:
    """Name the parts without which a task cannot run, read from its template."""
    kinds = {s.kind for s in tasks.outline(tasks.TASKS[task])}
    return {"decoder"} | {part for kind, part in ((Kind.PATCHES, "vit"), (Kind.LATENTS, "vae")) if kind in kinds}


def summary(report: Report) -> str:
    """Say in one line how it stands."""
    if report.form == "file":
        return f"{report.path}: a file of weights, no checkpoint"
    if report.complete:
        return f"{report.path}: a complete checkpoint in the {report.form} form"
    lost = [Path(p).name for p in report.missing]
    wrong = [part.name for part in report.parts if part.fault and part.fault != "missing"]
    said = [f"missing: {tensors.first(lost)}"] * bool(lost) + [f"wrong: {', '.join(wrong)}"] * bool(wrong)
    return f"{report.path}: an incomplete checkpoint in the {report.form} form ({'; '.join(said)}); {report.remedy}"
