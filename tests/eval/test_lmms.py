"""`lmms_eval --model lance` in an environment of its own, with nano on three small tasks. It takes minutes and packages
from the registry, so `make nightly` alone runs it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from openlance.media.write import write_video

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nightly
# Its releases want what breaks it: filelock 4 has no module that it reads, and the registry's torchvision goes with
# another build of torch than ours; none of its own code that runs here needs torchvision.
PACKAGES, LEFT_OUT = ("lmms-eval==0.7.3", "filelock<4"), "torchvision; python_version < '3'"
UTILS = """import json
from PIL import Image

def visual(doc):
    return [doc["media"] if doc["media"].endswith(".mp4") else Image.open(doc["media"]).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def right(doc, results):
    return {"right": float(doc["answer"] in results[0])}

def drawn(doc, results, **more):
    said = json.loads(results[0])
    return {"drawn": float(Image.open(said["images"][0]).size == Image.open(doc["media"]).size)}
"""
TASK = """task: own_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, temperature: 0, do_sample: false}}
process_results: !function utils.{measure}
metric_list: [{{metric: {measure}, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def python(environment):
    """The Python of an environment with lmms-eval and openlance."""
    return environment([*PACKAGES, str(ROOT)], [LEFT_OUT])


def evaluated(python: str, folder: Path, tasks: str, options: str, *more: str) -> dict[str, dict[str, float]]:
    """The results of a run by task."""
    line = [python, "-m", "lmms_eval", "--model", "lance", "--model_args", f"pretrained=nano{options}"]
    line += ["--tasks", tasks, "--include_path", "tasks", "--batch_size", "2", "--output_path", "out", *more]
    away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(line, cwd=folder, check=True, env=away | offline)
    newest = max((folder / "out").rglob("*_results.json"), key=lambda file: file.stat().st_mtime_ns)
    return json.loads(newest.read_text())["results"]


def test_tasks_of_lmms_eval(nano, python, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/utils.py").write_text(UTILS)
    asked = {"images": [], "videos": [], "edits": []}
    for color, shape in (("red", "circle"), ("blue", "square")):
        file = tmp_path / f"{shape}.png"
        nano.generate(f"a {color} {shape}", seed=1)[0].save(file)
        row = {"media": str(file), "question": f"what color is the {shape}?", "answer": color}
        asked["images"].append(row)
        asked["edits"].append(row | {"question": f"make the {shape} green"})
    write_video(tmp_path / "v.mp4", nano.generate_video("a red circle moves left", num_frames=9, seed=1)[0])
    asked["videos"] = [{"media": str(tmp_path / "v.mp4"), "question": "what color is the circle?", "answer": "red"}]
    for name, rows in asked.items():
        file, measure = tmp_path / f"{name}.jsonl", "drawn" if name == "edits" else "right"
        file.write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / f"tasks/{name}.yaml").write_text(TASK.format(name=name, file=file, measure=measure))
    found = evaluated(python, tmp_path, "own_images,own_videos", "")
    assert found["own_images"]["right,none"] == 1.0 and found["own_videos"]["right,none"] in (0.0, 1.0)
    options = f",task=image_edit,output_dir={tmp_path / 'edits'}"
    found = evaluated(python, tmp_path, "own_edits", options, "--process_with_media")
    assert found["own_edits"]["drawn,none"] == 1.0
    assert len(list((tmp_path / "edits/own_edits").glob("*.png"))) == 2
