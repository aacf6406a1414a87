"""The Studio without a browser: what it asks the queue for, what it says in Python, what it believes of a browser."""

from dataclasses import fields as dataclass_fields
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient

pytest.importorskip("gradio", reason="the Studio needs openlance[studio]")

import openlance
from openlance.media import Clip, read_media, read_provenance
from openlance.sequence import tasks
from openlance.serve.app import create_app
from openlance.serve.config import ServeConfig
from openlance.serve.failures import failure_of
from openlance.serve.studio import dialogue, fields
from openlance.serve.studio.calls import Call, code
from openlance.serve.studio.memory import Talk, Turn, added, results
from openlance.serve.studio.page import mount
from openlance.serve.studio.parts import Shared
from openlance.serve.studio.running import Desk, kept

LOADING = 'pipe = openlance.load("nano")'
QUICK = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def serving_(server):
    return server.serving


@pytest.fixture(scope="module")
def files(serving_, picture, mp4):
    """Names of an image and of a video in the store."""
    return {"image": kept(serving_, picture), "video": kept(serving_, read_media(mp4))}


def done(serving, call):
    """What a call comes to on the queue: with its seed, and its file or its answer."""
    (item,) = call.prepared(serving).items
    serving.worker.put([item])
    value = item.result.result(60)
    return call.settled(item), kept(serving, value) if isinstance(value, Clip) else str(value)


def example(task, files):
    spec = tasks.TASKS[task]
    count = 2 if spec.template is tasks.first_and_last else 1
    more = {"num_frames": 5, "region": "none"}  # to find a region by itself costs more than the edit
    settings = {} if spec.makes == "text" else QUICK | {name: more[name] for name in more if name in spec.takes}
    return Call(
        task=task, text="the red circle", media=(files.get(spec.reads),) * count * bool(spec.reads), settings=settings
    )


@pytest.mark.parametrize("task", [name for name, spec in tasks.TASKS.items() if not spec.in_part])
def test_the_python_of_every_task_makes_the_same(task, serving_, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call, made = done(serving_, example(task, files))
    answers = call.spec.makes == "text"
    for name in files.values():  # downloaded as the page offers them
        (tmp_path / f"{name[:8]}.{name.rpartition('.')[2]}").write_bytes(serving_.store.path(name).read_bytes())
    exec(code(LOADING, [(call, "" if answers else made)], {}), {})
    if answers:
        assert capsys.readouterr().out.strip() == made
        return
    short = f"{made[:8]}.{made.rpartition('.')[2]}"
    again, first = read_media(tmp_path / short), read_media(serving_.store.path(made))
    assert np.array_equal(again.pixels, first.pixels)
    assert read_provenance(serving_.store.path(made)).seed == call.settings["seed"]


def test_the_python_of_a_chain_begins_at_its_beginning(serving_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, image = done(serving_, Call(task="t2i", text="a red circle", settings=QUICK | {"height": 32, "width": 48}))
    second, video = done(
        serving_, Call(task="i2v", text="it moves", media=(image,), settings=QUICK | {"num_frames": 5})
    )
    third, changed = done(
        serving_, Call(task="video_edit", text="make it blue", media=(video,), settings=QUICK | {"region": "none"})
    )
    exec(code(LOADING, [(third, changed)], {image: first, video: second}), {})
    again = read_media(tmp_path / f"{changed[:8]}.mp4")
    assert np.array_equal(again.pixels, read_media(serving_.store.path(changed)).pixels)


def test_what_is_painted_and_what_is_checked_is_that_of_the_call(serving_, files, tmp_path, monkeypatch):
    """A region, a mask and a check on the page, and in its Python."""
    monkeypatch.chdir(tmp_path)
    source = read_media(serving_.store.path(files["image"])).pixels[0]
    inside = np.zeros(source.shape[:2], np.uint8)
    inside[8:30, 10:40] = 255
    mask = kept(serving_, Clip(np.repeat(inside[None, ..., None], 3, -1)))
    for name in (files["image"], mask):
        (tmp_path / f"{name[:8]}.png").write_bytes(serving_.store.path(name).read_bytes())
    edit = Call(task="image_edit", text="make it blue", media=(files["image"],))
    for call in (
        edit.model_copy(update={"settings": QUICK, "mask": mask}),
        edit.model_copy(update={"settings": QUICK | {"region": [10.0, 8.0, 40.0, 30.0], "check": 2}}),
    ):
        call, made = done(serving_, Call.model_validate(call.model_dump(mode="json")))
        found = read_media(serving_.store.path(made)).pixels[0]
        assert np.array_equal(found[inside == 0], source[inside == 0]) and (found != source).any()
        exec(code(LOADING, [(call, made)], {}), {})
        assert np.array_equal(read_media(tmp_path / f"{made[:8]}.png").pixels[0], found)
    assert "check=2" in code(LOADING, [(call, made)], {})


@pytest.mark.parametrize(
    "call, said",
    [
        (Call(task="draw", text="x"), "the task 'draw' is unknown"),
        (Call(task="t2i", text=" "), "the prompt is empty"),
        (Call(task="t2i", text="x", settings={"num_inference_steps": "many"}), "num_inference_steps"),
        (Call(task="t2i", text="x", settings={"guidance_scale": -1}), "guidance_scale"),
        (Call(task="t2i", text="x", settings={"height": 9999}), "height"),
        (Call(task="t2i", text="x", settings={"wings": 2}), "wings"),
        (Call(task="image_edit", text="x"), "this reads an image: add one first"),
        (Call(task="image_edit", text="x", media=("../../etc/passwd",)), "there is no file"),
        (Call(task="x2t_image", text="x", media=("image",), settings={"max_new_tokens": 0}), "max_new_tokens"),
        (Call(task="i2v", text="x", media=("video",)), "this reads images, and a video is given"),
        (Call(task="i2v", text="x", media=("image", "image")), "this reads 1 images at most"),
        (Call(task="t2i", text="x", settings={"check": 0}), "check"),
        (Call(task="t2i", text="x", settings={"think": True}), "was not trained to describe"),
        (Call(task="t2i", text="x", settings={"region": "auto"}), "nothing is changed here"),
        (Call(task="image_edit", text="x", media=("image",), settings={"region": "the boat"}), "finds no 'the boat'"),
        (Call(task="image_edit", text="x", media=("image",), mask="image", settings={"region": "auto"}), "give one"),
    ],
)
def test_a_mistake_is_one_sentence(call, said, serving_, files):
    media = tuple(files.get(name, name) for name in call.media)
    call = call.model_copy(update={"media": media, "mask": files.get(call.mask, call.mask)})
    with pytest.raises(Exception) as caught:
        call.prepared(serving_)
    failure = failure_of(caught.value)
    assert failure.status in (400, 404) and said in str(failure) and "\n" not in str(failure)


def test_every_setting_of_a_task_reaches_it(pipe):
    said = {
        "seed": "7",
        "num_inference_steps": "3",
        "guidance_scale": "1.5",
        "height": "32",
        "solver": "dpm++",
        "width": "",
    }
    spec = tasks.TASKS["t2i"]
    expected = {"seed": 7, "num_inference_steps": 3, "guidance_scale": 1.5, "height": 32, "solver": "dpm++"}
    assert fields.settings(said, spec) == expected
    assert fields.settings(said, tasks.TASKS["x2t_image"]) == {"seed": 7}
    takes = {field for spec in tasks.TASKS.values() for field in spec.takes}
    assert {belongs for _, belongs in fields.FIELDS.values()} == takes - {"resolution"} | {fields.SOURCE}
    assert "region" not in fields.settings({"region": "1,2,3,4"}, spec)
    edit = tasks.TASKS["image_edit"]
    for text, region in (("auto", "auto"), (" the circle ", "the circle"), ("1, 2,3,4.5", (1, 2, 3, 4.5))):
        said = fields.settings({"region": text, "check": "4"}, edit)
        assert said == {"region": region, "check": 4}
        assert fields.written(Call(task="image_edit", settings=said).settings, {"region": 1, "check": 2})[2] == "4"


def test_examples_are_of_tasks_that_there_are(pipe):
    assert set(pipe.defaults.examples) == set(pipe.defaults.tasks)


def test_a_browser_is_not_believed():
    call = Call(task="t2i", text="a star")
    good = {"file": "a.png", "call": call.model_dump()}
    assert [one.file for one in results([good, 3, {"file": "b"}, {"file": 1, "call": {}}])] == ["a.png"]
    assert results("nothing") == [] and len(added([good] * 500, results([good]))) == 120
    for wrong in (None, 7, {"at": 5}, {"turns": [{"parent": 0}], "at": 0}, {"turns": [{"parent": 3}]}):
        assert Talk.read(wrong) == Talk()


def test_a_conversation_branches_and_comes_back():
    talk = Talk().say(Turn(text="a")).say(Turn(text="b")).undo().say(Turn(text="c"))
    assert [talk.turns[n].text for n in talk.path] == ["a", "c"] and talk.beside(2) == [1, 2]
    back = talk.branch(1)
    assert [back.turns[n].text for n in back.path] == ["a", "b"] and back.end_of(0) == 2
    assert Talk.read(back.model_dump(mode="json")) == back and Talk().undo() == Talk()


def test_a_model_that_looks_back_sees_the_turns_of_its_branch(tmp_path, picture):
    pipe = openlance.load("nano")
    pipe.defaults = replace(pipe.defaults, history=2)
    serving = create_app(pipe, ServeConfig(folder=tmp_path)).state.serving
    shared = Shared(desk=Desk(serving), loading=LOADING, memory=None, tabs=None, zoom=True)
    parts = {field.name: None for field in dataclass_fields(dialogue.Dialogue)} | {"shared": shared}
    first = Turn(text="draw a red circle", call=Call(task="t2i", text="a red circle"), file=kept(serving, picture))
    talk = Talk().say(first).say(first).undo()
    call, past = dialogue.Dialogue(**parts).asked(talk, "make it blue", [], "any", {"num_inference_steps": "2"})
    assert (call.task, call.media, call.settings) == ("image_edit", (first.file,), QUICK) and len(past) == 1
    alone, seeing = (len(call.prepared(serving, turns).items[0].request) for turns in ((), past))
    assert seeing > alone and "# made with earlier turns" in code(LOADING, [(call, "")], {})
    serving.store.close()


@pytest.fixture(scope="module")
def locked(pipe, tmp_path_factory):
    app = create_app(pipe, ServeConfig(folder=tmp_path_factory.mktemp("locked"), api_keys=("secret", "other")))
    mount(app, LOADING)
    with TestClient(app) as client:
        yield client


def test_the_key_is_asked_for_before_anything_is_shown(locked):
    for path in ("/studio/", "/studio/config", "/studio/gradio_api/info", "/studio/theme.css", "/studio/assets/x.js"):
        answer = locked.get(path)
        assert answer.status_code == 401 and "API key" in answer.text, path
    assert locked.post("/studio/gradio_api/queue/join", json={}).status_code == 401
    assert locked.post("/studio/", data={"key": "wrong"}).status_code == 401
    assert locked.post("/studio/", content=b"key=" + b"x" * 10_000).status_code == 413
    assert locked.get("/v1/models").status_code == 401
    forged = locked.get("/studio/config", headers={"cookie": "openlance_studio=secret"})
    assert forged.status_code == 401
    opened = locked.post("/studio/", data={"key": "other"})
    assert opened.status_code == 200 and "gradio" in opened.text
    assert locked.get("/studio/config").status_code == 200 and locked.get("/v1/models").status_code == 401


def dispatched(client, function, data):
    """What the page's queue answers to forged input."""
    client.post("/studio/gradio_api/queue/join", json={"fn_index": function, "session_hash": "abc", "data": data})
    with client.stream("GET", "/studio/gradio_api/queue/data", params={"session_hash": "abc"}) as lines:
        return "".join(lines.iter_lines())


@pytest.mark.parametrize("path", ["secret.png", "http://127.0.0.1:9/x.png", "https://example.com/x.png"])
def test_no_path_or_address_that_a_page_names_is_read(path, locked, tmp_path):
    locked.post("/studio/", data={"key": "secret"})
    (tmp_path / "secret.png").write_bytes(b"x")
    path = str(tmp_path / path) if path == "secret.png" else path
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    config = locked.get("/studio/config").json()
    states = {one["id"] for one in config["components"] if one["type"] == "state"}  # which no page fills
    reading = [one for one in config["dependencies"] if set(one["inputs"]) - states]
    assert len(reading) > 8
    for one in reading:
        said = dispatched(locked, one["id"], [file] * len(one["inputs"]))
        assert '"success":false' in said, one
        assert path not in said and "Traceback" not in said
    assert locked.get(f"/studio/gradio_api/file={path}").status_code in (403, 404)


def test_files_come_in_by_their_own_route(locked, png):
    locked.post("/studio/", data={"key": "secret"})
    assert locked.post("/studio/gradio_api/upload", files={"files": ("x.png", png)}).status_code >= 400
    good = locked.post("/studio/files", files={"file": ("../../x.png", png)}).json()
    assert good["wrong"] == "" and locked.get(f"/files/{good['names'][0]}").status_code == 200
    for bad in ({"files": {"file": ("x.png", b"no image")}}, {"data": {"file": "/etc/passwd"}}):
        said = locked.post("/studio/files", **bad).json()
        assert said["names"] == [] and said["wrong"].startswith("input") and "\n" not in said["wrong"]
    locked.cookies.clear()
    assert locked.post("/studio/files", files={"file": ("x.png", png)}).status_code == 401
