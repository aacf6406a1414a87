"""The benchmarks that are known here, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from openlance.config.values import one_of, read_json
from openlance.errors import UserError
from openlance.eval import dpg, gedit, geneval, imgedit, mvbench, vbench
from openlance.eval.judging import JUDGE, Scorer, Writer, dpg_judge, imgedit_judge, viescore
from openlance.eval.records import Record, Score, read_records
from openlance.eval.sampling import Job, read_manifest

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


SETTINGS = {"guidance_scale": 4.0}  # of all the paper's runs
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
    ),
    "gedit": Benchmark(
        title="GEdit-Bench", unit="of 10", source="the dataset stepfun-ai/GEdit-Bench", rules=gedit,
        most=100_000, judge=viescore, judged_by="gpt-4.1",
    ),
    "imgedit": Benchmark(
        title="ImgEdit-Bench", unit="of 5", source="github.com/PKU-YuanGroup/ImgEdit at 547185d", rules=imgedit,
        items="c23cca1fe1ab19e9", most=100_000, judge=imgedit_judge, judged_by="gpt-4.1",
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
    return score_of(name, records_of(name, results, checkout), _folder(results))


def score_of(name: str, records: Sequence[Record], folder: Path) -> Score:
    """Add records up; the folder tells how their results were made and judged.

    Raises:
        UserError: The records are not of this benchmark.
    """
    one, made = benchmark(name), read_manifest(folder)
    whole: Mapping[str, int] = one.rules.WHOLE
    asked = made.get("expected", whole)
    try:  # VBench asks for prompts, and counts by dimension
        score = one.rules.score(records, asked if asked.keys() <= whole.keys() else whole)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} has records that are not of {name} ({type(error).__name__}: {error})") from None
    return replace(score, made=_otherwise(one, folder, made))


def _folder(results: Path) -> Path:
    return results if results.is_dir() else results.parent


def _otherwise(one: Benchmark, folder: Path, made: Mapping[str, Any]) -> list[str]:
    """In what results or their judge are not those of the paper, as far as the folder tells."""
    found = list[str]()
    if made:
        usual = {"num_inference_steps": one.steps, "shift": one.shift, **SETTINGS} if one.steps else {}
        said: dict[str, tuple[Any, Any]] = {name: (made["sampling"][name], value) for name, value in usual.items()}
        said["size"] = (made["asked"], list(one.size or (None, None, None)))
        found += [f"{name} is {own}, the paper's is {other}" for name, (own, other) in said.items() if own != other]
        if one.items and not made["limit"] and made["items"] != one.items:
            found.append(f"the items are not those of {one.source}")
    file = folder / JUDGE
    if file.is_file():
        who = ", ".join(map(str, read_json(file).values()))
        found += [f"judged by {who}, the published rows by {one.judged_by}"] if who != one.judged_by else []
    return found


def manifest_of(name: str, folder: Path) -> dict[str, Any]:
    """The manifest of a folder. UserError if it has none, or of another benchmark."""
    made = read_manifest(folder)
    if made.get("benchmark") != name:
        found = f"results of {made['benchmark']}" if made else "no manifest.json"
        raise UserError(f"{folder} has {found}: give the folder of openlance bench sample {name}")
    return made
