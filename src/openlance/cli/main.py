"""Entry point of the `openlance` command: a table of subcommands and a group that imports only the chosen one.

Nothing here or at the top of a subcommand's file imports torch or numpy, so that help and bad arguments answer at once.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup

from openlance.cli import options
from openlance.cli.errors import RUNNING, guarded, hearing_ctrl_c, wants_debug
from openlance.config.plugins import plugin, plugins
from openlance.errors import UserError

# name: (module with a typer `app`, one line of help). Commands of other packages are plugins.
COMMANDS = {
    "generate": ("openlance.cli.generate", "Generate images and videos from prompts and images."),
    "edit": ("openlance.cli.drawing", "Edit an image or a video as instructed."),
    "ask": ("openlance.cli.ask", "Answer a question about images or videos."),
    "caption": ("openlance.cli.ask", "Describe an image or a video."),
    "chat": ("openlance.cli.chat", "Generate, edit and ask in one dialogue."),
    "story": ("openlance.cli.story", "Generate images, videos and texts in turn."),
    "serve": ("openlance.serve.command", "Serve images, videos and chat over the OpenAI API."),
    "studio": ("openlance.serve.command", "Open the Studio: every task in the browser."),
    "run": ("openlance.cli.run", "Run an input file of the Lance release."),
    "explain": ("openlance.cli.explain", "Print the segments, positions and attention mask of a task."),
    "bench": ("openlance.cli.bench", "Evaluate a model on a benchmark."),
    "init": ("openlance.cli.checkpoints", "Write a checkpoint with random weights."),
    "inspect": ("openlance.cli.checkpoints", "Show what a checkpoint is, and whether it is complete."),
    "convert": ("openlance.cli.checkpoints", "Convert a checkpoint to another layout, or quantize it."),
    "download": ("openlance.cli.checkpoints", "Download a model from the Hugging Face Hub."),
    "train": ("openlance.cli.train", "Train a stage, a recipe or a LoRA adapter."),
    "plan": ("openlance.cli.plan", "Estimate memory, time and cost of training or of a request."),
    "data": ("openlance.cli.data", "Look at training data: what is used, and what is left out."),
    "encode": ("openlance.cli.encode", "Encode media into latents and features ahead of training."),
}


def load_command(name: str) -> Any:
    """Import the module of one subcommand and build its command: its app, or what has that name in it."""
    module, summary = COMMANDS.get(name, ("", ""))
    command: Any = typer.main.get_command(importlib.import_module(module).app if module else plugin("commands", name))
    command = getattr(command, "commands", {}).get(name, command)
    command.name, command.help = name, command.help or summary
    for one in getattr(command, "commands", {name: command}).values():
        one.callback = partial(_remembered, one, one.callback)
    return command


def _remembered(command: Any, call: Any, *given: Any, **said: Any) -> Any:
    """Call a command, and let its errors be said in its options."""
    RUNNING.set(command)
    return call(*given, **said)


class LazyGroup(TyperGroup):
    """Lists the table without importing anything; imports a subcommand's module when it is resolved to be run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *plugins("commands")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])
        try:
            return load_command(cmd_name) if cmd_name in plugins("commands") else None
        except UserError as error:
            return TyperCommand(cmd_name, help=str(error))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name and command is not None else command, rest


app = typer.Typer(cls=LazyGroup, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        import openlance

        typer.echo(f"openlance {openlance.__version__}")
        raise typer.Exit


@app.callback()
def openlance(
    version: Annotated[bool, Option("--version", callback=_print_version, is_eager=True, help="Version.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error (or OPENLANCE_DEBUG=1).")] = False,
) -> None:
    """Generate, edit and understand images and videos with Lance: one model, one interleaved sequence.

    Start with `openlance demo`, or `openlance generate t2i "a red circle" -o out.png`.
    """


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a mistake of the user, 130 when interrupted, 141 when
    whoever reads the output has gone."""
    said = tuple(sys.argv[1:] if argv is None else argv)
    args = list(said)
    words = args[: args.index("--")] if "--" in args else args
    debug = wants_debug(words)
    args = [word for word in words if word != "--debug"] + args[len(words) :]  # may stand anywhere on the line
    command = typer.main.get_command(app)
    options.COMMAND_LINE.set(said)
    with hearing_ctrl_c():
        return guarded(lambda: command.main(args or ["--help"], prog_name="openlance", standalone_mode=False), debug)


if __name__ == "__main__":
    sys.exit(main())
