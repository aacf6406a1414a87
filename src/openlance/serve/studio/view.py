"""What the model reads of a call, as an image."""

from __future__ import annotations

from openlance.sequence.explain import explain
from openlance.sequence.view import svg
from openlance.serve.serving import Serving
from openlance.serve.studio.calls import Call


def sequence(serving: Serving, call: Call) -> str:
    """The sequence with its positions and its mask, as HTML. Failure if the call cannot be made."""
    pipe, (item,) = serving.pipe, call.prepared(serving).items
    found = explain(
        item.request, pipe.codec, pipe.config.position,
        lambda ids: pipe.tokenizer.backend.decode(ids, skip_special_tokens=False),
    )  # fmt: skip
    title = f"{call.task} with {serving.config.name}"
    return f'<div class="studio sequence" tabindex="0" aria-label="The sequence">{svg(found, title)}</div>'
