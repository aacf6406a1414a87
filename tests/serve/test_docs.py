"""Everything in docs/howto/serving.md runs as it stands there, from top to bottom."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import openlance.serve

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_page_runs(server, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = replace(pipe.defaults.sampling, num_inference_steps=2)
    monkeypatch.setattr(pipe, "defaults", replace(pipe.defaults, sampling=few, sampling_with={}, region={}))
    names: dict = {}
    for kind, block in BLOCKS:
        code = block.replace("http://localhost:8000", server.url)
        if kind == "python":
            exec(compile(code, "docs/howto/serving.md", "exec"), names)
        elif shutil.which("curl"):
            for line in code.replace("\\\n", "").splitlines():
                said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
                assert said.startswith("#") or "error" not in json.loads(said) or json.loads(said)["error"] is None, (
                    said
                )
    assert names["made"].data[0].seed == 7 and names["job"].status == "completed" and Path("up.mp4").stat().st_size
    assert len(names["messages"]) == 5 and isinstance(names["messages"][-2]["content"], list)


def test_every_route_is_on_the_page(server):
    paths = {
        path.replace("{video_id}", "{id}").replace("{model_id}", "{name}")
        for path in server.config.app.openapi()["paths"]
    }
    assert {path for path in paths if path not in PAGE} == {"/files/{name}"}  # links are made to it


def test_every_code_is_on_the_page():
    source = Path(openlance.serve.__file__).parent
    codes = {code for file in source.glob("*.py") for code in re.findall(r'code="(\w+)"', file.read_text("utf-8"))}
    assert len(codes) > 10 and {code for code in codes if f"`{code}`" not in PAGE} == set()
