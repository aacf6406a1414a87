"""The nodes. Each calls one method of an openlance pipeline; nothing of the model is in here.

They are functions of their inputs, so ComfyUI may reuse what they made until an input changes. What is read from disk
is the checkpoint and the adapter, whose files `Load` looks at.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_management import get_torch_device, throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io

import openlance
from openlance.checkpoint.adapters import CONFIG
from openlance.checkpoint.formats import SHIPPED
from openlance.config.sampling import LARGEST_SEED, LARGEST_SIDE, LONGEST, MOST_RESULTS, Decoding, later_seed
from openlance.config.values import one_of
from openlance.errors import UserError

from .sockets import Model, Settings, groups, image_of, media_in, settings_said, settings_widgets, video_of, widget

CATEGORY = "openlance"
FOLDER = "lance"  # of ComfyUI's models, beside checkpoints and loras
NONE = "none"
STRONGEST_LORA = 100.0  # of either sign, as in ComfyUI's own loader
ANSWER = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def models() -> dict[str, Any]:
    """Find what can be loaded by its name: shipped models, and folders in ComfyUI's folder for them."""
    found = [path for base in folder_paths.get_folder_paths(FOLDER) for path in sorted(Path(base).glob("[!.]*"))]
    return dict.fromkeys(SHIPPED) | {path.name: path for path in found if path.is_dir()}


def adapters() -> dict[str, Any]:
    """Find adapters in ComfyUI's folders of LoRAs: folders of PEFT's, and files, whose keys say if they are Lance's."""
    bases = [Path(base) for base in folder_paths.get_folder_paths("loras")]
    folders = [path.parent for base in bases for path in sorted(base.glob(f"*/{CONFIG}"))]
    files = [path for base in bases for path in sorted(base.glob("*.safetensors"))]
    return {NONE: None} | {path.name: path for path in (*folders, *files)}


def report(finished: int, total: int) -> None:
    """Tell ComfyUI how far a node is, and stop it where its user wants that."""
    # Not `ComfyAPISync().execution.set_progress`: that attribute is not there in every version (0.3.64 lacks it).
    ProgressBar(total).update_absolute(finished)
    throw_exception_if_processing_interrupted()


def how(seed: int, negative_prompt: str, settings: dict[str, Any] | None, **size: int) -> dict[str, Any]:
    """Keywords of everything that draws; a size of 0 is the checkpoint's own."""
    own = {name: value or None for name, value in size.items()}
    return own | {"seed": seed, "negative_prompt": negative_prompt, "progress": report} | (settings or {})


def text(name: str, example: str, tooltip: str) -> Any:
    return io.String.Input(name, multiline=True, default=example, tooltip=tooltip)


def image(name: str, tooltip: str, optional: bool = False) -> Any:
    return io.Image.Input(name, optional=optional, tooltip=tooltip)


MODEL = Model.Input("model", tooltip="From Load Lance Model.")
SETTINGS = Settings.Input("settings", optional=True, tooltip="From Lance Settings; without it, the model's own.")
NEGATIVE = text("negative_prompt", "", "What guidance leads away from; empty: nothing.")
SEED = io.Int.Input(
    "seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True,
    tooltip="Result k of a batch has seed + k. All 64 bits count; browsers round above 2^53.",
)  # fmt: skip
SIZE = [
    io.Int.Input(
        name, default=0, min=0, max=LARGEST_SIDE, step=8,
        tooltip="In pixels, a multiple of the VAE's stride; 0: the model's own.",
    )
    for name in ("width", "height")
]  # fmt: skip
FRAMES = io.Int.Input(
    "num_frames", default=0, min=0, max=LONGEST, tooltip="12 a second, 1 + 4k: 9, 13, 17 ...; 0: the model's own."
)
MORE_IMAGES = [
    image(name, "Another one beside it: a batch as large, or a single image for all.", optional=True)
    for name in ("image_2", "image_3")
]


def schema(node: str, title: str, description: str, inputs: list[Any], *outputs: Any) -> Any:
    return io.Schema(
        node_id=f"Openlance{node}", display_name=title, category=CATEGORY, description=description, inputs=inputs,
        outputs=list(outputs),
    )  # fmt: skip


class Load(io.ComfyNode):
    """`openlance.load`."""

    @classmethod
    def define_schema(cls) -> Any:
        memory = "Most memory to take, such as 12GB: what does not fit is offloaded. auto: what is free."
        strength = {"default": 1.0, "min": -STRONGEST_LORA, "max": STRONGEST_LORA, "step": 0.05}
        inputs = [
            io.Combo.Input("model", list(models()), default="nano", tooltip="nano, or a folder in models/lance."),
            io.String.Input("memory", default="auto", tooltip=memory),
            io.Combo.Input("lora", list(adapters()), default=NONE, tooltip="A folder of PEFT's in models/loras."),
            io.Float.Input("lora_weight", tooltip="Factor of its strength.", **strength),
        ]
        about = "Loads a checkpoint of Lance, which all other nodes take; weights are read when they are first needed."
        return schema("Load", "Load Lance Model", about, inputs, Model.Output(display_name="model"))

    @classmethod
    def validate_inputs(cls, model: str | None = None, lora: str | None = None) -> bool | str:
        """Refuse names that are none, before anything runs; linked inputs are None here."""
        try:
            one_of("model", model or "nano", models())
            one_of("lora", lora or NONE, adapters())
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str | None, lora: str | None, **_: Any) -> str:
        """Changes when a file of the checkpoint or adapter does."""
        folders = [folder for folder in (models().get(model), adapters().get(lora)) if folder is not None]
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(repr((openlance.__version__, seen)).encode()).hexdigest()

    @classmethod
    def execute(cls, model: str, memory: str, lora: str, lora_weight: float) -> Any:
        one_of("model", model, models())
        one_of("lora", lora, adapters())
        pipe = openlance.load(models()[model] or model, memory=memory, device=get_torch_device())
        if adapters()[lora] is not None:
            pipe.load_lora_weights(adapters()[lora], lora_weight)
        return io.NodeOutput(pipe)


class Choose(io.ComfyNode):
    """Fields of `Sampling`."""

    @classmethod
    def define_schema(cls) -> Any:
        about = "How to denoise. What is left as it is (-1, or model's own) is what the checkpoint prefers."
        return schema("Settings", "Lance Settings", about, settings_widgets(), Settings.Output(display_name="settings"))

    @classmethod
    def execute(cls, **values: Any) -> Any:
        return io.NodeOutput(settings_said(values))


class Generate(io.ComfyNode):
    """`generate`."""

    @classmethod
    def define_schema(cls) -> Any:
        prompt = text("prompt", "a red circle left of a blue square", "What to draw.")
        count = io.Int.Input("num_images", default=1, min=1, max=MOST_RESULTS, tooltip="Images of the batch.")
        inputs = [MODEL, prompt, NEGATIVE, SEED, *SIZE, count, SETTINGS]
        return schema("Generate", "Lance Generate Image", "Draws images from words.", inputs, io.Image.Output())

    @classmethod
    def execute(
        cls, model: Any, prompt: str, negative_prompt: str, seed: int, width: int, height: int, num_images: int,
        settings: Any = None,
    ) -> Any:  # fmt: skip
        drawn = how(seed, negative_prompt, settings, width=width, height=height)
        return io.NodeOutput(image_of(model.generate(prompt, num_images=num_images, **drawn)))


class GenerateVideo(io.ComfyNode):
    """`generate_video`."""

    @classmethod
    def define_schema(cls) -> Any:
        prompt = text("prompt", "a red circle moves left", "What to draw.")
        inputs = [MODEL, prompt, NEGATIVE, SEED, *SIZE, FRAMES, SETTINGS]
        return schema("GenerateVideo", "Lance Generate Video", "Draws a video from words.", inputs, io.Video.Output())

    @classmethod
    def execute(
        cls, model: Any, prompt: str, negative_prompt: str, seed: int, width: int, height: int, num_frames: int,
        settings: Any = None,
    ) -> Any:  # fmt: skip
        drawn = how(seed, negative_prompt, settings, width=width, height=height, num_frames=num_frames)
        return io.NodeOutput(video_of(model.generate_video(prompt, **drawn)[0]))


class Edit(io.ComfyNode):
    """`edit` of images."""

    @classmethod
    def define_schema(cls) -> Any:
        source = image("image", "What to change; of several images the last one gives the size.")
        part = (
            "Where the (last) image may change, of its size: 1 changes. As many as images in the batch, or one for all."
        )
        mask = io.Mask.Input("mask", optional=True, tooltip=part)
        told = text("instruction", "make the circle green", "What to change.")
        inputs = [MODEL, source, told, NEGATIVE, SEED, *MORE_IMAGES, mask, SETTINGS]
        about = "Changes each image of a batch as told; several images side by side are sources of one edit."
        return schema("Edit", "Lance Edit Image", about, inputs, io.Image.Output())

    @classmethod
    def execute(
        cls, model: Any, image: Any, instruction: str, negative_prompt: str, seed: int, image_2: Any = None,
        image_3: Any = None, mask: Any = None, settings: Any = None,
    ) -> Any:  # fmt: skip
        sources = groups(image, image_2, image_3)
        masks = None if mask is None else list(mask) if len(mask) == len(sources) else [mask] * len(sources)
        made = model.edit(sources, instruction, mask=masks, **how(seed, negative_prompt, settings))
        return io.NodeOutput(image_of(made))


class EditVideo(io.ComfyNode):
    """`edit` of a video."""

    @classmethod
    def define_schema(cls) -> Any:
        source = io.Video.Input("video", tooltip="What to change. The model sees 12 frames a second, and no sound.")
        told = text("instruction", "make the circle green", "What to change.")
        inputs = [MODEL, source, told, NEGATIVE, SEED, SETTINGS]
        return schema("EditVideo", "Lance Edit Video", "Changes a video as told.", inputs, io.Video.Output())

    @classmethod
    def execute(
        cls, model: Any, video: Any, instruction: str, negative_prompt: str, seed: int, settings: Any = None
    ) -> Any:
        [clip] = media_in(video)
        if clip.frames == 1:
            raise UserError("the video has a single frame: use Lance Edit Image")
        return io.NodeOutput(video_of(model.edit(clip, instruction, **how(seed, negative_prompt, settings))[0]))


class Animate(io.ComfyNode):
    """`animate`."""

    @classmethod
    def define_schema(cls) -> Any:
        first = image("image", "What the video begins with.")
        last = image("last_image", "What it ends on: a batch as large, or a single image for all.", optional=True)
        prompt = text("prompt", "the circle moves left", "What happens.")
        inputs = [MODEL, first, prompt, NEGATIVE, SEED, *SIZE, FRAMES, last, SETTINGS]
        about = "Draws a video that begins with an image, for each of a batch; a size resizes the images first."
        return schema("Animate", "Lance Animate Image", about, inputs, io.Video.Output(is_output_list=True))

    @classmethod
    def execute(
        cls, model: Any, image: Any, prompt: str, negative_prompt: str, seed: int, width: int, height: int,
        num_frames: int, last_image: Any = None, settings: Any = None,
    ) -> Any:  # fmt: skip
        pairs = groups(image, last_image)
        ends = None if last_image is None else [last for _, last in pairs]
        drawn = how(seed, negative_prompt, settings, width=width, height=height, num_frames=num_frames)
        clips = model.animate([pair[0] for pair in pairs], prompt, last=ends, **drawn)
        return io.NodeOutput([video_of(clip) for clip in clips])


class Subject(io.ComfyNode):
    """`subject` as an image."""

    @classmethod
    def define_schema(cls) -> Any:
        prompt = text("prompt", "the circle on a white background", "The new scene.")
        inputs = [MODEL, image("image", "A subject."), prompt, NEGATIVE, SEED, *SIZE, *MORE_IMAGES, SETTINGS]
        about = "Places each subject of a batch in a new scene; subjects side by side share one."
        return schema("Subject", "Lance Subject in Image", about, inputs, io.Image.Output())

    @classmethod
    def execute(
        cls, model: Any, image: Any, prompt: str, negative_prompt: str, seed: int, width: int, height: int,
        image_2: Any = None, image_3: Any = None, settings: Any = None,
    ) -> Any:  # fmt: skip
        subjects = groups(image, image_2, image_3)
        drawn = how(seed, negative_prompt, settings, width=width, height=height)
        return io.NodeOutput(image_of(model.subject(subjects, [prompt] * len(subjects), **drawn)))


class SubjectVideo(io.ComfyNode):
    """`subject` as a video."""

    @classmethod
    def define_schema(cls) -> Any:
        prompt = text("prompt", "the circle moves left", "The new scene.")
        inputs = [MODEL, image("image", "A subject."), prompt, NEGATIVE, SEED, *SIZE, FRAMES, *MORE_IMAGES, SETTINGS]
        about = "Places each subject of a batch in a video of its own; subjects side by side share one."
        return schema("SubjectVideo", "Lance Subject in Video", about, inputs, io.Video.Output(is_output_list=True))

    @classmethod
    def execute(
        cls, model: Any, image: Any, prompt: str, negative_prompt: str, seed: int, width: int, height: int,
        num_frames: int, image_2: Any = None, image_3: Any = None, settings: Any = None,
    ) -> Any:  # fmt: skip
        subjects = groups(image, image_2, image_3)
        drawn = how(seed, negative_prompt, settings, width=width, height=height)
        drawn["num_frames"] = num_frames or model.defaults.num_frames
        clips = model.subject(subjects, [prompt] * len(subjects), **drawn)
        return io.NodeOutput([video_of(clip) for clip in clips])


class Ask(io.ComfyNode):
    """`ask`."""

    @classmethod
    def define_schema(cls) -> Any:
        seen = [io.Image, io.Video]
        more = "Another one beside it: a batch as large, or a single one for all."
        inputs = [
            MODEL, io.MultiType.Input("media", seen, tooltip="What to look at, an image or a video."),
            text("question", "how many squares are there?", "What to ask; empty: describe it."), SEED,
            *(widget(Decoding, name, getattr(Decoding, name)) for name in ANSWER),
            *(io.MultiType.Input(name, seen, optional=True, tooltip=more) for name in ("media_2", "media_3")),
        ]  # fmt: skip
        about = "Answers a question about each image of a batch, or a video; media side by side are looked at together."
        answers = io.String.Output(display_name="answer", is_output_list=True)
        return schema("Ask", "Lance Ask", about, inputs, answers)

    @classmethod
    def execute(
        cls, model: Any, media: Any, question: str, seed: int, media_2: Any = None, media_3: Any = None, **decoding: Any
    ) -> Any:
        answers, asked = list[str](), groups(media, media_2, media_3)
        for k, group in enumerate(asked):  # one by one, since several at a time cannot be stopped in the middle
            stops = {"stream": lambda _: throw_exception_if_processing_interrupted()}
            answers.append(str(model.ask(list(group), question, seed=later_seed(seed, k), **stops, **decoding)))
            report(k + 1, len(asked))
        return io.NodeOutput(answers)


NODES = (Load, Choose, Generate, GenerateVideo, Edit, EditVideo, Animate, Subject, SubjectVideo, Ask)
