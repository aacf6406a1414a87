"""What mkdocs cannot do by itself: the site's hooks (`hooks:` in mkdocs.yml).

Pages of `reference/cli/` are made from the commands themselves. A link from a page to a file of the repository, which
works on GitHub as it is, becomes a link to a page that shows the file, so that the site is whole without a network; one
to a file that does not exist is a warning, which `mkdocs build --strict` does not let pass.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))  # the commands are those of this tree
log = logging.getLogger("mkdocs.hooks.pages")
LINK = re.compile(r"(?<=\])\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
FENCED = re.compile(r"^(`{3,}).*?^\1", re.MULTILINE | re.DOTALL)
BOOST = {"tutorials/": 4.0, "howto/": 2.0, "reference/": 0.5, "log.md": 0.2}  # what the search puts first
MADE: dict[str, str] = {}  # pages that stand for a file or folder of the repository
SHOWN = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "sh", "Makefile": "make", "Dockerfile": "docker"}


def on_config(config: Any) -> Any:
    """The entry "reference/cli/" of the navigation becomes the pages of the commands."""
    from openlance.cli.main import COMMANDS
    from openlance.config.plugins import plugins

    pages = [{name: f"reference/cli/{name}.md"} for name in (*COMMANDS, *plugins("commands"))]
    config.nav = _filled(config.nav, pages)
    return config


def _filled(nav: Any, pages: list[Any]) -> Any:
    if isinstance(nav, list):
        return [_filled(one, pages) for one in nav]
    if isinstance(nav, dict):
        return {title: pages if to == "reference/cli/" else _filled(to, pages) for title, to in nav.items()}
    return nav


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the commands, and of every file that a page links to."""
    for name, text in command_pages():
        files.append(File.generated(config, f"reference/cli/{name}.md", content=text))
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    seen = set[str]()
    while waiting:
        here, text = waiting.pop()
        for path in linked(text, here):
            if path in seen or path in ("", ".") or path.startswith(("docs/", "..")) or not (ROOT / path).exists():
                continue
            seen.add(path)
            MADE[place(path)] = f"{path}/" if (ROOT / path).is_dir() else path
            if (ROOT / path).is_dir():
                names = sorted(one.name for one in (ROOT / path).iterdir() if one.is_file())
                text = f"# {path}\n\n" + "\n".join(f"- [{name}]({name})" for name in names)
                files.append(File.generated(config, place(path), content=text))
                waiting.append((f"{path}/index", text))
            elif path.endswith((".md", *SHOWN)) or Path(path).name in SHOWN:
                shown = page_of(path)
                files.append(File.generated(config, place(path), content=shown))
                waiting.append((path, (ROOT / path).read_text("utf-8") if path.endswith(".md") else ""))
            else:
                files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links that leave docs/ to the pages that stand for their files."""
    uri = page.file.src_uri
    page.meta.setdefault("search", {"boost": next((to for at, to in BOOST.items() if uri.startswith(at)), 1.0)})
    source = MADE.get(uri, f"docs/{uri}")

    def led(match: re.Match[str]) -> str:
        path = joined(source, match["path"])
        if "://" in match["path"] or match["path"].startswith("/"):
            return match[0]
        if path.startswith("docs/"):
            to = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            to = place(path)
        else:
            log.warning("%s links to %s, which is no file", source, match["path"])
            return match[0]
        return f"({os.path.relpath(to, os.path.dirname(uri) or '.')}{match['anchor'] or ''})"

    return outside_code(markdown, lambda text: LINK.sub(led, text))


def outside_code(text: str, change: Any) -> str:
    """Change a text of Markdown where it is no fenced code."""
    parts, end = list[str](), 0
    for block in FENCED.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def linked(text: str, here: str) -> Iterator[str]:
    """Paths in the repository that a page links to."""
    for match in LINK.finditer(FENCED.sub("", text)):
        yield joined(here, match["path"])


def joined(here: str, path: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(here), path)).replace(os.sep, "/")


def place(path: str) -> str:
    """Where the site has a file or folder of the repository."""
    if (ROOT / path).is_dir():
        return f"files/{path}/index.md"
    if path.endswith(".md"):
        return f"files/{path.removesuffix('README.md') + 'about.md' if path.endswith('README.md') else path}"
    shown = path.endswith(tuple(SHOWN)) or Path(path).name in SHOWN
    return f"files/{path}.md" if shown else f"files/{path}"


def page_of(path: str) -> str:
    """A file of the repository as a page, which the search leaves to the pages of the documentation."""
    text = (ROOT / path).read_text("utf-8")
    if not path.endswith(".md"):
        language = SHOWN.get(Path(path).suffix) or SHOWN[Path(path).name]
        text = f"# {path}\n\n````{language}\n{text}````\n"
    return f"---\nsearch:\n  exclude: true\n---\n\n{text}"


def command_pages() -> Iterator[tuple[str, str]]:
    """(name, page) of every command, with what its `--help` says."""
    from openlance.cli.main import COMMANDS, load_command
    from openlance.config.plugins import plugins

    for name in (*COMMANDS, *plugins("commands")):
        yield name, "\n".join(_command(load_command(name), f"openlance {name}", 1))


def _command(command: Any, called: str, level: int) -> Iterator[str]:
    import typer

    context = typer.Context(command, info_name=called)
    yield f"{'#' * level} {called}\n"
    yield f"{_prose(command.help or '')}\n"
    if not hasattr(command, "commands"):
        yield f"```\n{' '.join([called, *command.collect_usage_pieces(context)])}\n```\n"
    for kind in ("argument", "option"):
        shown = [param for param in command.params if param.param_type_name == kind and not param.hidden]
        rows = [row for param in shown if (row := param.get_help_record(context))]
        if rows:
            yield f"| {kind}s | meaning |\n| --- | --- |"
            yield from (
                f"| `{' '.join(name.split())}` | {_cell(said)} |".replace("\\|", "&#124;") for name, said in rows
            )
            yield ""
    for name, one in getattr(command, "commands", {}).items():
        yield from _command(one, f"{called} {name}", level + 1)


def _prose(text: str) -> str:
    """A help text, whose indented lines are commands."""
    return _escaped(re.sub(r"\n *\b\n", "\n", text).strip())


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"(?<!`)([<*_])(?![^`]*`)", r"\\\1", text)
