"""The columns of a pack in the terms of the golden format: splits, indexes, grids, sizes, masks."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openlance.compat.verify.checks import Checks
from openlance.sequence.pack import Pack
from openlance.sequence.segment import LATENTS, PATCHES, PROMPT, REFERENCE, SOURCE, TEXT, Rows, dense_mask
from openlance.text.tokenizer import SPECIAL, Tokenizer

# The release's code of a sample's relation between conditions and target ("sample_task").
EDIT, SUBJECT, OTHER = 2, 1, 0


@dataclass(frozen=True)
class Split:
    """A run of tokens that the release attends over with one mode."""

    start: int
    length: int
    mode: str
    prompt: bool = False


def splits(rows: Rows) -> list[Split]:
    """The splits of one or more documents, exactly as our rows have them."""
    _, counts = torch.unique_consecutive(rows.segment, return_counts=True)
    starts = (counts.cumsum(0) - counts).tolist()
    return [
        Split(start, n, _mode(rows, start), int(rows.code[start]) == PROMPT)
        for start, n in zip(starts, counts.tolist(), strict=True)
    ]


def _mode(rows: Rows, start: int) -> str:
    """The first row of a split is text or a marker; the second row of a visual one says what it is."""
    if not rows.full[start]:
        return "causal"
    if rows.noisy[start]:
        return "noise"
    return "full" if int(rows.kind[start + 1]) == PATCHES else "full_noise"


def recorded_splits(packed: Pack) -> tuple[list[int], list[str]]:
    """(lengths, modes) as the release writes them down.

    It cuts the prompt out of the text before a visual block by comparing its offset in the sample with a range of the
    pack (released code), so that later samples of a pack mostly show one split where there are three. The mask is
    the same either way.
    """
    lengths, modes = list[int](), list[str]()
    offset = 0
    for n in packed.lengths:
        own = splits(packed.rows.at(torch.arange(offset, offset + n)))
        prompt = next((s for s in own if s.prompt), None)
        for run in _text_runs(own):
            before = prompt.start - run.start - offset if prompt is not None else -1
            parts = [run.length]
            if prompt is not None and run.mode == "causal" and 0 <= before < run.length and not _last(run, n):
                parts = [p for p in (before, prompt.length, run.length - before - prompt.length) if p]
            lengths += parts
            modes += [run.mode] * len(parts)
        offset += n
    return lengths, modes


def without_prompt(packed: Pack) -> tuple[list[int], list[str]]:
    """recorded_splits() of a single sample without those that hold the prompt: the release keeps the others as they
    are, so that the text around the prompt stays two splits."""
    lengths, modes = recorded_splits(packed)
    ends = np.cumsum(lengths)
    dropped = (packed.rows.code == PROMPT).numpy()
    kept = [not dropped[end - n : end].any() for n, end in zip(lengths, ends, strict=True)]
    return [n for n, k in zip(lengths, kept, strict=True) if k], [m for m, k in zip(modes, kept, strict=True) if k]


def _last(run: Split, n: int) -> bool:
    return run.start + run.length == n


def _text_runs(own: list[Split]) -> list[Split]:
    """Neighbouring text splits joined."""
    joined = list[Split]()
    for s in own:
        if joined and s.mode == joined[-1].mode == "causal":
            before = joined.pop()
            s = Split(before.start, before.length + s.length, s.mode)
        joined.append(Split(s.start, s.length, s.mode))
    return joined


def legacy_positions(packed: Pack) -> Tensor:
    """(L,) the 1-D positions that the release writes but does not use: a visual block counts as one."""
    out = list[int]()
    offset = 0
    for n in packed.lengths:
        at = 0
        for s in splits(packed.rows.at(torch.arange(offset, offset + n))):
            causal = s.mode == "causal"
            out += range(at, at + s.length) if causal else [at] * s.length
            at += s.length if causal else 1
        offset += n
    return torch.tensor(out)


def relations(packed: Pack) -> Tensor:
    """(L,) EDIT, SUBJECT or OTHER, one code per document."""
    rows, out = packed.rows, []
    for doc, n in enumerate(packed.lengths):
        codes = set(rows.code[rows.doc == doc].tolist())
        out.append(torch.full((n,), EDIT if SOURCE in codes else SUBJECT if REFERENCE in codes else OTHER))
    return torch.cat(out)


def grids(packed: Pack, kind: int | None = None, doc: int | None = None) -> Tensor:
    """(n, 3) grids of the visual blocks, h and w doubled as the release stores them."""
    chosen = [
        v
        for v in packed.visuals
        if (kind is None or v.kind == kind) and (doc is None or int(packed.rows.doc[v.rows[0]]) == doc)
    ]
    return torch.tensor([(v.grid[0], 2 * v.grid[1], 2 * v.grid[2]) for v in chosen]).reshape(-1, 3)


def where(column: Tensor) -> Tensor:
    return column.nonzero()[:, 0]


def check_rows(checks: Checks, packed: Pack) -> None:
    """Everything under `pack.` that follows from the rows alone."""
    r = packed.rows
    checks.same("pack.packed_text_ids", r.token)
    checks.same("pack.packed_text_indexes", where(r.kind == TEXT))
    checks.same("pack.packed_vit_token_indexes", where(r.kind == PATCHES))
    checks.same("pack.packed_vae_token_indexes", where(r.kind == LATENTS))
    checks.same("pack.mse_loss_indexes", where(r.denoise))
    checks.same("pack.ce_loss_indexes", where(r.label >= 0))
    checks.same("pack.packed_label_ids", r.label[r.label >= 0])
    checks.same("pack.packed_position_ids", legacy_positions(packed))
    checks.same("pack.sample_modality", r.code)
    checks.same("pack.sample_task", relations(packed))
    checks.same("pack.packed_latent_position_ids", r.cell[r.is_latent])
    checks.same("pack.vit_video_grid_thw", grids(packed, PATCHES))
    checks.same("pack.vae_video_grid_thw", grids(packed, LATENTS))
    checks.same("pack.vit_token_seqlens", [v.rows[1] - v.rows[0] for v in packed.visuals if v.kind == PATCHES])
    checks.same("pack.video_grid_thw", grids(packed))
    for doc in range(len(packed.lengths)):
        checks.same(f"pack.video_grid_thw.{doc}", grids(packed, doc=doc))
    checks.same("pack.video_sizes", [v.segment.size for v in packed.visuals if v.kind == LATENTS])


def check_mask(checks: Checks, name: str, rows: Rows) -> None:
    """A mask packed with numpy.packbits along the keys."""
    if name in checks.file:
        checks.same(name, torch.from_numpy(np.packbits(dense_mask(rows).numpy(), axis=-1)))


def rendered(tokens: list[int], tokenizer: Tokenizer) -> str:
    """The chat as text, special tokens spelled out and a run of pads shortened to `<pad>*n`."""
    names = {tokenizer.special(name): name for name in SPECIAL}
    pieces, held = list[str](), list[int]()
    for token in tokens:
        if token not in names:
            held.append(token)
            continue
        pieces += [tokenizer.text(held), names[token]]
        held = []
    text = "".join([*pieces, tokenizer.text(held)])
    pad = names[tokenizer.visual_pad]
    return re.sub(rf"(?:{re.escape(pad)})+", lambda m: f"{pad}*{len(m[0]) // len(pad)}", text)


def same_text(a: str, b: str) -> bool:
    """Equal up to Unicode normalisation, which the tokenizer applies."""
    return unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)
