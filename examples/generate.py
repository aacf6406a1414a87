"""Draw several prompts in one batch: `python examples/generate.py [PROMPT ...]` writes outputs/examples/*.png.

Picture number k has the seed 7 + k; drawn alone with that seed it is the same picture.
"""

import sys
from pathlib import Path

import openlance

PROMPTS = ["a red circle left of a blue square", "three orange circles", "a striped green star on a grey background"]
OUT = Path("outputs/examples")


def main() -> None:
    prompts = sys.argv[1:] or PROMPTS
    pipe = openlance.load("nano")
    pictures = pipe.generate(prompts, height=96, width=96, seed=7, progress=True)
    OUT.mkdir(parents=True, exist_ok=True)
    for number, (prompt, picture) in enumerate(zip(prompts, pictures)):
        path = OUT / f"{number:06d}.png"
        picture.save(path)
        print(f"{path}  {prompt}")

    # The same prompt with and without guidance: what is between them is what the prompt adds.
    for scale in (1.0, 3.0):
        pipe.generate(prompts[0], seed=7, guidance_scale=scale)[0].save(OUT / f"guidance-{scale:g}.png")


if __name__ == "__main__":
    main()
