"""A call: all that one result of the Studio is made from, by names of the server's files.

The page builds it, the queue does it, the browser remembers it, and `code` says it in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from openlance.config.sampling import Decoding
from openlance.inference.inputs import seed_of
from openlance.media import Clip
from openlance.sequence import tasks
from openlance.sequence.segment import Segments
from openlance.serve import media
from openlance.serve.bodies import LONGEST_PROMPT, Regions, VideoBody
from openlance.serve.failures import Failure, about
from openlance.serve.serving import Prepared, Serving
from openlance.serve.worker import Item

MOST_MEDIA = 16  # of one call (OpenAI's, for edits)
PREVIEWS = 10  # at most, of one result
ANSWER = 96  # tokens, as `pipe.ask` has it


class Settings(VideoBody):
    """How something is drawn, and where."""

    region: Regions = None


class Call(BaseModel):
    """What a result is made from.

    Args:
        task: A name of `sequence.tasks.TASKS`.
        text: A prompt, an instruction or a question.
        media: Names of files in the server's store.
        mask: Of one that is white where the last of them may change.
        settings: Fields of `Settings`, or of `Decoding`; what is left out is the checkpoint's own.
        looks_back: Whether the model saw earlier turns of a dialogue as well, which are no part of this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    text: str = Field("", max_length=LONGEST_PROMPT)
    media: tuple[str, ...] = ()
    mask: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    looks_back: bool = False

    @property
    def spec(self) -> tasks.TaskSpec:
        return tasks.spec_of(self.task)

    def settled(self, item: Item) -> Call:
        """The same with what was left open: the seed, but for a greedy answer, and the length."""
        size = item.request[-1].size
        found = {"num_frames": size[0]} if size is not None and "num_frames" in self.spec.takes else {}
        if self.spec.makes != "text" or self.settings.get("temperature"):
            found["seed"] = item.seed
        return self.model_copy(update={"settings": self.settings | found})

    def prepared(self, serving: Serving, past: Sequence[Segments] = ()) -> Prepared:
        """The item of the queue. Failure if it cannot be made."""
        with about("task"):
            spec = self.spec
        clips = [read(serving, name) for name in self.media]
        _check(spec, clips)
        if spec.makes == "text":
            said = dict(self.settings)
            seed = said.pop("seed", None)
            with about("max_new_tokens"):
                how = Decoding(**{"max_new_tokens": ANSWER} | said)
            first = None if seed is None else seed_of(seed)
            return serving.answering(self.text.strip(), clips, how, seed=first, past=past)
        body = Settings(**self.settings)
        mask = read(serving, self.mask, "mask") if self.mask else None
        return serving.drawing(
            spec, self.text.strip(), clips, body, num_frames=body.num_frames, partials=PREVIEWS, past=past,
            mask=mask, region=body.region,
        )  # fmt: skip


def read(serving: Serving, name: str, param: str = "input") -> Clip:
    """What a file of the store shows. Failure if it is gone."""
    return media.read(serving.store.path(name).read_bytes(), serving.config, param)


def _check(spec: tasks.TaskSpec, clips: Sequence[Clip]) -> None:
    """Failure unless these are what a task reads."""
    at_most: dict[tasks.Template, int] = {tasks.image_to_video: 1, tasks.first_and_last: 2}
    most = at_most.get(spec.template, MOST_MEDIA if spec.reads else 0)
    if spec.reads and not clips:
        raise Failure(f"this reads {_a(spec.reads)}: add one first", code="missing_required_parameter", param="input")
    if len(clips) > most:
        reads = f"{most} {spec.reads}s at most" if most else "words alone"
        message = f"this reads {reads}, and {len(clips)} files are given: take some away"
        raise Failure(message, code="invalid_value", param="input")
    kinds = {tasks.kind_of(clip.frames) for clip in clips}
    if spec.makes != "text" and kinds - {spec.reads}:
        wrong = (kinds - {spec.reads}).pop()
        message = f"this reads {spec.reads}s, and {_a(wrong)} is given: choose another task, or take it away"
        raise Failure(message, code="invalid_value", param="input")


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


# In Python.


def code(loading: str, results: Sequence[tuple[Call, str]], earlier: Mapping[str, Call]) -> str:
    """A script that makes results, and before each of them those that it was made from.

    Args:
        loading: The lines that load the model as `pipe`.
        results: The call of each, its seed included, and the name of its file in the store; empty for an answer.
        earlier: The calls of other files by their names; what is not among them is a file that was brought along.
    """
    lines, done = list[str](), set[str]()

    def add(call: Call, name: str) -> None:
        done.add(name)
        for source in (*call.media, *[call.mask] * bool(call.mask)):
            if source in done:
                continue
            if source in earlier:
                add(earlier[source], source)
            else:
                lines.append(f"# {_file(source)} is a file that you brought along: download it from this page")
                done.add(source)
        if call.looks_back:
            lines.append("# made with earlier turns of its dialogue in view, which a call alone has not:")
        said = f"pipe.{_method(call)}"
        lines.append(f"{said}[0].save({_file(name)!r})" if name else f"print({said})")

    for call, name in results:
        if not name or name not in done:
            add(call, name)
    return "\n".join(["import openlance", "", loading, *lines])


def _file(name: str) -> str:
    """What a file is called where people have it."""
    path = PurePath(name)
    return f"{path.stem[:8]}{path.suffix}"


def _edit(files: list[str]) -> str:
    return repr(tuple(files)) if len(files) > 1 else repr(files[0])


# By template: the method with its media and words, of their files and the text.
METHODS: dict[Callable[..., Any], Callable[[list[str], str], str]] = {
    tasks.image_to_video: lambda files, text: f"animate({files[0]!r}, {text!r}",
    tasks.first_and_last: lambda files, text: f"animate({files[0]!r}, {text!r}, last={files[-1]!r}",
    tasks.edit: lambda files, text: f"edit({_edit(files)}, {text!r}",
    tasks.subject_driven: lambda files, text: f"subject({files!r}, {text!r}",
    tasks.understand: lambda files, text: f"ask({files if len(files) > 1 else files[0]!r}, {text!r}",
}


def _method(call: Call) -> str:
    spec, files = call.spec, [_file(name) for name in call.media]
    if spec.template is tasks.text_to_visual:
        said = f"{'generate' if spec.makes == 'image' else 'generate_video'}({call.text.strip()!r}"
    else:
        said = METHODS[spec.template](files, call.text.strip())
    named = call.settings | ({"mask": _file(call.mask)} if call.mask else {})
    return f"{', '.join([said, *(f'{name}={value!r}' for name, value in named.items())])})"
