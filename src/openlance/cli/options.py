"""What several commands take: shared options, and checks that say in one sentence what to type instead.

Everything here is checked before a model is loaded, and nothing here imports torch.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from openlance.config.sampling import LARGEST_SEED, LARGEST_SIDE, LONGEST, MOST_STEPS, MOST_TOKENS, STRONGEST
from openlance.config.values import NUMBER_TYPES, lines_of, read_text
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.inference.enhance import Enhancer
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.inference.text import Answer
    from openlance.media import Clip

Model = Annotated[str, typer.Option("--model", help="nano, a checkpoint folder, or owner/name on the hub.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same picture; random if left out, or -1.")]
Size = Annotated[
    str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels.  \\[default: the model's]", show_default=False)
]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", help="Denoising steps.  \\[default: the model's]")]
Guidance = Annotated[
    float | None, typer.Option("--guidance-scale", help="Strength of the prompt; 1 is none.  \\[default: the model's]")
]
Frames = Annotated[
    int | None, typer.Option("--num-frames", help="Frames, 12 a second: 9, 13, 17 ...  \\[default: the model's]")
]
Solver = Annotated[
    str | None, typer.Option("--solver", help="euler, dpm++ or unipc.  \\[default: the model's]", show_default=False)
]
OutputByKind = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="File; a folder with --prompts-file.  \\[default: out.png or out.mp4]"),
]
PromptsFile = Annotated[
    Path | None, typer.Option("--prompts-file", help="One text per line: 000000, 000001 ... in the folder -o.")
]
Memory = Annotated[str | None, typer.Option("--memory", help="Budget such as 12GB; auto is what is free.")]
Lora = Annotated[Path | None, typer.Option("--lora", help="Folder of an adapter in PEFT's format.", show_default=False)]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .pth weights too (tensors only); safetensors need no leave.")
]
Metadata = Annotated[
    bool,
    typer.Option(
        "--metadata/--no-metadata", help="Whether files say how they were made: prompt, seed, settings, model."
    ),
]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]
NegativePrompt = Annotated[
    str | None, typer.Option("--negative-prompt", help="What guidance leads away from.", show_default=False)
]
Enhance = Annotated[
    bool, typer.Option("--enhance-prompt", help="Rewrite prompts first: by the model itself, or by a server.")
]
EnhanceUrl = Annotated[
    str | None,
    typer.Option("--enhance-url", help="An OpenAI-compatible server, or LANCE_REWRITE_BASE_URL.", show_default=False),
]
EnhanceModel = Annotated[
    str | None, typer.Option("--enhance-model", help="Its model, or LANCE_REWRITE_MODEL_NAME.", show_default=False)
]

# The words that are being run, without the name of the program: a command is run from Python and from others too.
COMMAND_LINE: ContextVar[tuple[str, ...]] = ContextVar("COMMAND_LINE", default=())


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes groups of options: a parameter annotated with one of the dataclasses below is offered on the
    command line as the fields of that class."""
    own = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {p.name: p.annotation for p in own.parameters.values() if is_dataclass(p.annotation)}
    flat = []
    for p in own.parameters.values():
        if p.name not in groups:
            flat.append(p.replace(kind=p.KEYWORD_ONLY))
            continue
        hints = get_type_hints(p.annotation, include_extras=True)
        for f in fields(p.annotation):
            flat.append(Parameter(f.name, p.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]))

    @wraps(command)
    def call(**said: Any) -> None:
        made = {name: kind(**{f.name: said.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**made, **said)

    call.__signature__ = own.replace(parameters=flat)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in flat}
    return call


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which model a command runs, and how it is loaded."""

    model: Model = "nano"
    memory: Memory = None
    allow_pickle: AllowPickle = False

    def load(self) -> LancePipeline:
        import openlance

        return openlance.load(self.model, **given(allow_pickle=self.allow_pickle, memory=self.memory))

    def warn(self, pipe: LancePipeline, task: str) -> None:
        """Say in one line on stderr that the model was not trained for what it was asked to do."""
        if not pipe.defaults.knows(task):
            known = ", ".join(pipe.defaults.tasks)
            typer.echo(f"warning: {self.model} was not trained for {task}, only for {known}: expect little", err=True)


@dataclass(frozen=True, kw_only=True)
class Adapted(Checkpoint):
    """... with an adapter."""

    lora: Lora = None

    def load(self) -> LancePipeline:
        pipe = super().load()
        if self.lora is not None:
            pipe.load_lora_weights(self.lora)
        return pipe


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """Who rewrites the prompts before anything is drawn."""

    enhance_prompt: Enhance = False
    enhance_url: EnhanceUrl = None
    enhance_model: EnhanceModel = None

    def enhance(self) -> bool | Enhancer | None:
        """The keyword of the pipeline's methods. UserError for options that go unused, or an address that is none."""
        if not self.enhance_prompt:
            if self.enhance_url is not None or self.enhance_model is not None:
                raise UserError("--enhance-url and --enhance-model rewrite nothing on their own: add --enhance-prompt")
            return None
        url = self.enhance_url or os.environ.get("LANCE_REWRITE_BASE_URL")
        model = self.enhance_model or os.environ.get("LANCE_REWRITE_MODEL_NAME")
        if not url:
            if model:
                raise UserError(f"the model {model!r} rewrites prompts on a server: say which with --enhance-url")
            return True
        from openlance.inference.enhance import Enhancer

        key = os.environ.get("LANCE_REWRITE_API_KEY") or os.environ.get("OPENAI_API_KEY")
        return Enhancer(url=url, **given(model=model, key=key))


@dataclass(frozen=True, kw_only=True)
class Denoising(Rewriting):
    """How something is drawn, whatever it is."""

    seed: Seed = None
    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    negative_prompt: NegativePrompt = None
    solver: Solver = None
    metadata: Metadata = True

    def settings(self) -> dict[str, Any]:
        """What the user said, as keywords of the pipeline's methods; UserError for a number out of range."""
        at_least("--seed", self.seed, -1, LARGEST_SEED)
        at_least("--num-inference-steps", self.num_inference_steps, 1, MOST_STEPS)
        check_guidance(self.guidance_scale)
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise UserError(f"--negative-prompt does nothing at --guidance-scale {self.guidance_scale:g}: give above 1")
        return given(
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale,
            negative_prompt=self.negative_prompt, solver=self.solver,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawing(Denoising):
    """... with a size of its own."""

    size: Size = None

    def settings(self) -> dict[str, Any]:
        width, height = parse_size(self.size) if self.size is not None else (None, None)
        return given(height=height, width=width) | super().settings()


@dataclass(frozen=True, kw_only=True)
class Filming(Drawing):
    """... and a length."""

    num_frames: Frames = None

    def settings(self) -> dict[str, Any]:
        at_least("--num-frames", self.num_frames, 1, LONGEST)
        return given(num_frames=self.num_frames) | super().settings()


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (width, height) in pixels."""
    match = re.fullmatch(r"\s*(-?\d{1,9})\s*[xX×]\s*(-?\d{1,9})\s*", text)
    if match is None:
        raise UserError(f"--size {text!r} is not a size: give WIDTHxHEIGHT in pixels, for example --size 96x96")
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise UserError(f"--size {text} is out of range: each side is 1 to {LARGEST_SIDE} pixels, for example 96x96")
    return width, height


def dtype_name(text: str | None) -> str | None:
    """torch's name of a number type that a user gave, or None."""
    if text is not None and text not in NUMBER_TYPES:
        raise UserError(f"--dtype {text!r} is no type of number: use float32, bfloat16 or float16")
    return NUMBER_TYPES[text] if text is not None else None


def at_least(option: str, value: int | None, least: int, most: int | None = None) -> None:
    """UserError unless a given whole number is in range; None (left out) is fine."""
    if value is not None and value < least:
        raise UserError(f"{option} is {value}: it must be {least} or more")
    if value is not None and most is not None and value > most:
        raise UserError(f"{option} is {value}: it must be {most} or less")


def is_terminal(stream: Any) -> bool:
    """Whether a person reads or writes there; a stream may be closed."""
    return stream is not None and stream.isatty()


def check_tokens(value: int) -> None:
    at_least("--max-new-tokens", value, 1, MOST_TOKENS)


def say_if_cut(answer: Answer, most: int) -> None:
    """One line on stderr for an answer that ended at its limit."""
    if answer.finish_reason == "length":
        typer.echo(f"note: the answer was cut at {most} tokens: raise --max-new-tokens for the rest", err=True)


def check_guidance(value: float | None, option: str = "--guidance-scale") -> None:
    if value is not None and not 0 <= value <= STRONGEST:
        raise UserError(f"{option} is {value}: it must be a number from 0 to {STRONGEST:g}, for example 3")


def check_text(name: str, text: str, example: str) -> str:
    """The text without blanks around it; UserError if nothing is left."""
    if not text.strip():
        raise UserError(f"the {name} is empty: write one, for example {example!r}")
    return text.strip()


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 file, blank ones at its end left out; a blank line between two prompts is an error."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: --prompts-file takes a text file with one prompt per line")
    lines = lines_of(read_text(path, ", one prompt per line").rstrip())
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"line {number} of {path} is empty: write a prompt there or delete the line")
    return [line.strip() for line in lines]


def read_medium(path: Path) -> Clip:
    """A picture as a clip of one frame, or the frames of a video; UserError if it cannot be read or is too large."""
    from openlance.media import read_media

    return read_media(path)


def check_writable(folder: Path) -> None:
    """UserError unless files can be written in the folder, or it can be made; nothing is created."""
    nearest = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not nearest.is_dir():
        raise UserError(f"cannot write into {folder}: {nearest} is a file; choose another place with -o")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {folder}: permission denied; choose another place with -o")


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Where a block fails, take away the folders that were made for what it could not write."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):  # something is in it, or it was never made
                place.rmdir()
        raise


def check_json(file: Path | None, option: str = "--json") -> None:
    """UserError unless a file of results can be written there, if one is wanted."""
    if file is None:
        return
    check_writable(file.parent)
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder: give a file, for example {file / 'results.json'}")


def write_json(content: Any, file: Path) -> None:
    """Write results, all or nothing."""
    from openlance.media.files import atomic_path

    with no_empty_folders(file.parent), atomic_path(file) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; a model fills in the others itself."""
    return {name: value for name, value in options.items() if value is not None}
