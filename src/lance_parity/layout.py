"""The columns of a pack in the terms of the golden format: splits, indexes, grids, sizes, masks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lance_parity.checks import EXACT, UNIT, Checks, Table
from lance_parity.parts import Parts
from openlance.sequence.pack import Pack
from openlance.sequence.segment import LATENTS, PATCHES, PROMPT, REFERENCE, SOURCE, TEXT, Rows, Segments, dense_mask
from openlance.text.tokenizer import SPECIAL

# The release's code of a sample's relation between conditions and target ("sample_task").
EDIT, SUBJECT, OTHER = 2, 1, 0


class Split(NamedTuple):
    """A run of tokens that the release attends over with one mode."""

    start: int
    length: int
    mode: str
    prompt: bool


def _documents(packed: Pack) -> Iterator[list[Split]]:
    """The splits of each sample exactly as our rows have them, counted from its first row."""
    for doc in range(len(packed.lengths)):
        rows = packed.rows.at(where(packed.rows.doc == doc))
        counts = torch.unique_consecutive(rows.segment, return_counts=True)[1].tolist()
        parts = [(at, rows.at(at)) for at in torch.arange(len(rows)).split(counts)]
        yield [Split(int(at[0]), len(at), _mode(part), int(part.code[0]) == PROMPT) for at, part in parts]


def _mode(split: Rows) -> str:
    if not split.full[0]:
        return "causal"
    return "noise" if split.noisy[0] else "full" if split.is_patch.any() else "full_noise"


def recorded_splits(packed: Pack) -> list[tuple[int, str]]:
    """List length and mode of the splits as the release writes them down.

    It cuts the prompt out of the text before an image or a video by comparing its offset in the sample with a range of
    the pack (released code), so that later samples of a pack mostly show one split where there are three. The mask is
    the same either way.
    """
    found, offset = list[tuple[int, str]](), 0
    for n, own in zip(packed.lengths, _documents(packed)):
        prompt = next((s for s in own if s.prompt), None)
        for _, neighbors in groupby(own, key=lambda s: s.mode if s.mode == "causal" else s.start):
            run = list(neighbors)
            start, length, mode = run[0].start, sum(s.length for s in run), run[0].mode
            parts = [length]
            if prompt is not None and mode == "causal" and start + length < n:
                before = prompt.start - start - offset
                if 0 <= before < length:
                    parts = [before, prompt.length, length - before - prompt.length]
            found += [(part, mode) for part in parts if part]
        offset += n
    return found


def without_prompt(packed: Pack) -> list[tuple[int, str]]:
    """List the `recorded_splits` of a single sample without those that hold the prompt: the release keeps the others
    as they are, so that the text around the prompt stays two splits."""
    recorded = recorded_splits(packed)
    held = (packed.rows.code == PROMPT).split([n for n, _ in recorded])
    return [pair for pair, part in zip(recorded, held) if not part.any()]


def legacy_positions(packed: Pack) -> list[int]:
    """List the 1-D positions that the release writes but does not use: an image or a video counts as one."""
    out = list[int]()
    for own in _documents(packed):
        at = 0
        for s in own:
            out += range(at, at + s.length) if s.mode == "causal" else [at] * s.length
            at = out[-1] + 1
    return out


def relations(packed: Pack) -> Tensor:
    """Give (L,) EDIT, SUBJECT or OTHER, one code per sample."""
    rows = packed.rows
    codes = [set(rows.code[rows.doc == doc].tolist()) for doc in range(len(packed.lengths))]
    return torch.tensor([EDIT if SOURCE in c else SUBJECT if REFERENCE in c else OTHER for c in codes])[rows.doc]


def grids(packed: Pack, *kinds: int, doc: int | None = None) -> Tensor:
    """Give (n, 3) grids of the clips of some kinds, of one sample or all, h and w doubled as the release stores
    them."""
    chosen = [v for v in packed.visuals if v.kind in kinds and doc in (None, int(packed.rows.doc[v.rows[0]]))]
    return torch.tensor([(v.grid[0], 2 * v.grid[1], 2 * v.grid[2]) for v in chosen]).reshape(-1, 3)


def where(column: Tensor) -> Tensor:
    """List the rows at which a column is set."""
    return column.nonzero()[:, 0]


def packed_mask(rows: Rows) -> Tensor:
    """Give the mask, packed with numpy.packbits along the keys."""
    return torch.from_numpy(np.packbits(dense_mask(rows).numpy(), axis=-1))


def _kinds(packed: Pack) -> list[str]:
    noisy = [packed.rows.noisy[packed.rows.doc == doc] for doc in range(len(packed.lengths))]
    return ["gen" if bool(rows.any()) else "und" for rows in noisy]


def _label_weights(packed: Pack) -> Tensor:
    docs = packed.rows.doc[packed.rows.label >= 0]
    return 1 / torch.bincount(docs)[docs].sqrt()


# Of whatever has `parts`, `samples`, `packed` and `tail`: how much padding follows them in the lists of the JSON.
_EXACT: dict[str, Callable] = {
    "split_lens": lambda s: [n for n, _ in recorded_splits(s.packed)] + s.tail,
    "attn_modes": lambda s: [mode for _, mode in recorded_splits(s.packed)] + ["causal"] * len(s.tail),
    "sample_lens": lambda s: s.packed.lengths + s.tail,
    "sample_type": lambda s: _kinds(s.packed) + ["pad"] * len(s.tail),
    "sample_N_target": lambda s: [1] * len(s.samples) + [0] * len(s.tail),
    "sequence_length": lambda s: len(s.packed),
    "total_mse_tokens": lambda s: int(s.packed.rows.denoise.sum()),
    "vae_latent_shapes": lambda s: [list(v.grid) for v in s.packed.visuals if v.kind == LATENTS],
    "pack.packed_text_ids": lambda s: s.packed.rows.token,
    "pack.packed_text_indexes": lambda s: where(s.packed.rows.kind == TEXT),
    "pack.packed_vit_token_indexes": lambda s: where(s.packed.rows.is_patch),
    "pack.packed_vae_token_indexes": lambda s: where(s.packed.rows.is_latent),
    "pack.mse_loss_indexes": lambda s: where(s.packed.rows.denoise),
    "pack.ce_loss_indexes": lambda s: where(s.packed.rows.label >= 0),
    "pack.packed_label_ids": lambda s: s.packed.rows.label[s.packed.rows.label >= 0],
    "pack.packed_position_ids": lambda s: legacy_positions(s.packed),
    "pack.sample_modality": lambda s: s.packed.rows.code,
    "pack.sample_task": lambda s: relations(s.packed),
    "pack.packed_latent_position_ids": lambda s: s.packed.rows.cell[s.packed.rows.is_latent],
    "pack.vit_video_grid_thw": lambda s: grids(s.packed, PATCHES),
    "pack.vae_video_grid_thw": lambda s: grids(s.packed, LATENTS),
    "pack.vit_token_seqlens": lambda s: [v.rows[1] - v.rows[0] for v in s.packed.visuals if v.kind == PATCHES],
    "pack.video_grid_thw": lambda s: grids(s.packed, PATCHES, LATENTS),
    "pack.video_grid_thw.{n}": lambda s, n: grids(s.packed, PATCHES, LATENTS, doc=n),
    "pack.video_sizes": lambda s: [v.segment.size for v in s.packed.visuals if v.kind == LATENTS],
    "out.position_ids": lambda s: s.packed.rows.position.T,
    "pos.mape": lambda s: s.packed.rows.position.T,
    "pos.rope_index": lambda s: s.parts.pack(s.samples, shift=False).rows.position.T,
    "mask.packbits": lambda s: packed_mask(s.packed.rows),
}
LAYOUT: Table = {name: (ours, EXACT) for name, ours in _EXACT.items()} | {
    "pack.ce_loss_weights": (lambda s: _label_weights(s.packed), UNIT)
}


# The chat as text.


def rendered(segments: Segments, parts: Parts) -> str:
    """Spell a sample out, special tokens by their names and a run of pads shortened to `<pad>*n`."""
    names = {parts.tokenizer.special(name): name for name in SPECIAL}
    pieces, held = list[str](), list[int]()
    for token in parts.pack([segments]).rows.token.tolist():
        if token not in names:
            held.append(token)
            continue
        pieces += [parts.tokenizer.text(held), names[token]]
        held = []
    text = "".join([*pieces, parts.tokenizer.text(held)])
    pad = names[parts.tokenizer.visual_pad]
    return re.sub(rf"(?:{re.escape(pad)})+", lambda m: f"{pad}*{len(m[0]) // len(pad)}", text)


def that_reads(checks: Checks, name: str, wanted: str | None, candidates: list[Segments], parts: Parts) -> Segments:
    """Choose the layout that reads like a rendered text, up to the Unicode normalization that the tokenizer applies.

    Args:
        checks: Get a row that says whether there is one.
        name: Of that row.
        wanted: The text; None takes the first layout without a row.
        candidates: The layouts that the release may have made.
        parts: The model.

    Returns:
        The first layout if none reads so.
    """
    if wanted is None:
        return candidates[0]
    plain = unicodedata.normalize("NFC", wanted)
    found = (s for s in candidates if unicodedata.normalize("NFC", rendered(s, parts)) == plain)
    chosen = next(found, None)
    checks.add(name, float(chosen is None))
    return candidates[0] if chosen is None else chosen
