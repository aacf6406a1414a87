"""Record what a reader sees: `python tools/screens.py studio` and `python tools/screens.py site`.

studio: docs/images/studio.webp, a dialogue in the Studio with nano, filmed in Chromium while a script types.
site: screenshots of pages of outputs/site (`make docs`) at desktop and phone width, in outputs/docs; fails if a page
      asks for anything that is not in the folder, or is wider than the window.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
SITE, OUT = ROOT / "outputs" / "site", ROOT / "outputs" / "docs"
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from conftest import CHROMIUM, LIMIT, _studio  # noqa: E402  (the tests' own Studio and browser)

SAID = ["draw a red circle left of a blue square", "replace the blue square with a yellow star",
        "make the background white", "what color is the star?", "animate: the circle moves up"]  # fmt: skip
PAGES = ["index", "start", "tutorials/released-3b", "tutorials/explain", "howto/speed", "concepts/mask",
         "concepts/mape", "reference/pipeline", "reference/cli/generate", "gallery", "evaluation",
         "migrate"]  # fmt: skip
# What a newcomer looks for: the links to click from the first page on, and what has to stand in the window then.
CLICKS = {
    "make an image": (["First image"], "openlance generate t2i"),
    "fine-tune": (["LoRA on your images"], "openlance train lora"),
    "serve": (["Serving"], "openlance serve"),
    "run the 3B in 12 GB": (["The released 3B"], "--memory 12GB"),
    "what MaPE is": (["MaPE"], "modality-aware positional encoding"),
    "how exact this is": (["Compatibility"], "agree to 1e-5"),
    "names of diffusers": (["From there to here"], "StableDiffusionPipeline"),
    "an error message": (["Questions and troubleshooting"], "exit code 2"),
}
# Where the first innermost element with a text begins, in heights of the window.
PLACE = """text => { const has = one => one.innerText?.includes(text);
const found = [...document.querySelectorAll('article *')].find(one => has(one) && ![...one.children].some(has));
return found ? found.getBoundingClientRect().top / innerHeight : 9 }"""
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def studio() -> None:
    """Film a dialogue: a frame where a line stands typed, one where it is being done, one with what came of it."""
    shots, times = list[Image.Image](), list[int]()
    with tempfile.TemporaryDirectory() as folder, _studio(Path(folder)) as (url, _), browser() as chromium:
        page = chromium.new_page(viewport={"width": 900, "height": 760}, device_scale_factor=1)
        page.set_default_timeout(4 * LIMIT)

        def shoot(milliseconds: int) -> None:
            shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
            times.append(milliseconds)

        page.goto(url)
        page.wait_for_selector("#chips button")
        page.wait_for_timeout(1500)
        settings = page.locator("#talk-settings button").first
        settings.click()
        page.locator("#talk-settings").get_by_label("Seed", exact=True).first.fill("12")
        settings.click()
        page.wait_for_timeout(500)
        for line in SAID:
            said = page.locator("#log .said").count()
            page.locator("#say textarea").fill(line)
            shoot(1100)
            page.keyboard.press("Enter")
            page.wait_for_function(
                "n => document.querySelectorAll('#log .said').length > n && !document.querySelector('#log [aria-busy]')"
                " && document.querySelector('#say textarea').value === ''"
                " && [...document.querySelectorAll('#log .back')].at(-1)?.querySelector('.note, .answer')",
                arg=said,
            )
            page.wait_for_timeout(700)
            shoot(1400)
        page.wait_for_function("document.querySelector('#log video')?.readyState >= 2")
        for _ in range(12):
            page.wait_for_timeout(60)
            shoot(120)
    times[-1] = 1500
    out = ROOT / "docs" / "images" / "studio.webp"
    shots[0].save(out, save_all=True, append_images=shots[1:], duration=times, loop=0, quality=60, method=6)
    print(out, f"{out.stat().st_size >> 10} KiB, {len(shots)} frames")


def site() -> None:
    """Take the pages in both widths."""
    OUT.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        wrong = [line for name, size in WIDTHS.items() for line in taken(chromium, name, *size)]
    print(*sorted(OUT.iterdir()), *wrong, sep="\n")
    if wrong:
        sys.exit(1)


def taken(chromium: Any, name: str, width: int, height: int) -> list[str]:
    """Take the pages in one width and try what a newcomer looks for; what is wrong with them."""
    wrong = list[str]()
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith(("http", "ws")) else None)
    page.on(
        "requestfailed", lambda lost: wrong.append(f"missing: {lost.url}") if "ABORTED" not in lost.failure else None
    )
    for path in PAGES:
        page.goto((SITE / f"{path}.html").as_uri())
        page.wait_for_timeout(400)
        page.screenshot(path=OUT / f"{name}-{path.replace('/', '-')}.png")
        wide = page.evaluate("document.documentElement.scrollWidth")
        wrong += [f"{path} is {wide} pixels wide on a {name}"] * (wide > width)
    lines = [f"# From the first page, by clicks ({name}: % of the window's height)", ""]
    for wanted, (links, text) in CLICKS.items():
        page.goto((SITE / "index.html").as_uri())
        for link in links:
            with page.expect_navigation():  # a page that has not loaded has no place for anything
                page.locator("article").get_by_role("link", name=link, exact=True).first.click()
        place = page.evaluate(PLACE, text)
        wrong += [] if place < 1 else [f"{wanted}: {text!r} is not in the window on a {name}"]
        lines.append(
            f"- {wanted}: {' > '.join(links)}, {page.url.removeprefix(SITE.as_uri())}, {text!r} at {place:.0%}"
        )
    (OUT / f"{name}-clicks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    page.goto((SITE / "index.html").as_uri())
    page.wait_for_function("typeof __index === 'object'")
    page.evaluate("document.querySelector('#__search').checked || document.querySelector('#__search').click()")
    page.locator(".md-search__input").press_sequentially("MaPE", delay=50)
    page.wait_for_selector(".md-search-result__link[href*='mape']", timeout=4 * LIMIT)
    page.wait_for_timeout(500)
    page.screenshot(path=OUT / f"{name}-search.png")
    page.close()
    return wrong


if __name__ == "__main__":
    {"studio": studio, "site": site}[sys.argv[1]]()
