"""`openlance explain image_edit "make it blue" --size 64x64`: what a request becomes, without loading any weights.

Prints the segments, the splits of the sequence with what each does, their positions before and after the modality shift
(MaPE), and the mask. Pictures and clips count by their size alone: leave them out and placeholders take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from openlance.config.model import ModelConfig
    from openlance.data.front import Front
    from openlance.media import Clip
    from openlance.sequence.explain import Explanation
    from openlance.sequence.segment import Segments
    from openlance.text.tokenizer import Tokenizer

WIDTH = 100  # columns of the output where they are not a terminal's
RELEASED = "3b"
EXAMPLES = {"text": "what is in the picture?", "image": "a red circle left of a blue square"}
FRAMES = 17  # of a clip, where nothing else says so
COLORS = {"und": "cyan", "gen": "yellow"}  # by stream

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """All that is needed of a model here: its numbers, its tokenizer and its habits."""

    config: ModelConfig
    front: Front
    tokenizer: Tokenizer


@app.command()
def explain(
    task: Annotated[str, typer.Argument(help="t2i, t2v, i2v, image_edit, x2t_image ...", show_default=False)],
    inputs: Annotated[
        list[str] | None, typer.Argument(help="A prompt or question; pictures or clips.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option("--model", help="nano, a checkpoint folder, or 3b for the released one.")] = (
        "nano"
    ),
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of a tokenizer.  \\[default: the model's, else nano's]")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT.  \\[default: the model's]")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of every clip.")] = None,
    media: Annotated[int, typer.Option("--media", help="How many placeholders, where no file is given.")] = 1,
    answer: Annotated[str | None, typer.Option("--answer", help="The answer of a training sample.")] = None,
    no_mape: Annotated[bool, typer.Option("--no-mape", help="Leave the modality shift out.")] = False,
) -> None:
    """Print the segments, positions and mask of a task; no weights are read."""
    wanted = options.parse_size(size)[::-1] if size is not None else None
    options.at_least("--frames", frames, 1)
    options.at_least("--media", media, 1, 16)
    texts, files = sort_inputs(inputs or [])
    check_task(task, files, answer)

    from openlance.sequence.explain import explain as read
    from openlance.text.tokenizer import SequenceCodec

    numbers = numbers_of(model, tokenizer)
    codec = SequenceCodec(numbers.tokenizer, numbers.config)
    segments = compose(task, Inputs(texts, files, wanted, frames, media, answer), numbers)
    position = replace(numbers.config.position, shift=not no_mape)

    def decode(ids: list[int]) -> str:
        return numbers.tokenizer.backend.decode(ids, skip_special_tokens=False)

    found = read(segments, codec, position, decode)
    title = f"{task} with {model}: {len(found.parts)} segments, {len(found.splits)} splits, {found.tokens} tokens"
    show(found, title + ", no modality shift" * no_mape)


@dataclass(frozen=True)
class Inputs:
    """What the line says of one request; size is (height, width)."""

    texts: list[str]
    files: list[Path]
    size: tuple[int, int] | None
    frames: int | None
    media: int
    answer: str | None


def sort_inputs(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Texts and files, told apart by their suffixes."""
    from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files = [Path(word) for word in words if word.lower().endswith(suffixes)]
    texts = [word for word in words if not word.lower().endswith(suffixes)]
    if len(texts) > 1:
        raise UserError(f"there are {len(texts)} texts, {texts[0]!r} and {texts[1]!r}: quote the prompt as one")
    return texts, files


def check_task(task: str, files: list[Path], answer: str | None) -> None:
    from openlance.sequence.tasks import spec_of

    spec = spec_of(task)
    if files and not spec.reads:
        raise UserError(f"the task {task} reads no pictures: leave {files[0]} out")
    if answer is not None and spec.makes != "text":
        raise UserError(f"the task {task} is not answered in words: leave --answer out")


def numbers_of(model: str, tokenizer: Path | None) -> Numbers:
    """Configuration and tokenizer of a name or folder; no tensor is read."""
    from openlance.checkpoint.formats import find_model
    from openlance.config.model import ModelConfig
    from openlance.config.sampling import GenerationConfig
    from openlance.data.front import Front
    from openlance.media.transform import MediaTransform
    from openlance.text.tokenizer import Tokenizer

    files = find_model("nano" if model == RELEASED else model)
    d = GenerationConfig() if model == RELEASED else GenerationConfig.read(files.tokenizer)
    config = ModelConfig() if model == RELEASED else files.config
    transform = MediaTransform(config, usual=(d.height, d.width), bases=d.buckets)
    return Numbers(
        config=config,
        front=Front(transform=transform, style=d.style, num_frames=FRAMES),
        tokenizer=Tokenizer.from_folder(tokenizer or files.tokenizer),
    )


def compose(task: str, given: Inputs, numbers: Numbers) -> Segments:
    """The request, its media as placeholders of the right sizes; with an answer the sample."""
    from openlance.sequence.tasks import spec_of

    spec, front = spec_of(task), numbers.front
    media = media_of(given, spec.reads, front)
    asked = (given.frames, *(given.size or (None, None)))
    prompt = given.texts[0] if given.texts else EXAMPLES.get(spec.makes, EXAMPLES["image"])
    if given.answer is not None:
        return front.sample(spec, prompt, media, given.answer)
    return front.request(spec, prompt, media, asked=asked)


def media_of(given: Inputs, reads: str, front: Front) -> list[Clip]:
    """The files, or as many placeholders."""
    from openlance.media.inputs import as_clip, as_image
    from openlance.planning.workload import placeholder

    if not reads:
        return []
    if given.files:
        return [as_clip(path) if reads == "video" else as_image(path) for path in given.files]
    frames = (given.frames or FRAMES) if reads == "video" else 1
    return [placeholder(frames, *(given.size or front.transform.usual)) for _ in range(given.media)]


def show(found: Explanation, title: str) -> None:
    """Print all tables, in the width of the terminal or in 100 columns."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(title, style="bold", markup=False)
    for name, part in (
        ("Segments", segment_table(found)),
        ("Splits (latents take the stream gen, all else und, also the two markers around latents)", split_table(found)),
        ("Positions t, h, w of the first and the last token, without markers", position_table(found)),
        ("Mask: may a row look at a column? ██ yes, ·· no; each split is drawn by a few of its tokens", mask(found)),
    ):
        console.print("\n" + name, style="bold", markup=False)
        console.print(part)


def table(*columns: str) -> Table:
    """A table without frame; counts stand right, and only the content may take several lines."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        numeric = name in ("#", "tokens")
        made.add_column(name, justify="right" if numeric else "left", no_wrap=name != "content", overflow="fold")
    return made


def segment_table(found: Explanation) -> Table:
    made = table("#", "kind", "role", "content", "tokens")
    for n, part in enumerate(found.parts, start=1):
        count = "-" if part.tokens is None else str(part.tokens)
        made.add_row(str(n), part.kind, part.role, plain(part.content, 200), count)
    made.add_row("", "", "", "(chat template)", str(found.template), style="dim")
    return made


def split_table(found: Explanation) -> Table:
    made = table("#", "content", "rows", "tokens", "stream", "attends", "later", "flow time", "loss")
    for n, s in enumerate(found.splits, start=1):
        cells = [f"{s.first}-{s.last}", str(s.tokens), s.stream, s.attends, "seen" if s.later else "hidden"]
        made.add_row(str(n), plain(s.content, 22), *cells, s.time, s.loss, style=COLORS[s.stream])
    return made


def position_table(found: Explanation) -> Table:
    made = table("#", "index, first", "index, last", "shifted, first", "shifted, last")
    for n, s in enumerate(found.splits, start=1):
        moved = [triple(end) for end in s.shifted] if s.shifted != s.index else ["the same", ""]
        made.add_row(str(n), *(triple(end) for end in s.index), *moved, style=COLORS[s.stream])
    return made


def triple(position: tuple[int, ...]) -> str:
    return ", ".join(map(str, position))


def plain(text: str, most: int) -> Text:
    """Text as it is, line ends visible, its middle left out when it is long."""
    from rich.text import Text

    shown = text.replace("\n", "⏎")
    keep = (most - 4) // 2
    return Text(shown if len(shown) <= most else f"{shown[:keep]} .. {shown[-keep:]}")


def mask(found: Explanation) -> Text:
    """One line per chosen row: the number of its split, then two characters per chosen column."""
    from rich.text import Text

    from openlance.sequence.explain import mask_picture

    picture = mask_picture(found)
    widths = [len(block) for block in picture]  # a split has as many columns as lines
    heads = " ".join(str(n).ljust(2 * width) for n, width in enumerate(widths, start=1))
    lines = [Text("    " + heads, style="bold")]
    for query, block in enumerate(picture, start=1):
        for number, cells in enumerate(block):
            line, rest = Text(f"{'' if number else query:>3}", style="bold"), iter(cells)
            for split, width in zip(found.splits, widths):
                line.append(" ")
                for _ in range(width):
                    seen = next(rest)
                    line.append("██" if seen else "··", style=f"not bold {COLORS[split.stream] if seen else 'dim'}")
            lines.append(line)
    return Text("\n").join(lines)
