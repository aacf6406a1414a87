"""`openlance chat`: generate an image or a video, edit it, animate it, ask about it, in plain words; every result is
saved as it comes.

    > draw a red circle left of a blue square
    > make the circle green
    > how many squares are there?
    > animate: the circle moves up
    > /save best.mp4

The same from Python: `openlance.inference.dialogue.Dialogue(openlance.load("nano"))`.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from openlance.cli import options
from openlance.cli.errors import sentence
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.inference.dialogue import Dialogue, Turn
    from openlance.media import Clip

HELP = """\
"draw ..." or "an image of ..." generates an image, "film ..." or "a video of
..." a video, "animate ..." a video that begins with the image. A question is
answered; anything else edits what is there, or draws where nothing is.
/draw TEXT     generate an image         /undo          take back the last turn
/film TEXT     generate a video          /turns         list the turns
/animate TEXT  begin a video with it     /branch N      go on from turn N
/edit TEXT     edit it                   /switch N      go to branch N
/ask TEXT      ask about it              /new           start again
/show FILE...  load images or a video     /save FILE     write what is there
/help                                    /quit"""

app = typer.Typer(add_completion=False)


@app.command()
@options.grouped
def chat(
    image: Annotated[Path | None, Argument(help="An image or a video to begin with.")] = None,
    output: Annotated[Path, Option("-o", "--output", help="Folder of the results.")] = Path("chat"),
    history: Annotated[int | None, Option(min=0, help="Earlier turns to include.  \\[default: the model's]")] = None,
    video_size: Annotated[
        str | None, Option(metavar="WIDTHxHEIGHT", help="Of videos, where --size is another.")
    ] = None,
    max_new_tokens: options.NewTokens = 256,
    *,
    drawing: options.Filming,
    checkpoint: options.Checkpoint,
) -> None:
    """Generate, edit, animate and ask in one dialogue; reads lines from the terminal or from a pipe."""
    settings = drawing.settings() | {"enhance": drawing.enhance(), "seed": drawing.seed, "history": history}
    if video_size is not None:
        settings["video"] = dict(zip(("width", "height"), options.parse_size(video_size, "--video-size")))
    options.check_writable(output)
    first = options.read_media(image) if image is not None else None

    from openlance.inference.dialogue import Dialogue

    pipe = checkpoint.load()
    pipe.metadata = drawing.metadata
    talk = Dialogue(pipe, max_new_tokens=max_new_tokens, progress=options.is_terminal(sys.stderr), **settings)
    session = Session(talk, checkpoint, output)
    if first is not None:
        session.talk.show(first)
    terminal = options.is_terminal(sys.stdin)
    if terminal:
        where = f"seed {session.talk.seed}, results in {output}/"
        typer.echo(f"{checkpoint.model}, {where}.  /help lists the commands, /quit ends.")
        typer.echo('Try: "draw a red circle", "make it blue", "what color is it?", "animate: it moves up".')
    mistakes = sum(not session.handle(line) for line in lines())
    if mistakes and not terminal:
        raise typer.Exit(2)


def lines() -> Iterator[str]:
    """What is typed, without blank lines, to its end or to /quit; a pipe is read without a prompt."""
    if sys.stdin is None:  # closed
        return
    terminal = options.is_terminal(sys.stdin)
    if terminal:
        import readline  # noqa: F401  (arrow keys and history in input())
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError(f"a line is not UTF-8 text ({error.reason}): send what is typed as UTF-8") from error
        if (not line and not terminal) or line.strip() in ("/quit", "/exit"):
            return
        if line.strip():
            yield options.check_text("line", line, "draw a red circle")


def home(path: str) -> Path:
    """A path as it is typed; `~` is the home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} is no path: {error}") from None


class Session:
    """Dialogues at the terminal: one line in, what came of it out, and every result as a file in a folder."""

    def __init__(self, talk: Dialogue, checkpoint: options.Checkpoint, folder: Path) -> None:
        self.talk, self.branches, self.checkpoint, self.folder = talk, [talk], checkpoint, folder
        self.warned = set[str]()
        self.commands: dict[str, Callable[[str], Turn | None]] = {
            "/draw": lambda text: self.talk.draw(text), "/film": lambda text: self.talk.film(text),
            "/animate": lambda text: self.talk.animate(text), "/edit": lambda text: self.talk.edit(text),
            "/ask": lambda text: self.talk.ask(text, options.live()), "/show": self.bring, "/image": self.bring,
            "/save": self.save, "/undo": self.undo, "/turns": self.list, "/branch": self.branch,
            "/switch": self.switch, "/new": self.new, "/help": lambda _: typer.echo(HELP),
        }  # fmt: skip

    def handle(self, line: str) -> bool:
        """Do what a line says; False if it cannot be done, which is said on stderr."""
        word, _, rest = line.partition(" ")
        start = time.perf_counter()
        try:
            if line.startswith("/") and word not in self.commands:
                raise UserError(f"there is no command {word}: /help lists them")
            turn = self.commands[word](rest.strip()) if line.startswith("/") else self.talk.say(line, options.live())
            if turn is not None:
                self.show(turn, time.perf_counter() - start)
        except KeyboardInterrupt:
            if not options.is_terminal(sys.stdin):
                raise
            typer.echo("stopped; nothing has changed", err=True)
        except (ValueError, OSError) as error:
            said = sentence(error)
            if said is None:
                raise
            typer.echo(f"error: {said}", err=True)
            return False
        return True

    def show(self, turn: Turn, seconds: float) -> None:
        """Say what came of a turn: an answer, or the file of an image or video."""
        if turn.answer is not None:
            options.say_answer(turn.answer, self.talk.decoding.max_new_tokens)
        elif turn.segments and turn.picture is not None:
            self.warn(turn)
            typer.echo(f"{self.write(turn.picture)}  ({seconds:.1f} s)")
            if turn.picture.verdict is not None:
                typer.echo(str(turn.picture.verdict))
        elif turn.picture is not None:
            typer.echo(f"{turn.picture.width}x{turn.picture.height}, {turn.picture.frames} frame(s)")

    def warn(self, turn: Turn) -> None:
        """Say once of a task that the model was not trained for it."""
        from openlance.sequence.tasks import task_of

        task = task_of(turn.segments)
        if task is not None and task.name not in self.warned:
            self.checkpoint.warn(self.talk.pipe, task.name)
            self.warned.add(task.name)

    def write(self, clip: Clip) -> Path:
        """The next free number in the folder."""
        suffix = ".png" if clip.frames == 1 else ".mp4"
        taken = [int(p.stem) for p in self.folder.glob("*.*") if p.stem.isdecimal()] if self.folder.is_dir() else []
        path = self.folder / f"{max(taken, default=-1) + 1:03d}{suffix}"
        with options.no_empty_folders(self.folder):
            clip.save(path)
        return path

    def bring(self, said: str) -> Turn:
        try:
            paths = [said] if home(said).exists() else shlex.split(said)
        except ValueError:  # a quotation mark in a name
            paths = [said]
        return self.talk.show(*(options.read_media(home(path)) for path in paths or [said]))

    def save(self, name: str) -> None:
        if not name:
            raise UserError("/save needs a file's name: type for example /save best.png")
        if self.talk.picture is None:
            raise UserError("there is no image to save yet: draw one first")
        self.talk.picture.save(home(name))
        typer.echo(f"saved {name}")

    def undo(self, _: str) -> None:
        gone = self.talk.undo()
        typer.echo(f"took back {gone.said!r}" if gone.said else "took the image back")

    def list(self, _: str) -> None:
        """The turns of this branch, numbered."""
        if not self.talk.turns:
            typer.echo("no turns yet")
        for n, turn in enumerate(self.talk.turns, start=1):
            became = turn.answer if turn.answer is not None else _medium(turn)
            typer.echo(f"{n:3}  {turn.said or '(brought along)'}  ->  {became}")

    def branch(self, turn: str) -> None:
        """Go on from an earlier turn; this branch stays."""
        kept = _number("/branch", turn, len(self.talk.turns), "turn", least=0)
        here = self.branches.index(self.talk)
        self.talk = self.talk.branch(kept)
        self.branches.append(self.talk)
        typer.echo(f"branch {len(self.branches)}, from turn {kept}; /switch {here + 1} goes back")

    def switch(self, branch: str) -> None:
        """Go to another branch."""
        self.talk = self.branches[_number("/switch", branch, len(self.branches), "branch") - 1]
        last = self.talk.turns[-1].said if self.talk.turns else ""
        typer.echo(f"branch {branch}" + (f", after {last!r}" if last else ""))

    def new(self, _: str) -> None:
        self.talk.forget()
        typer.echo("a new dialogue")


def _medium(turn: Turn) -> str:
    clip = turn.picture
    return "" if clip is None else "image" if clip.frames == 1 else f"video of {clip.frames} frames"


def _number(command: str, text: str, most: int, what: str, least: int = 1) -> int:
    """What follows a command, as a number. UserError if it is none, or there is no such turn or branch."""
    if not (text.isdecimal() and len(text) < 7 and least <= int(text) <= most):
        raise UserError(f"{command} {text}".rstrip() + f": there is no such {what}, expected {least} to {most}")
    return int(text)
