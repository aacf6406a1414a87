"""The commands that draw, with one step of nano: which file comes of what, and what is said on which stream."""

import io
import signal
import sys

import numpy as np
import pytest
from PIL import Image

import openlance
from openlance.cli.main import main
from openlance.media import Clip, read_media, write_video

STEP = ["--num-inference-steps", "1", "--seed", "3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a picture and a clip of 5 frames, both 16 x 16."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save("a.png")
    write_video("a.mp4", Clip(pixels))
    return tmp_path


@pytest.mark.parametrize("line, name, shape", [
    ("generate t2i x --size 24x16 -o out.webp", "out.webp", (1, 16, 24, 3)),
    ("generate t2v x --size 16x16 --num-frames 5", "out.mp4", (5, 16, 16, 3)),
    ("generate i2v a.png x --num-frames 5 -o out.gif", "out.gif", (5, 16, 16, 3)),
    ("generate flf2v a.png a.mp4 x --num-frames 9 -o out.webp", "out.webp", (9, 16, 16, 3)),
    ("generate subject a.png a.png --prompt x --size 16x16", "out.png", (1, 16, 16, 3)),
    ("generate subject a.png --prompt x --size 16x16 --num-frames 5 -o out.mp4", "out.mp4", (5, 16, 16, 3)),
    ("edit a.png x", "out.png", (1, 16, 16, 3)),
    ("edit a.mp4 x", "out.mp4", (5, 16, 16, 3)),
])  # fmt: skip
def test_every_command_writes_its_one_file(folder, capfd, line, name, shape):
    before = set(folder.iterdir())
    assert main([*line.split(), *STEP]) == 0
    out, err = capfd.readouterr()
    assert [p.name for p in set(folder.iterdir()) - before] == [name]
    assert out.startswith(f"{name}  (seed 3, ") and out.count("\n") == 1
    assert read_media(folder / name).pixels.shape == shape
    assert err == "" or (err.startswith("warning: nano was not trained for ") and err.count("\n") == 1)


def test_a_line_of_a_file_is_what_it_is_alone_with_its_seed(folder):
    (folder / "lines.txt").write_text("make it blue\nmake it red\n")
    assert main(["edit", "a.png", "--prompts-file", "lines.txt", "-o", "many", *STEP]) == 0
    assert sorted(p.name for p in (folder / "many").iterdir()) == ["000000.png", "000001.png"]
    assert main(["edit", "a.png", "make it red", "-o", "one.png", *STEP[:2], "--seed", "4"]) == 0
    one, second = (np.asarray(Image.open(p)).astype(int) for p in ("one.png", "many/000001.png"))
    assert np.abs(one - second).max() <= 1


def test_a_dialogue_reads_a_pipe_and_saves_its_pictures(folder, capfd, monkeypatch):
    said = (
        "draw a red circle\n\nmake it blue\nhow many circles are there?\n/save best.png\n/undo\n/undo\n/save old.png\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(said + "/quit\nnever read\n"))
    assert main(["chat", "-o", "talk", "--size", "16x16", *STEP]) == 0
    out, _ = capfd.readouterr()
    assert sorted(p.name for p in (folder / "talk").iterdir()) == ["000.png", "001.png"]
    assert (folder / "best.png").read_bytes() == (folder / "talk" / "001.png").read_bytes()
    assert (folder / "old.png").read_bytes() == (folder / "talk" / "000.png").read_bytes()
    assert len(out.splitlines()) == 7 and "took back 'make it blue'" in out


def test_a_dialogue_is_shown_several_images(folder, capfd, monkeypatch):
    for name in ("one.png", "two images.png"):
        Image.new("RGB", (16, 16), "red").save(folder / name)
    said = "/show one.png 'two images.png'\nanimate: it moves up\n/show two images.png\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", "-o", "talk", "--size", "16x16", "--num-frames", "5", *STEP]) == 0
    assert openlance.read_provenance(folder / "talk" / "000.mp4").task == "flf2v"


def test_a_dialogue_makes_clips_and_branches(folder, capfd, monkeypatch):
    said = (
        "draw a red circle\nanimate: it moves up\nmake it blue\n/branch 1\nfilm a star\n/turns\n/switch 1\n/turns\n"
        "/save last.mp4\n/branch 0\n/turns\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    line = ["chat", "-o", "talk", "--size", "16x16", "--num-frames", "5", "--video-size", "24x16"]
    assert main([*line, *STEP]) == 0
    out, _ = capfd.readouterr()
    shapes = {path.name: read_media(path).pixels.shape[:3] for path in (folder / "talk").iterdir()}
    assert shapes == {"000.png": (1, 16, 16), "001.mp4": (5, 16, 16), "002.mp4": (5, 16, 16), "003.mp4": (5, 16, 24)}
    assert (folder / "last.mp4").read_bytes() == (folder / "talk" / "002.mp4").read_bytes()
    assert "branch 2, from turn 1; /switch 1 goes back\n" in out and "branch 1, after 'make it blue'\n" in out
    assert out.count("a red circle  ->  image") == 2 and "  2  a star  ->  video of 5 frames\n" in out
    assert out.endswith("branch 3, from turn 0; /switch 1 goes back\nno turns yet\n")


def test_ctrl_c_stops_what_is_drawn_and_the_dialogue_goes_on(folder, capfd, monkeypatch):
    """A signal in the middle of a turn, at a terminal."""
    from openlance.cli import chat, options
    from openlance.inference.dialogue import Dialogue

    monkeypatch.setattr(options, "is_terminal", lambda stream: stream is sys.stdin)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    pipe = openlance.load("nano")
    fill = pipe.fill_visual

    def interrupted(requests, sampling, seeds, _, **more):
        return fill(requests, sampling, seeds, lambda *_: signal.raise_signal(signal.SIGINT), **more)

    talk = Dialogue(pipe, seed=3, num_inference_steps=1, height=16, width=16)
    session = chat.Session(talk, options.Checkpoint(), folder / "talk")
    monkeypatch.setattr(pipe, "fill_visual", interrupted)
    assert session.handle("draw a ring") and talk.turns == []
    signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(pipe, "fill_visual", fill)
    assert session.handle("draw a ring") and talk.turns[0].seed == 3
    out, err = capfd.readouterr()
    assert out.startswith(f"{folder}/talk/000.png") and err == "stopped; nothing has changed\n"


def test_a_mistake_in_a_dialogue_is_one_sentence_and_the_rest_goes_on(folder, capfd, monkeypatch):
    said = [
        "/edit x",
        "/animate x",
        "/ask x",
        "/paint",
        "/image nowhere.png",
        "/undo",
        "/save",
        "/branch 1",
        "/switch two",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*said, "/show a.png"])))
    assert main(["chat", "-o", "talk"]) == 2
    out, err = capfd.readouterr()
    assert err.count("error: ") == len(err.splitlines()) == 9 and "Traceback" not in err
    assert out == "16x16, 1 frame(s)\n" and not (folder / "talk").exists()


def test_prompts_are_rewritten_once_and_before_anything_is_drawn(folder, capfd, caplog, chat_server, monkeypatch):
    enhance = ["--enhance-prompt", "--enhance-url", chat_server.url, "--enhance-model", "m"]
    line = ["generate", "t2i", "a ring", "--size", "16x16", *STEP]
    assert main([*line, "--num-images", "9", "-o", "many/a.png", *enhance]) == 0
    assert chat_server.prompts == ["a ring"], "two batches"
    assert "note: prompt rewritten to 'a ring in soft light'" in caplog.text
    assert main([*line[:2], "a ring in soft light", *line[3:], "-o", "one.png"]) == 0
    drawn, same = (np.asarray(Image.open(p)).astype(int) for p in ("many/a-0.png", "one.png"))
    assert np.abs(drawn - same).max() <= 1
    chat_server.answer = lambda prompt: prompt if prompt != "line 9" else ""
    (folder / "lines.txt").write_text("\n".join(f"line {n}" for n in range(11)))
    capfd.readouterr()
    assert main([*line[:2], *line[3:], "--prompts-file", "lines.txt", "-o", "none", *enhance]) == 2
    assert capfd.readouterr().err == (
        "error: the rewrite of 'line 9' is empty: choose another --enhance-model, or draw the prompt as it is without "
        "--enhance-prompt\n"
    )
    assert not (folder / "none").exists()
    monkeypatch.setenv("LANCE_REWRITE_BASE_URL", chat_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for command, shown in (("flf2v a.png a.mp4 x --num-frames 9", 2), ("subject a.png --prompt x --size 16x16", 1)):
        assert main(["generate", *command.split(), *STEP, "--enhance-prompt"]) == 0
        assert len(chat_server.shown[-1]) == shown and chat_server.asked[-1][1] == "Bearer secret"
    assert main(["edit", "a.mp4", "x", *STEP, "--enhance-prompt"]) == 0 and len(chat_server.shown[-1]) == 1


def test_a_dialogue_rewrites_too(folder, caplog, monkeypatch, chat_server):
    monkeypatch.setattr("sys.stdin", io.StringIO("draw a ring\nmake it blue\n"))
    enhance = ["--enhance-prompt", "--enhance-url", chat_server.url]
    assert main(["chat", "-o", "talk", "--size", "16x16", *STEP, *enhance]) == 0
    assert chat_server.prompts == ["a ring", "make it blue"] and "'make it blue in soft light'" in caplog.text


def test_every_command_leads_away_from_what_is_not_wanted(folder, monkeypatch):
    nano, strong = openlance.load("nano"), ["--guidance-scale", "9", *STEP]
    how = {"guidance_scale": 9, "num_inference_steps": 1, "seed": 3}
    wanted = nano.generate("a ring", negative_prompt="a star", height=32, width=32, **how)[0]
    assert not np.array_equal(wanted, nano.generate("a ring", height=32, width=32, **how)[0])
    line = ["--size", "32x32", "--negative-prompt", "a star", *strong]
    assert main(["generate", "t2i", "a ring", *line, "-o", "drawn.png"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("draw a ring\n"))
    assert main(["chat", *line, "-o", "talk"]) == 0
    assert main(["edit", "drawn.png", "make it blue", "--negative-prompt", "a star", *strong, "-o", "changed.png"]) == 0
    assert all(np.array_equal(wanted, Image.open(p)) for p in ("drawn.png", "talk/000.png"))
    edited = nano.edit("drawn.png", "make it blue", negative_prompt="a star", **how)[0]
    assert np.array_equal(edited, Image.open("changed.png"))


@pytest.mark.parametrize("more, said", [
    (["--enhance-url", "http://localhost"], "add --enhance-prompt"), (["--enhance-model", "m"], "add --enhance-prompt"),
    (["--enhance-prompt", "--enhance-model", "m"], "'m' rewrites prompts on a server: say which with --enhance-url"),
    (["--enhance-prompt", "--enhance-url", "nowhere"], "'nowhere' is no address"),
    (["--enhance-prompt", "--enhance-url", "http://127.0.0.1:9"], "start it, or give another --enhance-url"),
    (["--negative-prompt", "a star", "--guidance-scale", "1"], "--negative-prompt does nothing at --guidance-scale 1"),
])  # fmt: skip
def test_options_that_do_nothing_are_named(folder, capfd, monkeypatch, more, said):
    for name in ("LANCE_REWRITE_BASE_URL", "LANCE_REWRITE_MODEL_NAME"):
        monkeypatch.delenv(name, raising=False)
    before = set(folder.iterdir())
    for line in (["generate", "t2i", "x"], ["edit", "a.png", "x"]):
        assert main([*line, *more]) == 2
        err = capfd.readouterr().err
        assert said in err and err.count("\n") == 1
    assert set(folder.iterdir()) == before
