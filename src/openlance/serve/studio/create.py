"""The tab in which one task is done: words, media and settings on one side, the result with its script on the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from openlance.inference.inputs import random_seed
from openlance.sequence import tasks
from openlance.serve.studio import fields, look, parts, view
from openlance.serve.studio.calls import Call, code
from openlance.serve.studio.memory import Result, added, results
from openlance.serve.studio.parts import EVENT, Shared, session, told

EMPTY = look.side_by_side(['<p class="empty">Say what you want to see, and press Enter.</p>'])


@dataclass(frozen=True, kw_only=True)
class Create:
    """The components of the tab, by what they are."""

    shared: Shared
    task: Any
    text: Any
    examples: Any
    inputs: Any
    strip: Any
    mask: Any  # [the file that it is of, its own], or nothing
    brush: Any
    paint: Any  # what holds the brush
    boxes: dict[str, Any]
    compare: Any
    others: dict[str, Any]
    run: Any
    stop: Any
    stage: Any
    script: Any
    sequence: Any
    last: Any  # the newest result, as data

    def fill(self, call: Call) -> dict[Any, Any]:
        """Updates that put a call on the tab."""
        first = {self.task: call.task, self.text: call.text, self.inputs: list(call.media)}
        first |= {self.mask: [call.media[-1], call.mask] if call.mask and call.media else []}
        return first | {self.strip: look.inputs(call.media)} | fields.written(call.settings, self.boxes)

    @property
    def filled(self) -> list[Any]:
        """What `fill` changes."""
        return [self.task, self.text, self.inputs, self.strip, self.mask, *self.boxes.values()]

    def calls(self, said: dict[Any, Any]) -> list[Call]:
        """What is on the tab: one call, or two that are compared."""
        spec = tasks.spec_of(said[self.task])
        own = fields.settings({name: said[box] for name, box in self.boxes.items()}, spec)
        media = tuple(said[self.inputs]) * bool(spec.reads)
        mask = _mask_of(said[self.mask], media) if fields.fits("region", spec) else ""
        call = Call(task=spec.name, text=said[self.text], media=media, mask=mask, settings=own)
        if not said[self.compare]:
            return [call]
        other = fields.settings({name: said[box] for name, box in self.others.items()}, spec)
        return [call, call.model_copy(update={"settings": own | other})]

    # Events.

    async def make(self, said: dict[Any, Any], request: gr.Request) -> AsyncGenerator[dict[Any, Any], None]:
        shared = self.shared
        states, heads = [], ["With these", "With the others"] * said[self.compare]
        yield {self.script: "", self.sequence: ""}
        try:
            calls = self.calls(said)
            if len(calls) > 1 and calls[0].settings.get("seed") is None:  # what is compared starts from one noise
                seed = {"seed": random_seed()}
                calls = [call.model_copy(update={"settings": call.settings | seed}) for call in calls]
            async with aclosing(shared.desk.run(session(request, "create"), calls)) as heard:
                async for states in heard:
                    buttons = "" if len(calls) > 1 else BUTTONS
                    shown = [look.stage(state, shared.zoom, buttons) for state in states]
                    yield {self.stage: look.side_by_side(shown, heads)}
        except Exception as error:  # noqa: BLE001  whatever it is, the page says so in one sentence
            yield {self.stage: look.side_by_side([told(error)])}
            return
        new = [Result(file=state.file, call=state.call, verdict=state.verdict) for state in states if state.file]
        memory = added(said[shared.memory], new)
        known = {one.file: one.call for one in results(memory)}
        scripts = [code(shared.loading, [(state.call, state.file)], known) for state in states]
        yield {
            shared.memory: memory, self.last: new[0].model_dump(mode="json") if new else None,
            self.script: "".join(look.python(text) for text in scripts),
            self.sequence: await self.explained(said),
        }  # fmt: skip

    def halt(self, request: gr.Request) -> None:
        self.shared.desk.stop(session(request, "create"))

    async def explained(self, said: dict[Any, Any]) -> str:
        try:
            return await self.shared.serving.off_loop(view.sequence, self.shared.serving, self.calls(said)[0])
        except Exception as error:  # noqa: BLE001  likewise
            return told(error)

    def choose(self, name: str) -> dict[Any, Any]:
        pipe, spec = self.shared.serving.pipe, tasks.spec_of(name)
        examples = look.chips(pipe.defaults.examples.get(name, ()))
        label = {"text": "Question", "image": "Prompt", "video": "Prompt"}[spec.makes]
        label = "Instruction" if spec.sized_by_source else label
        return {
            self.text: gr.update(label=label), self.examples: examples,
            self.strip: gr.update(visible=bool(spec.reads)),
            self.paint: gr.update(visible=fields.fits("region", spec)),
        } | fields.fitted(pipe, spec, self.boxes) | fields.fitted(pipe, spec, self.others)  # fmt: skip

    def painting(self, files: list[str], mask: list[str]) -> dict[Any, Any]:
        """Other media than before: the last of them is what is painted on."""
        return {self.brush: look.brush(files[-1] if files else "", _mask_of(mask, files))}

    def painted(self, files: list[str], event: gr.EventData) -> dict[Any, Any]:
        """Something was painted, or all of it cleared."""
        if event.do == "clear" or not files:
            return {self.mask: []}
        return {self.mask: [files[-1], *event.names]} if event.names else {}

    def act(self, last: Any, event: gr.EventData) -> dict[Any, Any]:
        """A button below the result."""
        found = results([last])
        if not found:
            return {}
        if event.do == "seed":
            return {self.boxes["seed"]: str(found[0].call.settings.get("seed", ""))}
        file = found[0].file
        spec = tasks.the_task(tasks.edit, "video" if file.endswith(".mp4") else "image")
        return {self.task: spec.name, self.inputs: [file], self.strip: look.inputs([file]), self.text: ""}


def _mask_of(mask: Any, files: Sequence[str]) -> str:
    """What was painted on the last of some files, if anything was."""
    fitting = isinstance(mask, list) and len(mask) == 2 and all(isinstance(name, str) for name in mask)
    return mask[1] if fitting and files and mask[0] == files[-1] else ""


BUTTONS = look.button("Keep this seed", "seed") + look.button("Edit this", "edit")


def _title(spec: tasks.TaskSpec, shared: Shared) -> str:
    known = "" if shared.serving.pipe.defaults.knows(spec.name) else " (not trained)"
    return spec.title[0].upper() + spec.title[1:] + known


def build(shared: Shared) -> Create:
    """Put the tab together, with its events."""
    # A region is painted on what is edited; what lies beyond a picture has no form here.
    choices = [(_title(spec, shared), spec.name) for spec in tasks.TASKS.values() if not spec.in_part]
    first = next(iter(tasks.TASKS.values()))
    examples = shared.serving.pipe.defaults.examples.get(first.name, ())
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            task = gr.Dropdown(choices, value=first.name, label="Task", filterable=False, elem_id="task")
            text = gr.Textbox(
                value=next(iter(examples), ""), label="Prompt", lines=1, max_lines=4, autofocus=True, elem_id="prompt"
            )
            chips = gr.HTML(look.chips(examples), js_on_load=look.CLICKS, elem_id="examples")
            inputs, strip = parts.inputs("inputs", visible=False)
            mask = gr.State([])
            with gr.Accordion("Paint where it may change", open=False, visible=False, elem_id="paint") as paint:
                brush = gr.HTML("", js_on_load=look.CLICKS, elem_id="brush")
            last = gr.State(None)
            plain = [name for name in fields.FIELDS if name not in fields.MORE]
            with gr.Row(elem_classes="settings"):
                boxes = fields.boxes(plain)
            with gr.Accordion("More settings", open=False), gr.Row(elem_classes="settings"):
                boxes |= fields.boxes(fields.MORE)
            compare = gr.Checkbox(label="Compare with other settings, from the same seed", container=False)
            with gr.Row(visible=False, elem_classes="settings") as group:
                others = fields.boxes(fields.COMPARED, "Other: ")
            with gr.Row():
                run = gr.Button("Create", variant="primary", elem_id="create")
                stop = gr.Button("Stop", elem_id="stop")
        with gr.Column(scale=5, min_width=300):
            stage = gr.HTML(EMPTY, js_on_load=look.CLICKS, elem_id="stage")
            with gr.Accordion("In Python", open=True):
                script = gr.HTML("", js_on_load=look.CLICKS, elem_id="script")
    with gr.Accordion("What the model reads", open=False, elem_id="reads") as reads:
        sequence = gr.HTML("", elem_id="sequence")
    tab = Create(
        shared=shared, task=task, text=text, examples=chips, inputs=inputs, strip=strip, mask=mask, brush=brush,
        paint=paint, boxes=boxes, compare=compare, others=others, run=run, stop=stop, stage=stage, script=script,
        sequence=sequence, last=last,
    )  # fmt: skip
    _connect(tab, group, reads)
    return tab


def _connect(tab: Create, group: Any, reads: Any) -> None:
    boxes = [*tab.boxes.values(), *tab.others.values()]
    said = {tab.task, tab.text, tab.inputs, tab.mask, tab.compare, tab.shared.memory, *boxes}
    made = [tab.stage, tab.script, tab.sequence, tab.last, tab.shared.memory]
    gr.on([tab.run.click, tab.text.submit], tab.make, said, made, **EVENT)
    tab.stop.click(tab.halt, **EVENT)
    chosen = [tab.text, tab.examples, tab.strip, tab.paint, *boxes]
    tab.inputs.change(tab.painting, [tab.inputs, tab.mask], tab.brush, **EVENT)
    tab.brush.click(tab.painted, tab.inputs, tab.mask, **EVENT)
    tab.task.change(tab.choose, tab.task, chosen, **EVENT)
    tab.examples.click(_example, None, tab.text, **EVENT)
    tab.compare.change(lambda on: gr.update(visible=on), tab.compare, group, **EVENT)
    reads.expand(tab.explained, said, tab.sequence, **EVENT)
    tab.stage.click(tab.act, tab.last, [tab.task, tab.inputs, tab.strip, tab.text, tab.boxes["seed"]], **EVENT)


def _example(event: gr.EventData) -> str:
    return event.at
