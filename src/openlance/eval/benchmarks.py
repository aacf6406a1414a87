"""The benchmarks that are known here, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from openlance.config.values import one_of
from openlance.errors import UserError
from openlance.eval import dpg, gedit, geneval, imgedit, mvbench, vbench
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
        steps: Denoising steps of the paper's runs.
        shift: Likewise, of the times.
        most: Results of an item by which the release's scripts shift the seeds of their processes.
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


def _geneval(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return geneval.score(_records(results) or geneval.imported(results), expected or geneval.WHOLE)


def _dpg(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    if checkout is None:
        raise UserError("DPG-Bench is scored with its questions: give --checkout, the folder with dpg_bench.csv")
    table = dpg.table_in(checkout)
    return dpg.score(_records(results) or dpg.imported(results, table), table, expected or dpg.WHOLE)


def _gedit(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return gedit.score(_records(results) or gedit.imported(results), expected or gedit.GROUPS)


def _imgedit(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    found = _records(results)
    if not found and checkout is None:
        raise UserError(
            "ImgEdit's result.json is scored with its types: give --checkout, the folder with basic_edit.json"
        )
    if not found and checkout is not None:
        found = imgedit.imported(results, imgedit.items_in(checkout))
    return imgedit.score(found, expected or imgedit.TYPES)


def _vbench(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return vbench.score(*vbench.imported(results))


def _mvbench(results: Path, checkout: Path | None, expected: Mapping[str, int] | None) -> Score:
    return mvbench.score(_records(results), expected or mvbench.WHOLE)


BENCHMARKS = {
    "geneval": Benchmark(
        title="GenEval", unit="share", source="github.com/djghosh13/geneval at af4902f",
        jobs=geneval.jobs, scored=_geneval, size=(1, 768, 768),
    ),
    "dpg": Benchmark(
        title="DPG-Bench", unit="of 100", source="github.com/TencentQQGYLab/ELLA at 3c228f1",
        jobs=dpg.jobs, scored=_dpg, size=(1, 768, 768),
    ),
    "gedit": Benchmark(
        title="GEdit-Bench", unit="of 10", source="the dataset stepfun-ai/GEdit-Bench",
        jobs=gedit.jobs, scored=_gedit, most=100_000,
    ),
    "imgedit": Benchmark(
        title="ImgEdit-Bench", unit="of 5", source="github.com/PKU-YuanGroup/ImgEdit at 547185d",
        jobs=imgedit.jobs, scored=_imgedit, most=100_000,
    ),
    "vbench": Benchmark(
        title="VBench", unit="of 100", source="github.com/Vchitect/VBench at 45e79ec",
        jobs=vbench.jobs, scored=_vbench, size=(49, 480, 848), steps=30, shift=3.0,
    ),
    "mvbench": Benchmark(
        title="MVBench", unit="of 100", source="the dataset OpenGVLab/MVBench", jobs=mvbench.jobs, scored=_mvbench,
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
    return one.scored(results, checkout, made.get("expected"))


def _records(results: Path) -> list[Record]:
    """Records in a file or folder of ours; none in what an official scorer wrote."""
    files = (
        [results] if results.is_file() else sorted([*results.glob("records*.jsonl"), *results.glob("answers*.jsonl")])
    )
    ours = [file for file in files if file.name.startswith(("records", ANSWERS.removesuffix(".jsonl")))]
    return [record for file in ours for record in read_records(file)]
