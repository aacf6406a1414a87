"""What a stranger does: `python tests/install.py [FOLDER]` builds the sdist and from it the wheel, installs that into
an empty environment, and there runs the README line by line, the release's command for each of its tasks, and `verify`.

Lines of the README that need the released weights are left out, and long ones cut short, which is said. It ends with
exit code 1 at the first thing that does not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNNABLE = re.compile(r"```python\n(?P<python>.*?)```|\n {4}(?P<shell>openlance [^\n]*)", re.S)
RELEASED = ("t2i", "t2v", "i2v", "image_edit", "video_edit", "x2t_image", "x2t_video")  # names of its tasks
SHORTER = {"train recipe": "--minutes 0.1", "train lora": "--steps 2", "bench world": "--samples 1"}


def run(*line: str, folder: Path, env: dict[str, str]) -> None:
    print("$", *line, flush=True)
    code = subprocess.run(line if len(line) > 1 else line[0], cwd=folder, env=env, shell=len(line) == 1).returncode
    if code:
        sys.exit(f"exit code {code}: {' '.join(line)}")


def installed(folder: Path, env: dict[str, str]) -> Path:
    """The programs of an environment that holds the wheel and what it depends on."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    run(uv, "build", "-q", "--python", sys.executable, "-o", "dist", str(ROOT), folder=folder, env=env)
    run(uv, "venv", "-q", "--python", sys.executable, "venv", folder=folder, env=env)
    how, asked = ["--python", "venv/bin/python"], [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    local = env.get("UV_FIND_LINKS") or env.get("PIP_FIND_LINKS")
    local = local or subprocess.run(asked, capture_output=True, text=True, env=env).stdout.strip()  # as the Makefile
    if shutil.which("nvidia-smi") is None:
        how += ["-c", str(ROOT / "constraints.txt")]
        how += [] if local else ["--torch-backend", "cpu"]
    env = env | ({"UV_FIND_LINKS": local} if local else {})
    wheel = next((folder / "dist").glob("*.whl"))
    run(uv, "pip", "install", "-q", *how, str(wheel), folder=folder, env=env)
    return folder / "venv" / "bin"


def follow_readme(folder: Path, env: dict[str, str]) -> None:
    """Python blocks share one program, as a reader's session would; it goes on after the commands between them."""
    session = ""
    for block in RUNNABLE.finditer((ROOT / "README.md").read_text(encoding="utf-8")):
        if block["python"]:
            session += block["python"]
            run("python", "-c", session, folder=folder, env=env)
        elif "downloads" in block["shell"]:
            print("left out:", block["shell"])
        else:
            more = next((more for name, more in SHORTER.items() if name in block["shell"]), "")
            run(f"{block['shell'].partition('  #')[0]} {more}".strip(), folder=folder, env=env)


def main(folder: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    env["PATH"] = f"{installed(folder, env)}{os.pathsep}{env['PATH']}"
    place = folder / "work"
    (place / "pictures").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "images" / "nano.png", place / "pictures")
    (place / "pictures" / "nano.txt").write_text("a red circle", encoding="utf-8")
    shutil.copytree(ROOT / "tests" / "golden", place / "tests" / "golden")
    follow_readme(place, env)
    for task in RELEASED:
        run(
            *f"openlance run --TASK_NAME {task} --MODEL_PATH nano --RESOLUTION video_480p --NUM_FRAMES 121".split(),
            *f"--VIDEO_HEIGHT 480 --VIDEO_WIDTH 848 --SAVE_PATH_GEN results/{task}".split(), folder=place, env=env,
        )  # fmt: skip
    run("openlance verify tests/golden --only-failed", folder=place, env=env)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
