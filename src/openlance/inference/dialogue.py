"""A dialogue with images: draw one, change it, ask about it, go back.

talk = Dialogue(openlance.load("nano"), seed=0)
talk.say("draw a red circle")          # a new image
talk.say("make it blue")               # the image changed
talk.say("what color is the circle?")  # an answer about it
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openlance.config import values
from openlance.config.sampling import Decoding, later_seed
from openlance.errors import UserError
from openlance.inference import regions
from openlance.inference.enhance import Enhancer, rewriter
from openlance.inference.inputs import a_function, asked_size, listed, question_about, random_seed, seed_of
from openlance.inference.lance_pipeline import LancePipeline
from openlance.inference.text import Answer, Shown
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput, as_clip
from openlance.sequence import tasks
from openlance.sequence.segment import Segments, prompt_in

# The rule for free words, in this order; words without any of these change the image that is there.
NEW = re.compile(
    r"(?:please\s+)?(?:(?:draw|generate|create)\s+(?:me\s+)?|(?=(?:a|an|the)\s+(?:picture|image|photo)\s+of\b))",
    re.IGNORECASE,
)
QUESTION = re.compile(
    r"(?:what|which|who|whose|where|when|why|how|is|are|was|were|does|do|did|has|have|can|count|describe|locate|read)\b"
    r"|.*\?\s*$",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What was said and what came of it.

    Attributes:
        segments: The filled request, what later turns may look back at; empty for media that were brought along.
        picture: The image or video on the table after this turn.
        answer: Of a question; its `finish_reason` says whether it was cut.
    """

    said: str
    segments: Segments
    picture: Clip | None
    answer: Answer | None = None

    @property
    def prompt(self) -> str:
        """What was drawn or asked: the words of what was said, or what they were rewritten to."""
        return prompt_in(self.segments)


class Dialogue:
    """Turns with one model. A turn sees what is on the table, and before it the last turns as context.

    Args:
        pipe: The model.
        seed: Result number k is drawn with seed + k, so that the same words give the same dialogue.
        history: How many turns are context; by default as many as the checkpoint was trained with, often none.
        height: Of what is drawn anew, in pixels, as `width`.
        max_new_tokens: The longest answer.
        negative_prompt: Of everything that is drawn or changed, as `enhance`.
        **settings: Fields of `Sampling`.
    """

    def __init__(
        self,
        pipe: LancePipeline,
        *,
        seed: int | None = None,
        history: int | None = None,
        height: int | None = None,
        width: int | None = None,
        max_new_tokens: int = Decoding.max_new_tokens,
        negative_prompt: str | None = None,
        enhance: bool | str | Enhancer | None = None,
        **settings: Any,
    ) -> None:
        self.pipe, self.turns, self.drawn = pipe, list[Turn](), 0
        self.seed = random_seed() if seed is None else seed_of(seed)
        self.history = pipe.defaults.history if history is None else values.whole("history", history, least=0)
        _, rows, columns = asked_size(None, height, width)
        self.size = (1, rows or pipe.defaults.height, columns or pipe.defaults.width)
        self.settings, self.decoding = settings, Decoding(max_new_tokens=max_new_tokens)
        self.negatives, self.rewrite = pipe.negatives(negative_prompt, 1), rewriter(pipe, enhance)
        pipe.sampling(**settings)  # says now what is wrong with them
        pipe.config.vae.check(self.size)

    @property
    def picture(self) -> Clip | None:
        """What is on the table: the newest image or clip, or None."""
        return self.turns[-1].picture if self.turns else None

    def say(self, text: str, stream: Callable[[str], None] | None = None) -> Turn:
        """Take free words. "draw ..." or "a picture of ..." draws anew, and so does anything while the table is empty;
        a question mark or a leading question word asks; everything else edits."""
        listed(text, "line", "draw a red circle")
        new = NEW.match(text)
        if new is not None:
            return self.draw(text[new.end() :])
        if self.picture is not None and QUESTION.match(text):
            return self.ask(text, stream)
        return self.edit(text) if self.picture is not None else self.draw(text)

    def draw(self, prompt: str) -> Turn:
        """Draw a new image."""
        listed(prompt, "prompt", "a red circle")
        task = tasks.the_task(tasks.text_to_visual, "image")
        return self._fill(prompt, self.pipe.front.request(task, prompt.strip(), asked=self.size))

    def edit(self, instruction: str, *, mask: Any = None, region: Any = None) -> Turn:
        """Change the image or video on the table; `mask` and `region` as in `Methods.edit`."""
        clip = self._table()
        listed(instruction, "instruction", "make the circle blue")
        task = tasks.the_task(tasks.edit, tasks.kind_of(clip.frames))
        turn = self.pipe.front.request(task, instruction.strip(), [clip])
        [turn] = regions.placed(self.pipe, [turn], [clip], [regions.Asked.of(mask, region)])
        return self._fill(instruction, turn)

    def ask(self, question: str, stream: Callable[[str], None] | None = None) -> Turn:
        """Answer a question about the image or video on the table; stream(piece) gets it as it comes."""
        clip = self._table()
        listed(question, "question", "what color is the circle?")
        a_function("stream", stream, 1, "print")
        turn = self.pipe.front.request(question_about([clip]), question.strip(), [clip])
        shown = Shown(self.pipe.tokenizer, stream or (lambda _: None))
        answer = self.pipe.fill_text([self._with_past(turn)], self.decoding, None, shown.add)[0]
        shown.up_to(answer)
        return self._keep(Turn(said=question, segments=_filled(turn, answer), picture=clip, answer=answer))

    def show(self, media: MediaInput) -> Turn:
        """Put an image or video of one's own on the table."""
        return self._keep(Turn(said="", segments=[], picture=as_clip(media)))

    def undo(self) -> Turn:
        """Take the last turn back; UserError if there is none."""
        if not self.turns:
            raise UserError("there is nothing to take back: say something first")
        return self.turns.pop()

    def forget(self) -> None:
        """Begin anew, with the seeds going on."""
        self.turns.clear()

    def _table(self) -> Clip:
        if self.picture is None:
            raise UserError("there is no picture yet: draw one first, or bring one along")
        return self.picture

    def _with_past(self, turn: Segments) -> Segments:
        past = [t.segments for t in self.turns if t.segments]
        return tasks.dialogue(*past[len(past) - min(self.history, len(past)) :], turn)

    def _fill(self, said: str, turn: Segments) -> Turn:
        seed, sampling = later_seed(self.seed, self.drawn), self.pipe.sampling([turn], **self.settings)
        turn = turn if self.rewrite is None else self.rewrite(turn)
        clip = self.pipe.fill_visual([self._with_past(turn)], sampling, [seed], negatives=self.negatives)[0]
        self.drawn += 1
        return self._keep(Turn(said=said, segments=_filled(turn, clip), picture=clip))

    def _keep(self, turn: Turn) -> Turn:
        self.turns.append(turn)
        return turn


def _filled(turn: Segments, value: Any) -> Segments:
    return [s.filled(value) if s.is_empty else s for s in turn]
