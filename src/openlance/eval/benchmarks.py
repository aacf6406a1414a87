"""The benchmarks that are known here, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from openlance.config.sampling import Sampling
from openlance.config.values import as_data, one_of
from openlance.errors import UserError
from openlance.eval import dpg, gedit, geneval, imgedit, mvbench, vbench
from openlance.eval.judging import Scorer, Writer, dpg_judge, imgedit_judge, read_who, viescore
from openlance.eval.records import Record, Score, differences_of, file_in, judged, number, read_records
from openlance.eval.sampling import Job, expected, items_hash, read_manifest

OURS = ("records*.jsonl", "answers*.jsonl")  # files of records


class Rules(Protocol):
    """What the file of a benchmark has.

    Args:
        WHOLE: Results of all of it, by group.
    """

    @property
    def WHOLE(self) -> Mapping[str, int]: ...

    def jobs(self, checkout: Path, /) -> list[Job]:
        """What is asked, of a checkout."""

    def imported(self, results: Path, checkout: Path | None, /) -> list[Record]:
        """What the official scorer wrote, with a checkout where that is needed to read it."""

    def score(self, records: Sequence[Record], expected: Mapping[str, int], /) -> Score:
        """What records come to."""

    def fault(self, record: Record, /) -> str:
        """Why a judgement cannot be read; empty if it can."""

    def value(self, record: Record, /) -> float:
        """What one adds to the mean of its group."""

    def why(self, record: Record, /) -> str:
        """What the scorer said of it, for a reader."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        title: As its authors call it.
        unit: Of its total.
        source: Repository and commit of its prompts and rules.
        rules: Its file here.
        items: Hash of its items at that commit, as manifests have it; empty where a dataset has no fixed one.
        size: Frames, height and width that the paper asks for; None: the input's.
        steps: Denoising steps of the paper's runs; 0 where nothing is drawn.
        shift: Likewise, of the times.
        most: Results of an item by which the release's scripts shift the seeds of their processes.
        judge: Who judges, given a model that answers and the folder of its rules; of GenEval it is a detector.
        judged_by: Who judged the published rows.
        judges: Who an official scorer that takes any judge means, by the name that it gives a folder.
        words: The file with the judge's words, or the questions, and folders that it may be in.
        words_id: Git's name of it at that commit.
        words_from: Repository and commit of it, if that is another.
    """

    title: str
    unit: str
    source: str
    rules: Rules
    items: str = ""
    size: tuple[int, int, int] | None = None
    steps: int = 50
    shift: float = 3.5
    most: int = 8
    judge: Callable[[Writer, Path], Scorer] | None = None
    judged_by: str = ""
    judges: Mapping[str, str] | None = None
    words: tuple[str, ...] = ()
    words_id: str = ""
    words_from: str = ""

    def words_in(self, folder: Path) -> Path:
        """Its file of words. UserError where there is none."""
        return file_in(folder, *self.words)


# What changes a result, as in all the paper's runs (released sampling scripts).
PAPER = Sampling(guidance_scale=4.0, interval=(0.4, 1.0), renorm="global", renorm_min=0.0)
OTHER_ITEMS = "the items are not those of {}"
SETTINGS = (
    "num_inference_steps", "shift", "guidance_scale", "image_guidance_scale", "interval", "renorm", "renorm_min",
    "solver", "step_cache", "strength", "distilled",
)  # fmt: skip
BENCHMARKS = {
    "geneval": Benchmark(
        title="GenEval", unit="share", source="github.com/djghosh13/geneval at af4902f", rules=geneval,
        items="177c0a86fe96c593", size=(1, 768, 768),
        judged_by="mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, ViT-L-14 openai",
    ),
    "dpg": Benchmark(
        title="DPG-Bench", unit="of 100", source="github.com/TencentQQGYLab/ELLA at 3c228f1", rules=dpg,
        items="9b05708da7ddc41b", size=(1, 768, 768), judge=dpg_judge,
        judged_by="mplug_visual-question-answering_coco_large_en",
        words=("dpg_bench.csv", "dpg_bench"), words_id="98457fc9901943f51ff9a30367250fc292533bed",
    ),
    "gedit": Benchmark(
        title="GEdit-Bench", unit="of 10", source="the dataset stepfun-ai/GEdit-Bench", rules=gedit,
        most=100_000, judge=viescore, judged_by="gpt-4.1",
        judges={"gpt4o": "gpt-4.1", "qwen25vl": "Qwen2.5-VL-72B-Instruct-AWQ"},
        words=("vie_prompts.py", "viescore", "GEdit-Bench/viescore"),
        words_id="18eb9b2c5886188db5385ab1c5b935026124dd19", words_from="github.com/stepfun-ai/Step1X-Edit at 570eba6",
    ),
    "imgedit": Benchmark(
        title="ImgEdit-Bench", unit="of 5", source="github.com/PKU-YuanGroup/ImgEdit at 547185d", rules=imgedit,
        items="c23cca1fe1ab19e9", most=100_000, judge=imgedit_judge, judged_by="gpt-4.1", judges={},
        words=("prompts.json", "Benchmark/Basic", "Basic"), words_id="ce9409100b71f6dcecfc34483ce009268f67f157",
    ),
    "vbench": Benchmark(
        title="VBench", unit="of 100", source="github.com/Vchitect/VBench at 45e79ec", rules=vbench,
        items="6cd489e55048826a", size=(49, 480, 848), steps=30, shift=3.0,
    ),
    "mvbench": Benchmark(
        title="MVBench", unit="of 100", source="the dataset OpenGVLab/MVBench", rules=mvbench, steps=0,
    ),
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """One of them. UserError for another name."""
    one_of("the benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def records_of(name: str, results: Path, checkout: Path | None = None) -> list[Record]:
    """Read what an official scorer, one of ours, or a model's own answers left.

    Args:
        name: Of the benchmark.
        results: A file of the official scorer, records of `openlance bench`, or a folder of either.
        checkout: The benchmark's folder, where its questions are needed.

    Raises:
        UserError: For what cannot be read, or is of another benchmark.
    """
    one = benchmark(name)
    if not results.exists():
        raise UserError(f"there is no {results}: give the file or folder with the results of {one.title}")
    made = read_manifest(_folder(results))
    if made and made.get("benchmark") != name:
        raise UserError(f"{results} has results of {made.get('benchmark')}, not of {name}")
    ours = [results] if results.is_file() else sorted(path for form in OURS for path in results.glob(form))
    kept = [record for file in ours if any(map(file.match, OURS)) for record in read_records(file)]
    return kept or one.rules.imported(results, checkout)


def scored(name: str, results: Path, checkout: Path | None = None) -> Score:
    """Score what `records_of` reads."""
    return score_of(name, records_of(name, results, checkout), _folder(results), checkout)


def score_of(name: str, records: Sequence[Record], folder: Path, checkout: Path | None = None) -> Score:
    """Add records up; the folder tells how their results were made and judged.

    Raises:
        UserError: The records are not of this benchmark.
    """
    one, made = benchmark(name), read_manifest(folder)
    try:
        score = one.rules.score(records, made.get("expected", one.rules.WHOLE))
        for record in judged(records, one.rules.fault)[0]:
            number(one.rules.value(record)), one.rules.why(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} has records that are not of {name} ({type(error).__name__}: {error})") from None
    return replace(score, made=_otherwise(one, folder, made, checkout))


def _folder(results: Path) -> Path:
    return results if results.is_dir() else results.parent


def unlike(one: Benchmark, jobs: Sequence[Job]) -> list[str]:
    """In what the items of a checkout are not those of the published benchmark, in sentences."""
    counts = differences_of(expected(jobs), one.rules.WHOLE, "in the checkout, the benchmark has")
    other = [OTHER_ITEMS.format(one.source)] if one.items and items_hash(jobs) != one.items else []
    return [*counts, *other]


def _otherwise(one: Benchmark, folder: Path, made: Mapping[str, Any], checkout: Path | None) -> list[str]:
    """In what results or their judge are not those of the paper, as far as the folder tells."""
    if not made:
        found = ["there is no manifest.json that says how the results were made"]
    else:
        paper = asdict(replace(PAPER, num_inference_steps=one.steps or PAPER.num_inference_steps, shift=one.shift))
        own: Mapping[str, Any] = made.get("sampling", {})
        pairs = {name: (own.get(name), paper[name]) for name in SETTINGS if one.steps}
        pairs["size"] = (made.get("asked"), one.size or (None, None, None))
        found = [f"{name} is {a}, the paper's is {b}" for name, (a, b) in pairs.items() if as_data(a) != as_data(b)]
        if one.items and not made.get("limit") and made.get("items") != one.items:
            found.append(OTHER_ITEMS.format(one.source))
    who = read_who(folder)
    words = who.pop("words", "") or (words_id(one, checkout) if checkout and one.words else "")
    named = (name for part, name in (one.judges or {}).items() if part in folder.absolute().parts)
    judge = ", ".join(map(str, who.values())) or ("" if one.judges is None else next(named, "nobody who is named"))
    if judge and judge != one.judged_by:
        found.append(f"judged by {judge}, the published rows by {one.judged_by}")
    if one.words and words and words != one.words_id:
        found.append(f"{one.words[0]} is not that of {one.words_from or one.source}")
    return found


def words_id(one: Benchmark, folder: Path) -> str:
    """Git's name of the file of words in a folder; empty where there is none."""
    try:
        data = one.words_in(folder).read_bytes()
    except (UserError, OSError):
        return ""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def manifest_of(name: str, folder: Path) -> dict[str, Any]:
    """The manifest of a folder. UserError if it has none, or of another benchmark."""
    made = read_manifest(folder)
    if made.get("benchmark") != name:
        found = f"results of {made['benchmark']}" if made else "no manifest.json"
        raise UserError(f"{folder} has {found}: give the folder of openlance bench sample {name}")
    return made
