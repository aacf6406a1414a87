"""The runs that a file of bfloat16 vectors may hold: one model in four forms, and the inputs that each of them gets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from openlance.compat.verify.case import Case
from openlance.compat.verify.checks import Checks
from openlance.compat.verify.files import GoldenFile
from openlance.compat.verify.generation import _clean
from openlance.compat.verify.layout import where
from openlance.compat.verify.parts import Parts
from openlance.compat.verify.preprocessing import in_model_space
from openlance.compat.verify.requests import _segments
from openlance.compat.verify.traces import Trace, trace
from openlance.media.clip import Clip
from openlance.sequence.segment import Kind, Role, Segments
from openlance.sequence.tasks import Views

Clips = dict[int, Views]  # what the tower and what the codec gets, by medium


@dataclass(frozen=True)
class Form:
    """One run of the released code.

    Attributes:
        name: How its tensors begin.
        dtype: Of weights and activations.
        rounded: Whether the rotary frequencies are.
    """

    name: str
    dtype: torch.dtype
    rounded: bool

    @property
    def half(self) -> bool:
        """Whether it runs in half precision."""
        return self.dtype == torch.bfloat16


RELEASED, UNROUNDED = Form("", torch.bfloat16, True), Form("unrounded.", torch.bfloat16, False)
ROUNDED, PLAIN = Form("float32_rounded.", torch.float32, True), Form("float32.", torch.float32, False)


class Family:
    """The same weights in every form, each read when it is first needed."""

    def __init__(self, weights: Path, tokenizer: Path, ways: Collection[str] = ()) -> None:
        """Remember the folders. ways: of `parts.WAYS`, what is on."""
        self.weights, self.tokenizer, self.ways = weights, tokenizer, ways
        self._made: dict[Form, Parts] = {}

    def of(self, form: Form) -> Parts:
        """Give the model in a form."""
        if form not in self._made:
            given = self.weights, self.tokenizer, self.ways
            self._made[form] = Parts(*given, dtype=form.dtype, rounded=form.rounded)
        return self._made[form]


@dataclass
class Halves:
    """A file in bfloat16 and what our code makes of its inputs, worked out once for each form.

    Attributes:
        checks: The comparisons of the file.
        inputs: The float32 case whose inputs it has.
        family: The model in every form.
        segments: The request.
        clips: Its media.
    """

    checks: Checks
    inputs: GoldenFile
    family: Family
    segments: Segments
    clips: Clips
    _cases: dict[Form, Case] = field(default_factory=dict)
    _traces: dict[Form, Trace] = field(default_factory=dict)
    _features: dict[Form, list[Tensor]] = field(default_factory=dict)

    @property
    def file(self) -> GoldenFile:
        """The file itself."""
        return self.checks.file

    @property
    def paints(self) -> bool:
        """Whether the request ends in a picture or a clip, not in an answer."""
        return any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in self.segments)

    @property
    def prefix(self) -> int:
        """How many rows come before the target; of an answer all but the last, which is the first step of decoding."""
        rows = self.case(PLAIN).rows
        return int(where(rows.noisy)[0]) if self.paints else len(rows) - 1

    def has(self, form: Form, *names: str) -> bool:
        """Whether the file holds one of these tensors of a run; without names, any."""
        if names:
            return any(form.name + name in self.file for name in names)
        return not form.name or any(name.startswith(form.name) for name in self.file.names())

    def joined(self, y: Tensor) -> Tensor:
        """Choose from rows of the prefix and the target's split those that are stored."""
        at = self.file.get("rows.joined")
        return y if at is None else y[at]

    def of_prefix(self, y: Tensor) -> Tensor:
        """Choose from rows of the prefix those that are stored."""
        at = self.file.get("rows.prefix")
        return y if at is None else y[at]

    # What a form gets.

    def case(self, form: Form) -> Case:
        """Give the request with the media of a form: as stored, so that the decoder is tested alone."""
        if form not in self._cases:
            parts = self.family.of(form)
            seen = [clip for clip, _ in self.clips.values() if clip is not None]
            cells = dict(zip([clip.key for clip in seen], self._cells(form) if seen else [], strict=True))
            kept = {clip.key: self.latents(form, k) for k, (_, clip) in self._kept()}
            segments = in_model_space(self.segments, cells, kept)
            case = Case(self.checks, parts, segments, parts.pack([segments]))
            if not self.paints:
                case.packed = parts.pack([case.asked], shift=False)
            self._cases[form] = case
        return self._cases[form]

    def _kept(self) -> list[tuple[int, tuple[Clip | None, Clip]]]:
        return [(k, (seen, kept)) for k, (seen, kept) in enumerate(self.clips.values()) if kept is not None]

    def features(self, form: Form) -> list[Tensor]:
        """Give what our tower makes of each clip in a form."""
        if form not in self._features:
            seen = [clip for clip, _ in self.clips.values() if clip is not None]
            self._features[form] = self.family.of(form).features(seen)
        return self._features[form]

    def _cells(self, form: Form) -> list[Tensor]:
        name = "vit.embed"
        given = self.inputs.get(name) if form is PLAIN else self.file.get(form.name + name)
        ours = self.features(form)
        if given is None:
            return ours
        flat = given.split([x.shape[:3].numel() for x in ours])
        return [rows.reshape(x.shape) for rows, x in zip(flat, ours, strict=True)]

    def latents(self, form: Form, number: int) -> Tensor:
        """Give the clean latents (T, Y, X, C) of a medium; what stands nowhere is the encoder's mean.

        Args:
            form: In half precision they are rounded.
            number: Counted as the names of the tensors are.
        """
        for name in (f"cond.latent{number}_first_frame", f"cond.latent{number}"):
            given = self.inputs.get(name)
            if form.half and name in self.file:
                given = self.file.take(name)
            if given is not None:
                return given.to(form.dtype)
        clip = list(self.clips.values())[number][1]
        assert clip is not None
        return self.family.of(form).moments(clip)[0]

    def noise(self, form: Form) -> Tensor:
        """Give the starting noise (N, C) of all latent rows: stored with the inputs, or drawn from the seed."""
        gen = self.file.fact("gen") or {}
        seed = gen.get("noise_seed", self.file.fact("seed", 42))
        case = self.case(form)
        count, channels = int(case.rows.is_latent.sum()), case.parts.config.latent_channels
        given = self.inputs.get("gen.noise")
        drawn = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)) if given is None else given
        return drawn.to(form.dtype).float()

    def state(self, form: Form) -> Tensor:
        """Give the states (N, C) of all latent rows at the first step."""
        x = self.noise(form).clone()
        for row, clean in _clean(self.case(form)):
            x[row : row + len(clean)] = clean.float()
        return x

    def patch_positions(self) -> Tensor:
        """Give (N, 2) row and column of every patch that the tower sees, in its order: cell by cell."""
        config, found = self.family.of(PLAIN).config.vit, list[Tensor]()
        m = config.spatial_merge_size
        for clip, _ in self.clips.values():
            if clip is not None:
                t, y, x = self.family.of(PLAIN).codec.patch_grid(clip.pixels.shape[:3])
                grid = torch.cartesian_prod(*(torch.arange(n * m) for n in (y, x))).view(y, m, x, m, 2)
                found.append(grid.transpose(1, 2).reshape(-1, 2).repeat(t, 1))
        return torch.cat(found)

    def trace(self, form: Form) -> Trace:
        """Give what the request leaves inside the decoder of a form."""
        if form not in self._traces:
            case = self.case(form)
            noisy = case.rows.noisy[case.rows.is_latent]
            self._traces[form] = trace(case, self.prefix, self.state(form)[noisy] if self.paints else None)
        return self._traces[form]


def open_halves(checks: Checks, inputs: GoldenFile, family: Family) -> Halves:
    """Read the request that a file in bfloat16 is about.

    Args:
        checks: Those of the file; a fault of its inputs becomes one of them.
        inputs: The float32 case that it names.
        family: The model in every form.

    Returns:
        The file with its request.
    """
    quiet, clips = Checks(inputs), Clips()
    segments = _segments(quiet, family.of(PLAIN), clips)
    for row in quiet.rows:
        if not row.passed:
            checks.add(f"inputs: {row.quantity}", row.error, row.tolerance, note=row.note)
    return Halves(checks, inputs, family, segments, clips)
