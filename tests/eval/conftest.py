"""Small folders of every benchmark in its official layout, and nano."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import openlance
from openlance.media import Clip
from openlance.media.write import write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Makes environments for packages that want other versions than ours; tests are skipped where there are none."""

    def made(packages: list[str], overrides: list[str], pinned: bool = True) -> str:
        """The Python of an environment with these packages, with overrides of what any of them requires; pinned: also
        with the versions of constraints.txt."""
        folder = tmp_path_factory.mktemp("environment")
        (folder / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder / "venv")], check=True)
        ask = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]  # as the Makefile
        links = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
        where = [] if links else ["--torch-backend", "cpu"]
        where += ["-c", str(ROOT / "constraints.txt")] if pinned else []
        python = str(folder / "venv" / "bin" / "python")
        line = [uv, "pip", "install", "-q", "--python", python, *where, "--overrides", str(folder / "overrides.txt")]
        found = os.environ | ({"UV_FIND_LINKS": links} if links else {})
        done = subprocess.run([*line, *packages], capture_output=True, text=True, env=found)
        if done.returncode:
            pytest.skip(f"{packages[0]} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        return python

    return made


@pytest.fixture(scope="session")
def nano():
    return openlance.load("nano")


def picture(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def checkouts(tmp_path_factory):
    """A small folder of every benchmark, in its official layout."""
    root = tmp_path_factory.mktemp("checkouts")

    def put(name: str, content: str | bytes) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    lines = [
        {"tag": tag, "include": [{"class": "clock", "count": 1}], "prompt": f"a photo of a {color} clock"}
        for tag, color in (("colors", "red"), ("colors", "blue"), ("counting", "green"))
    ]
    put("geneval/prompts/evaluation_metadata.jsonl", "\n".join(map(json.dumps, lines)))
    put("dpg/dpg_bench/prompts/12.txt", "a red circle\n")
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language"
    put(
        "dpg/dpg_bench/dpg_bench.csv",
        f"{head}\n0,x,1,0,entity - whole (x),Is it?\n12,x,1,0,entity - whole (x),Is it red?\n",
    )
    put(
        "imgedit/Basic/basic_edit.json",
        json.dumps({"7": {"id": "a/b.png", "prompt": "make it blue", "edit_type": "adjust"}}),
    )
    put("imgedit/Basic/singleturn/a/b.png", picture("red"))
    rows = [
        {
            "key": "k", "task_type": group, "instruction": "make it blue", "instruction_language": language,
            "Intersection_exist": True, "input_image_raw": {"bytes": picture("red"), "path": None},
        }
        for group in ("color_alter", "text_change") for language in ("en", "cn")
    ]  # fmt: skip
    (root / "gedit").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "gedit" / "train.parquet", row_group_size=1)
    info = [
        {"prompt_en": "a red circle {moving}", "dimension": ["subject_consistency"]},
        {"prompt_en": "a still circle", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a red circle {moving}", "dimension": ["motion_smoothness"]},
    ]
    put("vbench/vbench/VBench_full_info.json", json.dumps(info))
    choice = {"question": "What moves?", "candidates": ["a circle", "a star"], "answer": "a star"}
    put("mvbench/json/action_count.json", json.dumps([{"video": "v.mp4", **choice}, {"video": "v.mp4", **choice}]))
    bounded = {"video": "f", "start": 0, "end": 20 / 3, **choice}
    put("mvbench/json/episodic_reasoning.json", json.dumps([bounded]))
    frames = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    (root / "mvbench/video/perception/videos").mkdir(parents=True)
    write_video(root / "mvbench/video/perception/videos/v.mp4", Clip(frames, 12.0))
    for number in range(1, 21):
        put(f"mvbench/video/tvqa/frames_fps3_hq/f/{number:05}.jpg", picture("red"))
    return root
