"""`openlance data inspect PATH`: what of some data would be trained on, what is left out and why, before it is.

openlance data inspect photos                          # a table, the task that fits
openlance data inspect llava.json --task x2t_image -o sheet.html
openlance data inspect "{path: 'hf:someone/pairs', config: large}" --json

`openlance data prompts -o prompts.jsonl`: prompts that ask for texts in images, for rewards that read them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.data.source import Source

SHOWN = 24  # samples on a contact sheet
app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def data() -> None:
    """Look at training data, and make prompts for rewards."""


@app.command()
def inspect(
    path: Annotated[str, Argument(help="A folder or file of data, hf:NAME, encoded latents, or {path: .., ..}.")],
    task: Annotated[
        str | None, Option(callback=options.named, help="Task that they are for.  \\[default: the first that fits]")
    ] = None,
    caption: options.Caption = None,
    type: Annotated[str | None, Option(help="Dataset type.  \\[default: the task's]")] = None,
    columns: options.Columns = None,
    model: options.Model = "nano",
    stage: Annotated[
        str | None, Option(help="Sizes and packs of SCALE/NAME.  \\[default: sft of the model's scale]")
    ] = None,
    output: Annotated[Path | None, Option("-o", "--output", help="Write a contact sheet, one HTML file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what is used and what is left out, tokens and packs, and the first samples."""
    from openlance.cli.encode import chosen_stage
    from openlance.data.open import as_mapping
    from openlance.data.report import LOOKED_AT, look
    from openlance.media.files import atomic_path
    from openlance.text.tokenizer import SequenceCodec, Tokenizer

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output} is not named as an HTML file: write for example -o sheet.html")
    spec = as_mapping(path) | options.given(caption=caption, type=type, columns=options.mapping(columns) or None)
    files, plan = chosen_stage(model, stage)
    name, source = _opened(spec, task)
    plan = replace(plan, mixture={name: 1.0})
    codec = SequenceCodec(Tokenizer.from_folder(files.tokenizer), files.config)
    style = files.defaults.style
    report = look({name: source}, plan, codec, style, most=SHOWN if output is not None else LOOKED_AT)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(report.page(), encoding="utf-8")
    typer.echo(json.dumps(report.as_data(), indent=1, ensure_ascii=False) if as_json else report.text())
    if output is not None:
        typer.echo(output, err=as_json)


@app.command()
def prompts(
    output: Annotated[Path, Option("-o", "--output", help="File of JSON lines, such as prompts.jsonl.")],
    count: Annotated[int, Option("-n", "--count", min=1, help="How many.")] = 20_000,
    seed: Annotated[int, Option(min=0, help="Other seeds, other prompts.")] = 0,
    language: Annotated[str, Option(help="en, zh, or en+zh in turn.")] = "en",
) -> None:
    """Write prompts that ask for texts in images, for the reward ocr."""
    from dataclasses import asdict

    from openlance.media.files import atomic_path
    from openlance.rl.prompts import text_prompts

    options.check_writable(output.parent)
    if output.suffix.lower() != ".jsonl":
        raise UserError(f"{output} is not named as a file of JSON lines: write for example -o prompts.jsonl")
    made = text_prompts(count, seed, language)
    with atomic_path(output) as temporary:
        lines = (json.dumps(asdict(one), ensure_ascii=False) for one in made)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    typer.echo(output)


def _opened(spec: dict[str, Any], task: str | None) -> tuple[str, Source]:
    """The task and its source; without a task the first that the data fit: pairs, then media and words, then
    questions."""
    from openlance.data.open import open_source
    from openlance.sequence.tasks import TASKS

    if task is not None:
        return task, open_source(spec, task)
    whole = [spec for spec in TASKS.values() if not spec.in_part]
    ordered = sorted(whole, key=lambda s: (not s.sized_by_source or s.makes == "text", s.makes == "text"))
    errors = list[UserError]()
    for one in ordered:
        try:
            source = open_source(spec, one.name)
            source.parts(0, None)  # what is streamed is opened only now
            return one.name, source
        except UserError as error:
            errors.append(error)
    plain = next(n for n, one in enumerate(ordered) if not one.reads)
    raise errors[plain]
