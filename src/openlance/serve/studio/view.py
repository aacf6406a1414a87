"""What the model reads of a call: the sequence with its positions and its mask."""

from __future__ import annotations

import io

from openlance.sequence.explain import explain
from openlance.serve.serving import Serving
from openlance.serve.studio.calls import Call

WIDTH = 112  # columns
COLORS = """<div class="sequence" tabindex="0" aria-label="The sequence and its mask"><pre>{code}</pre></div>"""


def sequence(serving: Serving, call: Call) -> str:
    """As HTML. Failure if the call cannot be made."""
    from rich.console import Console

    from openlance.cli.explain import mask, position_table, segment_table, split_table

    (item,) = call.prepared(serving).items
    pipe = serving.pipe
    found = explain(
        item.request, pipe.codec, pipe.config.position,
        lambda ids: pipe.tokenizer.backend.decode(ids, skip_special_tokens=False),
    )  # fmt: skip
    console = Console(file=io.StringIO(), record=True, width=WIDTH, highlight=False)
    for head, part in (
        ("Segments", segment_table(found)), ("Splits", split_table(found)),
        ("Positions t, h, w", position_table(found)), ("Mask: may a row look at a column?", mask(found)),
    ):  # fmt: skip
        console.print(head, style="bold")
        console.print(part)
        console.print()
    return console.export_html(inline_styles=True, code_format=COLORS)
