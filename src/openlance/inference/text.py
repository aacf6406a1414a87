"""Decoding text: fill the text target of each request, all requests in one batch, token by token against a cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openlance.config.sampling import Decoding
from openlance.inference.prefix import PrefixStore, prefill
from openlance.inference.visual import conditions
from openlance.model.lance import Lance
from openlance.sequence.pack import Codec, pack
from openlance.sequence.segment import NO_LABEL, TEXT, Kind, Rows, Segments
from openlance.text.tokenizer import Tokenizer

# The likeliest token has all of the probability at lower temperatures, where logits over them overflow.
COLDEST = 1e-6

OnToken = Callable[[int, int], None]


@torch.inference_mode()
def decode(
    model: Lance,
    codec: Codec,
    requests: list[Segments],
    d: Decoding,
    *,
    vocabulary: int,
    generator: torch.Generator | None = None,
    on_token: OnToken | None = None,
    store: PrefixStore | None = None,
    ended: Callable[[list[int]], bool] | None = None,
) -> tuple[list[list[int]], Tensor]:
    """Fill the text target of each request.

    Args:
        model: The decoder.
        codec: Of tokens.
        requests: Their media are tensors.
        d: How.
        vocabulary: Tokens of the tokenizer; the head may have more.
        generator: For answers that are drawn.
        on_token: Called with (request, id) as tokens come.
        store: See `prefix`.
        ended: Whether an answer so far is whole.

    Returns:
        Token ids per request without the closing <|im_end|>, and the logits of the first step (B, V).

    Raises:
        ValueError: For a request without a text target.
    """
    if not all(any(s.kind is Kind.TEXT and s.is_empty for s in r) for r in requests):
        raise ValueError("a request has no text to fill: end it with tasks.reply()")
    shift = model.config.position.shift and not model.config.quirks.decode_without_shift
    packed = pack(requests, codec, replace(model.config.position, shift=shift))
    features, context = conditions(packed, model.device)
    rows = packed.rows
    start = prefill(model, packed, torch.arange(len(rows)), (features, context), store, ends=True)
    assert start.layout is not None and start.hidden is not None
    cache, ran = start.cache, start.ran[start.layout.order[: start.layout.und]]
    ends = torch.tensor(packed.lengths).cumsum(0) - 1
    place = {row: n for n, row in enumerate(ran.tolist())}
    hidden = start.hidden[0][[place[int(e)] for e in ends]]
    last, active = rows.at(ends), torch.arange(len(requests))
    first = logits = model.logits(hidden)[:, :vocabulary].float()
    out: list[list[int]] = [[] for _ in requests]
    seen = None if d.repetition_penalty == 1 else _in_requests(rows, first.shape).to(first.device)
    for left in reversed(range(d.max_new_tokens)):
        if seen is not None:
            logits = penalized(logits, seen[active.to(seen.device)], d.repetition_penalty)
        chosen = choose(logits, d, generator).cpu()
        going = chosen != codec.im_end
        active, chosen, last = active[going], chosen[going], last.at(going.nonzero()[:, 0])
        for request, token in zip(active.tolist(), chosen.tolist(), strict=True):
            out[request].append(token)
            if on_token is not None:
                on_token(request, token)
        if seen is not None:
            seen[active.to(seen.device), chosen.to(seen.device)] = True
        if ended is not None:
            going = torch.tensor([not ended(out[request]) for request in active.tolist()], dtype=torch.bool)
            active, chosen, last = active[going], chosen[going], last.at(going.nonzero()[:, 0])
        if not len(active) or not left:
            break
        last = _next(last, chosen)
        und, _ = model(model.layout(last, cache), cache=cache, keep=True)
        logits = model.logits(und)[:, :vocabulary].float()
    return out, first


@torch.inference_mode()
def likelihoods(model: Lance, codec: Codec, requests: list[Segments], *, vocabulary: int) -> list[float]:
    """Say how likely the text target of each request is as its answer.

    Args:
        model: The decoder.
        codec: Of tokens.
        requests: Each ends with a text that is filled; their media are tensors.
        vocabulary: Tokens of the tokenizer; the head may have more.

    Returns:
        The natural logarithm of the probability of each answer, its end included.
    """
    shift = model.config.position.shift and not model.config.quirks.decode_without_shift
    packed = pack(requests, codec, replace(model.config.position, shift=shift))
    features, context = conditions(packed, model.device)
    rows = packed.rows
    start = prefill(model, packed, torch.arange(len(rows)), (features, context), ends=True)
    assert start.layout is not None and start.hidden is not None
    ran = start.ran[start.layout.order[: start.layout.und]]
    label, doc = rows.label[ran], rows.doc[ran]
    own = label >= 0
    logits = model.logits(start.hidden[0][own.to(start.hidden[0].device)])[:, :vocabulary].float()
    said = logits.log_softmax(-1).cpu().gather(-1, label[own][:, None])[:, 0]
    return torch.zeros(len(requests)).index_add(0, doc[own], said).tolist()


def _next(last: Rows, token: Tensor) -> Rows:
    """The row after each last row: a text token, one position on."""
    position = last.position.amax(dim=1, keepdim=True).expand(-1, 3) + 1
    kind, label = torch.full_like(last.kind, TEXT), torch.full_like(last.label, NO_LABEL)
    return replace(last, index=last.index + 1, token=token, position=position, kind=kind, label=label)


def _in_requests(rows: Rows, shape: Sequence[int]) -> Tensor:
    """(B, V): the tokens that the requests have."""
    seen = torch.zeros(*shape, dtype=torch.bool)
    known = rows.token < shape[1]
    seen[rows.doc[known], rows.token[known]] = True
    return seen


def penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Bring the logits (B, V) of tokens that were seen nearer to nothing (Keskar et al. 2019; transformers)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def choose(logits: Tensor, d: Decoding, generator: torch.Generator | None = None) -> Tensor:
    """Choose ids (B,) from logits (B, V)."""
    if d.temperature < COLDEST:
        return logits.argmax(-1)
    p, ids = (logits / d.temperature).softmax(-1).sort(descending=True)
    if d.top_k:
        p[:, d.top_k :] = 0.0
        p = p / p.sum(-1, keepdim=True)
    p = torch.where(p.cumsum(-1) - p < max(d.top_p, COLDEST), p, 0.0)  # the likeliest always stays
    # On the CPU, so that a seed means the same everywhere; from a generator where that is.
    drawn = torch.multinomial(p.to("cpu" if generator is None else generator.device), 1, generator=generator)
    return ids.gather(-1, drawn.to(ids.device))[:, 0]


class Answer(str):
    """A text that was written. finish_reason: "stop" where the model ended it, "length" where it was cut."""

    finish_reason: str

    def __new__(cls, text: str, finish_reason: str = "stop") -> Answer:
        made = super().__new__(cls, text)
        made.finish_reason = finish_reason
        return made

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.finish_reason)


@dataclass(frozen=True, kw_only=True)
class AnswerInfo:
    """An answer and why it ended: "stop" where the model or a text of `stop` did, "length" where it was cut."""

    text: str
    finish_reason: str


def stopping(tokenizer: Tokenizer, stop: Sequence[str]) -> Callable[[list[int]], bool] | None:
    """Give what tells whether the newest token of an answer completes one of these texts; None where there are none."""
    if not stop:
        return None
    # A token is a byte at least, and the first one of those looked at may be the end of a character.
    longest = max(len(text.encode(errors="replace")) for text in stop) + 4

    def ended(ids: list[int]) -> bool:
        text = tokenizer.text(ids[-longest:])
        return any(end in text for end in stop)

    return ended


def up_to_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Give a text before the first of the texts that end it, and whether there is one."""
    found = [at for at in (text.find(end) for end in stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _without_begun(text: str, stop: Sequence[str]) -> str:
    """A text before what may become one of the texts that end it."""
    begun = [n for end in stop for n in range(1, len(end)) if text.endswith(end[:n])]
    return text[: len(text) - max(begun)] if begun else text


class Shown:
    """Hands an answer on piece by piece, so that the pieces join to the stripped answer."""

    def __init__(self, tokenizer: Tokenizer, stream: Callable[[str], None], stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stream, self.stop = tokenizer, stream, stop
        self.ids: list[int] = []
        self.length = 0

    def add(self, _: int, token: int) -> None:
        self.ids.append(token)
        # Characters of several bytes may be incomplete, and blanks may turn out to be the last ones: both wait.
        text, ended = up_to_stop(self.tokenizer.text(self.ids), self.stop)
        text = text if ended else _without_begun(text, self.stop)
        self.up_to(re.sub(r"[\s\ufffd]+\Z", "", text.lstrip()))

    def up_to(self, text: str) -> None:
        if len(text) > self.length:
            self.stream(text[self.length :])
            self.length = len(text)
