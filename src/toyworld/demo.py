"""`openlance demo -o outputs/demo`: a model draws a dozen prompts, looks at its own pictures and answers questions,
then moves and changes them, as far as it was trained to.

Writes `index.html` (pictures inside it, so the one file can be passed on) and the pictures as files beside it.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from openlance.cli import options
from openlance.errors import UserError
from toyworld.demo_page import Answer, Card, Wish, is_right, render_page
from toyworld.demo_shows import Shown, perform

app = typer.Typer(add_completion=False)


BOX = "locate the {}"
WISHES = [
    Wish(prompt="a red circle", questions={"what color is the circle?": "red", "how many objects are there?": "1"}),
    Wish(
        prompt="a large blue star on a white background",
        questions={"what shape is the blue object?": "star", "what color is the background?": "white"},
    ),
    Wish(
        prompt="a striped green square",
        questions={"is there a green square?": "yes", "is there a ring?": "no", BOX.format("square"): ""},
    ),
    Wish(
        prompt="a red circle left of a blue square",
        questions={"where is the red circle relative to the blue square?": "left", BOX.format("blue square"): ""},
    ),
    Wish(
        prompt="a yellow triangle above a purple ring",
        questions={"is the yellow triangle above the purple ring?": "yes", BOX.format("purple ring"): ""},
    ),
    Wish(prompt="three orange circles", questions={"how many circles are there?": "3"}),
    Wish(prompt="four blue squares", questions={"how many blue squares are there?": "4"}),
    Wish(
        prompt="a white cross below a red triangle",
        questions={"what color is the cross?": "white", "where is the cross relative to the triangle?": "below"},
    ),
    Wish(
        prompt="an outlined purple circle on a grey background",
        questions={"what shape is the purple object?": "circle", "is there a red circle?": "no"},
    ),
    Wish(prompt='the text "A7"', questions={"what does the text say?": "A7"}),
    Wish(
        prompt="a blue star right of a yellow square",
        size=(96, 64),
        questions={"where is the blue star relative to the yellow square?": "right", BOX.format("blue star"): ""},
    ),
    Wish(
        prompt="a small cyan triangle above a large orange square",
        size=(64, 96),
        questions={"what shape is the cyan object?": "triangle", "how many objects are there?": "2"},
    ),
]


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the page.")] = Path("outputs/demo"),
    model: options.Model = "nano",
    lora: options.Adapters = None,
    seed: options.Seed = None,
    metadata: options.Metadata = True,
) -> None:
    """Draw, ask, animate and edit, and write index.html: the same page on every run unless seeded."""
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output} is a file: name a folder for the page, for example -o outputs/demo")
    options.check_writable(output)

    start = time.perf_counter()
    import openlance
    from openlance.media.inputs import as_clip

    pipe = options.adapted(openlance.load(model, metadata=metadata), lora)
    loaded = time.perf_counter() - start
    seed = secrets.randbelow(2**31) if seed == -1 else 7 if seed is None else seed
    cards = [show(pipe, wish, seed) for wish in progress(WISHES)]
    shown = perform(pipe, {card.wish.prompt: as_clip(card.picture) for card in cards}, seed)
    tally = count(cards, shown)
    page = write(output, cards, shown, title=model, notes=[*tally, f"loaded in {loaded:.1f} s"])
    typer.echo(f"{page}  (seed {seed}; {'; '.join(tally)})")


def count(cards: list[Card], shown: list[Shown]) -> list[str]:
    """How often pictures, answers and all else agree with what was asked, in words."""
    judged = [card.holds for card in cards if card.holds is not None]
    asked = [answer for card in cards for answer in card.answers if answer.expected]
    others = [one.holds for one in shown if one.holds is not None]
    return [
        *([f"{sum(others)} of {len(others)} clips, edits and scenes show what was asked"] if others else []),
        f"{sum(judged)} of {len(judged)} pictures hold what their prompts ask",
        f"{sum(map(is_right, asked))} of {len(asked)} answers agree with the prompts",
        f"{sum(card.seconds for card in cards) / len(cards):.2f} s per picture",
    ]


def progress(items: list[Wish]) -> Any:
    from tqdm import tqdm

    return tqdm(items, unit="prompt", delay=2.0, disable=None, leave=False)


def show(pipe: Any, wish: Wish, seed: int) -> Card:
    """Draw one prompt, then ask its questions about the picture that was drawn."""
    width, height = wish.size
    start = time.perf_counter()
    picture = pipe.generate(wish.prompt, height=height, width=width, seed=seed)[0].convert("RGB")
    card = Card(wish=wish, picture=picture, seconds=time.perf_counter() - start)
    for question, expected in {**wish.questions, "": ""}.items():
        start = time.perf_counter()
        text = pipe.ask(picture, question) if question else pipe.caption(picture)
        seconds = time.perf_counter() - start
        card.answers.append(Answer(question=question, text=text.strip(), expected=expected, seconds=seconds))
    card.holds = verdict(card)
    return card


def verdict(card: Card) -> bool | None:
    """Whether the judge of pixels finds all that the prompt asks for; None where it asks for nothing but lettering,
    which only an optional package can read."""
    import numpy as np

    from toyworld.facts import Lettering
    from toyworld.judge import judge
    from toyworld.words import parse

    facts = [fact for fact in parse(card.wish.prompt) if not isinstance(fact, Lettering)]
    return all(judge(np.asarray(card.picture), facts).values()) if facts else None


def write(output: Path, cards: list[Card], shown: list[Shown], title: str, notes: list[str]) -> Path:
    """Write the pictures, the clips and the page; returns the path of the page."""
    from openlance.media import atomic_path
    from openlance.media.inputs import as_clip

    made = [as_clip(card.picture) for card in cards] + [s.result for s in shown if not isinstance(s.result, str)]
    for index, clip in enumerate(made):
        clip.save(output / f"{index:06d}{'.png' if clip.frames == 1 else '.mp4'}")
    target = output / "index.html"
    with atomic_path(target) as temporary:
        temporary.write_text(render_page(cards, title, notes, shown), encoding="utf-8")
    return target
