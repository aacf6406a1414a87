"""Every mistake of a user: one sentence on stderr, exit code 2, no traceback, and nothing written."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from openlance.cli.errors import RUNNING, guarded, sentence, with_flags
from openlance.cli.main import load_command, main
from openlance.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a few broken pictures in `broken/`, outside what the tests watch."""
    broken = tmp_path / "broken"
    broken.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(broken / "good.png")
    (broken / "truncated.png").write_bytes((broken / "good.png").read_bytes()[:2000])
    (broken / "empty.png").write_bytes(b"")
    (broken / "text.png").write_text("not a picture")
    (broken / "empty.mp4").write_bytes(b"")
    (broken / "text.mp4").write_text("not a video")
    head = (broken / "good.png").read_bytes()
    huge = head[:16] + (60000).to_bytes(4, "big") * 2 + head[24:29]
    (broken / "huge.png").write_bytes(huge + zip_crc(huge[12:29]) + head[33:])
    pages = [Image.new("RGB", (n, 32)) for n in (32, 48) * 8]
    pages[0].save(broken / "sizes.tiff", save_all=True, append_images=pages[1:])
    (broken / "useless").mkdir()
    (broken / "useless" / "a.png").write_bytes((broken / "good.png").read_bytes())
    (broken / "useless" / "a.txt").write_text(" ")
    (broken / "damaged").mkdir()
    (broken / "damaged" / "run.json").write_text("[{}]")
    (broken / "deep.yaml").write_text("[" * 5000)
    (broken / "blank.txt").write_text("a red circle\n\na blue square\n")
    (broken / "none.txt").write_text("\n")
    (broken / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def zip_crc(chunk: bytes) -> bytes:
    import zlib

    return zlib.crc32(chunk).to_bytes(4, "big")


BAD = [
    ["generate", "t2i", ""],
    ["generate", "t2i", "   "],
    ["generate", "t2i"],
    ["generate", "t2i", "a", "--prompts-file", "../broken/blank.txt"],
    ["generate", "t2i", "--prompts-file", "../broken/blank.txt", "-o", "out"],
    ["generate", "t2i", "--prompts-file", "../broken/none.txt", "-o", "out"],
    ["generate", "t2i", "--prompts-file", "../broken/latin.txt", "-o", "out"],
    ["generate", "t2i", "--prompts-file", "nowhere.txt", "-o", "out"],
    ["generate", "t2i", "a", "--size", "0x0"],
    ["generate", "t2i", "a", "--size=-64x64"],
    ["generate", "t2i", "a", "--size", "ninety"],
    ["generate", "t2i", "a", "--size", "99999999x16"],
    ["generate", "t2i", "a", "--num-inference-steps", "0"],
    ["generate", "t2i", "a", "--num-inference-steps", "-3"],
    ["generate", "t2i", "a", "--num-inference-steps", "many"],
    ["generate", "t2i", "a", "--num-images", "0"],
    ["generate", "t2i", "a", "--seed", "-2"],
    ["generate", "t2i", "a", "--seed", str(2**64)],
    ["generate", "t2i", "a", "--guidance-scale", "nan"],
    ["generate", "t2i", "a", "--guidance-scale", "-2"],
    ["generate", "t2i", "a", "-o", "out.gif"],
    ["generate", "t2i", "a", "-o", "../broken"],
    ["generate", "t2i", "a", "-o", "../broken/good.png/out.png"],
    ["generate", "t2i", "a", "--no-such-option"],
    ["generate"],
    ["generate", "music", "a"],
    ["no-such-command"],
    ["ask", "nowhere.png", "what?"],
    ["ask", "../broken/good.png", ""],
    ["ask", "../broken/good.png"],
    ["ask", "../broken/good.png", "what?", "--max-new-tokens", "0"],
    ["ask", "../broken/truncated.png", "what?"],
    ["ask", "../broken/empty.png", "what?"],
    ["ask", "../broken/text.png", "what?"],
    ["ask", "../broken/huge.png", "what?"],
    ["ask", "../broken", "what?"],
    ["caption", "../broken/truncated.png"],
    ["caption", "nowhere.png"],
    ["generate", "t2v", "a", "-o", "out.png"],
    ["generate", "t2v", "a", "--num-frames", "0"],
    ["generate", "t2v", "a", "--num-frames", "10"],
    ["generate", "t2v", "a", "--num-frames", "1000000"],
    ["generate", "t2v", "a", "--solver", "newton"],
    ["generate", "t2v"],
    ["generate", "i2v", "nowhere.png", "a"],
    ["generate", "i2v", "../broken/good.png"],
    ["generate", "i2v", "../broken/truncated.png", "a"],
    ["generate", "i2v", "../broken/good.png", "a", "--num-frames", "1"],
    ["generate", "flf2v", "../broken/good.png", "a"],
    ["generate", "flf2v", "../broken/good.png", "../broken/text.png", "a"],
    ["generate", "subject", "--prompt", "a"],
    ["generate", "subject", "../broken/good.png"],
    ["generate", "subject", "../broken/good.png", "--prompt", "a", "--num-frames", "5", "-o", "out.png"],
    ["edit", "nowhere.png", "a"],
    ["edit", "../broken/good.png"],
    ["edit", "../broken/good.png", " "],
    ["edit", "../broken/good.png", "a", "-o", "out.mp4"],
    ["edit", "../broken/good.png", "a", "--image-guidance-scale", "nan"],
    ["edit", "../broken/empty.mp4", "a"],
    ["edit", "../broken/text.mp4", "a"],
    ["chat", "nowhere.png"],
    ["chat", "--size", "7x7"],
    ["chat", "--history", "-1"],
    ["generate", "t2i", "a \udcff circle"],
    ["generate", "t2i", "a", "--num-inference-steps", "1" + "0" * 30],
    ["generate", "t2i", "a", "--guidance-scale", "1e308"],
    ["generate", "subject", "../broken/good.png", "--prompt", "a", "--num-frames", "-3"],
    ["ask", "../broken/sizes.tiff", "what?"],
    ["bench", "quality", "--setting", "num_inference_steps=ten", "--samples", "1"],
    ["bench", "quality", "--setting", "interval=[0.4, no]", "--samples", "1"],
    ["bench", "quality", "--setting", "num_inference_steps=2", "--json", "../broken"],
    ["train", "nano/sft", "--data", "t2i={path: world, type: [a]}", "-o", "run"],
    ["train", "nano/sft", "--data", "t2i={path: pictures, columns: {caption: [a]}}", "-o", "run"],
    ["plan", "3b", "--dump"],
    ["plan", "3b", "--set", "foo=1"],
    ["plan", "3b", "--task", "t2i", "--stage", "pt"],
    ["plan", "3b", "--stage", "pt", "--size", "64x64"],
    ["plan", "nano", "--stage", "sft", "--set", "seed=-1"],
    ["plan", "nano", "--stage", "sft", "--set", "betas=[2,2]"],
    ["plan", "nano", "--stage", "sft", "--set", "draws=1e15"],
    ["plan", "nano", "--task", "t2v", "--memory", "9" * 60 + "GB"],
    ["plan", "--file", "../broken/deep.yaml", "--stage", "a"],
    ["train", "nano/sft", "-o", "run", "--stage", "x"],
    ["train", "lora", "--data", "../broken/useless", "-o", "../broken/useless/run"],
    ["train", "lora", "--data", "../broken/useless", "-o", "run", "--minutes", "0"],
    ["train", "resume", "../broken/damaged"],
    ["init", "nano", "--random", "-o", "x", "--seed", str(2**70)],
    ["convert", "nano", "."],
    ["run", "nowhere.json", "--task", "t2i", "-o", "out"],
    ["generate", "extend", "../broken/good.png", "a", "--after", "100000"],
    ["train", "dreambooth", "--data", "../broken", "--prompt", " ", "--class-prompt", "a circle", "-o", "run"],
    ["edit", "../broken/good.png", "a", "--region", "1,2,3"],
    ["generate", "t2i", "\udcff"],
]
SAID = [
    (["ask", "../broken/good.png"], "there is no question: give one, as in `openlance ask ../broken/good.png"),
    (["ask", "how many squares are there?"], "there is no image: give one, as in `openlance ask in.png 'how many"),
    (["generate", "flf2v", "a b.png", "it moves"], "`openlance generate flf2v 'a b.png' 'it moves' 'the circle moves"),
]


@pytest.mark.parametrize("line", BAD, ids=lambda line: " ".join(line)[-60:])
def test_bad_input_is_one_sentence(line, folder, capfd):
    assert main(line) == 2
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(r"error: .+\n", err), err
    assert "Traceback" not in err and len(err) < 400
    assert list(folder.iterdir()) == [], "a file was left behind"


@pytest.mark.parametrize(("line", "said"), SAID)
def test_what_is_missing_is_named_in_a_line_that_runs(line, said, folder, capfd):
    assert main(line) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("line", [["generate", "t2i", "a red circle"], ["ask", "../broken/good.png", "what?"]])
def test_an_unknown_model_is_one_sentence(line, folder, capfd):
    assert main([*line, "--model", "no-such-model"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(r"error: .*no-such-model.*\n", err), err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("place", [["--debug", "generate", "t2i", ""], ["generate", "t2i", "", "--debug"]])
def test_debug_shows_where_it_came_from(place, folder, capfd):
    assert main(place) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("error: ")


def test_debug_by_environment(folder, capfd, monkeypatch):
    monkeypatch.setenv("OPENLANCE_DEBUG", "1")
    assert main(["generate", "t2i", ""]) == 2
    assert "Traceback" in capfd.readouterr().err


def fail(error):
    raise error


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ValueError, match="of another package"):
        guarded(lambda: fail(ValueError("of another package")), debug=False)
    with pytest.raises(TypeError):
        guarded(lambda: fail(TypeError("ours")), debug=False)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 B")]
)
def test_too_little_memory_is_one_sentence(error, capfd):
    assert guarded(lambda: fail(error), debug=False) == 2
    assert capfd.readouterr().err.startswith("error: there is not enough memory for this: ask for something smaller")


def test_an_interrupt_is_130(capfd):
    assert guarded(lambda: fail(KeyboardInterrupt()), debug=False) == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_a_sentence_stays_on_one_line():
    assert sentence(UserError("first\n  second")) == "first second"
    assert sentence(PermissionError(13, "Permission denied", "out.png")) == "out.png: Permission denied"


def test_a_keyword_of_the_library_becomes_the_option_of_the_commands(tmp_path, capsys):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pth")
    assert main(["inspect", str(tmp_path / "model.pth")]) == 2
    assert "pass --allow-pickle to take only" in capsys.readouterr().err


@pytest.fixture
def running(monkeypatch):
    """Sets the command whose errors are said."""
    before = RUNNING.get()

    def choose(*words: str) -> None:
        command = load_command(words[0])
        RUNNING.set(command.commands[words[1]] if len(words) > 1 else command)

    yield choose
    RUNNING.set(before)


@pytest.mark.parametrize(
    "words, below, said",
    [
        (["generate", "t2i"], "use seed=3, or num_inference_steps=30.", "use --seed 3, or --num-inference-steps 30."),
        (["generate", "t2i"], "height=48 is no option here", "height=48 is no option here"),
        (["generate", "t2v"], "num_frames must be at most 9, got 12", "--num-frames must be at most 9, got 12"),
        (["generate", "t2v"], "'num_frames' of num_frames.json, as.num_frames, num_frames()", None),
        (["run"], "height=-1 must be positive", "--height -1 must be positive"),
        (["run"], "(cached=False)", "(--kv-cache False)"),
        (["run"], "as in sampling.shift=3 and generate(seed=3)", "as in sampling.shift=3 and generate(seed=3)"),
        (["ask"], "pass allow_pickle=True if you trust it", "pass --allow-pickle if you trust it"),
        (["ask"], 'such as memory="12GB": or memory=auto', "such as --memory 12GB: or --memory auto"),
        (["edit"], "metadata=False leaves them out", "--no-metadata leaves them out"),
        (["edit"], "give output='my file.png'", "give --output 'my file.png'"),
        (["convert"], "use quantise=int8, to=openlance", "use --quantize int8, --to openlance"),
        (["train", "stage"], "add held_out=t2i=DIR or compiled=True", "add --held-out t2i=DIR or --compile"),
        (["train", "lora"], "add --set steps=5", "add --set steps=5"),
        (
            ["train", "stage"],
            "data={'t2v': 'PATH'}, or mixture={'t2i': 1}",
            "--data t2v=PATH, or --set \"mixture={'t2i': 1}\"",
        ),
        (["plan"], "use checkpointing=true, shard=full", "use --set checkpointing=true, --shard full"),
    ],
)
def test_a_fix_from_below_is_said_as_an_option_of_the_command(running, words, below, said):
    running(*words)
    assert with_flags(below) == (said or below)
    RUNNING.set(None)
    assert with_flags(below) == below


def test_the_command_that_runs_is_the_one_whose_options_are_named(folder, capfd):
    assert main(["generate", "t2i", "a", "--num-inference-steps", "99999"]) == 2
    assert RUNNING.get().name == "t2i"
