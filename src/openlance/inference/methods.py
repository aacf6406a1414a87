"""One method per thing that people want, a list in and a list out; `lance_pipeline` adds other libraries' interfaces.

pipe = openlance.load("nano")
pipe.generate("a red circle left of a blue square", seed=7)[0].save("out.png")
pipe.edit("out.png", "make the circle green", seed=7)[0].save("green.png")
pipe.animate("out.png", "the circle moves up", num_frames=17)[0].save("out.mp4")
pipe.ask("out.png", "how many squares are there?")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from openlance.checkpoint.formats import Hub, find_model
from openlance.config import values
from openlance.config.sampling import MOST_RESULTS, Decoding
from openlance.errors import UserError
from openlance.inference import inputs, regions
from openlance.inference.engine import Engine
from openlance.inference.inputs import How, Words, asked_size, batches, is_many, listed, paired, question_about
from openlance.inference.text import Answer, AnswerInfo, Shown
from openlance.media.clip import Clip
from openlance.media.inputs import MediaInput, as_image, every_frame
from openlance.sequence import tasks
from openlance.sequence.segment import Segments

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from typing_extensions import Self, Unpack


class Methods(Engine):
    """A checkpoint folder with everything that it can do.

    A list gives a list: result k of a list has the seed `seed + k` and equals that of the same call for item k alone
    with that seed. All methods that draw take `**how`, see `inputs.How`. Bad input is a UserError of one sentence.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "nano",
        *,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | Mapping[str, Any] | torch.device | int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        base: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Load a shipped model, a folder of any form, or owner/name on the hub.

        Args:
            model: "nano", a folder, or a repository.
            torch_dtype: A dtype, its name, or "auto", the model's own; also `dtype`.
            device_map: A device, or "auto", the usual one; also `device`.
            revision: Of a repository a branch, tag or commit, with `cache_dir`, `local_files_only` and `token`.
            subfolder: Where the model is in its folder or repository.
            variant: There are none: weights have one form, and `torch_dtype` says in which dtype they are used.
            base: A folder with what `model` lacks, such as the VAE of a trainer's output.
            **options: Of `Engine`: tokenizer, device, dtype, allow_pickle, memory.

        Raises:
            UserError: If there is no such model, or an argument is unknown or none.
        """
        known = inspect.getfullargspec(Engine.__init__).kwonlyargs
        values.no_others(options, [*known, *inspect.getfullargspec(cls.from_pretrained).kwonlyargs])
        if variant is not None:
            raise UserError(f"variant is {values.brief(variant)}: weights have one form here, so choose a torch_dtype")
        if torch_dtype is not None:
            options["dtype"] = torch_dtype
        if device_map is not None:
            options["device"] = inputs.device_in(device_map)
        hub = Hub(
            revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token, subfolder=subfolder
        )
        return cls(find_model(model, base=base, hub=hub), **options)

    @overload
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        **how: Unpack[How],
    ) -> list[Image]: ...

    @overload
    def generate(self, *, requests: list[Segments], input_ids: Tensor | None = None, **how: Any) -> Tensor: ...

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        requests: list[Segments] | None = None,
        input_ids: Tensor | None = None,
        **how: Any,
    ) -> list[Image] | Tensor:
        """Draw images, or answer as transformers' `generate` does.

        Args:
            prompt: One or several.
            height: In pixels, a multiple of the VAE's stride, as `width`.
            num_images: How many of each prompt; they come prompt after prompt.
            requests: With `input_ids` what `processor` gave: `generate(**processor(text=..., images=...))`.
            **how: See `How`; of answers, see `interfaces.answer_ids`.

        Returns:
            Images; or the (B, L + new) token ids of answers.

        Raises:
            UserError: On bad input.
        """
        if requests is not None or input_ids is not None:
            if prompt is not None:
                raise UserError("a prompt draws images and a processor's inputs give token ids: give one of the two")
            from openlance.inference.interfaces import answer_ids

            more = {k: v for k, v in {"height": height, "width": width}.items() if v is not None}
            return answer_ids(self, requests, input_ids, **more, **how)  # type: ignore[arg-type]
        count = values.whole("num_images", num_images, 1, MOST_RESULTS)
        texts = listed(prompt, "prompt", "a red circle")
        wanted = [text for text in texts for _ in range(count)]
        how["negative_prompt"] = self.negatives(how.get("negative_prompt"), len(texts), count)
        asked = asked_size(None, height, width)
        task = tasks.the_task(tasks.text_to_visual, "image")
        requests = [self.front.request(task, text, asked=asked) for text in wanted]
        return [clip.images()[0] for clip in self._draw(requests, **how)]

    def generate_video(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **how: Unpack[How],
    ) -> list[Clip]:
        """Draw videos.

        Args:
            prompt: One or several.
            num_frames: 1 + k times the VAE's temporal stride.
            height: In pixels, a multiple of the VAE's stride, as `width`.
            **how: See `inputs.How`.
        """
        asked = asked_size(num_frames, height, width)
        task = tasks.the_task(tasks.text_to_visual, "image" if asked[0] == 1 else "video")
        texts = listed(prompt, "prompt", "a red circle moves left")
        return self._draw([self.front.request(task, text, asked=asked) for text in texts], **how)

    def animate(
        self,
        image: MediaInput | Sequence[MediaInput],
        prompt: str | Sequence[str],
        *,
        last: MediaInput | Sequence[MediaInput] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **how: Unpack[How],
    ) -> list[Clip]:
        """Draw videos that begin with given images; they have the size of the first.

        Args:
            image: One or several.
            prompt: What happens; one or several.
            last: What they end on; one or several.
            num_frames: 1 + k times the VAE's temporal stride.
            height: With `width`, resize the images first.
            **how: See `inputs.How`.
        """
        pairs = paired(image, prompt)
        texts = listed([text for _, text in pairs], "prompt", "the circle moves left")
        ends = [end for end, _ in paired(last, texts)]
        asked = asked_size(num_frames, height, width)
        requests = list[Segments]()
        for (first, text), ending in zip(pairs, ends, strict=True):
            given = [as_image(first), *([] if ending is None else [as_image(ending)])]
            template = tasks.image_to_video if ending is None else tasks.first_and_last
            requests.append(self.front.request(tasks.the_task(template, "video"), text, given, asked=asked))
        return self._draw(requests, **how)

    def edit(
        self,
        source: MediaInput | Sequence[MediaInput],
        instruction: str | Sequence[str],
        *,
        mask: Any = None,
        region: Any = None,
        **how: Unpack[How],
    ) -> list[Image] | list[Clip]:
        """Change images or videos as told, each of the size and length of its source, rounded to the strides.

        Args:
            source: One or several; a tuple is several sources of one edit, of which the last gives the size.
            instruction: One or several.
            mask: White where the (last) source may change, of its size: see `media.region.read_mask`. All else is the
                source's own pixels. A list has one for each of several edits.
            region: The same said in another way: a box (left, top, right, bottom) in pixels, an array (T, 4) with one
                for each frame, the name of a thing for which the model looks, such as "the red circle", or a list of
                these; "none" for the whole. A list has one for each of several edits.
            **how: See `inputs.How`.

        Returns:
            A Clip of a video (told by content), an Image of an image.
        """
        pairs = paired(source, instruction)
        listed([text for _, text in pairs], "instruction", "make the circle blue")
        wanted = regions.asked(mask, region, len(pairs), isinstance(source, list) or is_many(instruction))
        requests, sources = list[Segments](), list[Clip]()
        for media, text in pairs:
            clips = inputs.clips_of(media)
            task = tasks.the_task(tasks.edit, tasks.kind_of(clips[-1].frames))
            requests.append(self.front.request(task, text, clips))
            sources.append(clips[-1])
        made = self._draw(regions.placed(self, requests, sources, wanted), **how)
        return [clip if clip.frames > 1 else clip.images()[0] for clip in made]  # type: ignore[return-value]

    def outpaint(
        self,
        image: MediaInput | Sequence[MediaInput],
        prompt: str | Sequence[str],
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        **how: Unpack[How],
    ) -> list[Image]:
        """Draw what is beyond the borders of images, whose own pixels stay.

        Args:
            image: One or several.
            prompt: What is to be seen in the whole of it; one or several.
            left: Pixels more on this side, as `top`, `right` and `bottom`.
            **how: See `inputs.How`.

        Raises:
            UserError: On bad input, or from a checkpoint that was not trained for it.
        """
        spec = tasks.the_task(tasks.fill_part, "image")
        room = {"left": left, "top": top, "right": right, "bottom": bottom}
        pairs = paired(image, prompt)
        listed([text for _, text in pairs], "prompt", "a red circle left of a blue square")
        clips = [as_image(one) for one, _ in pairs]
        return [clip.images()[0] for clip in self._beyond(spec, clips, pairs, "beyond its borders", room, how)]

    def extend(
        self,
        video: MediaInput | Sequence[MediaInput],
        prompt: str | Sequence[str],
        *,
        before: int = 0,
        after: int = 0,
        **how: Unpack[How],
    ) -> list[Clip]:
        """Make what comes before or after videos, whose own frames stay.

        Args:
            video: One or several.
            prompt: What happens in the whole of it; one or several.
            before: Frames more at the beginning.
            after: Frames more at the end; with those of the video 1 + k times the VAE's temporal stride.
            **how: See `inputs.How`.

        Raises:
            UserError: On bad input, or from a checkpoint that was not trained for it.
        """
        spec, room = tasks.the_task(tasks.fill_part, "video"), {"before": before, "after": after}
        pairs = paired(video, prompt)
        listed([text for _, text in pairs], "prompt", "a red circle moves left")
        clips = [every_frame(one) for one, _ in pairs]
        return self._beyond(spec, clips, pairs, "before or after it", room, how)

    def _beyond(
        self, spec: tasks.TaskSpec, clips: Sequence[Clip], pairs: Sequence[tuple[Any, str]], said: str,
        room: Mapping[str, int], how: Mapping[str, Any],
    ) -> list[Clip]:  # fmt: skip
        """What is there, with room around it that is drawn."""
        requests = [
            regions.beyond(self, spec, text, clip, said, **room) for clip, (_, text) in zip(clips, pairs, strict=True)
        ]
        made = self._draw(requests, **how)
        return [
            regions.cut_to_size(whole, regions.size_with(clip, room)) for whole, clip in zip(made, clips, strict=True)
        ]

    def subject(
        self,
        images: MediaInput | Sequence[MediaInput] | Sequence[Sequence[MediaInput]],
        prompt: str | Sequence[str],
        *,
        num_frames: int = 1,
        height: int | None = None,
        width: int | None = None,
        **how: Unpack[How],
    ) -> list[Image] | list[Clip]:
        """Place the given subjects in a new scene: an image, or a video of `num_frames`.

        Args:
            images: The subjects of one prompt, or a list with those of each prompt.
            prompt: One or several.
            num_frames: 1, or 1 + k times the VAE's temporal stride.
            height: In pixels, a multiple of the VAE's stride, as `width`.
            **how: See `inputs.How`.
        """
        asked = asked_size(values.whole("num_frames", num_frames), height, width)
        task = tasks.the_task(tasks.subject_driven, tasks.kind_of(asked[0] or 1))
        listed(prompt, "prompt", "the circle on a white background")
        groups = inputs.grouped(images, prompt)
        made = self._draw([self.front.request(task, text, clips, asked=asked) for clips, text in groups], **how)
        return made if task.makes != "image" else [clip.images()[0] for clip in made]

    def ask(
        self,
        media: MediaInput | Sequence[MediaInput] | Sequence[Sequence[MediaInput]],
        question: str | Sequence[str],
        *,
        stream: Callable[[str], None] | None = None,
        seed: int | None = None,
        return_info: bool = False,
        **decoding: Unpack[Words],
    ) -> Any:
        """Answer a question about images or videos; lists of equal length give a list of answers in one batch.

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
        inputs.a_function("stream", stream, 1, "print")
        d = Decoding(**{"max_new_tokens": 96} | decoding)  # type: ignore[arg-type]  # converted
        told = values.flag("return_info", return_info)
        if stream is not None and several:
            raise UserError("answers to several questions cannot be streamed: ask one at a time or leave `stream` out")
        inputs.questions(question)
        groups = inputs.grouped(media, question)
        requests = [self.front.request(question_about(clips), text.strip(), clips) for clips, text in groups]
        generator = None if seed is None else torch.Generator().manual_seed(inputs.seed_of(seed))
        shown = Shown(self.tokenizer, stream, d.stop) if stream is not None else None
        answers = list[Answer]()
        longest = max((sum(1 + clip.frames // 2 for clip in clips) for clips, _ in groups), default=1)
        per = max(4 * self.defaults.batch // longest, 1)
        for some, _ in batches(requests, per):
            answers += self.fill_text(some, d, generator, shown.add if shown is not None else None)
        if shown is not None:
            shown.up_to(answers[0])
        given = [AnswerInfo(text=str(a), finish_reason=a.finish_reason) for a in answers] if told else answers
        return given if several else given[0]

    def caption(self, media: MediaInput | Sequence[MediaInput], **options: Any) -> Any:
        """Describe an image or video, or each of a list; options as for `ask`."""
        if isinstance(media, list) and not media:
            raise UserError("there is no image or video to describe: give at least one")
        return self.ask(media, [""] * len(media) if isinstance(media, list) else "", **options)

    def _rewritten(self, requests: list[Segments], enhance: Any, think: bool = False) -> list[Segments]:
        if enhance is None and think is False:
            return requests
        from openlance.inference.enhance import rewriter, thinker

        for rewrite in (rewriter(self, enhance), thinker(self, think)):
            requests = requests if rewrite is None else [rewrite(request) for request in requests]
        return requests

    def _draw(
        self,
        requests: list[Segments],
        *,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: bool | Callable[[int, int], object] = False,
        negative_prompt: str | Sequence[str] | None = None,
        enhance: Any = None,
        think: bool = False,
        check: int | None = None,
        **settings: Any,
    ) -> list[Clip]:
        """Fill the visual target of each request, batch by batch."""
        negatives, most = self.negatives(negative_prompt, len(requests)), inputs.draws(check, generator)
        how = [self.sampling([request], **settings) for request in requests]
        seeds = inputs.starts(seed, generator, len(requests))
        longest = max((self.codec.latent_grid(r[-1].size)[0] for r in requests), default=1)  # type: ignore[arg-type]
        per, total = max(self.defaults.batch // longest, 1), sum(s.steps for s in how)
        with _counted(progress, total * (most or 1)) as finished:
            requests = self._rewritten(requests, enhance, think)

            def make(which: Sequence[int], seeds: Sequence[Any]) -> list[Clip]:
                clips = list[Clip]()
                for some, s in batches([requests[n] for n in which], per, [how[n] for n in which]):
                    mine = slice(len(clips), len(clips) + len(some))
                    more: Any = {"negatives": [negatives[n] for n in which[mine]]}
                    clips += self.fill_visual(some, s, seeds[mine], after_step=partial(finished, len(some)), **more)
                return clips

            if not most:
                return make(range(len(requests)), seeds)
            from openlance.inference.checking import checked

            return checked(self, requests, [int(seed) for seed in seeds], most, make)  # type: ignore[arg-type]


@contextmanager
def _counted(progress: Any, total: int) -> Iterator[Callable[..., None]]:
    """Give what is to be called with how many more of `total` steps are finished, which a bar or a function is told."""
    from tqdm import tqdm

    told, done = progress if callable(progress) else None, 0
    inputs.a_function("progress", told, 2, "lambda finished, total: print(finished, total)")
    hidden = told is not None or not values.flag("progress", progress)
    with tqdm(total=total, disable=hidden, unit="step", leave=False, delay=1.0) as bar:

        def finished(n: int, *_: Any) -> None:
            nonlocal done
            done += n
            bar.update(n)
            if told is not None:
                told(done, total)

        yield finished
