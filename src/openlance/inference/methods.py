"""One method per thing that people want, a list in and a list out; `lance_pipeline` adds the manners of others.

pipe = openlance.load("nano")
pipe.generate("a red circle left of a blue square", seed=7)[0].save("out.png")
pipe.edit("out.png", "make the circle green", seed=7)[0].save("green.png")
pipe.animate("out.png", "the circle moves up", num_frames=17)[0].save("out.mp4")
pipe.ask("out.png", "how many squares are there?")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice, zip_longest
from typing import TYPE_CHECKING, Any

import torch

from openlance.config import values
from openlance.config.sampling import MOST_RESULTS, Decoding, Sampling
from openlance.errors import UserError
from openlance.inference.engine import Engine
from openlance.inference.inputs import (
    Medium,
    a_function,
    as_picture,
    asked_size,
    clips_of,
    grouped,
    is_many,
    listed,
    paired,
    seed_of,
    starts,
)
from openlance.inference.text import Answer, AnswerInfo, Shown
from openlance.media.clip import Clip
from openlance.sequence import tasks
from openlance.sequence.segment import Segments, any_video

if TYPE_CHECKING:
    from PIL.Image import Image


class Methods(Engine):
    """A checkpoint folder with everything that it can do.

    A list gives a list: result k of a list has the seed `seed + k` and equals that of the same call for item k alone
    with that seed. All methods that draw take `**how`: `seed` (random if left out, or -1), `generator` (one for all, or
    one each), `progress` (a bar), `negative_prompt` (what guidance leads away from, one or one each), and the fields of
    `Sampling`, such as `num_inference_steps` and `guidance_scale`;
    None means the checkpoint's own. Bad input is a UserError of one sentence.
    """

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        negative_prompt: str | Sequence[str] | None = None,
        **how: Any,
    ) -> list[Image]:
        """Pictures for one prompt or several, `num_images` of each, prompt after prompt.

        height, width: pixels, multiples of the codec's stride. how: see `Methods`.
        """
        count = values.whole("num_images", num_images, 1, MOST_RESULTS)
        texts = listed(prompt, "prompt", "a red circle")
        wanted = [text for text in texts for _ in range(count)]
        negatives = self.negatives(negative_prompt, len(texts), count)
        asked = asked_size(None, height, width)
        task = tasks.the_task(tasks.text_to_visual, "image")
        requests = [self.front.request(task, text, asked=asked) for text in wanted]
        return [_picture(clip) for clip in self._draw(requests, negative_prompt=negatives, **how)]

    def generate_video(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **how: Any,
    ) -> list[Clip]:
        """Clips for one prompt or several. num_frames: 1 + k times the codec's temporal stride. how: see `Methods`."""
        asked = asked_size(num_frames, height, width)
        template = tasks.text_to_visual
        task = tasks.the_task(template, "image" if asked[0] == 1 else "video")
        texts = listed(prompt, "prompt", "a red circle moves left")
        return self._draw([self.front.request(task, text, asked=asked) for text in texts], **how)

    def animate(
        self,
        image: Medium | Sequence[Medium],
        prompt: str | Sequence[str],
        *,
        last: Medium | Sequence[Medium] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **how: Any,
    ) -> list[Clip]:
        """Clips that begin with given pictures and, with `last`, end on others; they have the size of the first.

        height, width: resize the pictures first. how: see `Methods`.
        """
        pairs = paired(image, prompt)
        texts = listed([text for _, text in pairs], "prompt", "the circle moves left")
        ends = [end for end, _ in paired(last, texts)]
        asked = asked_size(num_frames, height, width)
        requests = list[Segments]()
        for (medium, text), ending in zip(pairs, ends, strict=True):
            given = [as_picture(medium), *([] if ending is None else [as_picture(ending)])]
            template = tasks.image_to_video if ending is None else tasks.first_and_last
            requests.append(self.front.request(tasks.the_task(template, "video"), text, given, asked=asked))
        return self._draw(requests, **how)

    def edit(
        self, source: Medium | Sequence[Medium], instruction: str | Sequence[str], **how: Any
    ) -> list[Image] | list[Clip]:
        """Pictures or clips changed as told, each of the size and length of its source, rounded to the strides.

        A video (by content) gives a Clip, a picture an Image. A tuple of media is several sources of one edit, of which
        the last gives the size. how: see `Methods`.
        """
        pairs = paired(source, instruction)
        listed([text for _, text in pairs], "instruction", "make the circle blue")
        requests = list[Segments]()
        for media, text in pairs:
            clips = clips_of(media)
            task = tasks.the_task(tasks.edit, tasks.kind_of(clips[-1].frames))
            requests.append(self.front.request(task, text, clips))
        made = self._draw(requests, **how)
        return [clip if clip.frames > 1 else _picture(clip) for clip in made]  # type: ignore[return-value]

    def subject(
        self,
        images: Medium | Sequence[Medium] | Sequence[Sequence[Medium]],
        prompt: str | Sequence[str],
        *,
        num_frames: int = 1,
        height: int | None = None,
        width: int | None = None,
        **how: Any,
    ) -> list[Image] | list[Clip]:
        """The given subjects in a new scene: a picture, or a clip of `num_frames`.

        images: the subjects of one prompt, or a list with those of each prompt. how: see `Methods`.
        """
        asked = asked_size(values.whole("num_frames", num_frames), height, width)
        task = tasks.the_task(tasks.subject_driven, tasks.kind_of(asked[0] or 1))
        listed(prompt, "prompt", "the circle on a white background")
        groups = grouped(images, prompt)
        made = self._draw([self.front.request(task, text, clips, asked=asked) for clips, text in groups], **how)
        return made if task.makes != "image" else [_picture(clip) for clip in made]

    def ask(
        self,
        media: Medium | Sequence[Medium] | Sequence[Sequence[Medium]],
        question: str | Sequence[str],
        *,
        stream: Callable[[str], None] | None = None,
        seed: int | None = None,
        return_info: bool = False,
        **decoding: Any,
    ) -> Any:
        """The answer to a question about pictures or clips; lists of equal length give a list of answers in one batch.

        Args:
            media: What one question is about (several as a list), or a list with that of each question.
            question: What to ask; an empty text asks for a description.
            stream: Called with each piece of the text as it comes (one question only).
            seed: Of answers that are drawn, with a temperature above 0.
            return_info: Give an `AnswerInfo` with `text` and `finish_reason` in the place of each text.
            **decoding: Fields of `Decoding`: max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop.

        Returns:
            A text, or a list of them, whose `finish_reason` is "stop", or "length" where it was cut at max_new_tokens.
        """
        several = is_many(question)
        values.no_others(decoding, Decoding.__dataclass_fields__)
        a_function("stream", stream, 1, "print")
        d, told = Decoding(**{"max_new_tokens": 96} | decoding), values.flag("return_info", return_info)
        if stream is not None and several:
            raise UserError("answers to several questions cannot be streamed: ask one at a time or leave `stream` out")
        wrong = [text for text in (question if several else [question]) if not isinstance(text, str)]
        if wrong or (several and not question):
            said = values.brief(wrong[0] if wrong else question)
            raise UserError(f"the question is {said}: expected a text, or several")
        groups = grouped(media, question)
        requests = [self.front.request(question_about(clips), text.strip(), clips) for clips, text in groups]
        generator = None if seed is None else torch.Generator().manual_seed(seed_of(seed))
        shown = Shown(self.tokenizer, stream, d.stop) if stream is not None else None
        answers = list[Answer]()
        longest = max((sum(1 + clip.frames // 2 for clip in clips) for clips, _ in groups), default=1)
        per = max(4 * self.defaults.batch // longest, 1)
        for some, _ in _batches(requests, per):
            answers += self.fill_text(some, d, generator, shown.add if shown is not None else None)
        if shown is not None:
            shown.up_to(answers[0])
        given = [AnswerInfo(text=str(a), finish_reason=a.finish_reason) for a in answers] if told else answers
        return given if several else given[0]

    def caption(self, media: Medium | Sequence[Medium], **options: Any) -> Any:
        """A description of a picture or clip, or a list of them; options as for `ask`."""
        if isinstance(media, list) and not media:
            raise UserError("there is no picture or clip to describe: give at least one")
        return self.ask(media, [""] * len(media) if isinstance(media, list) else "", **options)

    def _draw(
        self,
        requests: list[Segments],
        *,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: bool = False,
        negative_prompt: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> list[Clip]:
        """The visual target of each request, batch by batch."""
        negatives = self.negatives(negative_prompt, len(requests))
        how = [self.sampling([request], **settings) for request in requests]
        seeds = starts(seed, generator, len(requests))
        longest = max((self.codec.latent_grid(r[-1].size)[0] for r in requests), default=1)  # type: ignore[arg-type]
        per, clips = max(self.defaults.batch // longest, 1), list[Clip]()
        with _bar(values.flag("progress", progress), sum(s.num_inference_steps for s in how)) as bar:
            for some, s in _batches(requests, per, how):
                at, count = len(clips), len(some)
                mine = slice(at, at + count)
                clips += self.fill_visual(
                    some, s, seeds[mine], lambda *_, n=count: bar.update(n), negatives=negatives[mine]
                )
        return clips


def _batches(
    requests: list[Segments], per: int, how: Sequence[Sampling | None] = ()
) -> Iterator[tuple[list[Segments], Any]]:
    """At most so many at a time, in order, with how they denoise. What differs in that stays apart, and what moves from
    what does not: a release has weights for each."""
    both = zip_longest(requests, how)
    for (_, s), alike in groupby(both, lambda one: (any_video([one[0]]), one[1])):
        while some := list(islice(alike, per)):
            yield [request for request, _ in some], s


def question_about(clips: Sequence[Clip]) -> tasks.TaskSpec:
    """The task of a question, by whether one of its media moves."""
    return tasks.the_task(tasks.understand, tasks.kind_of(max(clip.frames for clip in clips)))


def _picture(clip: Clip) -> Image:
    from PIL import Image

    return Image.fromarray(clip.pixels[0])


def _bar(show: bool, total: int):
    from tqdm import tqdm

    return tqdm(total=total, disable=not show, unit="step", leave=False, delay=1.0)
