"""Which samples share a pack: an exact fill of the token budget out of a small look-ahead buffer."""

from __future__ import annotations

from openlance.sequence.pack import Codec, spans
from openlance.sequence.segment import Kind, Role, Segments


def length_of(segments: Segments, codec: Codec, draws: int = 1) -> int:
    """Rows that `sequence.pack` will make of a sample."""
    total = 0
    for span in spans(segments, codec):
        drawn = span.grid is not None and span.owner is not None and span.owner.role is Role.TARGET
        total += len(span.ids) * (draws if drawn and span.owner.kind is Kind.LATENTS else 1)  # type: ignore[union-attr]
    return total


def best_fill(lengths: list[int], room: int) -> list[int]:
    """Indices of the lengths whose sum is the largest that fits into the room; earlier ones are preferred.

    Exact subset sum. Sums that can be reached are the bits of one whole number, so that a length costs one shift.
    """
    if room < 0:
        return []
    reached, fits = [1], (1 << room + 1) - 1
    for n in lengths:
        reached.append((reached[-1] | reached[-1] << n) & fits)
        if reached[-1] >> room:  # the room can be filled to the last token
            break
    total, chosen = reached[-1].bit_length() - 1, list[int]()
    for i in reversed(range(len(reached) - 1)):
        if not reached[i] >> total & 1:
            chosen.append(i)
            total -= lengths[i]
    return chosen[::-1]


def next_pack(lengths: list[int], budget: int) -> list[int]:
    """Indices of a pack out of a buffer: the oldest sample, so that none waits for ever, and what fills it best."""
    return [0] + [i + 1 for i in best_fill(lengths[1:], budget - lengths[0])]
