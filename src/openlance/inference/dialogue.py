"""A dialogue with images and videos: draw one, change it, animate it, ask about it, go back, branch off.

talk = Dialogue(openlance.load("nano"), seed=0)
talk.say("draw a red circle")          # a new image
talk.say("make it blue")               # the image changed
talk.say("animate: the circle moves left")  # a video that begins with it
talk.say("what moves?")                # an answer about the video
other = talk.branch(2)                 # another dialogue, which goes on from the blue circle
other.say("film a star moving up")     # a new video
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openlance.config import values
from openlance.config.sampling import Decoding, later_seed
from openlance.data.front import Asked
from openlance.errors import UserError
from openlance.inference import regions, turns
from openlance.inference.checking import checked
from openlance.inference.enhance import Enhancer, rewriter, thinker
from openlance.inference.inputs import NOTHING, a_function, asked_size, draws, listed, random_seed, seed_of
from openlance.inference.text import Answer, Shown
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput, as_clip
from openlance.sequence import tasks
from openlance.sequence.segment import Segments, prompt_in, source_in

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

SIZES = ("num_frames", "height", "width")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What was said and what came of it. A turn is a value: any number of dialogues may have it.

    Attributes:
        said: The words, without the order to draw.
        segments: The filled request, what later turns may look back at; empty for media that were brought along.
        table: The images and videos on the table after this turn.
        answer: Of a question; its `finish_reason` says whether it was cut.
        seed: Of an image or video that was made, or of its first draw where it was checked (`checking.draw_seed`).
    """

    said: str
    segments: Segments
    table: tuple[Clip, ...]
    answer: Answer | None = None
    seed: int | None = None

    @property
    def picture(self) -> Clip | None:
        """The newest image or video on the table."""
        return self.table[-1] if self.table else None

    @property
    def prompt(self) -> str:
        """What was drawn or asked: the words of what was said, or what they were rewritten to."""
        return prompt_in(self.segments)


class Dialogue:
    """Turns with one model. A turn sees what is on the table, and before it the last turns as context.

    Everything that draws takes further settings for this turn alone: `talk.film("a star", num_frames=17)`.

    Args:
        pipe: The model.
        seed: Result number k is drawn with seed + k, so that the same words give the same dialogue.
        history: How many turns are context; by default as many as the checkpoint was trained with, often none.
        height: Of what is drawn anew, in pixels, as `width`.
        num_frames: Of videos that are filmed, or begin with an image: 1 + k times the VAE's temporal stride.
        max_new_tokens: The longest answer.
        negative_prompt: Of everything that is drawn or changed, as `enhance`, `think` and `check`.
        image: What is otherwise for images: height, width, negative_prompt and fields of `Sampling`.
        video: Likewise for videos, and num_frames: `video={"num_frames": 9, "num_inference_steps": 20}`.
        turns: Where it begins, such as the first turns of another dialogue; see `branch`.
        progress: Whether to show a bar for what takes long.
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
        num_frames: int | None = None,
        max_new_tokens: int = Decoding.max_new_tokens,
        negative_prompt: str | None = None,
        enhance: bool | str | Enhancer | None = None,
        think: bool = False,
        check: int | None = None,
        image: Mapping[str, Any] | None = None,
        video: Mapping[str, Any] | None = None,
        turns: Sequence[Turn] = (),
        progress: bool = False,
        **settings: Any,
    ) -> None:
        self.pipe, self.turns, self.drawn = pipe, _turns(turns), 0
        self.seed = random_seed() if seed is None else seed_of(seed)
        self.history = pipe.defaults.history if history is None else values.whole("history", history, least=0)
        self.decoding, self.most = Decoding(max_new_tokens=max_new_tokens), draws(check, None)
        self.rewrites = [rewrite for rewrite in (rewriter(pipe, enhance), thinker(pipe, think)) if rewrite is not None]
        self.progress = values.flag("progress", progress)
        d = pipe.defaults
        usual = {"height": d.height, "width": d.width}
        said = _said(settings | {"height": height, "width": width, "negative_prompt": negative_prompt})
        film = {"num_frames": d.num_frames} | _said({"num_frames": num_frames})
        self.how = {
            "image": usual | said | _said(_named("image", image)),
            "video": usual | said | film | _said(_named("video", video)),
        }
        for kind, how in self.how.items():  # says now what is wrong with them
            frames, rows, columns = self._denoising(kind, how)[0]
            pipe.config.vae.check((frames or 1, rows, columns))  # type: ignore[arg-type]

    @property
    def table(self) -> tuple[Clip, ...]:
        """What the next turn is about: the newest image or video, or all that were shown together."""
        return self.turns[-1].table if self.turns else ()

    @property
    def picture(self) -> Clip | None:
        """What is on the table: the newest image or video, or None."""
        return self.turns[-1].picture if self.turns else None

    def say(self, text: str, stream: Callable[[str], None] | None = None) -> Turn:
        """Take free words, which `turns.wanted` reads: they draw, film, animate, edit or ask."""
        listed(text, "line", "draw a red circle")
        wanted = turns.wanted(text, self.table)
        return self._answer(wanted, stream) if wanted.spec.makes == "text" else self._make(wanted)

    def draw(self, prompt: str, **how: Any) -> Turn:
        """Draw a new image."""
        listed(prompt, "prompt", "a red circle")
        return self._make(turns.draw(prompt.strip()), how)

    def film(self, prompt: str, **how: Any) -> Turn:
        """Make a new video."""
        listed(prompt, "prompt", "a red circle moves left")
        return self._make(turns.draw(prompt.strip(), "video"), how)

    def animate(self, prompt: str, **how: Any) -> Turn:
        """Make a video that begins with the image on the table, and ends with a second one if there are two."""
        listed(prompt, "prompt", "the circle moves left")
        return self._make(turns.animate(prompt.strip(), self._there()), how)

    def edit(self, instruction: str, *, mask: Any = None, region: Any = None, **how: Any) -> Turn:
        """Change the image or video on the table; `mask` and `region` as in `Methods.edit`."""
        listed(instruction, "instruction", "make the circle blue")
        return self._make(turns.edit(instruction.strip(), self._there()), how, regions.Asked.of(mask, region))

    def ask(self, question: str, stream: Callable[[str], None] | None = None) -> Turn:
        """Answer a question about what is on the table; stream(piece) gets it as it comes."""
        listed(question, "question", "what color is the circle?")
        return self._answer(turns.ask(question.strip(), self._there()), stream)

    def show(self, *media: MediaInput) -> Turn:
        """Put an image or video of one's own on the table, or several that the next turn is about."""
        if not media:
            raise UserError(NOTHING)
        return self._keep(Turn(said="", segments=[], table=tuple(as_clip(medium) for medium in media)))

    def undo(self) -> Turn:
        """Take the last turn back; UserError if there is none. What is drawn next has a new seed."""
        if not self.turns:
            raise UserError("there is nothing to take back: say something first")
        return self.turns.pop()

    def branch(self, turns: int | None = None) -> Dialogue:
        """Begin another dialogue with the first turns of this one, all of them by default. Both go on by themselves.
        Its seeds go on from where this one was then, so that the same words give there what they gave here."""
        kept = len(self.turns) if turns is None else values.whole("turns", turns, 0, len(self.turns))
        other = copy.copy(self)
        other.turns = self.turns[:kept]
        later = [turn.seed for turn in self.turns[kept:] if turn.seed is not None]
        if later:
            other.drawn = later_seed(later[0], -self.seed)
        return other

    def forget(self) -> None:
        """Begin anew, with the seeds going on."""
        self.turns.clear()

    def _there(self) -> tuple[Clip, ...]:
        if not self.table:
            raise UserError("there is no image yet: draw one first, or bring one along")
        return self.table

    def _with_past(self, turn: Segments) -> Segments:
        return tasks.dialogue(*turns.newest([t.segments for t in self.turns], self.history), turn)

    def _answer(self, wanted: turns.Wanted, stream: Callable[[str], None] | None) -> Turn:
        a_function("stream", stream, 1, "print")
        turn = self.pipe.front.request(wanted.spec, wanted.text, wanted.clips)
        shown = Shown(self.pipe.tokenizer, stream or (lambda _: None))
        answer = self.pipe.fill_text([self._with_past(turn)], self.decoding, None, shown.add)[0]
        shown.up_to(answer)
        return self._keep(
            Turn(said=wanted.text, segments=turns.filled(turn, answer), table=wanted.clips, answer=answer)
        )

    def _make(
        self, wanted: turns.Wanted, how: Mapping[str, Any] | None = None, region: regions.Asked | None = None
    ) -> Turn:  # fmt: skip
        from tqdm import tqdm

        spec, own = wanted.spec, _said(how or {})
        listed(wanted.text, "prompt", "the circle moves left" if spec.makes == "video" else "a red circle")
        usual = {k: v for k, v in self.how[spec.makes].items() if k not in SIZES or k in spec.takes}
        asked, negatives, settings = self._denoising(spec.makes, usual | own)
        turn = self.pipe.front.request(spec, wanted.text, wanted.clips, asked=asked)
        if source_in(turn) is not None:
            [turn] = regions.placed(self.pipe, [turn], wanted.clips[-1:], [region or regions.Asked()])
        sampling = self.pipe.sampling([self._with_past(turn)], **settings)
        seed = later_seed(self.seed, self.drawn)
        for rewrite in self.rewrites:
            turn = rewrite(turn)
        whole, total, hidden = self._with_past(turn), sampling.steps * (self.most or 1), not self.progress
        with tqdm(total=total, disable=hidden, unit="step", leave=False, delay=1.0) as bar:

            def make(_: list[int], seeds: list[int]) -> list[Clip]:
                return self.pipe.fill_visual([whole], sampling, seeds, lambda *_: bar.update(), negatives=negatives)

            clip = (checked(self.pipe, [turn], [seed], self.most, make) if self.most else make([0], [seed]))[0]
        self.drawn += 1
        return self._keep(Turn(said=wanted.text, segments=turns.filled(turn, clip), table=(clip,), seed=seed))

    def _denoising(self, kind: str, how: Mapping[str, Any]) -> tuple[Asked, list[str], dict[str, Any]]:
        """What is said of a result of a kind: its size, what to lead away from, and fields of `Sampling`."""
        if kind == "image" and "num_frames" in how:
            raise UserError("num_frames is given for an image, which has no length: leave it out", param="num_frames")
        settings = {name: value for name, value in how.items() if name not in (*SIZES, "negative_prompt")}
        self.pipe.sampling(**settings)
        return asked_size(*map(how.get, SIZES)), self.pipe.negatives(how.get("negative_prompt"), 1), settings

    def _keep(self, turn: Turn) -> Turn:
        self.turns.append(turn)
        return turn


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _named(name: str, value: Any) -> Mapping[str, Any]:
    """Settings for one kind. UserError if they are none."""
    if value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        return value or {}
    raise UserError(f'{name} is {values.brief(value)}: expected settings by name, such as {{"height": 64}}')


def _turns(value: Any) -> list[Turn]:
    if isinstance(value, (list, tuple)) and all(isinstance(turn, Turn) for turn in value):
        return list(value)
    raise UserError(f"turns is {values.brief(value)}: expected turns of a dialogue, such as talk.turns[:2]")
