"""Jobs: from the queue to a file, and everything that can be done with one."""

import base64
import io

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from openlance.media import Clip, read_media

FEW = {"num_inference_steps": 2, "seed": 7}
SMALL = FEW | {"num_frames": 5, "size": "32x32"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def done(client):
    return client.videos.create_and_poll(prompt="a red circle moves left", extra_body=SMALL)


def frames(client, job) -> np.ndarray:
    return read_media(client.videos.download_content(job.id).read()).pixels


def test_a_clip_comes_as_a_job_and_as_a_file(client, server, done, pipe):
    assert (done.status, done.progress, done.size, done.seconds) == ("completed", 100, "32x32", "0.416667")
    (alone,) = pipe.generate_video(
        ["a red circle moves left"], seed=7, num_inference_steps=2, num_frames=5, height=32, width=32
    )
    found = frames(client, done)
    assert found.shape == alone.pixels.shape and np.abs(found.astype(int) - alone.pixels).mean() < 4  # H.264
    thumbnail = client.videos.download_content(done.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(thumbnail)).size == (32, 32)
    with pytest.raises(openai.BadRequestError, match="spritesheet"):
        client.videos.download_content(done.id, variant="spritesheet")
    headers = httpx2.get(f"{server.url}/v1/videos/{done.id}").headers
    assert int(headers["openai-poll-after-ms"]) > 0


def test_a_check_is_said_of_the_finished_job(client, server, pipe):
    more = SMALL | {"seed": 3, "check": 2}
    job = client.videos.create_and_poll(prompt="a red circle moves left", extra_body=more)
    (alone,) = pipe.generate_video(
        "a red circle moves left", num_frames=5, num_inference_steps=2, height=32, width=32, seed=3, check=2
    )
    assert job.check == alone.verdict.as_data() and job.seed == alone.made.seed
    assert client.videos.retrieve(job.id).check == job.check


def test_seconds_mean_the_nearest_length(client):
    job = client.videos.create(prompt="a red circle", seconds="0.5", size="32x32", extra_body=FEW)
    assert (job.status, job.num_frames) == ("queued", 5)
    client.videos.delete(job.id)


def test_a_finished_job_is_edited_and_extended_by_its_id(client, server, done):
    for path, more in (("edits", {}), ("extensions", {"num_frames": 5})):
        for sent in ({"json": {"video": {"id": done.id}}}, {"data": {"video[id]": done.id}}):
            [(form, fields)] = sent.items()
            said = {form: fields | {"prompt": "make it blue"} | FEW | more}
            answer = httpx2.post(f"{server.url}/v1/videos/{path}", **said).raise_for_status()
            assert client.videos.poll(answer.json()["id"]).status == "completed"
    missing = httpx2.post(f"{server.url}/v1/videos/edits", json={"prompt": "x", "video": {"id": "video_none"}})
    assert missing.status_code == 404


def test_all_frames_of_a_video_stay_in_its_extension(client, tmp_path):
    Clip(np.random.default_rng(0).integers(0, 60, (7, 32, 32, 3), np.uint8)).save(tmp_path / "a.mp4")
    sent = ("a.mp4", (tmp_path / "a.mp4").read_bytes())
    job = client.videos.extend(prompt="it moves on", seconds="0.4", video=sent, extra_body=FEW)
    assert client.videos.poll(job.id).status == "completed"
    assert client.videos.retrieve(job.id).num_frames == 7 - 1 + 5


def test_a_picture_begins_a_clip_in_every_form(client, server, png):
    by_file = client.videos.create(prompt="it moves up", input_reference=("a.png", png), extra_body=SMALL)
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    by_url = client.videos.create(prompt="it moves up", extra_body=SMALL | {"image_reference": {"image_url": url}})
    by_json = httpx2.post(
        f"{server.url}/v1/videos", json={"prompt": "it moves up", "input_reference": {"image_url": url}} | SMALL
    )
    jobs = [client.videos.poll(job.id) for job in (by_file, by_url)] + [client.videos.poll(by_json.json()["id"])]
    first, *others = (frames(client, job) for job in jobs)
    assert first.shape == (5, 32, 32, 3)  # jobs may share a pass, where a level rounds otherwise
    assert all(np.abs(first.astype(int) - other).mean() < 1 for other in others)


def test_a_list_of_pages(client, done):
    more = client.videos.create_and_poll(prompt="a star", extra_body=SMALL)
    ids = [job.id for job in client.videos.list(limit=1, order="asc")]
    assert ids.index(done.id) < ids.index(more.id) and len(ids) == len(set(ids))
    assert client.videos.list(limit=1).data[0].id == ids[-1]


@pytest.mark.usefixtures("whole")
def test_a_remix_is_an_edit_of_the_finished_clip(client, done, mp4):
    remixed = client.videos.remix(done.id, prompt="make it blue")
    edited = client.videos.edit(prompt="make it blue", video=("x.mp4", mp4), extra_body=FEW)
    remixed, edited = client.videos.poll(remixed.id), client.videos.poll(edited.id)
    assert remixed.remixed_from_video_id == done.id and remixed.num_frames == 5
    assert frames(client, edited).shape == (9, 32, 32, 3)


def test_an_extension_goes_on_from_the_last_frame_and_says_so(client, mp4):
    job = client.videos.extend(prompt="it moves on", seconds="0.4", video=("x.mp4", mp4), extra_body=FEW)
    job = client.videos.poll(job.id)
    found = frames(client, job)
    assert len(found) == job.num_frames == 9 + 4 and "last frame" in job.notice
    assert np.abs(found[:8].astype(int) - read_media(mp4).pixels[:8]).mean() < 4


def test_deleted_while_it_waits_runs_and_is_done(client, server, until):
    long = SMALL | {"num_inference_steps": 200}
    running = client.videos.create(prompt="a star", extra_body=long)
    waiting = client.videos.create(prompt="a ring", extra_body=long | {"guidance_scale": 2.5})
    until(lambda: client.videos.retrieve(running.id).progress > 0)
    assert client.videos.retrieve(waiting.id).status == "queued"
    assert client.videos.delete(waiting.id).deleted and client.videos.delete(running.id).deleted
    assert until(lambda: not server.serving.worker.running, 5) is True
    done = client.videos.create_and_poll(prompt="a star", extra_body=SMALL)
    files = list(server.serving.store.files.iterdir())
    client.videos.delete(done.id)
    assert len(list(server.serving.store.files.iterdir())) == len(files) - 2
    for job in (running, waiting, done):
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(job.id)


@pytest.mark.parametrize(
    "said, param",
    [
        ({"num_frames": 6}, "num_frames"),
        ({"num_frames": 125}, "num_frames"),
        ({"seconds": "0.5", "num_frames": 5}, "seconds"),
        ({"fps": 30}, "fps"),
        ({"input_reference": "../jobs.db"}, "input_reference"),
        ({"image_reference": {"image_url": "http://169.254.169.254/"}}, "image_reference"),
        ({"lora": {"name": "x"}}, "lora"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server, said, param):
    answer = httpx2.post(f"{server.url}/v1/videos", json={"prompt": "a star", "size": "32x32"} | said)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
