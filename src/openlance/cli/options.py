"""What several commands share: options, groups of options, and checks that say in one sentence what to type instead.

Everything here is checked before a model is loaded, and nothing here imports torch.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial, wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer import Option

from openlance.config.sampling import LARGEST_SIDE, MOST_DRAWS, Sampling
from openlance.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

    from openlance.inference.enhance import Enhancer
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.inference.text import Answer
    from openlance.media import Clip


def positive(value: float) -> float:
    """Refuse what is not above zero."""
    if not value > 0:
        raise typer.BadParameter(f"{value:g} is not above 0: give for example 10")
    return value


def named(task: str | None) -> str | None:
    """Give a task its own name: people say edit, vqa or caption."""
    from openlance.sequence.tasks import task_name

    return None if task is None else task_name(task)


# A model's own setting is used where the default is None.
Model = Annotated[str, Option(help="nano, a checkpoint folder, or owner/name on the Hugging Face Hub.")]
Seed = Annotated[int | None, Option(min=-1, help="Makes a result reproducible; -1: random.")]
Size = Annotated[str | None, Option(metavar="WIDTHxHEIGHT", help="In pixels.  \\[default: the model's]")]
Steps = Annotated[int | None, Option(min=1, help="Denoising steps.  \\[default: the model's]")]
Guidance = Annotated[float | None, Option(min=0, help="Strength of the prompt; 1: off.  \\[default: the model's]")]
Solver = Annotated[str | None, Option(help="euler, dpm++ or unipc.  \\[default: the model's]")]
Check = Annotated[
    int | None, Option(min=1, max=MOST_DRAWS, help="Draw until the model finds no fault, at most so often; try 4.")
]
Think = Annotated[bool, Option("--think", help="Describe each result before it is drawn, if trained to.")]
Memory = Annotated[str | None, Option(help="Memory to use, such as 12GB, or auto for what is free.")]
AllowPickle = Annotated[bool, Option("--allow-pickle", help="Load tensors of .pth files too; safetensors always are.")]
Metadata = Annotated[bool, Option(help="Write prompt, seed, settings and model into the files.")]
NewTokens = Annotated[int, Option(min=1, help="Longest answer, in tokens.")]
MaxBroken = Annotated[float, Option(min=0, help="Broken rows to skip: a share below 1, or a number.")]
Caption = Annotated[str | None, Option(help="The text of media that have none of their own.")]
Columns = Annotated[list[str] | None, Option("--column", help="Rename a column, OURS=THEIRS; repeatable.")]
JsonFile = Annotated[Path | None, Option("--json", help="Write the results to this JSON file.")]
Adapters = Annotated[
    list[str] | None, Option(metavar="PATH[:WEIGHT]", help="LoRA adapter, and how much of it; repeatable.")
]
AsJson = Annotated[bool, Option("--json", help="Print everything as JSON.")]

# The words that are being run, without the name of the program: a command is run from Python and from others too.
COMMAND_LINE: ContextVar[tuple[str, ...]] = ContextVar("COMMAND_LINE", default=())


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Offer groups of options: a parameter annotated with a dataclass becomes one option per field of that class."""
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
        for name, kind in groups.items():
            said[name] = kind(**{f.name: said.pop(f.name, f.default) for f in fields(kind)})
        command(**said)

    call.__signature__ = own.replace(parameters=flat)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in flat}
    return call


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which model a command runs, and how it is loaded."""

    model: Model = "nano"
    memory: Memory = None
    allow_pickle: AllowPickle = False
    lora: Adapters = None

    def load(self) -> LancePipeline:
        """Load the model with its adapters."""
        import openlance

        pipe = openlance.load(self.model, **given(allow_pickle=self.allow_pickle, memory=self.memory))
        return adapted(pipe, self.lora)

    def anywhere(self) -> Checkpoint:
        """The same for a process in another folder."""
        from openlance.checkpoint.formats import SHIPPED

        here = self.model not in SHIPPED and Path(self.model).is_dir()
        model = str(Path(self.model).absolute()) if here else self.model
        lora = [f"{path.absolute()}:{weight!r}" for path, weight in weighted(self.lora)]
        return replace(self, model=model, lora=lora or None)

    @property
    def code(self) -> str:
        """The same in Python, as lines of a script."""
        said = given(allow_pickle=self.allow_pickle or None, memory=self.memory)
        words = ", ".join([repr(self.model), *(f"{name}={value!r}" for name, value in said.items())])
        lora = [f"pipe.load_lora_weights({str(path)!r}, {weight!r})" for path, weight in weighted(self.lora)]
        return "\n".join([f"pipe = openlance.load({words})", *lora])

    def warn(self, pipe: LancePipeline, task: str) -> None:
        """Say in one line on stderr that the model was not trained for what it was asked to do."""
        if not pipe.defaults.knows(task):
            known = ", ".join(pipe.defaults.tasks)
            typer.echo(f"warning: {self.model} was not trained for {task}, only for {known}: expect little", err=True)


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """Who rewrites the prompts before anything is generated."""

    enhance_prompt: Annotated[
        bool, Option("--enhance-prompt", help="Rewrite prompts first: by the model itself, or by the server below.")
    ] = False
    enhance_url: Annotated[
        str | None, Option(help="Base URL of an OpenAI-compatible server.  \\[default: $LANCE_REWRITE_BASE_URL]")
    ] = None
    enhance_model: Annotated[str | None, Option(help="Its model.  \\[default: $LANCE_REWRITE_MODEL_NAME]")] = None

    def enhance(self) -> bool | Enhancer | None:
        """The keyword of the pipeline's methods. UserError for options that go unused, or an invalid address."""
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
    """How something is generated, whatever it is."""

    seed: Seed = None
    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    negative_prompt: Annotated[str | None, Option(help="What not to generate; needs guidance above 1.")] = None
    solver: Solver = None
    distilled: Annotated[
        bool | None, Option("--distilled/--no-distilled", help="Guidance in one pass, where the checkpoint has that.")
    ] = None
    check: Check = None
    think: Think = False
    metadata: Metadata = True

    def settings(self) -> dict[str, Any]:
        """What the user said, as keywords of the pipeline's methods."""
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise UserError(f"--negative-prompt does nothing at --guidance-scale {self.guidance_scale:g}: give above 1")
        names = ("num_inference_steps", "guidance_scale", "solver", "distilled")
        said = given(**{name: getattr(self, name) for name in names})
        Sampling(**said)  # says what is wrong with them
        return said | given(negative_prompt=self.negative_prompt, check=self.check, think=self.think or None)


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

    num_frames: Annotated[int | None, Option(min=1, help="12 a second: 9, 13, 17 ...  \\[default: the model's]")] = None

    def settings(self) -> dict[str, Any]:
        return given(num_frames=self.num_frames) | super().settings()


def weighted(adapters: Sequence[str] | None) -> list[tuple[Path, float]]:
    """Adapters of `--lora PATH[:WEIGHT]` with their weights, 1 where none is given."""
    found = []
    for text in adapters or ():
        path, colon, weight = text.rpartition(":")
        if not colon or Path(text).exists():
            found.append((Path(text), 1.0))
            continue
        try:
            found.append((Path(path), float(weight)))
        except ValueError:
            raise UserError(
                f"--lora {text} has no number behind the colon: write PATH:WEIGHT, such as {path}:0.8"
            ) from None
    return found


def adapted(pipe: LancePipeline, adapters: Sequence[str] | None) -> LancePipeline:
    """The model with the adapters of `--lora`."""
    for path, weight in weighted(adapters):
        pipe.load_lora_weights(path, weight)
    return pipe


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (width, height) in pixels."""
    match = re.fullmatch(r"\s*(-?\d{1,9})\s*[xX×]\s*(-?\d{1,9})\s*", text)
    if match is None:
        raise UserError(f"{option} {text!r} is not a size: give WIDTHxHEIGHT in pixels, for example {option} 96x96")
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise UserError(f"{option} {text} is out of range: each side is 1 to {LARGEST_SIDE} pixels, for example 96x96")
    return width, height


def is_terminal(stream: Any) -> bool:
    """Whether a person reads or writes there; a stream may be closed."""
    return stream is not None and stream.isatty()


def live() -> Callable[[str], None] | None:
    """What prints the pieces of an answer as they are written, where a person reads them."""
    return partial(typer.echo, nl=False) if is_terminal(sys.stdout) else None


def say_answer(answer: Answer, most: int) -> None:
    """Print an answer that was not printed live, and say on stderr if it ended at its limit."""
    typer.echo("" if is_terminal(sys.stdout) else answer)
    if answer.finish_reason == "length":
        typer.echo(f"note: the answer was cut at {most} tokens: raise --max-new-tokens for the rest", err=True)


def check_text(name: str, text: str, example: str) -> str:
    """The text without blanks around it; UserError if nothing is left, or it is no text."""
    if not text.strip():
        raise UserError(f"the {name} is empty: write one, for example {example!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        said = f"the {name} {ascii(text[:40])} holds bytes that are no characters (place {error.start})"
        raise UserError(f"{said}: write it as UTF-8 text") from None
    return text.strip()


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file (`rl.prompts`)."""
    from openlance.rl.prompts import read_prompts as read

    if not path.is_file():
        raise UserError(f"there is no file {path}: --prompts-file takes a text file with one prompt per line")
    return [one.prompt for one in read(path)]


def read_media(path: Path) -> Clip:
    """An image as a video of one frame, or the frames of a video; UserError if it cannot be read or is too large."""
    from openlance.media import read_media as read

    return read(path)


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
    from openlance.media.files import write_json as write

    with no_empty_folders(file.parent):
        write(file, content)


def print_json(content: Any) -> None:
    """Print results for a program that reads them."""
    typer.echo(json.dumps(content, indent=1))


def progress(total: int | None, unit: str, show: bool = True) -> tqdm[Any]:
    """A bar on stderr for what takes longer than two seconds, where a person can see it."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, delay=2.0, disable=None if show else True, leave=False)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: str = "") -> list[str]:
    """Lay rows of text out as lines, two blanks between columns; the last column may be of any width.

    Args:
        rows: Cells, as many in each row.
        right: Columns that stand to the right.
        indent: What each line begins with.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    aligned = ([c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths))] for row in rows)
    return [(indent + "  ".join(cells)).rstrip() for cells in aligned]


def captioned(sources: Mapping[str, Any], caption: str | None) -> dict[str, Any]:
    """Sources by task, with the text of what has none of its own."""
    from openlance.data.open import as_mapping

    if caption is None:
        return dict(sources)
    return {task: as_mapping(spec) | {"caption": caption} for task, spec in sources.items()}


def mapping(columns: list[str] | None) -> dict[str, str]:
    """Columns by our names. UserError for what is not OURS=THEIRS."""
    for column in columns or []:
        if not all(column.partition("=")):
            raise UserError(f"--column {column!r} is not OURS=THEIRS: write for example --column caption=title")
    return dict(column.split("=", 1) for column in columns or [])


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; a model fills in the others itself."""
    return {name: value for name, value in options.items() if value is not None}
