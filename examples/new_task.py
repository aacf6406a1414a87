"""A task defined outside the package: `python examples/new_task.py ["a red circle" "is there a red circle?"]`.

The task is "draw it, then check it": a picture from a prompt, and the model's own answer to a question about it. It is
two lists of segments, and nothing in the package knows of it. Of several pictures the first that passes is kept.
"""

import sys
from dataclasses import replace
from pathlib import Path

import openlance
from openlance.config.sampling import Decoding
from openlance.media import write_image
from openlance.sequence.explain import explain
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import look, make, reply, say

SIZE = (1, 64, 64)  # frames, height, width in pixels


def draw(prompt: str, picture=None) -> Segments:
    """The first turn; without a picture its target is empty."""
    return [say(prompt), make(SIZE, picture)]


def check(picture, question: str, answer: str | None = None) -> Segments:
    """The second turn reads what was drawn through the ViT."""
    return [look(picture), say(question), reply(answer)]


def both(prompt: str, picture, question: str, answer: str | None = None) -> Segments:
    """The whole conversation as one list, the way one would train it: what was drawn has become context."""
    return [segment.as_context() for segment in draw(prompt, picture)] + check(picture, question, answer)


def main(prompt: str = "a red circle", question: str = "is there a red circle?", tries: int = 4) -> None:
    pipe = openlance.load("nano")
    sampling = replace(pipe.defaults.sampling, num_inference_steps=10)
    clips = pipe.fill_visual([draw(prompt)] * tries, sampling, seeds=list(range(tries)))
    answers = pipe.fill_text([check(clip, question) for clip in clips], Decoding(max_new_tokens=16))
    print(f"{prompt!r} drawn {tries} times; {question!r} {answers}")

    best = next((n for n, answer in enumerate(answers) if answer.startswith("yes")), 0)
    path = Path("outputs/examples/checked.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, clips[best])
    print(f"{path}  (seed {best})")

    # What a decoder would be trained on: positions, mask and losses follow from the segments, without further code.
    sample = both(prompt, clips[best], question, "yes")
    found = explain(sample, pipe.codec, pipe.config.position, pipe.tokenizer.text)
    for split in found.splits:
        print(f"{split.tokens:4} tokens  {split.stream}  {split.attends:9}  loss: {split.loss:14} {split.content!r}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
