"""Prompts in more words before anything is drawn: by the checkpoint's own text side, or by a language model behind any
server that speaks OpenAI's chat form.

pipe("a red circle", enhance=True).revised_prompts
pipe.generate("a red circle", enhance=Enhancer(url="http://localhost:8000/v1", model="Qwen/Qwen3-8B"))

Both are a `Writer`: a text and images in, an answer out. What is asked and what becomes of the answer stands once, in
`rewriter`: the new prompt takes the place of the old one in a request, whoever put that together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openlance.config.sampling import Decoding
from openlance.config.values import brief, flag
from openlance.data.front import NO_SIZE
from openlance.errors import UserError
from openlance.inference.chat_server import ChatServer
from openlance.media.clip import Clip
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segments, prompt_in, with_prompt
from openlance.text.phrases import quoted

if TYPE_CHECKING:
    from openlance.inference.engine import Engine
    from openlance.runtime.distributed import Distributed

# Without a handler of the application's own, Python's last resort prints warnings of a logger on stderr as they are.
log = logging.getLogger(__name__)

INSTRUCTION = (
    "Rewrite the prompt below for a model that {does}. {rule} Copy every text in quotation marks letter by letter, with"
    " its marks. Translate all else into English if it is not. Answer with the new prompt alone, as a plain paragraph."
    "\n\nPrompt: {prompt}"
)
DRAWN = (
    "Keep its subject, action, place and every detail it names; where it is silent, add light, texture and framing, and"
    " nothing that contradicts it."
)
MOVING = " Say how things and the camera move."
SHOWN = " Say what the images given with it show as they show it."
CHANGED = (
    "Keep every change that it asks for and add none; name what is changed by how the images given with it show it."
)
OWN_TOKENS = 512  # of the checkpoint's own text side: a page
SELF = "self"
THOUGHT = "</think>"  # what a reasoning model says before this is not its answer

# (a text, images it is about) -> the answer, and why it ended: "length" where it was cut.
Writer = Callable[[str, Sequence[Clip]], tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Enhancer(ChatServer):
    """A server that rewrites prompts; arguments as of `ChatServer`. Temperature and length are the release's."""

    INSTEAD = "choose another Enhancer(model=...), or draw the prompt as it is with enhance=None"

    temperature: float | None = 0.3
    max_tokens: int = 2048


def own_side(engine: Engine) -> Writer:
    """The checkpoint's own text side: the text is a question, about the images if there are any; greedy."""

    def write(text: str, pictures: Sequence[Clip]) -> tuple[str, str]:
        about = tasks.the_task(tasks.understand, "image")
        asked = engine.front.request(about, text, pictures) if pictures else tasks.understand(text, [], NO_SIZE)
        answer = engine.fill_text([asked], Decoding(max_new_tokens=OWN_TOKENS))[0]
        return answer, answer.finish_reason

    return write


def rewriter(engine: Engine, enhance: bool | str | Enhancer | None) -> Callable[[Segments], Segments] | None:
    """Find what rewrites the prompts of requests; None where nobody wants that.

    A prompt is rewritten once however often it comes, with the first frame of each image and video that it is about.
    What is drawn is said through the logger `openlance.inference.enhance`. A rewrite that lost a text in quotation
    marks is dropped, and the prompt stays as it was. With several processes the leading one's rewrite holds.

    Args:
        engine: Whose requests these are.
        enhance: True or "self" for the checkpoint's own text side; an `Enhancer`, or the address of one.

    Returns:
        A request -> the request with its new prompt. UserError if there is none: the answer was empty or cut, or the
        server is none.

    Raises:
        UserError: If `enhance` is something else.
    """
    if isinstance(enhance, str) and enhance != SELF:
        enhance = Enhancer(url=enhance)
    if enhance is None or not (isinstance(enhance, (str, Enhancer)) or _wanted(enhance)):
        return None
    write = enhance if isinstance(enhance, Enhancer) else own_side(engine)
    untrained = write is not enhance and engine.defaults.tasks  # which lists all that it was trained for
    caveat = " (the model was not trained to rewrite: expect little)" if untrained else ""
    known = dict[tuple, str]()

    def rewrite(request: Segments) -> Segments:
        prompt, pictures = prompt_in(request), shown_in(request)
        if not prompt.strip():
            return request
        text = instruction(request)
        key = (text, *(picture.key for picture in pictures))
        if key not in known:
            known[key] = _agreed(engine.processes, lambda: revised(prompt, *write(text, pictures), caveat))
        return with_prompt(request, known[key])

    return rewrite


def _wanted(enhance: Any) -> bool:
    try:
        return flag("enhance", enhance)
    except UserError:
        good = 'True, the address of a server, or Enhancer(url="...", model="...")'
        raise UserError(f"enhance is {brief(enhance)}: expected {good}") from None


def thinker(engine: Engine, think: Any) -> Callable[[Segments], Segments] | None:
    """Find what writes down how a result will look before it is drawn; None where nobody wants that.

    Args:
        engine: Whose text side writes: the request with a text in the place of its target.
        think: True or False.

    Returns:
        A request -> the request with that description in front of its target.

    Raises:
        UserError: If the checkpoint does not say that it was trained to (`thinks` in generation_config.json).
    """
    if not flag("think", think):
        return None
    if not engine.defaults.thinks:
        name = engine.parts.files.repo or engine.folder.absolute().name
        raise UserError(f"{name} was not trained to describe a result before it draws it: leave think out")

    def written(request: Segments) -> Segments:
        *before, target = request
        text = engine.fill_text([[*before, tasks.reply()]], Decoding())[0]
        return [*before, tasks.say(text), target] if text else request

    return written


def shown_in(request: Segments) -> list[Clip]:
    """The first frame of each image and video that a request reads, what the target begins with first."""
    kept = [s for s in request if s.kind is Kind.LATENTS]
    values = (*(s.given for s in kept), *(s.value for s in kept))
    return [Clip(clip.pixels[:1]) for clip in values if isinstance(clip, Clip)]


def instruction(request: Segments) -> str:
    """What a writer is asked for the prompt of a request."""
    moves, changes = request[-1].size[0] > 1, any(s.role is Role.SOURCE for s in request)  # type: ignore[index]
    rule = CHANGED if changes else DRAWN + (MOVING if moves else "") + (SHOWN if shown_in(request) else "")
    does = f"{'changes' if changes else 'draws'} {'videos' if moves else 'images'}"
    return INSTRUCTION.format(does=does, rule=rule, prompt=prompt_in(request))


def revised(prompt: str, answer: str, finish_reason: str, caveat: str = "") -> str:
    """The prompt that is drawn, which is said. UserError for an answer that was cut, or is none."""
    text = " ".join(answer.rpartition(THOUGHT)[2].split())
    if finish_reason == "length" or not text:
        wrong = "was cut at its limit" if finish_reason == "length" else "is empty"
        raise UserError(f"the rewrite of {brief(prompt)} {wrong}: {Enhancer.INSTEAD}")
    lost = sorted(set(quoted(prompt)) - set(quoted(text)))
    if lost:
        log.warning("note: prompt kept as it was: its rewrite lost the quoted text %r", lost[0])
        return prompt
    log.warning("note: prompt rewritten to %r%s", text, caveat)
    return text


def _agreed(processes: Distributed, make: Callable[[], str]) -> str:
    """What the leading process makes, or its failure, in every process that draws along."""
    said: Any = None
    if processes.leads:
        try:
            said = make()
        except UserError as error:
            said = error
    said = processes.agreed(said)
    if isinstance(said, UserError):
        raise said
    return said
