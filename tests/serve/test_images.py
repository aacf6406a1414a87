"""Pictures over HTTP are those of the Python call."""

import asyncio
import base64
import io
import json

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from openlance.inference.checking import draw_seed

FEW = {"num_inference_steps": 2, "seed": 7}


def drawn(client, **more):
    return client.images.generate(prompt="a red circle", extra_body=FEW | more.pop("extra_body", {}), **more)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "nano" and client.models.retrieve("nano").object == "model"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("owner/name")
    assert (told.value.code, told.value.param) == ("model_not_found", "model")


def test_a_picture_is_that_of_the_python_call(client, pipe, pixels):
    made = drawn(client, n=2, size="64x64")
    alone = pipe.generate(["a red circle"] * 2, seed=7, num_inference_steps=2)
    assert [p.seed for p in made.data] == [7, 8] and made.size == "64x64" and made.usage.output_tokens == 128
    for found, expected in zip(made.data, alone):
        assert np.array_equal(pixels(found.b64_json), np.array(expected))


def test_forms_and_files(client, server):
    made = drawn(
        client, output_format="webp", size="32x48", response_format="url", extra_body={"output_compression": 80}
    )
    answer = httpx2.get(made.data[0].url)
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == ("WEBP", (32, 48)) and answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx2.get(f"{server.url}/files/%2e%2e%2fjobs.db").status_code == 404


def test_names_of_other_servers_plain_or_nested(client, pipe, pixels):
    plain = drawn(client, extra_body={"true_cfg_scale": 2.0, "flow_shift": 3.0})
    nested = drawn(client, extra_body={"extra_body": {"guidance_scale": 2.0, "timestep_shift": 3.0}})
    (alone,) = pipe.generate("a red circle", seed=7, num_inference_steps=2, guidance_scale=2.0, shift=3.0)
    assert plain.data[0].b64_json == nested.data[0].b64_json
    assert np.array_equal(pixels(plain.data[0].b64_json), np.array(alone))


def test_a_stream_brings_previews_that_come_near(client, pixels):
    steps = {"num_inference_steps": 6}
    events = list(drawn(client, stream=True, partial_images=2, extra_body=steps))
    assert [e.type.rpartition(".")[2] for e in events] == ["partial_image", "partial_image", "completed"]
    assert [e.partial_image_index for e in events[:2]] == [0, 1] and events[2].usage.total_tokens > 64
    first, second, last = (pixels(e.b64_json).astype(int) for e in events)
    assert np.array_equal(last, pixels(drawn(client, extra_body=steps).data[0].b64_json))
    assert np.abs(second - last).mean() < np.abs(first - last).mean()


@pytest.mark.usefixtures("whole")
def test_edits_take_every_form_of_an_upload(client, pipe, picture, png, pixels):
    forms = [png, io.BytesIO(png), [("../a.png", png)]]
    made = [client.images.edit(image=form, prompt="make it blue", extra_body=FEW).data[0] for form in forms]
    (alone,) = pipe.edit([picture], ["make it blue"], seed=7, num_inference_steps=2)
    assert len({one.b64_json for one in made}) == 1 and np.array_equal(pixels(made[0].b64_json), np.array(alone))


@pytest.mark.usefixtures("whole")
def test_edits_of_several_pictures_and_by_data_url(client, server, pipe, picture, png, pixels):
    made = client.images.edit(image=[png, png], prompt="make it blue", extra_body=FEW)
    (alone,) = pipe.edit([(picture, picture)], ["make it blue"], seed=7, num_inference_steps=2)
    assert np.array_equal(pixels(made.data[0].b64_json), np.array(alone))
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    by_url = httpx2.post(f"{server.url}/v1/images/edits", json={"prompt": "make it blue", "image": [url, url], **FEW})
    assert by_url.json()["data"][0]["b64_json"] == made.data[0].b64_json
    streamed = list(client.images.edit(image=png, prompt="make it blue", stream=True, extra_body=FEW))
    assert [e.type for e in streamed] == ["image_edit.completed"]


@pytest.mark.parametrize(
    "said, code, param",
    [
        ({"size": "60x64"}, "invalid_value", "size"),
        ({"size": "4096x4096"}, "invalid_value", "size"),
        ({"n": 11}, "invalid_value", "n"),
        ({"background": "transparent"}, "invalid_value", "background"),
        ({"output_format": "svg"}, "invalid_value", "output_format"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"prompt": "  "}, "invalid_value", "prompt"),
        ({"prompt": "\ud800"}, "invalid_value", "prompt"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"solver": "heun"}, "invalid_value", "solver"),
        ({"interval": [1, 0]}, "invalid_value", "interval"),
        ({"guidance_scale": 3, "true_cfg_scale": 2}, "invalid_value", "true_cfg_scale"),
        ({"negative_prompt": "blur", "guidance_scale": 1}, "invalid_value", "negative_prompt"),
        ({"stream": True, "n": 2}, "invalid_value", "n"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server, said, code, param):
    content = json.dumps({"prompt": "a red circle"} | said)
    answer = httpx2.post(f"{server.url}/v1/images/generations", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"], error["param"]) == (
        400, "invalid_request_error", code, param,
    ), error  # fmt: skip
    assert answer.headers["x-should-retry"] == "false" and answer.headers["x-request-id"].startswith("req_")


def test_null_is_what_is_not_given(server):
    null = dict.fromkeys(("n", "stream", "response_format", "output_format", "background", "partial_images", "size"))
    answer = httpx2.post(f"{server.url}/v1/images/generations", json={"prompt": "a star", **null, **FEW})
    assert answer.status_code == 200 and len(answer.json()["data"]) == 1


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"region": ["the ring"] * 17}, "region", "more than the 16"),
        ({"region": "x" * 201}, "region", "longer than the 200"),
        ({"region": [[[[["a"]]]]]}, "region", ""),
        ({"image": 3}, "image", "a file, or an address"),
        ({"height": 256}, "size", "pixels that this server makes"),
    ],
)
def test_an_edit_is_bounded_in_the_words_of_the_client(server, png, more, param, said):
    wide = Image.fromarray(np.zeros((8, 512, 3), np.uint8))
    file = io.BytesIO()
    wide.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    answer = httpx2.post(f"{server.url}/v1/images/edits", json={"prompt": "make it blue", "image": url} | more)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"].startswith(param) and said in error["message"]
    assert "is-instance" not in str(error) and "[" not in error["param"]


def test_a_damaged_mask_is_the_clients_mistake(client, png):
    mask = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)).save(mask, "PNG")
    with pytest.raises(openai.BadRequestError, match="damaged or truncated") as told:
        client.images.edit(image=png, mask=mask.getvalue()[:4000], prompt="make it blue", extra_body=FEW)
    assert told.value.param == "mask"


def test_a_size_that_cannot_be_names_the_nearest(client):
    with pytest.raises(openai.BadRequestError, match="64x56 or 64x64|56x64 or 64x64"):
        drawn(client, size="60x64")


def test_a_mask_is_transparent_where_the_image_may_change(client, pipe, picture, png, pixels):
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[8:40, 8:40] = 0
    mask = io.BytesIO()
    Image.fromarray(np.dstack([picture.pixels[0], alpha])).save(mask, "PNG")
    made = client.images.edit(image=png, mask=mask.getvalue(), prompt="make it blue", extra_body=FEW)
    found, opaque = pixels(made.data[0].b64_json), alpha == 255
    assert np.array_equal(found[opaque], picture.pixels[0][opaque]) and (found != picture.pixels[0]).any()
    (alone,) = pipe.edit(picture, "make it blue", mask=~opaque, **FEW)
    assert np.array_equal(found, np.array(alone))


def test_of_several_images_a_mask_is_about_the_first(client, picture, png, pixels):
    """Which is the one that is changed then, and gives the size; the others are read with it."""
    mask, other = io.BytesIO(), io.BytesIO()
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[8:40, 8:40] = 0
    Image.fromarray(alpha).convert("RGB").resize((48, 48)).save(other, "PNG")
    Image.fromarray(np.dstack([picture.pixels[0], alpha])).save(mask, "PNG")
    images = [png, other.getvalue()]
    made = client.images.edit(image=images, mask=mask.getvalue(), prompt="make it blue", extra_body=FEW)
    found = pixels(made.data[0].b64_json)
    assert np.array_equal(found[alpha == 255], picture.pixels[0][alpha == 255]) and (found != picture.pixels[0]).any()


def test_a_region_in_words_or_as_a_box_or_by_itself_is_that_of_the_call(client, pipe, picture, png, pixels):
    for said, region in (("the red circle",) * 2, ("8,8,40,40", (8, 8, 40, 40)), ([8, 8, 40, 40],) * 2, (None, None)):
        more = {} if said is None else {"region": said}
        made = client.images.edit(image=png, prompt="make it blue", extra_body=FEW | more)
        (alone,) = pipe.edit(picture, "make it blue", region=region, **FEW)
        assert np.array_equal(pixels(made.data[0].b64_json), np.array(alone))
    for wrong, said in (("the submarine", "finds no 'the submarine'"), ("9,9,1,1", "no box"), (" ", "expected auto")):
        with pytest.raises(openai.BadRequestError, match=said) as told:
            client.images.edit(image=png, prompt="make it blue", extra_body=FEW | {"region": wrong})
        assert told.value.param == "region"


def test_a_check_is_that_of_the_call_and_says_what_it_found(client, pipe, pixels):
    more = {"num_inference_steps": 4, "size": "64x64", "seed": 5}
    for prompt in ('the text "Q8"', "a red circle"):
        made = client.images.generate(prompt=prompt, extra_body=more | {"check": 3})
        found = made.data[0]
        (alone,) = pipe.generate(prompt, seed=5, num_inference_steps=4, check=3)
        assert np.array_equal(pixels(found.b64_json), np.array(alone))
        assert found.check == alone.verdict.as_data() and found.seed == draw_seed(5, found.check["draw"])
    plain = drawn(client, extra_body=FEW)
    assert not hasattr(plain.data[0], "check")
    for wrong, param in (({"check": 0}, "check"), ({"check": 101}, "check"), ({"think": True}, "think")):
        with pytest.raises(openai.BadRequestError) as told:
            drawn(client, extra_body=FEW | wrong)
        assert told.value.param == param


def test_a_mask_that_cannot_be_is_refused(client, png):
    small, clear = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (32, 64)).save(small, "PNG")
    Image.new("RGBA", (64, 64), (0, 0, 0, 255)).save(clear, "PNG")
    for mask, images, said in (
        (png, png, "no transparency"), (small.getvalue(), png, "32x64 pixels and what it is about 64x64"),
        (clear.getvalue(), [png, png], "nothing transparent"), (b"GIF", png, "mask"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=said) as told:
            client.images.edit(image=images, mask=mask, prompt="make it blue", extra_body=FEW)
        assert told.value.param == "mask"


def test_other_models_are_refused(client):
    with pytest.raises(openai.NotFoundError) as told:
        drawn(client, model="dall-e-3")
    assert told.value.code == "model_not_found"


def test_the_async_client(later):
    async def both():
        one, two = await asyncio.gather(drawn(later), drawn(later, extra_body={"seed": 8}))
        return one.data[0].seed, two.data[0].seed

    assert asyncio.run(both()) == (7, 8)
