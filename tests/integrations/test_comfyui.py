"""The node package for ComfyUI against stand-ins of its modules: every workflow that ships runs node by node with the
trained model, and gives what the Python call gives, bit for bit."""

import asyncio
import json
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import openlance
from openlance.checkpoint.adapters import Update
from openlance.config.lora import Lora
from openlance.config.sampling import LARGEST_SEED, RANGES, Decoding, Sampling
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.model.lora import write_adapter

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
WORKFLOWS = {path.stem: json.loads(path.read_text("utf-8")) for path in PACKAGE.glob("example_workflows/*.json")}
# ComfyUI's own nodes in them: sockets by name, then how many widgets.
OTHERS = {
    "SaveImage": ({"images": "IMAGE"}, 1), "SaveVideo": ({"video": "VIDEO"}, 3), "PreviewAny": ({"source": "*"}, 0),
    "MarkdownNote": ({}, 1),
}  # fmt: skip
SMALL = {"num_frames": 5, "width": 32, "height": 32, "num_images": 2, "max_new_tokens": 8}
STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def nodes(package):
    extension = asyncio.run(package.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


@pytest.fixture(scope="module")
def pipe(nodes):
    return nodes["OpenlanceLoad"].execute("nano", "auto", "none", 1.0).result[0]


def fits(given, wanted):
    return "*" in (given, wanted) or bool({*given.split(",")} & {*wanted.split(",")})


def widget_inputs(schema):
    return [one for one in schema.inputs if hasattr(one, "default")]


def allowed(one, value):
    if one.options is not None:
        return value in one.options
    if one.io_type == "STRING":
        return isinstance(value, str)
    whole = one.io_type != "INT" or isinstance(value, int)
    return whole and not isinstance(value, bool) and one.minimum <= value <= one.maximum


def widgets_of(node, schema):
    """The values of a node's widgets by their names; a seed is followed by what becomes of it after a run."""
    values, found = list(node["widgets_values"]), {}
    for one in widget_inputs(schema):
        found[one.id] = values.pop(0)
        assert allowed(one, found[one.id]), (node["type"], one.id, found[one.id])
        if one.control_after_generate:
            assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
    assert not values, (node["type"], "has more values than widgets")
    return found


def run(nodes, workflow, made=None):
    """Run a workflow as ComfyUI does, its sizes and steps small: links resolved, types checked, a node called once for
    each of a list. Returns what came out of each node by its type, and its widgets."""
    out, seen, links = dict(made or {}), {}, {link[0]: link for link in workflow["links"]}
    settings = nodes["OpenlanceSettings"].execute(**STEPS).result[0]
    for node in sorted(workflow["nodes"], key=lambda node: node["order"]):
        kind, linked = node["type"], [one for one in node["inputs"] if one["link"] is not None]
        sources = {one["name"]: links[one["link"]] for one in linked}
        given = {name: out[link[1], link[2]] for name, link in sources.items()}
        if kind in OTHERS:
            sockets, widgets = OTHERS[kind]
            assert {one["name"]: one["type"] for one in node["inputs"]} == sockets and len(linked) == len(sockets)
            assert len(node["widgets_values"]) == widgets
            seen[kind] = next(iter(given.values()), None)
            continue
        schema = nodes[kind].define_schema()
        own = [one for one in schema.inputs if not hasattr(one, "default")]
        assert [(one["name"], one["type"]) for one in node["inputs"]] == [
            (one.id, one.io_type) for one in sorted(own, key=lambda one: one.optional)
        ], kind
        assert {one.id for one in own if not one.optional} <= set(given), (kind, "lacks a required input")
        assert [one["type"] for one in node["outputs"]] == [one.io_type for one in schema.outputs]
        said = widgets_of(node, schema)
        seen[kind] = said = said | {name: value for name, value in SMALL.items() if name in said}
        if (node["id"], 0) in out:
            continue
        if any(one.id == "settings" for one in own):
            given["settings"] = [settings]
        calls = max((len(values) for values in given.values()), default=1)
        each = [{name: values[min(k, len(values) - 1)] for name, values in given.items()} for k in range(calls)]
        results = [nodes[kind].execute(**said, **inputs).result for inputs in each]
        for slot, output in enumerate(schema.outputs):
            values = [result[slot] for result in results]
            out[node["id"], slot] = sum(values, []) if output.is_output_list else values
    return seen


def levels(value):
    """The bytes that ComfyUI would save of an IMAGE or VIDEO (its own arithmetic: times 255, cut off)."""
    images = value if isinstance(value, torch.Tensor) else value.get_components().images
    assert images.dtype == torch.float32 and images.ndim == 4 and 0 <= images.min() and images.max() <= 1
    return (images * 255).clamp(0, 255).byte().numpy()


def test_every_schema_is_valid_and_every_default_allowed(nodes):
    assert len(nodes) == 10
    for name, node in nodes.items():
        schema = node.define_schema()
        schema.validate()
        assert name.startswith("Openlance") and schema.category == "openlance" and schema.description and schema.outputs
        for one in schema.inputs:
            assert one.tooltip, (name, one.id)
        for one in widget_inputs(schema):
            assert allowed(one, one.default), (name, one.id)


def test_settings_are_the_fields_of_sampling_with_their_ranges(nodes):
    made = {one.id: one for one in nodes["OpenlanceSettings"].define_schema().inputs}
    assert {re.sub("_(from|to)$", "", name) for name in made} == set(Sampling.__dataclass_fields__)
    assert all(one.maximum == RANGES[name][1] for name, one in made.items() if name in RANGES)
    execute = nodes["OpenlanceSettings"].execute
    assert execute(**{name: one.default for name, one in made.items()}).result == ({},)
    said = {"guidance_scale": 2.5, "solver": "unipc", "cached": "off", "interval_from": 0.2, "interval_to": 0.9}
    chosen = Sampling(**execute(**said).result[0])
    assert (chosen.guidance_scale, chosen.solver, chosen.cached, chosen.interval) == (2.5, "unipc", False, (0.2, 0.9))
    for wrong in ({"shift": -0.5}, {"step_cache": 1.0}, {"interval_from": 0.2}):
        with pytest.raises(UserError, match=next(iter(wrong)).removesuffix("_from")):
            execute(**wrong)
    ask = {one.id: one for one in widget_inputs(nodes["OpenlanceAsk"].define_schema())}
    assert all(ask[name].default == getattr(Decoding, name) for name in RANGES if name in ask) and "top_p" in ask


@pytest.mark.parametrize("name", WORKFLOWS)
def test_links_and_places_are_sound(name):
    workflow = WORKFLOWS[name]
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["version"] == 0.4 and workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"]) == len(workflow["links"])
    for number, source, slot, target, place, kind in workflow["links"]:
        given, wanted = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in given["links"] and wanted["link"] == number
        assert given["type"] == kind and fits(kind, wanted["type"])
        assert nodes[source]["order"] < nodes[target]["order"]
    boxes = [(*node["pos"], *node["size"]) for node in nodes.values()]
    for k, (x, y, w, h) in enumerate(boxes):
        assert not any(x < c + e and c < x + w and y < d + f and d < y + h for c, d, e, f in boxes[:k])


PYTHON = {
    "generate-image": lambda p, v, how: p.generate(v["prompt"], **how(v)),
    "generate-video": lambda p, v, how: p.generate_video(v["prompt"], **how(v)),
    "edit-image": lambda p, v, how: p.edit(list(how.first), v["instruction"], **how(v)),
    "edit-video": lambda p, v, how: p.edit(how.first, v["instruction"], **how(v)),
    "animate-image": lambda p, v, how: p.animate(list(how.first), v["prompt"], **how(v)),
    "subject-in-image": lambda p, v, how: p.subject([[i] for i in how.first], [v["prompt"]] * 2, **how(v)),
    "subject-in-video": lambda p, v, how: p.subject([[i] for i in how.first], [v["prompt"]] * 2, **how(v)),
    "ask": lambda p, v, how: [p.ask(i, v["question"], max_new_tokens=8) for i in how.first],
}


class How:
    """The same keywords in Python; `first` is what the first drawing node makes."""

    def __init__(self, pipe, seen):
        drawn = {kind: value for kind, value in seen.items() if kind.startswith("OpenlanceGenerate")}
        kind, values = next(iter(drawn.items()))
        first = pipe.generate if kind == "OpenlanceGenerate" else pipe.generate_video
        made = first(values["prompt"], **self(values))
        self.first = [np.asarray(image) for image in made] if kind == "OpenlanceGenerate" else made[0]

    def __call__(self, values):
        names = ("seed", "negative_prompt", "width", "height", "num_frames", "num_images")
        return STEPS | {name: values[name] for name in names if name in values}


def test_there_is_a_workflow_for_each_task(nodes):
    assert set(WORKFLOWS) == set(PYTHON)
    used = {node["type"] for workflow in WORKFLOWS.values() for node in workflow["nodes"]}
    assert set(nodes) <= used


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_gives_what_python_gives(nodes, pipe, name):
    [load] = [node["id"] for node in WORKFLOWS[name]["nodes"] if node["type"] == "OpenlanceLoad"]
    seen = run(nodes, WORKFLOWS[name], {(load, 0): [pipe]})
    [end] = [kind for kind in seen if kind in OTHERS and kind != "MarkdownNote"]
    last = [values for kind, values in seen.items() if kind.startswith("Openlance")][-1]
    expected = PYTHON[name](pipe, last, How(pipe, seen))
    if end == "PreviewAny":
        assert seen[end] == expected and len(expected) == 2  # a batch of two is answered twice
        return
    assert len(seen[end]) == (2 if name in ("animate-image", "subject-in-video") else 1)
    made = np.concatenate([levels(value) for value in seen[end]])
    wanted = np.concatenate([np.asarray(getattr(one, "pixels", one)).reshape(-1, *made.shape[1:]) for one in expected])
    assert np.array_equal(made, wanted)
    if end == "SaveVideo":
        assert seen[end][0].get_components().frame_rate == 12


def drawn(nodes, pipe, **more):
    said = {"prompt": "a red circle", "negative_prompt": "", "seed": 1, "width": 32, "height": 32, "num_images": 2}
    return nodes["OpenlanceGenerate"].execute(pipe, **said | more).result[0]


def test_progress_counts_finished_steps_and_an_interrupt_stops_at_the_next(nodes, pipe, host):
    host.progress.clear()
    drawn(nodes, pipe, settings={"num_inference_steps": 3})
    assert host.progress == [(2, 6), (4, 6), (6, 6)]
    host.progress.clear()
    host.stop_at = 2
    with pytest.raises(Exception) as stopped:
        drawn(nodes, pipe, settings={"num_inference_steps": 50})
    assert stopped.type.__name__ == "InterruptProcessingException" and host.progress == [(2, 100), (4, 100)]
    assert drawn(nodes, pipe, settings=STEPS).shape == (2, 32, 32, 3)  # the next one runs
    host.progress.clear()
    host.stop_at = 0  # while the first words of an answer come
    with pytest.raises(stopped.type):
        nodes["OpenlanceAsk"].execute(pipe, torch.zeros(1, 32, 32, 3), "what is it?", 0)
    assert host.progress == []


def test_a_seed_has_64_bits_and_a_batch_counts_on(nodes, pipe):
    [seed] = [one for one in nodes["OpenlanceGenerate"].define_schema().inputs if one.id == "seed"]
    assert (seed.minimum, seed.maximum) == (0, LARGEST_SEED) == (0, 2**64 - 1)
    made = levels(drawn(nodes, pipe, seed=LARGEST_SEED, settings=STEPS))
    both = pipe.generate("a red circle", seed=LARGEST_SEED, num_images=2, width=32, height=32, **STEPS)
    alone = pipe.generate("a red circle", seed=0, width=32, height=32, **STEPS)
    assert np.array_equal(made, [np.asarray(image) for image in both])
    assert np.abs(made[1].astype(int) - np.asarray(alone[0])).max() <= 1


def test_several_images_are_one_group_and_a_single_one_goes_with_all(nodes, pipe):
    batch, single = torch.rand(2, 32, 32, 3), torch.rand(1, 32, 32, 3)
    said = ("make it blue", "", 3)
    made = nodes["OpenlanceEdit"].execute(pipe, batch, *said, image_2=single, settings=STEPS).result[0]
    wanted = pipe.edit([(image, single[0]) for image in batch], said[0], seed=3, **STEPS)
    assert np.array_equal(levels(made), [np.asarray(image) for image in wanted])
    with pytest.raises(UserError, match="batches of 2 and 3 images do not pair up"):
        nodes["OpenlanceSubject"].execute(pipe, batch, *said, 32, 32, image_2=torch.rand(3, 32, 32, 3))


def test_a_video_keeps_its_time(nodes, pipe, host):
    api, levels_24 = sys.modules["comfy_api.latest"], torch.rand(18, 32, 32, 3)
    video = api.InputImpl.VideoFromComponents(api.Types.VideoComponents(levels_24, Fraction(24)))
    made = nodes["OpenlanceEditVideo"].execute(pipe, video, "make it blue", "", 3, settings=STEPS).result[0]
    clip = Clip((levels_24 * 255).round().byte().numpy(), fps=24)
    assert np.array_equal(levels(made), pipe.edit(clip, "make it blue", seed=3, **STEPS)[0].pixels)
    assert made.get_components().frame_rate == 12 and len(levels(made)) == 9


def test_an_adapter_is_loaded_with_its_weight(nodes, pipe, host, tmp_path, monkeypatch):
    folder = tmp_path / "noise"
    folder.mkdir()
    monkeypatch.setitem(host.folders, "loras", [str(tmp_path)])
    draw, name = torch.Generator().manual_seed(1), "layers.0.gen.down"
    width, inner = pipe.lance("und", "gen").get_submodule(name).weight.shape
    a, b = (torch.randn(shape, generator=draw) for shape in ((2, inner), (width, 2)))
    write_adapter(folder, {name: Update(a=a, b=b)}, Lora(rank=2))
    [loaded] = nodes["OpenlanceLoad"].execute("nano", "auto", "noise", 0.5).result
    other = openlance.load("nano")
    other.load_lora_weights(folder, 0.5)
    made = levels(drawn(nodes, loaded, settings=STEPS))
    wanted = other.generate("a red circle", seed=1, num_images=2, width=32, height=32, **STEPS)
    assert np.array_equal(made, [np.asarray(image) for image in wanted])
    assert not np.array_equal(made, levels(drawn(nodes, pipe, settings=STEPS)))


def test_a_mask_keeps_what_it_leaves_out(nodes, pipe):
    edit = nodes["OpenlanceEdit"].execute
    images = torch.from_numpy(np.random.default_rng(0).random((2, 32, 32, 3), np.float32).round(1))
    masks = torch.zeros(2, 32, 32)
    masks[0, :, :16], masks[1, :16] = 1, 1
    made = levels(edit(pipe, images, "make it blue", "", 1, mask=masks, settings=STEPS).result[0])
    given = (images.numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(made[0, :, 16:], given[0, :, 16:]) and np.array_equal(made[1, 16:], given[1, 16:])
    assert not np.array_equal(made, given)
    one = levels(edit(pipe, images, "make it blue", "", 1, mask=masks[:1], settings=STEPS).result[0])
    assert np.array_equal(one[0], made[0]) and np.array_equal(one[1, :, 16:], given[1, :, 16:])
    with pytest.raises(UserError, match="the mask has"):
        edit(pipe, images, "make it blue", "", 1, mask=masks[:, :8], settings=STEPS)


def test_only_what_lies_in_the_folders_can_be_loaded_and_a_changed_file_is_noticed(nodes, host, tmp_path, monkeypatch):
    load, folder = nodes["OpenlanceLoad"], Path(host.folders["lance"][0])
    assert load.define_schema().inputs[0].options == ["nano"]
    for name in ("../etc", "/etc", "other/model", str(tmp_path)):
        assert "expected one of nano" in load.validate_inputs(model=name, lora="none")
        with pytest.raises(UserError, match="model is"):
            load.execute(name, "auto", "none", 1.0)
    assert (
        load.validate_inputs(model=None, lora=None) is True
    )  # names that come over a link are seen when they are used
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "lance_config.json").write_text("{}")
    adapter = tmp_path / "style"
    monkeypatch.setitem(host.folders, "loras", [str(tmp_path)])
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    assert [one.options for one in load.define_schema().inputs[::2]] == [["nano", "mine"], ["none", "style"]]
    assert load.validate_inputs(model="mine", lora="style") is True
    said = {"memory": "auto", "lora": "style", "lora_weight": 1.0}
    before = load.fingerprint_inputs(model="mine", **said)
    assert before == load.fingerprint_inputs(model="mine", **said) != load.fingerprint_inputs(model="nano", **said)
    os.utime(adapter / "adapter_config.json", ns=(1, 1))
    assert before != load.fingerprint_inputs(model="mine", **said)


def test_the_package_names_what_comfyui_and_its_registry_look_for():
    project = (PACKAGE / "pyproject.toml").read_text("utf-8")
    assert f'version = "{openlance.__version__}"' in project and "[tool.comfy]" in project
    needed = (PACKAGE / "requirements.txt").read_text("utf-8").split()
    assert all(f'"{one}"' in project for one in needed)
    page = (PACKAGE / "README.md").read_text("utf-8")
    assert all(f"{name}.json" in page or name in page for name in WORKFLOWS)
