"""The tab of the dialogue: draw, change, ask, animate, go back, and go on from any turn.

What a turn asks for is read by `inference.turns`, as `openlance chat` and the server's chat have it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from openlance.inference import turns
from openlance.inference.turns import KINDS, Heard
from openlance.sequence.segment import Segments
from openlance.serve.failures import Failure
from openlance.serve.studio import fields, look, parts
from openlance.serve.studio.calls import Call, code, read
from openlance.serve.studio.memory import Result, Talk, Turn, added, results
from openlance.serve.studio.parts import EVENT, Shared, session, told
from openlance.serve.studio.running import Progress

MAKES = [("As I say it", "any"), ("An image", "image"), ("A video", "video"), ("An answer", "text")]
SETTINGS = ("seed", "num_inference_steps", "guidance_scale", "width", "height", "num_frames", "check", "region")
BEGIN = "Draw something, then change it, ask about it, let it move. Or bring an image or a video along."


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """The components of the tab."""

    shared: Shared
    state: Any  # of the browser: a `Talk`
    log: Any
    box: Any
    inputs: Any
    strip: Any
    makes: Any
    boxes: dict[str, Any]
    chips: Any
    undo: Any
    new: Any
    stop: Any
    script: Any

    @property
    def shown(self) -> list[Any]:
        """What `show` changes."""
        return [self.state, self.log, self.chips, self.script]

    def show(self, talk: Talk, wrong: str = "", memory: Any = ()) -> dict[Any, Any]:
        """Updates that show a conversation."""
        known = {one.file: one.call for one in results(memory)} | talk.calls
        path = [talk.turns[n] for n in talk.path]
        made = [(turn.call, turn.file) for turn in path if turn.call is not None]
        text = code(self.shared.loading, made, known) if made else ""
        return {
            self.state: talk.model_dump(mode="json"), self.log: self.drawn(talk, wrong),
            self.chips: look.chips(self.examples(path)), self.script: look.python(text),
        }  # fmt: skip

    def drawn(self, talk: Talk, more: str = "") -> str:
        shown = "".join(_turn(talk, n, self.shared.zoom) for n in talk.path) + more
        return f'<div class="studio talk" role="log" aria-live="polite">{shown or _empty()}</div>'

    def examples(self, path: list[Turn]) -> list[str]:
        """What may be said next, in the words of the checkpoint's own examples."""
        file = next((turn.file or turn.shown[-1] for turn in reversed(path) if turn.file or turn.shown), "")
        given = self.shared.serving.pipe.defaults.examples
        if not file:
            begin = [f"draw {text}" for text in given.get("t2i", ())[:3]]
            return begin + [f"film {text}" for text in given.get("t2v", ())[:1]]
        if file.endswith(".mp4"):
            return [*given.get("video_edit", ())[:2], *given.get("x2t_video", ())[:2]]
        moves = [f"animate: {text}" for text in given.get("i2v", ())[:1]]
        return [*given.get("image_edit", ())[:3], *given.get("x2t_image", ())[:2], *moves]

    # A turn.

    def asked(self, talk: Talk, text: str, files: list[str], makes: str, said: dict[str, Any]) -> tuple[Call, Any]:
        """What a turn asks for, as a call and its past. Failure or UserError if nothing can be made of it."""
        serving, history = self.shared.serving, self.shared.serving.pipe.defaults.history
        path = [talk.turns[n] for n in talk.path]
        seen = next((k for k in reversed(range(len(path))) if path[k].file or path[k].shown), len(path))
        names, heard = dict[int, str](), list[Heard]()

        def clips(files: Any) -> list[Any]:
            found = [read(serving, file) for file in files]
            names.update({id(clip): file for clip, file in zip(found, files, strict=True)})
            return found

        for turn in path if history else path[seen:]:  # a model that does not look back needs the table alone
            made = clips([turn.file] if turn.file else [])
            heard.append(Heard(text=turn.text, shown=clips(turn.shown), answer=turn.answer, made=made))
        shown = clips(files)
        meant = turns.wanted(text, turns.table(heard), shown=shown, modalities=KINDS if makes == "any" else [makes])
        if meant.spec.makes == "text" and not meant.clips:
            raise Failure("there is nothing to look at yet: draw an image first", code="invalid_value", param="input")
        past: list[Segments] = turns.newest(turns.retold(serving.pipe.front, heard), history) if history else []
        settings = fields.settings(said, meant.spec)
        media = tuple(names[id(clip)] for clip in meant.clips)
        call = Call(task=meant.spec.name, text=meant.text, media=media, settings=settings, looks_back=bool(past))
        return call, past

    async def say(self, said: dict[Any, Any], request: gr.Request) -> AsyncGenerator[dict[Any, Any], None]:
        shared, talk, memory = self.shared, Talk.read(said[self.state]), said[self.shared.memory]
        text, files = said[self.box].strip(), list(said[self.inputs])
        if not text and not files:
            return
        yield {self.box: "", self.inputs: [], self.strip: look.inputs([])}
        try:
            turn = Turn(text=text, shown=tuple(files))
            if not text:
                yield self.show(talk.say(turn), memory=memory)
                return
            settings = {name: said[box] for name, box in self.boxes.items()}
            call, past = await shared.serving.off_loop(self.asked, talk, text, files, said[self.makes], settings)
            state = Progress(call=call)
            async with aclosing(shared.desk.run(session(request, "dialogue"), [call], past)) as heard:
                async for (state,) in heard:
                    running = f'<div class="back">{look.stage(state, shared.zoom)}</div>'
                    yield {self.log: self.drawn(talk, _said(turn) + running)}
        except Exception as error:  # noqa: BLE001  whatever it is, the page says so in one sentence
            yield self.show(talk, told(error), memory) | {
                self.box: text, self.inputs: files, self.strip: look.inputs(files)
            }  # fmt: skip
            return
        answer = None if state.file else state.answer
        found = {"call": state.call, "file": state.file, "answer": answer, "verdict": state.verdict}
        done = turn.model_copy(update=found)
        if state.file:
            memory = added(memory, [Result(file=state.file, call=state.call, verdict=state.verdict)])
        yield self.show(talk.say(done), memory=memory) | {shared.memory: memory}

    def halt(self, request: gr.Request) -> None:
        self.shared.desk.stop(session(request, "dialogue"))

    def act(self, state: Any, memory: Any, event: gr.EventData) -> dict[Any, Any]:
        """A button below a turn."""
        talk = Talk.read(state)
        if event.do in ("branch", "other") and event.at.isdecimal():
            at = int(event.at)
            talk = talk.branch(talk.end_of(at) if event.do == "other" and at < len(talk.turns) else at)
        return self.show(talk, memory=memory)

    def take(self, state: Any, memory: Any, file: str) -> dict[Any, Any]:
        """Put a result of the gallery on the table."""
        return self.show(Talk.read(state).say(Turn(text="", shown=(file,))), memory=memory)


def _empty() -> str:
    return f'<p class="empty">{BEGIN}</p>'


def _said(turn: Turn) -> str:
    shown = "".join(look.thumbnail(file, "brought along") for file in turn.shown)
    return f'<div class="said">{look.escape(turn.text)}{shown}</div>'


def _turn(talk: Talk, n: int, zoom: bool) -> str:
    """A turn with its answer, and the ways to go on from it."""
    turn, beside = talk.turns[n], talk.beside(n)
    does = ""
    if len(beside) > 1:
        at, count = beside.index(n), len(beside)
        more = f"branch {at + 1} of {count}, show the next"
        does += look.button(f"{at + 1} of {count}", "other", beside[(at + 1) % count], more)
    if n != talk.at:
        does += look.button("Go on from here", "branch", n)
    if turn.file:
        does = look.download(turn.file) + does
        body = f"<figure>{look.shown(turn.file, turn.text, small=zoom)}</figure>"
    else:
        body = "" if turn.answer is None else f'<p class="answer">{look.escape(turn.answer)}</p>'
    line = f'<p class="note">{look.facts(turn.call)}</p>' if turn.call and turn.file else ""
    line += look.found(turn.verdict)
    back = f'<div class="back">{body}{line}<div class="does">{does}</div></div>' if body or does else ""
    return _said(turn) + back


def build(shared: Shared) -> Dialogue:
    """Put the tab together, with its events."""
    state = gr.BrowserState({}, storage_key="openlance-dialogue", secret="openlance")
    log = gr.HTML(f'<div class="studio talk">{_empty()}</div>', js_on_load=look.CLICKS, elem_id="log")
    chips = gr.HTML("", js_on_load=look.CLICKS, elem_id="chips")
    box = gr.Textbox(
        placeholder="Say what to draw, change or tell", label="Say", show_label=False, lines=1, max_lines=4,
        submit_btn=True, autofocus=True, elem_id="say",
    )  # fmt: skip
    inputs, strip = parts.inputs("talk-inputs")
    with gr.Row(elem_classes="tools"):
        makes = gr.Radio(MAKES, value="any", label="Make", show_label=False, container=False)
        stop = gr.Button("Stop", size="sm", elem_id="talk-stop")
        undo = gr.Button("Undo", size="sm", elem_id="undo")
        new = gr.Button("New", size="sm", elem_id="new")
    with gr.Accordion("Settings", open=False, elem_id="talk-settings"), gr.Row(elem_classes="settings"):
        boxes = fields.boxes(SETTINGS)
    with gr.Accordion("In Python", open=False, elem_id="talk-python"):
        script = gr.HTML("", js_on_load=look.CLICKS, elem_id="talk-script")
    tab = Dialogue(
        shared=shared, state=state, log=log, box=box, inputs=inputs, strip=strip, makes=makes, boxes=boxes, chips=chips,
        undo=undo, new=new, stop=stop, script=script,
    )  # fmt: skip
    _connect(tab)
    return tab


def _connect(tab: Dialogue) -> None:
    memory, both = tab.shared.memory, [tab.state, tab.shared.memory]
    said = {tab.state, tab.box, tab.inputs, tab.makes, memory, *tab.boxes.values()}
    tab.box.submit(tab.say, said, [*tab.shown, tab.box, tab.inputs, tab.strip, memory], **EVENT)
    tab.stop.click(tab.halt, **EVENT)
    tab.undo.click(lambda state, memory: tab.show(Talk.read(state).undo(), memory=memory), both, tab.shown, **EVENT)
    tab.new.click(lambda state, memory: tab.show(Talk.read(state).branch(-1), memory=memory), both, tab.shown, **EVENT)
    tab.log.click(tab.act, both, tab.shown, **EVENT)
    tab.chips.click(_example, None, tab.box, **EVENT)


def _example(event: gr.EventData) -> str:
    return event.at
