"""`openlance explain image_edit "make it blue" --size 64x64`: what a request becomes, without loading any weights.

Prints the segments, the splits of the sequence with what each does, their positions before and after the modality shift
(MaPE), and the mask; with `-o sequence.svg` they are drawn instead. Images and videos count by their size alone: leave
them out and placeholders take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.config.model import ModelConfig
from openlance.config.sampling import GenerationConfig
from openlance.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from openlance.data.front import Front
    from openlance.media import Clip
    from openlance.sequence.explain import Explanation
    from openlance.sequence.segment import Segments
    from openlance.text.tokenizer import Tokenizer

WIDTH = 100  # columns of the output where they are not a terminal's
RELEASED = "3b"
PROMPT, QUESTION = "a red circle left of a blue square", "what is in the picture?"  # where none is given
FRAMES = 17  # of a video, where nothing else says so
COLORS = {"und": "cyan", "gen": "yellow"}  # by stream

app = typer.Typer(add_completion=False)


@app.command()
def explain(
    task: Annotated[str, Argument(callback=options.named, help="t2i, t2v, i2v, image_edit, x2t_image ...")],
    inputs: Annotated[list[str] | None, Argument(help="A prompt or question; files of images or videos.")] = None,
    model: Annotated[str, Option(help="nano, a checkpoint folder, or 3b for the released model.")] = "nano",
    tokenizer: Annotated[Path | None, Option(help="A tokenizer folder.  \\[default: the model's, else nano's]")] = None,
    size: options.Size = None,
    frames: Annotated[int | None, Option(min=1, help="Frames of every video.")] = None,
    media: Annotated[int, Option(min=1, max=16, help="Number of placeholders, where no file is given.")] = 1,
    answer: Annotated[str | None, Option(help="Explain a training sample with this answer.")] = None,
    no_mape: Annotated[bool, Option("--no-mape", help="Leave out the modality shift of the positions (MaPE).")] = False,
    output: Annotated[Path | None, Option("-o", "--output", help="Draw it into this .svg file instead.")] = None,
) -> None:
    """Print or draw the segments, positions and attention mask of a task; no weights are read."""
    if output is not None:
        if output.suffix.lower() != ".svg":
            raise UserError(f"{output} is no SVG file: give for example -o sequence.svg")
        options.check_writable(output.parent)
    height, width = options.parse_size(size)[::-1] if size is not None else (None, None)
    texts, files = sort_inputs(inputs or [])
    from openlance.sequence.explain import explain as read
    from openlance.sequence.tasks import spec_of
    from openlance.text.tokenizer import SequenceCodec

    spec = spec_of(task)
    if files and not spec.reads:
        raise UserError(f"the task {task} reads no images or videos: leave {files[0]} out")
    if answer is not None and spec.makes != "text":
        raise UserError(f"the task {task} is not answered in words: leave --answer out")
    config, front, words = without_weights(model, tokenizer)
    prompt = texts[0] if texts else QUESTION if spec.makes == "text" else PROMPT
    sizes = (height, width) if height and width else front.transform.usual
    clips = media_of(files, spec.reads, media, frames or FRAMES, sizes)
    if answer is not None:
        segments = front.sample(spec, prompt, clips, answer)
    else:
        segments = front.request(spec, prompt, clips, asked=(frames, height, width))
    if spec.in_part:
        segments = half(segments)
    found = read(
        segments, SequenceCodec(words, config), replace(config.position, shift=not no_mape),
        lambda ids: words.backend.decode(ids, skip_special_tokens=False),
    )  # fmt: skip
    title, more = f"{task} with {model}", ", no modality shift" * no_mape
    if output is None:
        counts = f"{len(found.parts)} segments, {len(found.splits)} splits, {found.tokens} tokens"
        return show(found, f"{title}: {counts}{more}")
    from openlance.media.files import atomic_path
    from openlance.sequence.view import svg

    with options.no_empty_folders(output.parent), atomic_path(output) as path:
        path.write_text(svg(found, title + more), encoding="utf-8")
    typer.echo(output)


def half(request: Segments) -> Segments:
    """The request with a region, where none is said: the right half of an image, the later half of a video."""
    import numpy as np

    from openlance.sequence.segment import Region
    from openlance.sequence.tasks import within

    assert request[-1].size is not None
    inside = np.zeros(request[-1].size, dtype=bool)
    frames, _, width = inside.shape
    inside[(frames + 1) // 2 if frames > 1 else 0 :, :, width // 2 if frames == 1 else 0 :] = True
    return within(request, Region(inside))


def sort_inputs(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Texts and files, told apart by their suffixes."""
    from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files = [Path(word) for word in words if word.lower().endswith(suffixes)]
    texts = [word for word in words if not word.lower().endswith(suffixes)]
    if len(texts) > 1:
        raise UserError(f"there are {len(texts)} texts, {texts[0]!r} and {texts[1]!r}: quote the prompt as one")
    return texts, files


def without_weights(model: str, tokenizer: Path | None) -> tuple[ModelConfig, Front, Tokenizer]:
    """All that is needed of a model here: its configuration, how it puts requests together, and its tokenizer."""
    from openlance.checkpoint.formats import find_model
    from openlance.data.front import Front
    from openlance.media.transform import MediaTransform
    from openlance.text.tokenizer import Tokenizer

    files = find_model("nano" if model == RELEASED else model)
    d = GenerationConfig() if model == RELEASED else files.defaults
    config = ModelConfig() if model == RELEASED else files.config
    transform = MediaTransform(config, usual=(d.height, d.width), bases=d.buckets)
    front = Front(transform=transform, style=d.style, num_frames=FRAMES)
    return config, front, Tokenizer.from_folder(tokenizer or files.tokenizer)


def media_of(files: list[Path], kind: str, count: int, frames: int, size: tuple[int, int]) -> list[Clip]:
    """The media in files, or so many that have only a size; none for a task that reads none."""
    from openlance.media.inputs import as_clip, as_image
    from openlance.planning.workload import placeholder

    if not files:
        return [placeholder(frames if kind == "video" else 1, *size) for _ in range(count if kind else 0)]
    return [as_clip(path) if kind == "video" else as_image(path) for path in files]


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
        before, after = ([", ".join(map(str, end)) for end in ends] for ends in (s.index, s.shifted))
        made.add_row(str(n), *before, *(after if after != before else ["the same", ""]), style=COLORS[s.stream])
    return made


def plain(text: str, most: int) -> Text:
    """Text as it is, line ends visible, its middle left out when it is long."""
    from rich.text import Text

    shown, keep = text.replace("\n", "⏎"), (most - 4) // 2
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
