"""Decoding one answer, with the cache and without."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openlance.compat.verify.case import Case
from openlance.compat.verify.checks import DEEP
from openlance.config.sampling import Decoding
from openlance.inference.text import decode
from openlance.inference.visual import conditions
from openlance.sequence.segment import Rows


def check_decoding(case: Case) -> None:
    """Greedy tokens and first logits, with the cache and without, and the positions they stand at."""
    checks, file, parts = case.checks, case.checks.file, case.parts
    plain = parts.pack([case.asked], shift=False)
    checks.fact("und_context_len", len(plain))
    if "und.pos_used_by_decoder" in file:
        known = len(plain) - file.source.shapes["und.pos_used_by_decoder"][1]
        following = plain.rows.position[-1].max() + 1 + torch.arange(-known)[:, None].expand(-1, 3)
        checks.same("und.pos_used_by_decoder", torch.cat([plain.rows.position, following]).T)
    if "und.kv.token_ids" in file:
        with checks.part("und.kv"):
            _check_answer(case, "kv", *_cached_answer(case, file.source.shapes["und.kv.token_ids"][0]))
    if "und.nocache.token_ids" in file:
        with checks.part("und.nocache"):
            _check_answer(case, "nocache", *_plain_answer(case, file.source.shapes["und.nocache.token_ids"][0]))


def _check_answer(case: Case, path: str, tokens: list[int], logits: Tensor) -> None:
    name = f"und.{path}.token_ids"
    ended = case.parts.codec.im_end
    want = case.checks.file.source.read(name).tolist()
    if want and want[-1] == ended and len(tokens) == len(want) - 1:
        tokens = [*tokens, ended]  # the release keeps the closing token
    case.checks.same(name, torch.tensor(tokens, dtype=torch.long))
    case.checks.near(f"und.{path}.logits_step0", logits, DEEP)


def _cached_answer(case: Case, steps: int) -> tuple[list[int], Tensor]:
    parts = case.parts
    tokens, logits = decode(
        parts.runner, parts.codec, [case.asked] * parts.copies, Decoding(max_new_tokens=steps),
        vocabulary=len(parts.tokenizer), store=parts.store,
    )  # fmt: skip
    return tokens[0], logits[0]


@torch.no_grad()
def _plain_answer(case: Case, steps: int) -> tuple[list[int], Tensor]:
    """The whole sequence again for every token: the plain form that decoding against a cache must equal."""
    parts, model = case.parts, case.parts.lance
    rows, patches = parts.pack([case.asked], shift=False).rows, conditions(case.packed)[0]
    tokens, first = list[int](), None
    for _ in range(steps):
        layout_ = model.layout(rows)
        hidden = model.restore(layout_, model(layout_, patches=patches))[-1:]
        logits = model.logits(hidden)[:, : len(parts.tokenizer)].float()
        first = logits[0] if first is None else first
        tokens.append(int(logits.argmax()))
        if tokens[-1] == parts.codec.im_end:
            break
        last = rows.at(torch.tensor([len(rows) - 1]))
        after = last.position.max(dim=1, keepdim=True).values.expand(-1, 3) + 1
        rows = Rows.concat([rows, replace(last, index=last.index + 1, token=torch.tensor(tokens[-1:]), position=after)])
    assert first is not None
    return tokens, first
