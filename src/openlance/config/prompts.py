"""How requests and samples are worded: a value that a checkpoint names, and that training, sampling and every other
caller read, so that what a model is asked for is worded as what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from openlance.config.values import convert

# Prompts that name the kind of an element of the request; the others name the kind of what is made or read.
LISTED = ("edit", "subject")
# What the user lists last: media come first, then what to do with them (released examples).
USUALLY_LAST = "text"


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """The task prior in front of a request, and the habits with which it is put together.

    Texts are the released ones (released code; paper, appendix). In them `{m}` becomes "image" or "video"; an empty
    text leaves the turn out.

    Args:
        image: For pictures drawn from words.
        video: For clips drawn from words, and from pictures that they begin or end with.
        edit: For pictures and clips that are changed.
        subject: For given subjects in a new scene.
        question: For questions.
        captions: For descriptions; the release draws one of them.
        names_last: `{m}` of `edit` and `subject` is the kind of the last listed element, even "text", instead of the
            kind of what is made (released sampler: validation_dataset.py).
        strips: Prompts lose the blanks around them (released training readers; the released sampler keeps them).
    """

    image: str = (
        "Describe the {m} by detailing the color, quantity, text, shape, size, texture, spatial relationships of the"
        " objects and background:"
    )
    video: str = (
        "Describe the {m} by detailing the color, quantity, visible text, shape, size, texture, spatial relationships"
        " and motion/camera movements of the objects and background:"
    )
    edit: str = (
        "Describe the key features of the input {m} (color, shape, size, texture, objects, background), then explain"
        " how the user’s text instruction should alter or modify the {m}. Generate a new {m} that meets the user’s"
        " requirements while maintaining consistency with the original input where appropriate."
    )
    subject: str = (
        "Describe the key features of the input image (color, shape, size, texture, objects, background, style), then"
        " incorporate the user’s text description to generate a new {m} that satisfies the user’s requirements while"
        " preserving the essential identity and object or style information from the reference input."
    )
    question: str = "View the {m} attentively and provide a suitable answer to the posed question."
    captions: tuple[str, ...] = (
        "Generate a detailed and accurate description of the {m}, including all the key moments and visual details.",
        "Write an in-depth depiction of the {m}, covering all its aspects.",
        "Write an exhaustive depiction of the given {m}, capturing its essence and key moments.",
        "Describe the key features of the input {m}, including color, shape, size, texture, objects, background.",
    )
    names_last: bool = False
    strips: bool = True

    def prior(self, field: str, kind: str, last: str = USUALLY_LAST) -> str:
        """Word the task prior of a request.

        Args:
            field: A text of this style: "image", "video", "edit", "subject" or "question".
            kind: "image" or "video", of what is made, or read where a text is made.
            last: Kind of the element that the user listed last: "text", "image" or "video".
        """
        word = last if self.names_last and field in LISTED else kind
        return getattr(self, field).format(m=word)


EXACT = PromptStyle()
RELEASED_RUN = replace(EXACT, names_last=True, strips=False)
# Training draws pictures with the prompt of clips (dataset_x2v_interleave.py), the sampler with one of their own.
RELEASED_TRAINING = replace(EXACT, image=EXACT.video)
STYLES = {"exact": EXACT, "released_run": RELEASED_RUN, "released_training": RELEASED_TRAINING}
# For a model trained without task priors: the system turn is left out and the segments alone say what to do.
NO_PRIOR = replace(EXACT, image="", video="", edit="", subject="", question="", captions=("",))


def style_of(name: str | None, texts: Mapping[str, Any] | None = None) -> PromptStyle:
    """Find a style by the name that a checkpoint gives.

    Args:
        name: A key of `STYLES`. None: "exact", or "released_run" where there are no texts either.
        texts: Texts and habits that differ from those of the style, by field.

    Raises:
        ValueError: If there is no such style, or a text is none.
    """
    chosen = name if name is not None else "exact" if texts else "released_run"
    if chosen not in STYLES:
        raise ValueError(f"prompt_style is {chosen!r}: expected one of {', '.join(STYLES)}")
    hints = get_type_hints(PromptStyle)
    said = {k: convert(hints[k], v, f"system_prompts.{k}") for k, v in (texts or {}).items() if k in hints}
    if not said.get("captions", EXACT.captions):
        raise ValueError("system_prompts.captions is empty: expected at least one text, which may be blank")
    return replace(STYLES[chosen], **said)
