"""`openlance chat`: draw a picture, change it, ask about it, in plain words; every picture is saved as it comes.

    > draw a red circle left of a blue square
    > make the circle green
    > how many squares are there?
    > /save best.png

The same from Python: `openlance.inference.dialogue.Dialogue(openlance.load("nano"))`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.inference.dialogue import Dialogue, Turn
    from openlance.media import Clip

HELP = """\
Words that begin with "draw" or "a picture of" draw anew, a question asks, all else changes the picture.
/draw TEXT   draw a new picture              /save FILE   write the picture
/edit TEXT   change the picture              /undo        take the last turn back
/ask TEXT    ask about the picture           /new         begin anew
/image FILE  bring a picture or video        /help  /quit"""

app = typer.Typer()


@app.command()
@options.grouped
def chat(
    image: Annotated[Path | None, typer.Argument(help="A picture or video to begin with.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the pictures.")] = Path("chat"),
    history: Annotated[
        int | None, typer.Option("--history", help="Earlier turns that the model sees.  \\[default: the model's]")
    ] = None,
    max_new_tokens: options.NewTokens = 256,
    *,
    drawing: options.Drawing,
    checkpoint: options.Checkpoint,
) -> None:
    """Draw, edit and ask in one dialogue; reads lines from the terminal or from a pipe."""
    settings = drawing.settings() | {"enhance": drawing.enhance()}
    options.at_least("--history", history, 0)
    options.check_tokens(max_new_tokens)
    options.check_writable(output)
    first = options.read_medium(image) if image is not None else None

    from openlance.inference.dialogue import Dialogue

    settings |= {"seed": drawing.seed, "history": history, "max_new_tokens": max_new_tokens}
    pipe = checkpoint.load()
    pipe.metadata = drawing.metadata
    session = Session(Dialogue(pipe, **settings), checkpoint, output)
    if first is not None:
        session.talk.show(first)
    terminal = options.is_terminal(sys.stdin)
    if terminal:
        where = f"seed {session.talk.seed}, pictures in {output}/"
        typer.echo(f"{checkpoint.model}, {where}.  /help says what can be said, /quit ends.")
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
            yield line.strip()


def home(path: str) -> Path:
    """A path as it is typed; `~` is the home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} is no path: {error}") from None


class Session:
    """A dialogue at the terminal: one line in, what came of it out, and every picture as a file in a folder."""

    def __init__(self, talk: Dialogue, checkpoint: options.Checkpoint, folder: Path) -> None:
        self.talk, self.checkpoint, self.folder = talk, checkpoint, folder
        self.warned = set[str]()
        self.commands: dict[str, Callable[[str], Turn | None]] = {
            "/draw": talk.draw, "/edit": talk.edit, "/ask": lambda text: talk.ask(text, self.stream),
            "/image": lambda path: talk.show(options.read_medium(home(path))),
            "/save": self.save, "/undo": self.undo, "/new": self.new, "/help": self.help,
        }  # fmt: skip

    def handle(self, line: str) -> bool:
        """Do what a line says; False if it cannot be done, which is said on stderr."""
        word, _, rest = line.partition(" ")
        start, before = time.perf_counter(), self.talk.picture
        try:
            if line.startswith("/") and word not in self.commands:
                raise UserError(f"there is no command {word}: use one of {', '.join(self.commands)}, /quit")
            turn = self.commands[word](rest.strip()) if line.startswith("/") else self.talk.say(line, self.stream)
            if turn is not None:
                self.show(turn, before, time.perf_counter() - start)
        except (ValueError, OSError) as error:
            from openlance.cli.errors import sentence

            said = sentence(error)
            if said is None:
                raise
            typer.echo(f"error: {said}", err=True)
            return False
        return True

    def show(self, turn: Turn, before: Clip | None, seconds: float) -> None:
        """Say what came of a turn: an answer, or the file of a picture."""
        if turn.answer is not None:
            typer.echo("" if options.is_terminal(sys.stdout) else turn.answer)
            options.say_if_cut(turn.answer, self.talk.decoding.max_new_tokens)
        elif turn.segments and turn.picture is not None:
            self.warn(turn, before)
            path = self.write(turn.picture)
            typer.echo(f"{path}  ({seconds:.1f} s)")
        elif turn.picture is not None:
            typer.echo(f"{turn.picture.width}x{turn.picture.height}, {turn.picture.frames} frame(s)")

    def warn(self, turn: Turn, before: Clip | None) -> None:
        from openlance.sequence.segment import Role
        from openlance.sequence.tasks import edit, kind_of, the_task

        if before is not None and any(s.role is Role.SOURCE for s in turn.segments):
            task = the_task(edit, kind_of(before.frames)).name
            if task not in self.warned:
                self.checkpoint.warn(self.talk.pipe, task)
            self.warned.add(task)

    def stream(self, piece: str) -> None:
        if options.is_terminal(sys.stdout):
            typer.echo(piece, nl=False)

    def write(self, clip: Clip) -> Path:
        """The next free number in the folder."""
        suffix = ".png" if clip.frames == 1 else ".mp4"
        taken = [int(p.stem) for p in self.folder.glob("*.*") if p.stem.isdecimal()] if self.folder.is_dir() else []
        path = self.folder / f"{max(taken, default=-1) + 1:03d}{suffix}"
        with options.no_empty_folders(self.folder):
            clip.save(path)
        return path

    def save(self, name: str) -> None:
        if not name:
            raise UserError("/save needs a file's name: type for example /save best.png")
        if self.talk.picture is None:
            raise UserError("there is no picture to save yet: draw one first")
        self.talk.picture.save(home(name))
        typer.echo(f"saved {name}")

    def undo(self, _: str) -> None:
        gone = self.talk.undo()
        typer.echo(f"took back {gone.said!r}" if gone.said else "took the picture back")

    def help(self, _: str) -> None:
        typer.echo(HELP)

    def new(self, _: str) -> None:
        self.talk.forget()
        typer.echo("a new dialogue")
