"""A checkpoint as a model of lmms-eval, which finds it by its entry point as `lance`; docs/evaluation.md has commands.

lmms-eval belongs into an environment of its own; nothing else of openlance imports this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from openlance.config.sampling import Decoding
from openlance.config.values import whole
from openlance.errors import UserError
from openlance.eval import mvbench
from openlance.eval.sampling import Job, Seeding
from openlance.inference.lance_pipeline import LancePipeline
from openlance.media import Clip, as_image
from openlance.media.files import Source, begins_as_video
from openlance.media.video import read_frames
from openlance.media.write import write_media
from openlance.sequence.tasks import spec_of

MANIFEST = ModelManifest(model_id="lance", simple_class_path=f"{__name__}.Lance")
USUAL_TOKENS = 256  # of an answer whose task does not say


def decoding(settings: Mapping[str, Any]) -> Decoding:
    """Settings of a task as ours; beams and what is drawn without `do_sample` mean nothing here."""
    names = ("max_new_tokens", "temperature", "top_p")
    asked = {name: settings[name] for name in names if settings.get(name) is not None}
    if not settings.get("do_sample"):
        asked |= {"temperature": 0.0, "top_p": 1.0}
    until = settings.get("until") or ()
    return Decoding(
        **{"max_new_tokens": USUAL_TOKENS} | asked, stop=(until,) if isinstance(until, str) else tuple(until)
    )


class Lance(lmms):
    """Answers, and makes images and videos, for tasks of lmms-eval.

    Args:
        pretrained: nano, a checkpoint folder, or owner/name on the hub.
        task: A task that makes something, such as image_edit; empty: questions are answered.
        frames: Of a video that is asked about.
        seed: The first one of what is made; every item has its own.
        output_dir: Where results that are no text are written.
        batch_size: Questions at once; auto: the checkpoint's own.
        device: Where it runs; lmms-eval's own word "cuda:0" is taken where there is a GPU.
        **options: Of `openlance.load`, such as memory=12GB or allow_pickle=True.

    Raises:
        UserError: For an unknown option or task.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "nano",
        task: str = "",
        frames: int = mvbench.FRAMES,
        seed: int = 42,
        output_dir: str = "lance-results",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.spec = spec_of(task) if task else None
        if self.spec is not None and self.spec.makes == "text":
            raise UserError(f"task={task} answers questions: leave task out")
        self.frames, self.seeding, self.folder = whole("frames", frames), Seeding(seed=seed), Path(output_dir)
        options |= {"device": device} if device not in (None, "", "auto", "cuda:0") else {}
        self.pipe = LancePipeline.from_pretrained(str(pretrained), **options)
        self.batch_size = self.pipe.defaults.batch if batch_size == "auto" else whole("batch_size", batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests of lmms-eval, in their order; what is drawn comes as JSON with "text" and "images"."""
        found = dict[int, str]()
        for numbers, settings in self._alike([request.args[1] for request in requests]):
            asked = [requests[n].args for n in numbers]
            said = self._drawn(asked) if self.spec else self._answered(asked, settings)
            found |= dict(zip(numbers, said, strict=True))
        return [found[n] for n in range(len(requests))]

    def _alike(self, settings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[int], Decoding]]:
        """Numbers of requests with the same settings, as many as a batch has."""
        groups = dict[Decoding, list[int]]()
        for number, one in enumerate(settings):
            groups.setdefault(decoding(one), []).append(number)
        for how, numbers in groups.items():
            for at in range(0, len(numbers), self.batch_size):
                yield numbers[at : at + self.batch_size], how

    def _media(self, asked: Sequence[Any]) -> list[Clip]:
        _, _, doc_to_visual, doc_id, task, split = asked
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        return [self._clip(one) for one in (visuals if isinstance(visuals, (list, tuple)) else [visuals])]

    def _clip(self, visual: Any) -> Clip:
        """An image, or the frames of a video that are looked at."""
        if isinstance(visual, (str, Path)) and begins_as_video(Source(visual).head()):
            return read_frames(Source(visual), lambda count, fps: mvbench.frames(count - 1, fps, self.frames))
        return as_image(visual)

    def _answered(self, asked: Sequence[Any], how: Decoding) -> list[str]:
        requests = []
        for one in asked:
            clips = self._media(one)
            if not clips:
                raise UserError(f"{one[4]}, item {one[3]} has no image and no video: questions are about one")
            task = "x2t_video" if any(clip.frames > 1 for clip in clips) else "x2t_image"
            requests.append(self.pipe.front.request(task, one[0].strip(), clips))
        return [str(answer) for answer in self.pipe.fill_text(requests, how)]

    def _drawn(self, asked: Sequence[Any]) -> list[str]:
        assert self.spec is not None
        said = []
        for one in asked:
            context, _, _, doc_id, task, split = one
            clips = self._media(one) if self.spec.reads else []
            request = self.pipe.front.request(self.spec, context.strip(), clips)
            seed = self.seeding.of(Job(group=f"{task} {split}", key=str(doc_id), task=self.spec.name, prompt=""), 0, 0)
            (clip,) = self.pipe.fill_visual([request], self.pipe.sampling([request]), [seed])
            file = self.folder / task / f"{doc_id}{'.mp4' if clip.frames > 1 else '.png'}"
            write_media(file, clip)
            said.append(json.dumps({"text": "", "images": [str(file)]}))
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: answers are generated here."""
        raise NotImplementedError("lance answers generate_until tasks, no loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: one question, one answer."""
        raise NotImplementedError("lance answers generate_until tasks, no dialogues")
