"""What goes wrong around a command: full disks, readers that leave, folders that cannot be written, Ctrl-C."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openlance.cli.errors import CLOSED, guarded, sentence
from openlance.cli.main import main

FAST = ["--num-inference-steps", "1"]
SPACE, PAGE = 16 * 1024, 4096


@pytest.fixture
def disk(tmp_path):
    """A disk of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # FFmpeg may hold a file of a clip that failed


@contextmanager
def no_large_files(most=SPACE):
    """Files of at most so many bytes: what a quota or a full disk does to one file, without a mount."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_sentence(capfd):
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    assert out == "" and re.search("No space left|too large|Disk quota", errors[0]) and ": " in errors[0], err


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


DRAWS = {
    "t2i": ["generate", "t2i", "a red circle", *FAST, "-o", "{}/a.png"],
    "t2i, new folder": ["generate", "t2i", "a red circle", *FAST, "-o", "{}/x/y/a.jpg"],
    "webp": ["generate", "t2v", "a", "--num-frames", "5", *FAST, "-o", "{}/a.webp"],
    "mp4": ["generate", "t2v", "a", "--num-frames", "5", *FAST, "-o", "{}/a.mp4"],
    "prompts": ["generate", "t2i", "--prompts-file", "prompts.txt", *FAST, "-o", "{}/many"],
    "edit": ["edit", "source.png", "a", *FAST, "-o", "{}/a.png"],
    "run": ["run", "in.json", "--task", "t2i", *FAST, "-o", "{}/out"],
    "run of clips": ["run", "in.json", "--task", "t2v", "--num-frames", "5", *FAST,
                     "-o", "{}/out"],
}  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save("source.png")
    Path("prompts.txt").write_text("a red circle\na blue star\n")
    Path("in.json").write_text(json.dumps({f"{n}.png": text for n, text in enumerate(["a ring", "a star", "a cross"])}))
    return folder


def at(line, folder):
    return [word.format(folder) for word in line]


@pytest.mark.parametrize("name, pages", [*((name, 0) for name in DRAWS), ("run", 1), ("run of clips", 1)])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(name, pages, disk, work, capfd):
    """A page of room takes the settings of a run, but no picture beside them."""
    (disk / "ballast").write_bytes(b"x" * (SPACE - pages * PAGE))
    assert main(at(DRAWS[name], disk)) == 2
    one_sentence(capfd)
    assert files(disk) == ["ballast"]


@pytest.mark.parametrize("name", ["t2i", "t2i, new folder", "webp", "edit", "run"])
def test_a_limit_of_one_file_is_one_sentence_and_leaves_nothing(name, work, tmp_path, capfd):
    (tmp_path / "place").mkdir()
    with no_large_files(500):
        assert main(at(DRAWS[name], tmp_path / "place")) == 2
    one_sentence(capfd)
    assert files(tmp_path / "place") == []


def test_a_run_goes_on_when_there_is_room(disk, work, capfd):
    small = ["--height", "32", "--width", "32", "--no-metadata"]  # a picture of one page, whatever it shows
    line = at(["run", "in.json", "--task", "t2i", *FAST, *small, "-o", "{}/out"], disk)
    (disk / "ballast").write_bytes(b"x" * 4096)  # room for a page each: settings, journal, one picture
    assert main(line) == 2
    one_sentence(capfd)
    left = files(disk / "out")
    assert left == [".run", ".run/0.jsonl", ".run/settings.json", "000000.png"]
    first = (disk / "out" / "000000.png").stat().st_mtime_ns
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    assert main(line) == 0
    assert (disk / "out" / "000000.png").stat().st_mtime_ns == first
    assert len(json.loads((disk / "out" / "result.json").read_text())) == 3


def test_the_tables_of_a_run_come_together_or_not_at_all(work, tmp_path, capfd):
    Path("in.json").write_text(json.dumps({"0.png": "a ring " * 400}))
    line = ["run", "in.json", "--task", "t2i", *FAST, "-o", "out"]
    with no_large_files(2500):
        assert main(line) == 2
    one_sentence(capfd)
    assert [name for name in files(Path("out")) if name.endswith(".json") and "/" not in name] == []
    assert not Path("out", "000000.png").exists(), "a picture that nobody noted is not kept"
    assert main(line) == 0 and len(json.loads(Path("out", "result.json").read_text())) == 1


def test_results_and_latents_on_a_full_disk(disk, work, capfd, tmp_path):
    (disk / "ballast").write_bytes(b"x" * SPACE)
    Path("pictures").mkdir()
    Image.new("RGB", (64, 64)).save("pictures/a.png")
    Path("pictures/a.txt").write_text("a ring")
    score = ["bench", "quality", "--setting", "num_inference_steps=1", "--samples", "1", "--json", "{}/x/scores.json"]
    for line in (["encode", "pictures", "-o", "{}/latents"], score):
        assert main(at(line, disk)) == 2
        one_sentence(capfd)
        assert files(disk) == ["ballast"]


def test_a_chat_goes_on_after_a_full_disk(disk, work, capfd, monkeypatch, tmp_path):
    (disk / "ballast").write_bytes(b"x" * SPACE)
    says(monkeypatch, tmp_path, f"draw a red circle\n/save {disk}/a.png\n/save here.png\n")
    assert main(["chat", "-o", str(disk / "chat"), *FAST]) == 2
    out, err = capfd.readouterr()
    assert err.count("error: cannot write ") == 2 and "Traceback" not in err
    assert files(disk) == ["ballast"] and out == "saved here.png\n" and Path("here.png").stat().st_size


def says(monkeypatch, tmp_path, text):
    (tmp_path / "said.txt").write_text(text)
    monkeypatch.setattr(sys, "stdin", (tmp_path / "said.txt").open())


# Readers that leave, and Ctrl-C.


def command(*line, **options):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "openlance.cli.main", *line]
    return subprocess.Popen(whole, env=env, text=True, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c, **options)


def hears_ctrl_c():
    """A shell starts what it puts into the background deaf to it, and so would be what the tests start in turn."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


TALKS = [["generate", "t2i", "a", *FAST], ["--help"], ["chat", *FAST]]


@pytest.mark.parametrize("line", TALKS, ids=lambda line: line[0])
def test_a_reader_that_left_ends_a_command_quietly(line, work):
    end, start = os.pipe()
    os.close(end)
    with command(*line, stdout=start, stdin=subprocess.PIPE) as running:
        os.close(start)
        _, err = running.communicate("draw a ring\ndraw a star\n")
    assert (running.returncode, err) == (CLOSED, "")
    assert line[0] != "generate" or Path("out.png").exists(), "what was made stays"


def test_output_that_cannot_be_written_is_one_sentence(work):
    with open("/dev/full", "w") as full, command("explain", "t2i", "a", stdout=full) as running:
        err = running.communicate()[1]
    assert running.returncode == 2 and re.fullmatch("error: .*No space left on device.*\n", err)


def test_no_output_at_all_is_fine(monkeypatch, work):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", "t2i", "a", *FAST]) == 0 and main(["chat", *FAST]) == 0
    assert main(["ask", "out.png", "what?", "--max-new-tokens", "2"]) == 0


def until_torch_is_loaded(running):
    maps, until = Path(f"/proc/{running.pid}/maps"), time.monotonic() + 60
    while maps.is_file() and "libtorch" not in maps.read_text() and time.monotonic() < until:
        time.sleep(0.01)


def test_ctrl_c_is_130_without_a_traceback(work):
    with command("generate", "t2i", "a", "--num-inference-steps", "9000", "-o", "x/a.png",
                 stdout=subprocess.PIPE) as running:  # fmt: skip
        until_torch_is_loaded(running)
        time.sleep(2.0)
        running.send_signal(signal.SIGINT)
        try:
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, out, err) == (130, "", "interrupted\n")
    assert not Path("x").exists()


def test_ctrl_c_while_torch_is_loaded_is_as_quiet(work):
    with command("generate", "t2i", "a", "--num-inference-steps", "9000", "-o", "x/a.png") as running:
        until_torch_is_loaded(running)
        running.send_signal(signal.SIGINT)
        try:
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, err) == (130, "interrupted\n")


def test_a_pipe_that_closed_is_told_from_other_ends():
    def stop(error, cause=None):
        try:
            raise cause if cause is not None else error
        except (OSError, SystemExit):
            raise error  # noqa: B904  as libraries do

    assert guarded(lambda: stop(BrokenPipeError(32, "Broken pipe")), debug=False) == CLOSED
    assert guarded(lambda: stop(SystemExit(1), BrokenPipeError(32, "Broken pipe")), debug=False) == CLOSED
    with pytest.raises(SystemExit):
        guarded(lambda: stop(SystemExit(1)), debug=False)
    with pytest.raises(OSError, match="of another kind"):
        guarded(lambda: stop(OSError("of another kind")), debug=False)
    assert "No space left" in sentence(OSError(28, "No space left on device"))
    assert "Read-only" in sentence(OSError(30, "Read-only file system"))


# Folders that cannot be written.


LINES = """
import json, sys
from openlance.cli.main import main
print([main(line) for line in json.loads(sys.argv[1])])
"""


def test_a_model_needs_nothing_but_to_be_read(work, tmp_path):
    """Neither its folder, nor the working folder, nor the caches of a user; be it the one that is shipped or a copy."""
    folder, out = Path("locked"), tmp_path / "out"
    out.mkdir()
    shutil.copytree(Path(__file__).parents[2] / "src" / "openlance" / "assets" / "nano", folder)
    env = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/proc/nowhere", "OMP_NUM_THREADS": "1"}
    env |= {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    draws = {name: ["generate", "t2i", "a", *FAST, "--model", name] for name in ("nano", str(folder))}
    lines = [line for name, draw in draws.items() for line in ([*draw, "-o", str(out / f"{name}.png")], draw)]
    start = [*locked(), sys.executable, "-c", LINES, json.dumps(lines)]
    for path in (*work.rglob("*"), work):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = subprocess.run(start, env=env, capture_output=True, text=True, check=False)
    finally:
        for path in (work, *work.rglob("*")):
            path.chmod(0o755)
    assert done.stdout.endswith("[0, 2, 0, 2]\n") and "Traceback" not in done.stderr, done.stderr
    assert files(out) == ["locked.png", "nano.png"]


def locked():
    """How root is kept from writing where nobody may."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


# Seeds.


def seeds_in(capfd):
    return [int(n) for n in re.findall(r"seed (\d+)", capfd.readouterr().out)]


@pytest.mark.parametrize("line", [
    ["generate", "t2i", "a ring", *FAST, "-o", "{}/a.png"],
    ["generate", "t2v", "a ring", "--num-frames", "5", *FAST, "-o", "{}/a.webp"],
    ["edit", "source.png", "a ring", *FAST, "-o", "{}/a.png"],
    ["generate", "subject", "source.png", "--prompt", "a ring", *FAST, "-o", "{}/a.png"],
    ["run", "in.json", "--task", "t2i", *FAST, "-o", "{}"],
], ids=lambda line: " ".join(line[:2]))  # fmt: skip
def test_the_seed_that_is_printed_is_the_one_that_was_drawn(line, work, capfd):
    for folder, seed in (("one", -1), ("two", -1)):
        assert main([*at(line, folder), f"--seed={seed}"]) == 0
    one, two = seeds_in(capfd)
    assert one != two and min(one, two) >= 0
    assert main([*at(line, "again"), "--seed", str(one)]) == 0
    made, again = ([p.read_bytes() for p in sorted(Path(f).glob("*.[pw]*"))] for f in ("one", "again"))
    assert made == again and made


def test_a_run_with_a_random_seed_goes_on_with_it(work, capfd):
    line = ["run", "in.json", "--task", "t2i", *FAST, "-o", "out", "--seed", "-1"]
    assert main(line) == 0 and main(line) == 0
    assert len(set(seeds_in(capfd))) == 1
    assert json.loads(Path("out/.run/settings.json").read_text())["seed"] >= 0


def test_seeds_go_on_after_the_last(work, capfd):
    last = str(2**64 - 1)
    Path("prompts.txt").write_text("a ring\n" * 9)  # more than are drawn together
    assert main(["generate", "t2i", "--prompts-file", "prompts.txt", "-o", "many", "--seed", last, *FAST]) == 0
    assert main(["generate", "t2i", "a ring", "-o", "a.png", "--seed", "7", *FAST]) == 0
    assert np.array_equal(Image.open("many/000008.png"), Image.open("a.png"))


# Answers that were cut.


def test_a_cut_answer_is_said_on_stderr(work, capfd, monkeypatch, tmp_path):
    few = ["--max-new-tokens", "2"]
    for line in (["ask", "source.png", "what is there?", *few], ["caption", "source.png", *few]):
        assert main(line) == 0
        out, err = capfd.readouterr()
        assert out.strip() and err.count("note: the answer was cut at 2 tokens") == 1
    says(monkeypatch, tmp_path, "/image source.png\n/ask describe it in all detail\n")
    assert main(["chat", *few]) == 0
    assert capfd.readouterr().err.count("note: the answer was cut at 2 tokens") == 1


def test_a_cut_answer_is_in_the_results_of_a_run(work, capfd):
    one = {"image_path": "source.png", "user_prompt": "describe it"}
    Path("in.json").write_text(json.dumps({"1": one, "2": one}))
    line = ["run", "in.json", "--task", "x2t_image", "-o"]
    assert main([*line, "cut", "--max-new-tokens", "1"]) == 0
    assert "note: 2 answers were cut at 1 tokens" in capfd.readouterr().err
    assert [row["finish_reason"] for row in json.loads(Path("cut/result.json").read_text())] == ["length"] * 2
    assert main([*line, "whole", "--max-new-tokens", "200"]) == 0
    whole = json.loads(Path("whole/result.json").read_text())
    assert "note" not in capfd.readouterr().err and all("finish_reason" not in row for row in whole)
