"""What people call: one method per thing that they want, a list in and a list out.

pipe = openlance.load("nano")
pipe.generate("a red circle left of a blue square", seed=7)[0].save("out.png")
pipe.edit("out.png", "make the circle green", seed=7)[0].save("green.png")
pipe.animate("out.png", "the circle moves up", num_frames=17)[0].save("out.mp4")
pipe.ask("out.png", "how many squares are there?")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from openlance.errors import UserError
from openlance.media.buckets import resize
from openlance.media.clip import Clip
from openlance.media.inputs import Medium, as_clip, as_picture
from openlance.model.vae import latent_grid
from openlance.sample.engine import Engine
from openlance.sample.inputs import check_texts, grouped, is_many, paired
from openlance.sample.text import Decoding, Shown
from openlance.sequence import tasks
from openlance.sequence.segment import Segments

if TYPE_CHECKING:
    from PIL.Image import Image


class Pipeline(Engine):
    """A checkpoint folder with everything that it can do.

    A list gives a list: result k of a list has the seed `seed + k` and equals that of the same call for item k alone
    with that seed. All methods that draw take `**how`: `seed` (random if left out), `generator` (one for all),
    `progress` (a bar), and the fields of `Sampling`, such as `num_inference_steps` and `guidance_scale`; None means
    the checkpoint's own. Bad input is a UserError of one sentence.
    """

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        **how: Any,
    ) -> list[Image]:
        """Pictures for one prompt or several, `num_images` of each, prompt after prompt.

        height, width: pixels, multiples of the codec's stride. how: see `Pipeline`.
        """
        if num_images < 1:
            raise UserError(f"{num_images} images are none: use --num-images 1 or more")
        wanted = [text for text in _listed(prompt) for _ in range(num_images)]
        return [_picture(clip) for clip in self._from_text(wanted, self._size(1, height, width), how)]

    def generate_video(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **how: Any,
    ) -> list[Clip]:
        """Clips for one prompt or several. num_frames: 1 + k times the codec's temporal stride. how: see `Pipeline`."""
        return self._from_text(_listed(prompt), self._size(num_frames, height, width), how)

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

        height, width: resize the pictures first. how: see `Pipeline`.
        """
        pairs = paired(image, prompt)
        check_texts([text for _, text in pairs], "prompt", "the circle moves left")
        ends = [end for end, _ in paired(last, [text for _, text in pairs])]
        p, requests = self.defaults.prompts, list[Segments]()
        for (medium, text), ending in zip(pairs, ends, strict=True):
            first = self.fit.kept(as_picture(medium), "video")
            size = self._size(num_frames, height or first.height, width or first.width)
            if size[0] <= self.config.vae.temporal_stride:
                least = self.config.vae.temporal_stride + 1
                raise UserError(f"{size[0]} frames are the given picture alone: use --num-frames {least} or more")
            first = _resized(first, size)
            if ending is None:
                requests.append(tasks.image_to_video(text, first, size, prompts=p))
            else:
                end = _resized(self.fit.kept(as_picture(ending), "video"), size)
                requests.append(tasks.first_and_last(text, first, end, size, prompts=p))
        return self._draw(requests, **how)

    def edit(
        self, source: Medium | Sequence[Medium], instruction: str | Sequence[str], **how: Any
    ) -> list[Image] | list[Clip]:
        """Pictures or clips changed as told, each of the size and length of its source, rounded to the strides.

        A video (by content) gives a Clip, a picture an Image. A tuple of media is several sources of one edit, of which
        the last gives the size. how: see `Pipeline`.
        """
        pairs = paired(source, instruction)
        check_texts([text for _, text in pairs], "instruction", "make the circle blue")
        requests, rates = list[Segments](), list[float]()
        for media, text in pairs:
            clips = [as_clip(m) for m in (media if is_many(media) else [media])]
            views = [self.fit.views(clip, tasks.kind_of(clips[-1].frames)) for clip in clips]
            size = views[-1][1].pixels.shape[:3]
            requests.append(tasks.edit(text, views, size, prompts=self.defaults.prompts))
            rates.append(clips[-1].fps)
        made = [Clip(clip.pixels, fps) for clip, fps in zip(self._draw(requests, **how), rates, strict=True)]
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

        images: the subjects of one prompt, or a list with those of each prompt. how: see `Pipeline`.
        """
        size = self._size(num_frames, height, width)
        makes, p, requests = tasks.kind_of(size[0]), self.defaults.prompts, list[Segments]()
        for clips, text in grouped(images, prompt):
            check_texts([text], "prompt", "the circle on a white background")
            views = [self.fit.views(as_picture(clip), makes) for clip in clips]
            requests.append(tasks.subject_driven(text, views, size, prompts=p))
        made = self._draw(requests, **how)
        return made if num_frames > 1 else [_picture(clip) for clip in made]

    def ask(
        self,
        media: Medium | Sequence[Medium] | Sequence[Sequence[Medium]],
        question: str | Sequence[str],
        *,
        stream: Callable[[str], None] | None = None,
        seed: int | None = None,
        **decoding: Any,
    ) -> Any:
        """The answer to a question about pictures or clips; lists of equal length give a list of answers in one batch.

        media: what one question is about (several as a list), or a list with that of each question. decoding: fields
        of `Decoding`: max_new_tokens, temperature, top_p. stream(piece) gets the text as it comes (one question only).
        """
        several = is_many(question)
        unknown = sorted(decoding.keys() - Decoding.__dataclass_fields__.keys())
        if unknown:
            raise UserError(f"there is no option {unknown[0]!r}: use one of {', '.join(vars(Decoding()))}")
        d = Decoding(**{"max_new_tokens": 96} | decoding)
        if stream is not None and several:
            raise UserError("answers to several questions cannot be streamed: ask one at a time or leave `stream` out")
        groups = [([self.fit.seen(clip, "text") for clip in clips], text) for clips, text in grouped(media, question)]
        requests = [tasks.understand(clips, text.strip(), prompts=self.defaults.prompts) for clips, text in groups]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        shown = Shown(self.tokenizer, stream) if stream is not None else None
        answers: list[str] = []
        longest = max((sum(1 + clip.frames // 2 for clip in clips) for clips, _ in groups), default=1)
        per = max(4 * self.defaults.batch // longest, 1)
        for at in range(0, len(requests), per):
            answers += self.fill_text(requests[at : at + per], d, generator, shown.add if shown is not None else None)
        if shown is not None:
            shown.up_to(answers[0])
        return answers if several else answers[0]

    def caption(self, media: Medium | Sequence[Medium], **options: Any) -> Any:
        """A description of a picture or clip, or a list of them; options as for `ask`."""
        question = "" if self.defaults.prompts.captions[0] else "describe the picture"
        return self.ask(media, [question] * len(media) if is_many(media) else question, **options)

    # Between a request and its pixels.

    def _size(self, frames: int | None, height: int | None, width: int | None) -> tasks.Size:
        """What the caller left out is the checkpoint's; UserError unless the codec can make it."""
        d = self.defaults
        size = (
            d.num_frames if frames is None else frames,
            d.height if height is None else height,
            d.width if width is None else width,
        )
        self.check_size(size)
        return size

    def check_size(self, size: tasks.Size) -> None:
        """UserError unless the codec can make (frames, height, width)."""
        latent_grid(self.config.vae, size)

    def _from_text(self, prompts: list[str], size: tasks.Size, how: dict[str, Any]) -> list[Clip]:
        check_texts(prompts, "prompt", "a red circle")
        requests = [tasks.text_to_visual(text, size, prompts=self.defaults.prompts) for text in prompts]
        return self._draw(requests, **how)

    def _draw(
        self,
        requests: list[Segments],
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> list[Clip]:
        """The visual target of each request, batch by batch."""
        s = self.sampling(requests, **settings)
        first = int(torch.randint(2**31, ()).item()) if seed is None else seed
        seeds: list[int | torch.Generator] = [generator or first + k for k in range(len(requests))]
        longest = max((self.codec.latent_grid(r[-1].size)[0] for r in requests), default=1)  # type: ignore[arg-type]
        per, clips = max(self.defaults.batch // longest, 1), list[Clip]()
        with _bar(progress, len(requests) * s.num_inference_steps) as bar:
            for at in range(0, len(requests), per):
                some = requests[at : at + per]
                count = len(some)
                clips += self.fill_visual(some, s, seeds[at : at + per], lambda *_, n=count: bar.update(n))
        return clips


def _listed(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _resized(clip: Clip, size: tasks.Size) -> Clip:
    return clip.with_pixels(resize(clip.pixels, *size[1:]))


def _picture(clip: Clip) -> Image:
    from PIL import Image

    return Image.fromarray(clip.pixels[0])


def _bar(show: bool, total: int):
    from tqdm import tqdm

    return tqdm(total=total, disable=not show, unit="step", leave=False, delay=1.0)
