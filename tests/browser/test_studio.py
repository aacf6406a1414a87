"""The Studio in a real browser, as a person uses it."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the Studio needs openlance[studio]: `make test-browser` sets it up")
expect = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs playwright").expect


def fill(page, tab, **said):
    """Write settings into the boxes of a tab."""
    for name, value in said.items():
        page.locator(tab).get_by_label(name, exact=True).first.fill(value)


def say(page, text):
    """Say something in the dialogue and wait for what comes of it."""
    before = page.locator("#log .said").count()
    page.locator("#say textarea").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "n => document.querySelectorAll('#log .said').length > n && !document.querySelector('#log [aria-busy]')"
        " && document.querySelector('#say textarea').value === ''"
        " && [...document.querySelectorAll('#log .back')].at(-1)?.querySelector('.note, .answer')",
        arg=before,
    )
    return page.locator("#log .back").last


def set_up(page, **said):
    """Settings of the dialogue."""
    button = page.locator("#talk-settings button").first
    button.click()
    fill(page, "#talk-settings", **said)
    button.click()


def source_of(page, place):
    return page.locator(f"{place} img, {place} video").last.get_attribute("src")


def test_a_dialogue_from_the_first_image_to_a_branch(visit, shot):
    page = visit()
    set_up(page, Seed="12")
    first = say(page, "draw a red circle left of a blue square")
    assert first.locator("img").get_attribute("src").endswith(".png")
    say(page, "replace the blue square with a yellow star")
    say(page, "make the background white")
    images = page.locator("#log .back img")
    assert images.count() == 3
    page.click("#undo")
    page.wait_for_function("document.querySelectorAll('#log .back img').length === 2")
    assert say(page, "what color is the star?").locator(".answer").inner_text()
    page.set_viewport_size({"width": 900, "height": 1000})
    page.wait_for_timeout(500)
    shot(page, "dialogue")
    page.set_viewport_size({"width": 1200, "height": 900})
    set_up(page, Steps="2", Frames="5")
    moved = say(page, "animate: the circle moves up")
    page.wait_for_function("document.querySelector('#log video')?.readyState >= 2")
    assert moved.locator("video").evaluate("v => [v.videoWidth, v.videoHeight]") == [64, 64]
    shot(page, "animated")
    page.get_by_role("button", name="Go on from here").first.click()
    page.wait_for_function("document.querySelectorAll('#log .said').length === 1")
    say(page, "make the circle small")
    page.get_by_role("button", name="branch 2 of 2, show the next").wait_for()
    page.locator("#talk-python button").first.click()
    script = page.locator("#talk-script .script").inner_text()
    assert script.count("pipe.") == 2 and "pipe.edit(" in script


def test_it_is_all_there_after_a_reload_and_for_nobody_else(visit, shot):
    page = visit()
    say(page, "draw three yellow stars")
    made = source_of(page, "#log")
    page.reload()
    page.wait_for_selector("#log .back img")
    assert source_of(page, "#log") == made
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#gallery button").first.click()
    page.wait_for_selector("#detail img")
    assert source_of(page, "#detail") == made and "seed" in page.locator("#detail").inner_text()
    shot(page, "gallery")
    with page.expect_download() as saved:
        page.locator("#detail").get_by_text("Download").click()
    assert b"three yellow stars" in Path(saved.value.path()).read_bytes()  # how it was made goes along
    page.get_by_role("button", name="Use these settings").click()
    page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'three yellow stars'")
    other = visit()
    other.get_by_role("tab", name="Gallery").click()
    other.wait_for_selector("#gallery .empty")
    assert other.locator("#gallery img").count() == 0


def test_the_python_on_the_page_makes_the_same_image(visit, tmp_path, monkeypatch):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    fill(page, "#create-tab", Steps="3", Seed="7", Width="48")
    page.click("#create")
    page.wait_for_selector("#script .script")
    script = page.locator("#script .script").inner_text()
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    (made,) = tmp_path.iterdir()
    again = page.evaluate(
        "async src => { const bytes = new Uint8Array(await (await fetch(src)).arrayBuffer());"
        " return btoa(String.fromCharCode(...bytes)); }",
        source_of(page, "#stage"),
    )
    assert base64.b64decode(again) == made.read_bytes()


def test_a_result_goes_on_to_an_edit_and_to_the_dialogue(visit):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    fill(page, "#create-tab", Steps="2")
    page.click("#create")
    page.get_by_role("button", name="Keep this seed").click()
    seed = page.locator("#create-tab").get_by_label("Seed", exact=True)
    expect(seed).to_have_value(page.locator("#stage figcaption").inner_text().split("seed ")[1].split()[0])
    first = source_of(page, "#stage")
    page.get_by_role("button", name="Edit this").click()
    page.wait_for_selector("#inputs img")
    assert source_of(page, "#inputs") == first
    page.locator("#examples button").first.click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('replace')")
    page.click("#create")
    page.wait_for_function("document.querySelector('#script .script')?.innerText.split('pipe.').length === 3")
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#gallery button").nth(1).click()
    page.get_by_role("button", name="Take to the dialogue").click()
    page.wait_for_selector("#log .said img", state="visible")
    assert source_of(page, "#log") == first


def test_what_is_not_painted_stays_and_the_verdict_is_shown(visit, shot):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    fill(page, "#create-tab", Seed="7", Steps="2", **{"Draws at most": "2"})
    page.click("#create")
    page.get_by_role("button", name="Edit this").click()
    expect(page.locator("#stage figcaption")).to_contain_text("Checked: ")
    page.locator("#paint button").first.click()
    canvas = page.locator("#brush canvas")
    page.wait_for_function("document.querySelector('#brush canvas')?.width === 64")
    place = canvas.bounding_box()
    with page.expect_response("**/studio/files"):
        page.mouse.move(place["x"] + place["width"] * 0.2, place["y"] + place["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(place["x"] + place["width"] * 0.4, place["y"] + place["height"] * 0.6, steps=4)
        page.mouse.up()
    page.locator("#prompt textarea").fill("make the background white")
    fill(page, "#create-tab", Seed="3")
    before = page.locator("#inputs img").get_attribute("src")
    page.click("#create")
    page.get_by_text("Mask", exact=True).wait_for()
    shot(page, "painted")
    script = page.locator("#script .script").inner_text()
    assert "mask='" in script and "check=2" in script
    levels = page.evaluate(
        """async (sources) => await Promise.all(sources.map(async (source) => {
            const image = Object.assign(new Image(), {src: source});
            await image.decode();
            const pen = Object.assign(document.createElement('canvas'), {width: 64, height: 64}).getContext('2d');
            pen.drawImage(image, 0, 0);
            return [...pen.getImageData(0, 0, 64, 64).data];
        }))""",
        [before, source_of(page, "#stage"), page.get_by_text("Mask", exact=True).get_attribute("href")],
    )
    changed = {n // 4 for n, (a, b) in enumerate(zip(*levels[:2])) if a != b}
    painted = {n // 4 for n, level in enumerate(levels[2]) if level >= 128 and n % 4 < 3}
    assert changed and changed <= painted and len(painted) < 2000


def test_stop_ends_it_at_the_next_step_and_the_next_one_works(visit):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    fill(page, "#create-tab", Steps="200", Width="128", Height="128")
    page.click("#create")
    page.wait_for_function("document.querySelector('#stage [aria-busy] img')")  # a preview of what it becomes
    assert "of 200" in page.locator("#stage").inner_text()
    page.click("#stop")
    page.wait_for_function("document.querySelector('#stage').innerText.includes('Stopped')")
    fill(page, "#create-tab", Steps="2", Width="", Height="")
    page.click("#create")
    page.wait_for_selector("#stage .does")


def test_every_task_is_there_with_what_it_needs(visit, shot):
    from openlance.sequence import tasks

    page = visit()
    page.get_by_role("tab", name="Create").click()
    for spec in (spec for spec in tasks.TASKS.values() if not spec.in_part):
        title = spec.title[0].upper() + spec.title[1:]
        page.click("#task input")
        page.get_by_role("option", name=title, exact=True).click()
        steps, attach = (
            page.locator("#create-tab").get_by_label("Steps", exact=True),
            page.locator("#create-tab .attach"),
        )
        steps.first.wait_for(state="hidden" if spec.makes == "text" else "visible")
        attach.wait_for(state="visible" if spec.reads else "hidden")
        assert page.locator("#examples button").count() > 0
    shot(page, "create")


def test_two_settings_side_by_side_from_one_seed(visit, shot):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    page.get_by_label("Compare with other settings").check()
    fill(page, "#create-tab", Steps="2")
    page.get_by_label("Other: Steps").fill("3")
    page.click("#create")
    page.wait_for_function("document.querySelectorAll('#stage .does').length === 2")
    said = page.locator("#stage figcaption").all_inner_texts()
    assert said[0].split("seed ")[1].split()[0] == said[1].split("seed ")[1].split()[0]
    assert "steps 2" in said[0] and "steps 3" in said[1]
    page.wait_for_function("document.querySelectorAll('#script .script').length === 2")
    shot(page, "compare")


def test_what_the_model_reads(visit, shot):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    page.locator("#reads button").first.click()
    page.wait_for_function("document.querySelector('#sequence svg')?.textContent.includes('prompt')")
    page.locator("#sequence").scroll_into_view_if_needed()
    shot(page, "sequence")


@pytest.mark.parametrize(
    "name, value, said", [("Steps", "many", "num_inference_steps"), ("Seed", "-5", "seed"), ("Width", "30", "30")]
)
def test_a_mistake_is_one_sentence(name, value, said, visit):
    page = visit()
    page.get_by_role("tab", name="Create").click()
    fill(page, "#create-tab", **{name: value})
    page.click("#create")
    told = page.locator("#stage [role=alert]").inner_text()
    assert said in told and "Traceback" not in told and "\n" not in told.strip()


def test_an_image_is_brought_along(visit, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "no.png").write_bytes(b"nothing")
    page = visit()
    attach = page.locator("#talk-inputs input[type=file]")
    attach.set_input_files(tmp_path / "no.png")
    page.wait_for_selector("#talk-inputs [role=alert]")
    attach.set_input_files(tmp_path / "red.png")
    page.wait_for_selector("#talk-inputs img")
    assert say(page, "how many circles are there?").locator(".answer").inner_text()
    assert page.locator("#log .said img").count() == 1


def test_the_keyboard_alone_is_enough(visit):
    page = visit()
    page.wait_for_function("document.activeElement.matches('#say textarea')")  # ready to type
    page.keyboard.type("draw a red circle")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log .note")

    def reach(true):
        for _ in range(40):
            if page.evaluate(true):
                return True
            page.keyboard.press("Shift+Tab")
        return False

    assert reach("document.activeElement.innerText === 'make the background white'")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#say textarea').value === 'make the background white'")
    assert reach("document.activeElement.innerText === 'Download'")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"  # where one is can be seen
    assert reach("document.activeElement.matches('[role=tab]') && document.activeElement.innerText === 'Create'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#prompt textarea", state="visible")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(scheme, visit, shot):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    say(page, "draw a red circle left of a blue square")
    for tab in ("Dialogue", "Create", "Gallery"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shot(page, f"phone-{scheme}-{tab.lower()}")
    light = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c > 128)"
    )
    assert light == (scheme == "light")


def test_it_asks_for_the_key_and_ends_with_a_page_open(chromium, studio, tmp_path):
    with studio(tmp_path, "--api-key", "secret") as (url, process):
        page = chromium.new_page()
        page.goto(url)
        for key in ("wrong", "secret"):
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
            page.get_by_text("This key is wrong." if key == "wrong" else "Say").first.wait_for()
        page.wait_for_selector("#chips button")
        process.send_signal(signal.SIGINT)
        process.wait(10)
        page.close()
    assert (tmp_path / "stderr").read_text() in ("", "interrupted\n")


OFFLINE = "OPENLANCE_STUDIO_OFFLINE"


@pytest.mark.skipif(OFFLINE in os.environ, reason="this is the run without a network")
def test_it_works_without_a_network():
    """The first test again, the server and the browser in a network namespace that has loopback alone."""
    enter = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    tools = shutil.which("unshare") and shutil.which("ip")
    if not tools or subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("a network namespace needs root, unshare and ip")
    tests = [f"{__file__}::test_a_dialogue_from_the_first_image_to_a_branch", f"{__file__}::test_there_is_no_network"]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run([*enter, *run], env=os.environ | {OFFLINE: "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(OFFLINE not in os.environ, reason="test_it_works_without_a_network runs this")
def test_there_is_no_network():
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=2)
