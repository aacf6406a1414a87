"""What OpenAI's client can be expected to do, each with the plain and the async client against a running server.

The server is one of this test's own, or that of OPENLANCE_URL (with OPENLANCE_API_KEY, and OPENLANCE_ADMIN_KEY for what
an operator has to do); it serves nano there as well.
"""

import asyncio
import base64
import inspect
import io
import os
import threading
import time

import httpx2
import openai
import pytest
from PIL import Image

from openlance.media import read_media

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FEW = {"num_inference_steps": 2, "seed": 7}
SMALL = FEW | {"size": "32x32", "num_frames": 5}
LONG = SMALL | {"num_inference_steps": 200}
ELSEWHERE = os.environ.get("OPENLANCE_URL")


class Waited:
    """An async client, called as if it were a plain one."""

    def __init__(self, inner, loop):
        self._inner, self._loop = inner, loop

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        own = callable(value) or type(value).__module__.startswith("openai.resources")
        return Waited(value, self._loop) if own else value

    def __call__(self, *args, **more):
        value = self._inner(*args, **more)
        if not hasattr(value, "__aiter__") and inspect.isawaitable(value):
            value = self._loop.run_until_complete(value)
        if hasattr(value, "__aiter__"):
            return self._loop.run_until_complete(self._all(value))
        return Waited(value, self._loop) if hasattr(value, "__aenter__") else value

    async def _all(self, values):
        return [value async for value in values]

    def __enter__(self):
        return Waited(self._loop.run_until_complete(self._inner.__aenter__()), self._loop)

    def __exit__(self, *error):
        self._loop.run_until_complete(self._inner.__aexit__(*error))


@pytest.fixture(scope="module")
def place(pipe, serving, tmp_path_factory):
    """Address, key and the operator's key of a server."""
    if ELSEWHERE:
        yield ELSEWHERE, os.environ.get("OPENLANCE_API_KEY", "none"), os.environ.get("OPENLANCE_ADMIN_KEY", "")
        return
    folder = tmp_path_factory.mktemp("conformance")
    with serving(pipe, folder=folder, api_keys=("key",), admin_key="operator", queued=3) as running:
        yield running.url, "key", "operator"


@pytest.fixture(params=["sync", "async"])
def opened(request, place):
    """Opens a client; `hits` counts what it sends."""
    loop, clients = asyncio.new_event_loop(), []

    def client(key=place[1], retries=0, hits=None):
        def sent(_):
            if hits is not None:
                hits.append(1)

        async def sent_later(given):
            sent(given)

        how = {"base_url": f"{place[0]}/v1", "api_key": key, "max_retries": retries}
        if request.param == "sync":
            made = openai.OpenAI(**how, http_client=httpx2.Client(event_hooks={"request": [sent]}, timeout=60))
        else:
            http = httpx2.AsyncClient(event_hooks={"request": [sent_later]}, timeout=60)
            made = Waited(openai.AsyncOpenAI(**how, http_client=http), loop)
        clients.append(made)
        return made

    yield client
    for made in clients:
        made.close()
    loop.close()


@pytest.fixture
def client(opened):
    return opened()


@pytest.fixture
def operator(place):
    if not place[2]:
        pytest.skip("it takes the operator's key: OPENLANCE_ADMIN_KEY")

    def call(method, path):
        answer = httpx2.request(method, f"{place[0]}/admin{path}", headers={"Authorization": f"Bearer {place[2]}"})
        return answer.raise_for_status().json()

    return call


def url_of(data, kind):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def user(text, *parts):
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture
def shown(png):
    return {"type": "image_url", "image_url": {"url": url_of(png, "image/png")}}


def size_of(data):
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def draw(client, **more):
    return client.images.generate(prompt="a red circle", extra_body=FEW | more.pop("extra_body", {}), **more)


def begin(client, **more):
    return client.videos.create(prompt="a star", extra_body=LONG | more.pop("extra_body", {}), **more)


# Models and images.


def test_models(client):
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model and model.object == "model"


def test_images(client):
    one = draw(client, size="32x48")
    assert size_of(one.data[0].b64_json) == (32, 48) and one.usage.total_tokens > one.usage.output_tokens > 0
    two = draw(client, n=2, size="32x48", extra_body={"guidance_scale": 2.0})
    assert [picture.seed for picture in two.data] == [7, 8]
    assert two.data[0].b64_json != one.data[0].b64_json
    linked = draw(client, response_format="url", size="32x32").data[0]
    assert linked.url.startswith("http") and linked.b64_json is None


def test_a_stream_of_images(client):
    events = list(draw(client, stream=True, partial_images=1, size="32x32", extra_body={"num_inference_steps": 4}))
    assert [e.type for e in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert all(size_of(e.b64_json) == (32, 32) for e in events) and events[-1].usage.total_tokens


@pytest.mark.usefixtures("whole")
def test_edits(client, png):
    forms = [png, io.BytesIO(png), ("a.png", png), [png], [("a.png", png), ("b.png", png)]]
    made = [client.images.edit(image=form, prompt="make it blue", extra_body=FEW).data[0].b64_json for form in forms]
    assert len(set(made[:4])) == 1 and size_of(made[4]) == size_of(made[0])
    with pytest.raises(openai.BadRequestError) as told:
        client.images.edit(image=png, mask=png, prompt="make it blue")
    assert (told.value.code, told.value.param) == ("invalid_value", "mask")  # nothing of it is transparent
    streamed = list(client.images.edit(image=png, prompt="make it blue", stream=True, extra_body=FEW))
    assert [e.type for e in streamed] == ["image_edit.completed"] and streamed[0].b64_json == made[0]


# Chat.


def test_chat(client, shown, mp4):
    words = client.chat.completions.create(model="nano", messages=[user("what is a circle?")], max_tokens=4)
    assert isinstance(words.choices[0].message.content, str) and words.usage.completion_tokens <= 4
    asked = client.chat.completions.create(model="nano", messages=[user("what color is it?", shown)])
    assert asked.choices[0].message.content and asked.choices[0].finish_reason == "stop"
    film = {"type": "video_url", "video_url": {"url": url_of(mp4, "video/mp4")}}
    moved = client.chat.completions.create(model="nano", messages=[user("what moves?", film)], max_tokens=4)
    assert moved.choices[0].message.content and moved.usage.prompt_tokens > asked.usage.prompt_tokens


def test_a_stream_of_chat(client, shown):
    how = {"model": "nano", "messages": [user("describe the picture", shown)]}
    whole = client.chat.completions.create(**how)
    *chunks, last = client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop" and last.choices == [] and last.usage == whole.usage
    with client.chat.completions.stream(**how) as helper:
        assert helper.get_final_completion().choices[0].message.content == text


def test_an_image_in_chat(client):
    messages = [user("draw a red circle")]
    how = {"model": "nano", "messages": messages, "modalities": ["image"], "extra_body": FEW | {"size": "32x32"}}
    (part,) = client.chat.completions.create(**how).choices[0].message.content
    assert size_of(part["image_url"]["url"].partition(",")[2]) == (32, 32)
    chunks = list(client.chat.completions.create(**how, stream=True))
    found = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert found == [[part]] and chunks[-1].choices[0].finish_reason == "stop"


def test_an_error_in_the_middle_of_a_stream(client, operator, until):
    def stop():
        until(lambda: operator("GET", "/queue")["running"])
        operator("DELETE", "/queue")

    other = threading.Thread(target=stop)
    other.start()
    body = {"num_inference_steps": 200, "size": "32x32"}
    with pytest.raises(openai.APIError, match="cancelled") as told:
        list(client.chat.completions.create(
            model="nano", messages=[user("draw a star")], modalities=["image"], stream=True, extra_body=body
        ))  # fmt: skip
    other.join()
    assert told.value.code == "cancelled"


# Videos.


@pytest.mark.usefixtures("whole")
def test_videos(client, png, mp4):
    job = client.videos.create(prompt="a star", seconds="0.4", size="32x32", extra_body=FEW)
    assert (job.object, job.size, job.seconds) == ("video", "32x32", "0.416667") and job.status != "completed"
    done = client.videos.poll(job.id)
    assert (done.status, done.progress) == ("completed", 100) and done.completed_at <= done.expires_at
    began = client.videos.create_and_poll(prompt="it moves up", input_reference=("a.png", png), extra_body=SMALL)
    assert began.status == "completed" and client.videos.retrieve(began.id) == began
    remixed = client.videos.remix(began.id, prompt="make it blue", extra_body={"extra_body": FEW})
    edited = client.videos.edit(prompt="make it blue", video=("a.mp4", mp4), extra_body=FEW)
    longer = client.videos.extend(prompt="it moves on", seconds="0.4", video=("a.mp4", mp4), extra_body=FEW)
    assert remixed.remixed_from_video_id == began.id
    assert [client.videos.poll(one.id).status for one in (remixed, edited, longer)] == ["completed"] * 3
    assert client.videos.retrieve(longer.id).num_frames == 13
    made = [done, began, remixed, edited, longer]
    listed = [one.id for one in client.videos.list(limit=2, order="asc")]
    assert [one for one in listed if one in {job.id for job in made}] == [job.id for job in made]
    for one in made:
        deleted = client.videos.delete(one.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (one.id, True, "video.deleted")


def test_what_a_video_can_be_downloaded_as(client):
    job = client.videos.create_and_poll(prompt="a star", extra_body=SMALL)
    assert read_media(client.videos.download_content(job.id).content).pixels.shape == (5, 32, 32, 3)
    assert read_media(client.videos.download_content(job.id, variant="video").content).frames == 5
    still = client.videos.download_content(job.id, variant="thumbnail")
    assert Image.open(io.BytesIO(still.content)).size == (32, 32)
    with pytest.raises(openai.BadRequestError, match="spritesheet") as told:
        client.videos.download_content(job.id, variant="spritesheet")
    assert told.value.param == "variant"
    client.videos.delete(job.id)


def test_a_list_of_two_pages(client):
    made = [client.videos.create(prompt="a star", extra_body=SMALL).id for _ in range(3)]
    pages = [client.get("/videos", cast_to=dict, options={"params": {"limit": 2, "order": "desc"}})]
    pages += [client.get("/videos", cast_to=dict, options={"params": {"limit": 2, "after": pages[0]["last_id"]}})]
    assert pages[0]["has_more"] and [one["id"] for page in pages for one in page["data"]][:3] == made[::-1]
    assert [one.id for one in client.videos.list(limit=2)][:3] == made[::-1]
    for job in made:
        client.videos.delete(job)
    with pytest.raises(openai.NotFoundError):
        client.get("/videos", cast_to=dict, options={"params": {"after": made[0]}})


def test_polling_ends_on_a_failed_one(client, operator, until):
    job = begin(client)
    until(lambda: client.videos.retrieve(job.id).progress > 0)
    operator("DELETE", "/queue")
    failed = client.videos.poll(job.id)
    assert (failed.status, failed.error.code) == ("failed", "cancelled") and failed.error.message
    with pytest.raises(openai.ConflictError) as told:
        client.videos.download_content(job.id)
    assert told.value.code == "not_completed"
    client.videos.delete(job.id)


def test_deleted_while_it_waits_runs_and_is_done(client, until):
    running, waiting = begin(client), begin(client, extra_body={"guidance_scale": 2.5})
    until(lambda: client.videos.retrieve(running.id).progress > 0)
    assert client.videos.retrieve(running.id).status == "in_progress"
    assert client.videos.retrieve(waiting.id).status == "queued"
    for job in (waiting, running):
        assert client.videos.delete(job.id).deleted
    done = client.videos.create_and_poll(prompt="a star", extra_body=SMALL)
    assert client.videos.delete(done.id).deleted
    for job in (waiting, running, done):
        with pytest.raises(openai.NotFoundError) as told:
            client.videos.retrieve(job.id)
        assert (told.value.code, told.value.param) == ("not_found", "video_id")


# Errors.


def test_every_class_of_error_has_its_code_and_param(opened, client, operator, place):
    cases = [
        (openai.BadRequestError, lambda: draw(client, size="7x7"), "invalid_value", "size"),
        (openai.BadRequestError, lambda: draw(client, extra_body={"colour": 1}), "unknown_parameter", "colour"),
        (openai.BadRequestError, lambda: client.videos.create(prompt="x", extra_body={"image_reference": {"image_url":
            "file:///etc/passwd"}}), "unsupported_url", "image_reference"),
        (openai.NotFoundError, lambda: draw(client, model="dall-e-3"), "model_not_found", "model"),
        (openai.NotFoundError, lambda: client.models.retrieve("owner/name"), "model_not_found", "model"),
        (openai.NotFoundError, lambda: client.videos.retrieve("video_none"), "not_found", "video_id"),
    ]  # fmt: skip
    if place[1] != "none":
        cases.append((openai.AuthenticationError, opened(key="other").models.list, "invalid_api_key", None))
    for kind, call, code, param in cases:
        with pytest.raises(kind) as told:
            list(call())
        error = told.value
        assert (error.code, error.param, error.request_id[:4]) == (code, param, "req_") and error.body["message"]
    operator("POST", "/drain")
    with pytest.raises(openai.InternalServerError) as told:
        draw(client)
    operator("POST", "/resume")
    assert (told.value.status_code, told.value.code, told.value.type) == (503, "draining", "server_error")


def test_what_cannot_help_is_not_asked_again(opened, client):
    """A conflict is sent three times in all by this client, unless the answer says that it is of no use."""
    hits, job = [], begin(client)
    with pytest.raises(openai.ConflictError) as told:
        opened(retries=2, hits=hits).videos.download_content(job.id)
    assert len(hits) == 1 and told.value.response.headers["x-should-retry"] == "false"
    client.videos.delete(job.id)


@pytest.mark.skipif(ELSEWHERE is not None, reason="it takes a short queue")
def test_a_full_queue_is_asked_again_when_it_says(opened, client, operator):
    with pytest.raises(openai.RateLimitError) as told:
        for n in range(5):
            begin(client, extra_body={"guidance_scale": 2 + n / 10})
    wait = int(told.value.response.headers["retry-after"])
    assert told.value.code == "queue_full" and 1 <= wait <= 120 and "x-should-retry" not in told.value.response.headers
    hits, began = [], time.monotonic()
    free = threading.Timer(0.3, operator, ("DELETE", "/queue"))
    free.start()
    assert draw(opened(retries=2, hits=hits), size="32x32").data
    free.join()
    assert len(hits) == 2 and time.monotonic() - began >= 1
    for job in client.videos.list():
        client.videos.delete(job.id)
