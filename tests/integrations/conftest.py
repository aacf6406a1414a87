"""Stand-ins for the modules of ComfyUI (0.3.64) that a node package imports: names, signatures and rules of its
interface as its sources have them, nothing of how it draws. The package is loaded as ComfyUI loads it."""

import importlib.util
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"


class Input:
    def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, extra_dict=None):
        self.id, self.optional, self.tooltip = id, optional, tooltip


class Output:
    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
        self.id, self.display_name, self.is_output_list = id, display_name, is_output_list


def socket(name, base=Input):
    """A type of ComfyUI: its own Input and Output know it."""
    kind = type(name, (), {"io_type": name})
    kind.Input, kind.Output = type("Input", (base,), {"io_type": name}), type("Output", (Output,), {"io_type": name})
    return kind


class Widget(Input):
    options = minimum = maximum = control_after_generate = None

    def __init__(self, id, default, optional=False, tooltip=None):
        super().__init__(id, optional=optional, tooltip=tooltip)
        self.default = default


class Text(Widget):
    def __init__(
        self, id, display_name=None, optional=False, tooltip=None, lazy=None, multiline=False, placeholder=None,
        default=None, dynamic_prompts=None, socketless=None, force_input=None,
    ):  # fmt: skip
        super().__init__(id, default, optional, tooltip)


class Whole(Widget):
    def __init__(
        self, id, display_name=None, optional=False, tooltip=None, lazy=None, default=None, min=None, max=None,
        step=None, control_after_generate=None, display_mode=None, socketless=None, force_input=None,
    ):  # fmt: skip
        super().__init__(id, default, optional, tooltip)
        self.minimum, self.maximum, self.control_after_generate = min, max, control_after_generate


class Number(Widget):
    def __init__(
        self, id, display_name=None, optional=False, tooltip=None, lazy=None, default=None, min=None, max=None,
        step=None, round=None, display_mode=None, socketless=None, force_input=None,
    ):  # fmt: skip
        super().__init__(id, default, optional, tooltip)
        self.minimum, self.maximum = min, max


class Choice(Widget):
    def __init__(
        self, id, options=None, display_name=None, optional=False, tooltip=None, lazy=None, default=None,
        control_after_generate=None, upload=None, image_folder=None, remote=None, socketless=None,
    ):  # fmt: skip
        super().__init__(id, default, optional, tooltip)
        self.options = options


class Several(Input):
    def __init__(self, id, types, display_name=None, optional=False, tooltip=None, lazy=None, extra_dict=None):
        super().__init__(id, optional=optional, tooltip=tooltip)
        self.io_type = ",".join(kind.io_type for kind in types)


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list | None = None
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False

    def validate(self):
        ids = [one.id for one in self.inputs] + [one.id for one in self.outputs if one.id is not None]
        assert len(set(ids)) == len(ids), "ids of inputs and outputs must be unique"


class ComfyNode:
    pass


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.result = args


class ComfyExtension:
    pass


@dataclass
class VideoComponents:
    images: torch.Tensor
    frame_rate: Fraction
    audio: Any = None
    metadata: dict | None = None


class VideoFromComponents:
    def __init__(self, components):
        self.components = components

    def get_components(self):
        return self.components


class InterruptProcessingException(Exception):
    pass


class Host:
    """What ComfyUI's user sees and does: progress as (value, total), and when a running node is told to stop."""

    def __init__(self, models):
        self.progress, self.stop_at, self.folders = [], None, {"loras": [str(models / "loras")]}

    def throw(self):
        if self.stop_at is not None and len(self.progress) >= self.stop_at:
            self.stop_at = None
            raise InterruptProcessingException

    def modules(self, models):
        host = self

        class ProgressBar:
            def __init__(self, total, node_id=None):
                self.total = total

            def update_absolute(self, value, total=None, preview=None):
                host.progress.append((value, self.total))

        names = {"Combo": Choice, "String": Text, "Int": Whole, "Float": Number}
        io = {name: socket(name.upper(), base) for name, base in names.items()}
        io |= {name: socket(name.upper()) for name in ("Image", "Mask", "Video")}
        io |= {"Custom": socket, "MultiType": SimpleNamespace(Input=Several)}
        io |= {"Schema": Schema, "ComfyNode": ComfyNode, "NodeOutput": NodeOutput}
        latest = {"io": SimpleNamespace(**io), "ComfyExtension": ComfyExtension}
        latest["InputImpl"] = SimpleNamespace(VideoFromComponents=VideoFromComponents)
        latest["Types"] = SimpleNamespace(VideoComponents=VideoComponents)
        return {
            "comfy": {}, "comfy_api": {}, "comfy_api.latest": latest, "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": {
                "get_torch_device": lambda: torch.device("cpu"),
                "throw_exception_if_processing_interrupted": self.throw,
            },
            "folder_paths": {
                "models_dir": str(models),
                "add_model_folder_path": lambda name, path, is_default=False: self.folders.update({name: [path]}),
                "get_folder_paths": lambda name: list(self.folders[name]),
            },
        }  # fmt: skip


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """ComfyUI, with its folder of models."""
    models = tmp_path_factory.mktemp("models")
    host, patch = Host(models), pytest.MonkeyPatch()
    for name, content in host.modules(models).items():
        module = ModuleType(name)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    yield host
    patch.undo()


@pytest.fixture(scope="module")
def package(host):
    """The node package."""
    name = "custom_nodes_openlance"
    spec = importlib.util.spec_from_file_location(name, PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        yield module
        for part in [part for part in sys.modules if part.startswith(f"{name}.")]:
            del sys.modules[part]
