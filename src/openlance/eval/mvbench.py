"""MVBench (Li et al., arXiv 2311.17005): twenty tasks of questions about videos, with options to choose from.

Frames, prompts and parsers are those of video_chat2/mvbench.ipynb in github.com/OpenGVLab/Ask-Anything, commit 4dd8210,
and of lmms-eval 75571cf. Both parsers count some answers that choose nothing as right, or leave them out; ours takes a
letter or counts the answer as wrong.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openlance.config.values import read_text
from openlance.errors import UserError
from openlance.eval.estimate import macro, mean
from openlance.eval.records import Record, Score, Sources, clusters, counted, judged, read_object
from openlance.eval.sampling import Job
from openlance.media import Clip, read_media
from openlance.media.clip import joined
from openlance.media.files import Source, notice
from openlance.media.video import read_frames

CLEVRER, PERCEPTION, STAR = "clevrer/video_validation", "perception/videos", "star/Charades_v1_480"
# Folder of the media of each task, and whether a part of a video is meant.
MEDIA = {
    "Action Sequence": (STAR, True), "Action Prediction": (STAR, True), "Action Antonym": ("ssv2_video", False),
    "Fine-grained Action": ("Moments_in_Time_Raw/videos", False), "Unexpected Action": ("FunQA_test/test", False),
    "Object Existence": (CLEVRER, False), "Object Interaction": (STAR, True), "Object Shuffle": (PERCEPTION, False),
    "Moving Direction": (CLEVRER, False), "Action Localization": ("sta/sta_video", True),
    "Scene Transition": ("scene_qa/video", False), "Action Count": (PERCEPTION, False),
    "Moving Count": (CLEVRER, False), "Moving Attribute": (CLEVRER, False), "State Change": (PERCEPTION, False),
    "Fine-grained Pose": ("nturgbd", False), "Character Order": (PERCEPTION, False),
    "Egocentric Navigation": ("vlnqa", False), "Episodic Reasoning": ("tvqa/frames_fps3_hq", True),
    "Counterfactual Inference": (CLEVRER, False),
}  # fmt: skip
FRAMES_FPS = 3.0  # of folders of frames, whose first is 00001.jpg
WHOLE = dict.fromkeys(MEDIA, 200)
# The official script looks at 16. Lance's code has 1 + 4 k frames wherever it reads a video, for the ViT as for the VAE
# (`media.clip.frame_indices`), and would keep 13 of these 16, unevenly: so 13 are chosen from the video at once.
FRAMES = 13
BOUNDS = (0.0, 100.0)
LEAD = re.compile(r"(?:the\s+)?(?:best\s+|correct\s+)?(?:answer|option)\s*(?:is|:)\s*", re.IGNORECASE)
SYSTEM_END = "\nOnly give the best option."


def questions(checkout: Path) -> dict[str, list[dict[str, Any]]]:
    """Read json/*.json of OpenGVLab/MVBench; tasks without such a file are left out.

    Raises:
        UserError: There are none, or one is of another form.
    """
    found = dict[str, list[dict[str, Any]]]()
    for task in MEDIA:
        file = checkout / "json" / f"{task.lower().replace(' ', '_').replace('-', '_')}.json"
        if not file.is_file():
            notice(f"{task}: there is no {file}, so it is not asked")
            continue
        try:
            for one in json.loads(read_text(file)):
                texts = [one["video"], one["question"], *one["candidates"], one["answer"]]
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError("something else than a text")
                letter = string.ascii_uppercase[one["candidates"].index(one["answer"])]
                found.setdefault(task, []).append({**one, "letter": letter})
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{file}: not of MVBench ({type(error).__name__}: {error})") from None
    if not found:
        raise UserError(f"{checkout} has no questions: expected json/action_sequence.json and others of MVBench")
    return found


def jobs(checkout: Path) -> list[Job]:
    """What is asked: json/*.json and video/ of OpenGVLab/MVBench.

    Raises:
        UserError: There are no questions, or no media.
    """
    found, sources = list[Job](), Sources(checkout / "video")
    for task, each in questions(checkout).items():
        folder, bounded = MEDIA[task]
        for number, one in enumerate(each):
            path = sources.path(f"{folder}/{one['video']}", "data0613")
            bound = (one.get("start"), one.get("end")) if bounded else (None, None)
            found.append(
                Job(
                    group=task, key=f"{number:03}", task="x2t_video", prompt=prompt(one["question"], one["candidates"]),
                    media=(partial(_watched, path, *bound),),
                    found={"letter": one["letter"], "candidates": one["candidates"]},
                )
            )  # fmt: skip
    sources.tell()
    return found


def _watched(path: Path, start: float | None, end: float | None) -> Clip:
    """Frames of a video, or of a folder of them, by the official script's rule."""
    if path.is_dir():
        numbers = frames(len(list(path.glob("*.jpg"))), FRAMES_FPS, FRAMES, start, end, first=1)
        return joined([read_media(path / f"{number:05}.jpg").pixels[0] for number in numbers], str(path))
    return read_frames(Source(path), lambda count, fps: frames(count - 1, fps, FRAMES, start, end))


def frames(
    last: int, fps: float, count: int, start: float | None = None, end: float | None = None, first: int = 0
) -> list[int]:
    """Numbers of the frames that are looked at: the middles of so many equal parts.

    Args:
        last: Number of the last frame.
        fps: Of the video.
        count: Frames to take.
        start: In seconds; None: from the first frame.
        end: In seconds; None: to the last frame.
        first: Number of the first frame; 1 in folders of images.
    """
    begin = first if start is None else max(first, round(start * fps))
    until = last if end is None else min(round(end * fps), last)
    part = (until - begin) / count
    return [int(begin + part / 2 + round(part * k)) for k in range(count)]


def options(candidates: Sequence[str]) -> str:
    """The options as the official prompt lists them."""
    return "".join(f"({letter}) {text}\n" for letter, text in zip(string.ascii_uppercase, candidates))


def prompt(question: str, candidates: Sequence[str]) -> str:
    """The official words; the answer begins behind "Best option:("."""
    return f"Question: {question}\nOptions:\n{options(candidates).rstrip()}{SYSTEM_END}"


def official_right(answer: str, letter: str) -> bool:
    """Whether the official script takes an answer for a letter: by its first word, also if that is empty."""
    word = answer.split(" ")[0].lower().replace(".", "")
    wanted = f"({letter.lower()})"
    return word in wanted or wanted in word


def lmms_letter(answer: str) -> str:
    """The letter that lmms-eval reads: the first single a to e, the article among them; else the words."""
    match = re.match(r"^([A-E])\.\s*(.+)$", answer.strip(), re.IGNORECASE)
    if match is None:
        match = re.search(r"\b([A-E])\b", answer, re.IGNORECASE)
    return match.group(1).upper() if match else answer.strip().lower()


def strict_letter(answer: str, candidates: Sequence[str]) -> str:
    """The letter that an answer chooses, "" if none: "B", "(B) a cat", "The answer is B", or an option's own words."""
    said = LEAD.sub("", answer.strip(), count=1).strip()
    letters = dict(zip(string.ascii_uppercase, candidates))
    worded = [letter for letter, text in letters.items() if _bare(text) == _bare(said)]
    marked = sorted({one.upper() for one in re.findall(r"\(([A-Za-z])\)", said)})
    alone = [one.upper() for one in re.findall(r"^\W*([A-Za-z])(?:[.):,]|\W*$)", said)]
    found = worded or marked or alone
    return found[0] if len(found) == 1 and found[0] in letters else ""


def _bare(text: str) -> str:
    return text.strip().rstrip(".").lower()


def value(record: Record) -> float:
    """100 for the letter that is right."""
    return 100.0 * (_strict(record) == record.found["letter"])


def why(record: Record) -> str:
    """What was answered, and what is right."""
    return f"{record.found['answer']!r}; right is {record.found['letter']}"


def imported(results: Path, checkout: Path | None = None) -> list[Record]:
    """Read the JSON of mvbench.ipynb: answers in the order of the tasks, and how many each task has.

    Raises:
        UserError: It is no such file, or not of the questions of this checkout.
    """
    if results.is_dir() or checkout is None:
        wanted = "answers.jsonl of openlance bench sample mvbench, or the JSON of mvbench.ipynb with checkout=FOLDER"
        raise UserError(f"{results} has no answers: expected {wanted}")
    data, asked, found = read_object(results, "the JSON of mvbench.ipynb"), questions(checkout), list[Record]()
    try:
        answers = iter(data["res_list"])
        for task, (_, count) in data["acc_dict"].items():
            if count != len(asked.get(task, ())):
                raise ValueError(f"{task} has {count} answers, and {len(asked.get(task, ()))} questions in {checkout}")
            for number, (one, said) in enumerate(zip(asked[task], answers)):
                right = {"letter": one["letter"], "candidates": one["candidates"]}
                if said["gt"] != f"({one['letter']}) {one['answer']}" or not isinstance(said["pred"], str):
                    raise ValueError(f"{task}, answer {number}: not of the question in {checkout}")
                text = prompt(one["question"], one["candidates"])
                key = f"{number:03}"
                found.append(Record(group=task, key=key, found={"prompt": text, "answer": said["pred"], **right}))
        if next(answers, None) is not None:
            raise ValueError("more answers than its tasks have")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{results}: not of mvbench.ipynb ({type(error).__name__}: {error})") from None
    return found


def fault(record: Record) -> str:
    """Every judgement can be read."""
    return ""


def score(records: Sequence[Record], expected: Mapping[str, int] = WHOLE) -> Score:
    """Add up records whose `found` has "answer", "letter" and "candidates"."""
    kept, failed = judged(records)
    groups, each = clusters(kept, value), counted(kept)
    ours = {task: mean(values, BOUNDS) for task, values in groups.items()}
    right = Counter(r.group for r in kept if official_right(r.found["answer"], r.found["letter"]))
    official = {task: 100 * right[task] / count for task, count in each.items()}
    spoken = [r for r in kept if r.found["answer"] != ""]
    lmms = sum(lmms_letter(r.found["answer"]) == r.found["letter"] for r in spoken)
    totals = {
        "total": 100 * sum(right.values()) / len(kept) if kept else float("nan"),
        "total by lmms-eval": 100 * lmms / len(spoken) if spoken else float("nan"),
    }
    notes = [f"{FRAMES} frames of a video are looked at, 16 by the official script; how many by the paper is not said"]
    silent = sum(not _strict(r) for r in kept)
    return Score(
        benchmark="mvbench", official=official | totals, ours=ours | {"total": macro(groups, BOUNDS)},
        found=each, expected=expected, whole=WHOLE, failed=failed,
        notes=[*notes, *([f"{silent} answers choose no option and count as wrong"] if silent else [])],
    )  # fmt: skip


def _strict(record: Record) -> str:
    return strict_letter(record.found["answer"], record.found["candidates"])
