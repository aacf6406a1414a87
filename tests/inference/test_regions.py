"""Edits of a region: outside of it every pixel is the source's, whatever else is on; a full mask is the plain path."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openlance
from lance_parity.files import open_folder
from openlance.cli.main import main
from openlance.config.sampling import Sampling
from openlance.errors import UserError
from openlance.inference.auto import named
from openlance.inference.dialogue import Dialogue
from openlance.inference.lance_pipeline import LancePipeline
from openlance.inference.visual import denoise
from openlance.media import Clip, as_clip, read_image
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Region, Role, source_in

GOLDEN = Path(__file__).parents[1] / "golden"
FEW = {"num_inference_steps": 2, "seed": 5}
SIDE = 64


@pytest.fixture(scope="module")
def nano():
    return openlance.load("nano")


@pytest.fixture(scope="module")
def learned():
    """A checkpoint that says it was trained for regions: what stays is given from the first step on."""
    pipe = openlance.load("nano")
    parts = tuple(spec.name for spec in tasks.TASKS.values() if spec.in_part)
    pipe.defaults = replace(pipe.defaults, tasks=(*pipe.defaults.tasks, *parts))
    return pipe


@pytest.fixture(scope="module")
def golden():
    """The tiny model of the golden vectors, with inputs in their own size."""
    with open_folder(GOLDEN) as found:
        pipe = LancePipeline(found.weights, tokenizer=found.tokenizer)
        pipe.defaults = replace(pipe.defaults, buckets={}, height=SIDE, width=SIDE)
        yield pipe


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """A clip of five frames in which a red circle goes right, over some noise."""
    frames = np.random.default_rng(0).integers(0, 40, (5, SIDE, SIDE, 3), dtype=np.uint8)
    y, x = np.indices((SIDE, SIDE))
    for t, frame in enumerate(frames):
        frame[(y - 24) ** 2 + (x - 20 - 2 * t) ** 2 < 100] = 220, 25, 35
    return frames


def box(*frames: int) -> np.ndarray:
    inside = np.zeros((5, SIDE, SIDE), bool)
    inside[list(frames) or slice(None), 9:40, 8:37] = True
    return inside


def pixels(result) -> np.ndarray:
    return as_clip(result).pixels


HOW = {
    "plain": {}, "solver": {"solver": "unipc", "num_inference_steps": 3},
    "step cache": {"step_cache": 0.3, "num_inference_steps": 3},
    "all guidance": {"guidance_scale": 5.0, "image_guidance_scale": 2.0, "renorm": "global"},
    "whole sequence": {"cached": False}, "strength": {"strength": 0.5, "num_inference_steps": 4},
}  # fmt: skip


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("model", ["nano", "learned", "golden"])
def test_outside_every_pixel_is_the_source(model, how, drawn, request):
    pipe, source, inside = request.getfixturevalue(model), drawn[0, :48, :48], box(0)[0, :48, :48]
    made = pixels(pipe.edit(source, "make it green", mask=inside, **FEW | how)[0])[0]
    assert np.array_equal(made[~inside], source[~inside]) and (made[inside] != source[inside]).mean() > 0.3
    everywhere = Image.new("L", (48, 48), 255)
    full = pixels(pipe.edit(source, "make it green", mask=everywhere, **FEW | how)[0])
    assert np.array_equal(full, pixels(pipe.edit(source, "make it green", region="none", **FEW | how)[0]))


@pytest.mark.parametrize("model", ["nano", "learned", "golden"])
def test_a_clip_has_a_region_in_each_frame(model, drawn, request):
    pipe, inside, drawn = request.getfixturevalue(model), box(0, 3)[:, :48, :48], drawn[:, :48, :48]
    made = pipe.edit(drawn, "make it green", mask=inside, **FEW)[0].pixels
    assert np.array_equal(made[~inside], drawn[~inside])
    assert [bool((a != b).any()) for a, b in zip(made, drawn)] == [True, False, False, True, False]
    track = np.array([[8 + 2 * t, 9, 36 + 2 * t, 40] for t in range(5)])
    tracked = pipe.edit(drawn, "make it green", region=track, **FEW)[0].pixels
    changed = np.argwhere((tracked != drawn).any(-1))
    assert all(changed[changed[:, 0] == t].min(0)[2] >= 8 + 2 * t for t in range(5))
    full = pipe.edit(drawn, "make it green", mask=np.ones_like(inside), **FEW)[0].pixels
    assert np.array_equal(full, pipe.edit(drawn, "make it green", region="none", **FEW)[0].pixels)


def test_what_is_resized_equals_the_input_after_that(golden):
    """A bucket crops and resizes; outside of the mask, cut likewise, is what comes out of that."""
    source = np.random.default_rng(1).integers(0, 256, (100, 151, 3), dtype=np.uint8)
    inside = np.zeros((100, 151), bool)
    inside[20:70, 30:90] = True
    pipe = golden
    kept = pipe.front.fitted("image_edit", Clip(source[None])).pixels[0]
    levels = pipe.front.fitted("image_edit", Clip(np.repeat(inside[None, ..., None], 3, -1).astype(np.uint8) * 255))
    cut = levels.pixels[0, ..., 0] >= 128
    made = pixels(pipe.edit(source, "make it green", mask=inside, **FEW)[0])[0]
    assert kept.shape == made.shape == (96, 144, 3) and 0 < cut.mean() < 0.5
    assert np.array_equal(made[~cut], kept[~cut]) and (made[cut] != kept[cut]).mean() > 0.3


def test_cells_outside_follow_the_source_at_every_step(tiny):
    """(1 - t) source + t noise, and the source's own latents at the end; the given noise is where it begins."""
    inside = np.zeros((1, 16, 16), bool)
    inside[:, 5:8, 9:12] = True
    request = tiny.edit(seed=None)
    request = [replace(s, region=Region(inside)) if s.role is Role.TARGET else s for s in request]
    (encoded,) = [tiny.encoded(request)]
    source = source_in(encoded).flatten(0, 2)
    outside = ~torch.from_numpy(request[-1].region.cells((1, 4, 4))).flatten()
    assert (~outside).sum() == 1  # one cell of four pixels
    states = []
    made = denoise(
        tiny.model, tiny.codec, [encoded], Sampling(num_inference_steps=3), seeds=[3],
        on_step=lambda i, t, x: states.append((t, x.clone())), after_step=lambda i, t, x: states.append((t, x.clone())),
    )[0]  # fmt: skip
    noise = states[0][1]
    for t, x in states:
        torch.testing.assert_close(x[outside], ((1 - t) * source + t * noise)[outside], rtol=0, atol=1e-6)
    assert torch.equal(made.flatten(0, 2)[outside], source[outside])
    assert not torch.equal(made.flatten(0, 2)[~outside], source[~outside])


def test_in_a_batch_as_alone(nano, drawn):
    """A mask, a box, a name, and none at all side by side: each as by itself with its own seed."""
    sources = [drawn[0], drawn[1], drawn[2], drawn[3]]
    masks, regions = [box(0)[0], None, None, None], [None, (8, 9, 40, 40), "the circle", "none"]
    together = nano.edit(sources, ["make it green"] * 4, mask=masks, region=regions, **FEW)
    assert [as_clip(image).made.region.partition(",")[0] for image in together] == ["a mask", "(8", "the circle", ""]
    for n, image in enumerate(together):
        alone = nano.edit(sources[n], "make it green", mask=masks[n], region=regions[n], **FEW | {"seed": 5 + n})[0]
        assert np.abs(pixels(image).astype(int) - pixels(alone)).max() <= 1


def test_with_a_prefix_cache_as_without(drawn):
    pipe = openlance.load("nano")
    once = pixels(pipe.edit(drawn[0], "make it green", mask=box(0)[0], **FEW)[0])
    pipe.prefixes.limit = 1 << 26
    for _ in range(2):
        again = pixels(pipe.edit(drawn[0], "make it green", mask=box(0)[0], **FEW)[0])
        assert np.abs(once.astype(int) - again).max() <= 1


def test_several_regions_are_one(nano, drawn):
    source, boxes = drawn[0], [(0, 0, 16, 16), (40, 40, 60, 64)]
    made = pixels(nano.edit(source, "make it green", region=boxes, **FEW)[0])[0]
    inside = np.zeros((SIDE, SIDE), bool)
    inside[:16, :16] = inside[40:, 40:60] = True
    assert np.array_equal(made[~inside], source[~inside])
    assert (made[:16, :16] != source[:16, :16]).any() and (made[40:, 40:60] != source[40:, 40:60]).any()


def test_words_pull_harder_inside_as_the_checkpoint_says(nano, drawn):
    told = [
        as_clip(nano.edit(drawn[0], "make it green", region=r, **FEW | more)[0]).made
        for r, more in (("none", {}), ((8, 8, 40, 40), {}), ((8, 8, 40, 40), {"guidance_scale": 3.0}))
    ]
    assert [t.settings["guidance_scale"] for t in told] == [2.0, 4.0, 3.0]
    assert [t.settings["image_guidance_scale"] for t in told] == [1.5, 1.5, 1.5]


def test_what_is_named_is_looked_for(nano, drawn):
    made = nano.edit(drawn[0], "make it green", region="the red circle", **FEW)[0]
    changed = np.argwhere((pixels(made)[0] != drawn[0]).any(-1))
    assert changed.min() >= 0 and changed.max(0)[0] < 48 and changed.max(0)[1] < 48  # its cells and their neighbors
    with pytest.raises(UserError, match="the model finds no 'the submarine' in it"):
        nano.edit(drawn[0], "make it green", region="the submarine", **FEW)
    with pytest.raises(UserError, match="the model finds no 'the yellow star' in it"):  # it would point at the circle
        nano.edit(drawn[0], "make it green", region="the yellow star", **FEW)


def test_the_call_of_diffusers(nano, drawn):
    """Masks of its sizes and forms, resized to the image; several prompts with one mask each; strength."""
    source, inside = Image.fromarray(drawn[0]), box(0)[0]
    large = Image.fromarray(inside.astype(np.uint8) * 255).resize((128, 128), Image.Resampling.NEAREST)

    def call(prompt, mask, image=source, **more):
        generator = [torch.Generator().manual_seed(5) for _ in range(1 if isinstance(prompt, str) else len(prompt))]
        given = {"num_inference_steps": 2, "output_type": "np"} | more
        made = nano(prompt, image=image, mask_image=mask, generator=generator, **given)
        return (made.images * 255).round().astype(np.uint8)

    one = call("make it green", large)[0]
    assert np.array_equal(one[~inside], drawn[0][~inside]) and (one[inside] != drawn[0][inside]).any()
    tensors = torch.from_numpy(np.stack([inside, ~inside])[:, None]).float()
    for masks in (tensors, [tensors[0, 0], tensors[1, 0]]):
        both = call(["make it green"] * 2, masks)
        assert np.array_equal(both[0][~inside], drawn[0][~inside]) and np.array_equal(both[1][inside], drawn[0][inside])
    parts = (call("make it green", None, strength=s, num_inference_steps=5)[0].astype(int) for s in (0.4, 1.0))
    near, far = (np.abs(part - drawn[0]).mean() for part in parts)
    assert near < far
    with pytest.raises(UserError, match="give that as image or video"):
        nano("a ring", mask_image=large)
    with pytest.raises(UserError, match="no source of an edit"):
        nano("a ring", strength=0.5)


def test_a_dialogue_edits_a_region_of_what_is_on_the_table(nano, drawn):
    talk = Dialogue(nano, seed=0, num_inference_steps=3)
    talk.show(drawn[0])
    first = talk.edit("make it green", mask=box(0)[0]).picture
    second = talk.edit("make it blue", region=(8, 9, 37, 40)).picture
    for made in (first, second):
        assert np.array_equal(made.pixels[0][~box(0)[0]], drawn[0][~box(0)[0]])


def test_the_command_line(tmp_path, drawn, capsys):
    source, mask, out = tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "out.png"
    Image.fromarray(drawn[0]).save(source)
    Image.fromarray(box(0)[0]).save(mask)
    line = ["edit", str(source), "make it green", "-o", str(out), "--num-inference-steps", "2"]
    main([*line, "--mask", str(mask)])
    made = read_image(out).pixels[0]
    assert np.array_equal(made[~box(0)[0]], drawn[0][~box(0)[0]])
    main([*line, "--region", "0,0,16,16", "--region", "the circle"])
    assert (read_image(out).pixels[0][:16, :16] != drawn[0][:16, :16]).any()
    out.unlink()
    for more, said in (
        (["--region", "0,0,99,4"], "no box in a picture of 64x64"), (["--mask", "no.png"], "no file no.png"),
        (["--mask", str(mask), "--region", "auto"], "give one of them"), (["--strength", "0"], "above 0"),
    ):  # fmt: skip
        assert main([*line, *more]) == 2 and said in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "more, said",
    [
        ({"mask": box(0)[0], "region": "auto"}, "a mask and a region: give one"),
        ({"mask": np.zeros((SIDE, SIDE))}, "nothing white"),
        ({"mask": box()[:3]}, "3 frames and what it is about 5"),
        ({"mask": box()[0, :9]}, "64x9 pixels and what it is about 64x64"),
        ({"region": (0, 0, 9)}, "the region is (0, 0, 9): expected auto, none"),
        ({"region": []}, "expected auto"),
        ({"region": ["auto", (0, 0, 9, 9)]}, "expected auto"),
        ({"region": (9, 9, 3, 20)}, "no box in a picture"),
        ({"region": np.zeros((3, 4))}, "boxes for 3 frames and the source 5"),
        ({"region": " "}, "expected auto"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_gets_one_sentence(nano, drawn, more, said):
    with pytest.raises(UserError) as told:
        nano.edit(drawn, "make it green", **FEW | more)
    assert said in str(told.value) and "\n" not in str(told.value)


CAPTION = "a large striped red circle, a green star and two blue rings on a black background"
MEANT = {
    "make the red circle blue": "the red circle", "Could you get rid of the star?": "the star",
    "star: yellow": "the green star", "I want a square where the circle was": "the circle",
    "replace the green star with a circle": "the green star", "paint the rings white": "", "recolour both rings": "",
    "add a purple square": "", "move the star up": "", "make the star sit next to the circle": "",
    'write "star" instead': "", "make it darker": "",
}  # fmt: skip


@pytest.mark.parametrize("words, name", MEANT.items())
def test_what_an_instruction_is_about_is_what_the_model_sees_of_its_nouns(words, name):
    assert named(words, CAPTION).name == name
    assert bool(named(words, CAPTION).why) != bool(name)


def test_it_is_the_only_thing():
    assert named("make it striped", "a small cross on a red background").name == "the small cross"
    assert named("make it striped", "a small cross and a ring on a red background").why


def test_auto_says_what_it_took_and_why(nano, drawn):
    said = ["paint the circle green", "add a blue square in the corner", "make it darker"]
    made = [as_clip(image).made for image in nano.edit([drawn[0]] * 3, said, region="auto", **FEW)]
    assert made[0].region.startswith("auto: the circle, (") and made[0].settings["guidance_scale"] == 4.0
    assert made[1].region == "auto: the whole, since it says where something is to be ('corner')"
    auto, plain = (nano.edit(drawn[0], said[1], region=region, **FEW)[0] for region in ("auto", "none"))
    assert np.array_equal(pixels(auto), pixels(plain)), "alone: beside others a level may round otherwise"


def test_a_checkpoint_says_whether_the_model_finds_regions_by_itself(nano, checkpoint, drawn):
    """nano does; a call switches it off, and other checkpoints are plain."""
    made = nano.edit([drawn[0]] * 2, "paint the circle green", region=[None, "none"], **FEW)
    assert [as_clip(image).made.region.partition(",")[0] for image in made] == ["auto: the circle", ""]
    talk = Dialogue(nano, seed=0, num_inference_steps=2)
    talk.show(drawn[0])
    assert talk.say("paint the circle green").picture.made.region.startswith("auto: the circle")
    assert nano.edit(drawn, "paint the circle green", **FEW)[0].made.region.startswith("auto: the circle")
    assert as_clip(checkpoint.load().edit(drawn[0, :16, :16], "paint the circle green", seed=1)[0]).made.region == ""


def test_a_turn_that_has_passed_has_no_region(tiny):
    turn = [replace(s, region=Region(np.ones((1, 16, 16), bool))) for s in tiny.edit() if s.role is Role.TARGET]
    past = tasks.dialogue(turn, tiny.edit(seed=None))
    assert all(s.region is None for s in past) and any(s.kind is Kind.LATENTS for s in past)
