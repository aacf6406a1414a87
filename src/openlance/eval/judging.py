"""Who judges the results of a benchmark: a detector, or a model that answers, behind OpenAI's chat form or not.

A judgement that fails is recorded with its reason, and tried again by the next run; nothing is guessed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from openlance.config.values import read_text
from openlance.errors import UserError
from openlance.eval import gedit, geneval
from openlance.eval.geneval import Found
from openlance.eval.records import Record, read_object, read_records, write_records
from openlance.eval.sampling import Job
from openlance.media import Clip, read_media
from openlance.media.files import write_json
from openlance.media.transform import resize_to_ratio

if TYPE_CHECKING:
    from torch import Tensor

RECORDS, JUDGE = "records.jsonl", "judge.json"
SAVED = 32  # judgements between two writes of the records
Writer = Callable[[str, Sequence[Clip]], tuple[str, str]]  # a text and images -> an answer, and why it ended
# What VIEScore asks, by the names that its file gives the parts (viescore/__init__.py, task "tie").
CONTEXT = "_context_no_delimit"
SEMANTICS = (CONTEXT, "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC")
QUALITY = (CONTEXT, "_prompts_0shot_rule_PQ")
YES_OR_NO = " Answer with yes or no."
LEAST_MASK = 0.5  # of a mask's probability, for a pixel to belong to it
OUTSIDE = 0x99  # grey level around an object whose color is asked (evaluate_images.py)


class Scorer(Protocol):
    """Judges one result."""

    def __call__(self, job: Job, result: Clip, /) -> Mapping[str, Any]:
        """What a record of it says. UserError if there is no judgement."""


def read_who(folder: Path) -> dict[str, Any]:
    """Who judged a folder of results; empty where that is not said."""
    file = folder / JUDGE
    return read_object(file, "what openlance bench judge wrote") if file.is_file() else {}


def begin(folder: Path, who: Mapping[str, str]) -> None:
    """Write down who judges a folder.

    Raises:
        UserError: It has judgements of somebody else.
    """
    before = read_who(folder)
    if before and before != who and (folder / RECORDS).is_file():
        told = ", ".join(f"{name} {said}" for name, said in before.items())
        raise UserError(f"{folder} was judged by another ({told}): go on with that, or delete its {RECORDS}")
    write_json(folder / JUDGE, dict(who))


def results_of(job: Job, folder: Path) -> Iterator[tuple[int, Callable[[], Clip]]]:
    """The results of an item that are there: which, and how it is read."""
    for k in range(job.samples):
        path = folder / job.file.format(k=k)
        if path.is_file():
            yield k, partial(_cell, path, k, job.samples) if job.grid else partial(read_media, path)


def _cell(path: Path, k: int, count: int) -> Clip:
    """One image of a grid."""
    grid = read_media(path)
    side = int(np.ceil(np.sqrt(count)))
    height, width = grid.height // side, grid.width // side
    top, left = k // side * height, k % side * width
    return grid.with_pixels(grid.pixels[:, top : top + height, left : left + width])


def judge(
    jobs: Sequence[Job],
    folder: Path,
    scorer: Scorer,
    *,
    parallel: int = 1,
    on_done: Callable[[int], Any] = lambda n: None,
) -> list[Record]:
    """Judge what is in a folder and has no judgement yet, and write records.jsonl there.

    Args:
        jobs: The items of the benchmark.
        folder: Their results.
        scorer: Who judges.
        parallel: Judgements at once; a server takes several.
        on_done: Told of every so many judgements.
    """
    file = folder / RECORDS
    kept = {record.place: record for record in read_records(file)} if file.is_file() else {}
    waiting = [
        (job, k, read)
        for job in jobs
        for k, read in results_of(job, folder)
        if (old := kept.get((job.group, job.key, k))) is None or old.failed
    ]

    def one(job: Job, k: int, read: Callable[[], Clip]) -> Record:
        try:
            found = {"prompt": job.prompt, **job.found, **scorer(job, read())}
            return Record(group=job.group, key=job.key, k=k, found=found)
        except UserError as error:
            return Record(group=job.group, key=job.key, k=k, failed=str(error))

    with ThreadPoolExecutor(parallel) as pool:
        for at in range(0, len(waiting), SAVED):
            for record in pool.map(lambda asked: one(*asked), waiting[at : at + SAVED]):
                kept[record.place] = record
                on_done(1)
            write_records(file, kept.values())
    return list(kept.values())


# Judges behind a server.


def scores_in(answer: str, count: int) -> list[float]:
    """The grades 0 to 10 in a VIEScore answer, {"score": [...], ...}. UserError unless there are just so many."""
    for match in re.finditer(r'"?score"?\s*:\s*\[([^\]]*)\]', answer):
        try:
            found = [float(part) for part in match[1].split(",")]
        except ValueError:
            continue
        if len(found) == count and all(0 <= grade <= 10 for grade in found):
            return found
    raise UserError(f"an answer without {count} scores from 0 to 10")


def viescore(writer: Writer, words: Path) -> Scorer:
    """GEdit's judge; words: vie_prompts.py of Step1X-Edit."""
    texts = _constants(words)
    lacking = [name for name in {*SEMANTICS, *QUALITY} if name not in texts]
    if lacking:
        raise UserError(f"{words} has no {lacking[0]}: expected vie_prompts.py of Step1X-Edit")
    semantics, quality = ("\n".join(texts[name] for name in names) for names in (SEMANTICS, QUALITY))

    def score(job: Job, result: Clip) -> Mapping[str, Any]:
        source = job.media[0]()
        edited = result.with_pixels(resize_to_ratio(result.pixels, source.height, source.width))
        asked = semantics.replace("<instruction>", job.prompt)
        said = {"semantics": writer(asked, [source, edited])[0], "quality": writer(quality, [edited])[0]}
        grades = gedit.combined(scores_in(said["semantics"], 2), scores_in(said["quality"], 2))
        return {**grades, "said": said}

    return score


def imgedit_judge(writer: Writer, words: Path) -> Scorer:
    """ImgEdit's judge, with its prompts.json. Its answer is read when scores are added up."""
    prompts = read_object(words, "prompts.json of ImgEdit")
    if not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{words} has something else than texts: expected prompts.json of ImgEdit")

    def score(job: Job, result: Clip) -> Mapping[str, Any]:
        if job.group not in prompts:
            raise UserError(f"prompts.json has no words for {job.group}")
        asked = prompts[job.group].replace("<edit_prompt>", job.prompt)
        return {"answer": writer(asked, [job.media[0](), result])[0]}

    return score


def dpg_judge(writer: Writer, words: Path) -> Scorer:
    """Who answers DPG's questions; the official one is mplug's visual question answering."""

    def score(job: Job, result: Clip) -> Mapping[str, Any]:
        answers = dict[str, str]()
        for question in job.found["questions"]:
            said = writer(question["text"] + YES_OR_NO, [result])[0].strip()
            word = re.match(r"\W*(yes|no)\b", said, re.IGNORECASE)
            if word is None:
                raise UserError("an answer that is neither yes nor no")
            answers[str(question["number"])] = word[1].lower()
        return {"answers": answers}

    return score


def _constants(file: Path) -> dict[str, str]:
    """The texts that a Python file gives names, without running it."""
    try:
        tree = ast.parse(read_text(file))
    except SyntaxError as error:
        raise UserError(f"{file} is no Python file ({error}): get it again") from None
    pairs = [(n.targets[0], n.value) for n in tree.body if isinstance(n, ast.Assign)]
    return {
        name.id: value.value
        for name, value in pairs
        if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


# A detector on this machine.


@dataclass(frozen=True)
class Masked(Found):
    """An object with its mask, (H, W) bool."""

    mask: Any = None


class Detector:
    """GenEval's two models as transformers has them: objects by Mask2Former, their colors by CLIP.

    The official ones are Mask2Former of mmdetection (Swin-S, COCO) and OpenCLIP's ViT-L-14 "openai", whose weights
    openai/clip-vit-large-patch14 has too. The thresholds are those of the official detector: look at images of which
    you know the truth before you trust a number.

    Args:
        objects: Name or folder of a Mask2Former for instances of COCO.
        colors: Name or folder of a CLIP.
        device: Where they run.
    """

    def __init__(self, objects: str, colors: str, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, AutoProcessor, CLIPModel

        try:
            self.reader = AutoImageProcessor.from_pretrained(objects)
            self.finder = AutoModelForUniversalSegmentation.from_pretrained(objects).eval()
            self.words = AutoProcessor.from_pretrained(colors)
            self.clip: Any = CLIPModel.from_pretrained(colors).eval()
        except (OSError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise UserError(f"the scorer's models cannot be loaded ({said}): give folders of transformers") from None
        self.finder.to(device), self.clip.to(device)
        names = self.finder.config.id2label
        self.names = {int(n): geneval.RENAMED.get(name, name) for n, name in names.items()}
        self.device, self._texts = device, dict[str, Any]()

    def __call__(self, job: Job, result: Clip) -> Mapping[str, Any]:
        """Judge one image by its line of metadata."""
        metadata = json.loads(next(iter(job.beside.values()))())
        image = result.pixels[0]
        objects = geneval.kept(self.detected(image), metadata["tag"])
        wrong = geneval.judge(metadata, objects, lambda found, name: self.colors_of(image, found, name))
        shown = {name: [[*map(float, one.box), one.score] for one in found] for name, found in objects.items()}
        return {"right": not wrong, "why": "; ".join(wrong), "objects": shown}

    def detected(self, image: np.ndarray) -> dict[str, list[Found]]:
        """All objects of an image, uint8 (H, W, 3), by class; the score is that of the class times that of the mask."""
        import torch
        from torch.nn.functional import interpolate

        inputs = self.reader(images=image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            out = self.finder(**inputs)
        classes = out.class_queries_logits[0].softmax(-1)[:, :-1]
        size = image.shape[:2]
        masks = interpolate(out.masks_queries_logits[:1], size, mode="bilinear", align_corners=False)[0].sigmoid()
        found = dict[str, list[Found]]()
        for chances, mask in zip(classes, masks):
            score, label = chances.max(-1)
            inside = mask > LEAST_MASK
            if score <= geneval.CONFIDENT or not inside.any():
                continue
            one = Masked(_box(inside), float(score * mask[inside].mean()), inside.cpu().numpy())
            found.setdefault(self.names[int(label)], []).append(one)
        return found

    def colors_of(self, image: np.ndarray, found: Sequence[Found], name: str) -> list[str]:
        """The color of each of some objects of a class."""
        import torch

        crops = []
        for one in found:
            left, top, right, bottom = (int(round(v)) for v in one.box)
            around = np.where(one.mask[..., None], image, OUTSIDE) if isinstance(one, Masked) else image
            crops.append(around[top : max(bottom, top + 1), left : max(right, left + 1)].astype(np.uint8))
        texts = self._texts.get(name)
        if texts is None:
            texts = self._texts[name] = self._embedded(name)
        inputs = self.words(images=crops, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            seen = _unit(self.clip.get_image_features(**inputs))
        return [geneval.COLORS[int(k)] for k in (seen @ texts.T).argmax(-1)]

    def _embedded(self, name: str) -> Tensor:
        import torch

        each = []
        for color in geneval.COLORS:
            said = [template.format(color=color, name=name) for template in geneval.TEMPLATES]
            inputs = self.words(text=said, return_tensors="pt", padding=True).to(self.device)
            with torch.inference_mode():
                each.append(_unit(_unit(self.clip.get_text_features(**inputs)).mean(0)))
        return torch.stack(each)


def _unit(found: Any) -> Tensor:
    features = getattr(found, "pooler_output", found)
    return features / features.norm(dim=-1, keepdim=True)


def _box(inside: Tensor) -> tuple[float, float, float, float]:
    """The box around a mask, its right and lower edge just outside."""
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
