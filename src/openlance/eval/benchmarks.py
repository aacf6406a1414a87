"""The benchmarks that are known here, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openlance.config.values import one_of, read_json
from openlance.errors import UserError
from openlance.eval import dpg, gedit, geneval, imgedit, mvbench, vbench
from openlance.eval.judging import JUDGE, Scorer, Writer, dpg_judge, imgedit_judge, viescore
from openlance.eval.records import Record, Score, read_records
from openlance.eval.sampling import ANSWERS, Job, read_manifest


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        title: As its authors call it.
        unit: Of its total.
        source: Repository and commit of its prompts and rules.
        jobs: What is asked, of a checkout.
        scored: The score of results, files of the official scorer or records, with a checkout if it takes one.
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
    jobs: Callable[[Path], list[Job]]
    scored: Callable[[Path, Path | None, Mapping[str, int] | None], Score]
    size: tuple[int, int, int] | None = None
    steps: int = 50
    shift: float = 3.5
    most: int = 8
    judge: Callable[[Writer, Path], Scorer] | None = None
    judged_by: str = ""


def _geneval(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return geneval.score(_records(results) or geneval.imported(results), expected or geneval.WHOLE)


def _dpg(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    if checkout is None:
        raise UserError("DPG-Bench is scored with its questions: give checkout=FOLDER, the folder with dpg_bench.csv")
    table = dpg.table_in(checkout)
    return dpg.score(_records(results) or dpg.imported(results, table), table, expected or dpg.WHOLE)


def _gedit(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return gedit.score(_records(results) or gedit.imported(results), expected or gedit.GROUPS)


def _imgedit(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    found = _records(results)
    if not found and checkout is None:
        raise UserError(
            "ImgEdit's result.json is scored with its types: give checkout=FOLDER, the folder with basic_edit.json"
        )
    if not found and checkout is not None:
        found = imgedit.imported(results, imgedit.items_in(checkout))
    return imgedit.score(found, expected or imgedit.TYPES)


def _vbench(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return vbench.score(*vbench.imported(results))


def _mvbench(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return mvbench.score(_records(results), expected or mvbench.WHOLE)


SETTINGS = {"guidance_scale": 4.0}  # of all the paper's runs
BENCHMARKS = {
    "geneval": Benchmark(
        title="GenEval", unit="share", source="github.com/djghosh13/geneval at af4902f",
        jobs=geneval.jobs, scored=_geneval, size=(1, 768, 768),
        judged_by="mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, ViT-L-14 openai",
    ),
    "dpg": Benchmark(
        title="DPG-Bench", unit="of 100", source="github.com/TencentQQGYLab/ELLA at 3c228f1",
        jobs=dpg.jobs, scored=_dpg, size=(1, 768, 768), judge=dpg_judge,
        judged_by="mplug_visual-question-answering_coco_large_en",
    ),
    "gedit": Benchmark(
        title="GEdit-Bench", unit="of 10", source="the dataset stepfun-ai/GEdit-Bench",
        jobs=gedit.jobs, scored=_gedit, most=100_000, judge=viescore, judged_by="gpt-4.1",
    ),
    "imgedit": Benchmark(
        title="ImgEdit-Bench", unit="of 5", source="github.com/PKU-YuanGroup/ImgEdit at 547185d",
        jobs=imgedit.jobs, scored=_imgedit, most=100_000, judge=imgedit_judge, judged_by="gpt-4.1",
    ),
    "vbench": Benchmark(
        title="VBench", unit="of 100", source="github.com/Vchitect/VBench at 45e79ec",
        jobs=vbench.jobs, scored=_vbench, size=(49, 480, 848), steps=30, shift=3.0,
    ),
    "mvbench": Benchmark(
        title="MVBench", unit="of 100", source="the dataset OpenGVLab/MVBench",
        jobs=mvbench.jobs, scored=_mvbench, steps=0,
    ),
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """One of them. UserError for another name."""
    one_of("the benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def scored(name: str, results: Path, checkout: Path | None = None) -> Score:
    """Score what an official scorer, one of ours, or a model's own answers left.

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
    made = read_manifest(results if results.is_dir() else results.parent)
    if made and made["benchmark"] != name:
        raise UserError(f"{results} has results of {made['benchmark']}, not of {name}")
    score = one.scored(results, checkout, made.get("expected"))
    return replace(score, made=_otherwise(one, results if results.is_dir() else results.parent, made))


def _otherwise(one: Benchmark, folder: Path, made: Mapping[str, Any]) -> list[str]:
    """In what results or their judge are not those of the paper, as far as the folder tells."""
    found = list[str]()
    if made:
        usual = {"num_inference_steps": one.steps, "shift": one.shift, **SETTINGS} if one.steps else {}
        said: dict[str, tuple[Any, Any]] = {name: (made["sampling"][name], value) for name, value in usual.items()}
        said["size"] = (made["asked"], list(one.size or (None, None, None)))
        found += [f"{name} is {own}, the paper's is {other}" for name, (own, other) in said.items() if own != other]
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


def _records(results: Path) -> list[Record]:
    """Records in a file or folder of ours; none in what an official scorer wrote."""
    files = (
        [results] if results.is_file() else sorted([*results.glob("records*.jsonl"), *results.glob("answers*.jsonl")])
    )
    ours = [file for file in files if file.name.startswith(("records", ANSWERS.removesuffix(".jsonl")))]
    return [record for file in ours for record in read_records(file)]
