"""The same server with its model on replicas of Ray Serve: the two checkpoints of a released tree on a machine of their
own, one of which is killed, and a cluster that is joined and grows."""

import io
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

import openlance
from openlance.cli.main import main
from openlance.media import read_media

pytestmark = [
    pytest.mark.skipif("OPENLANCE_RAY" not in os.environ, reason="OPENLANCE_RAY=1 starts Ray, ten processes of it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FEW = {"num_inference_steps": 2, "seed": 7}
SMALL = FEW | {"num_frames": 5, "size": "32x32"}
LONG = SMALL | {"num_inference_steps": 200, "num_frames": 33, "size": "64x64"}
CLUSTER = """
import ray, sys
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen
    url: str

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="secret", max_retries=0)

    def counted(self, what: str) -> dict[str, float]:
        """A number of each replica, by its name."""
        page = httpx2.get(f"{self.url}/metrics").text
        samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
        return {one.labels["replica"]: one.value for one in samples if one.name == what and "replica" in one.labels}

    def ready(self) -> bool:
        time.sleep(0.3)
        return httpx2.get(f"{self.url}/ready").status_code == 200


@contextmanager
def serving(folder: Path, until, *words: str, **more: str) -> Iterator[Running]:
    """`openlance serve --ray`, ready for work."""
    line = ["serve", "--ray", "--port", "0", "--api-key", "secret", "--folder", str(folder / "files"), *words]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "openlance.cli.main", *line], stderr=log, env=os.environ | more, cwd=folder
        )
    try:
        said = re.compile(r"running on (http://[\d.:]+)")
        until(lambda: said.search((folder / "log").read_text()) or process.poll() is not None, 120)
        running = Running(process, said.search((folder / "log").read_text())[1])
        until(running.ready, 180)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def family(pid: int) -> dict[int, str]:
    """The living processes that descend from one, with their titles."""
    parents = dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(") ")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: (Path("/proc") / str(one) / "cmdline").read_text().replace("\0", " ") for one in found - {pid}}


def alive(pids) -> list[int]:
    stats = (Path("/proc") / str(pid) / "stat" for pid in pids)
    return [int(path.parent.name) for path in stats if path.exists() and ") Z " not in path.read_text()]


@pytest.fixture(scope="module")
def short() -> Iterator[str]:
    """A short name, since Ray's sockets lie deep below it."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """nano in the form of the release, with a checkpoint for videos that differs."""
    root = tmp_path_factory.mktemp("checkpoint") / "tree"
    assert main(["convert", "nano", str(root), "--to", "released"]) == 0
    shutil.copytree(root / "Lance_3B", root / "Lance_3B_Video")
    weights = root / "Lance_3B_Video" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"llm2vae.weight": -tensors["llm2vae.weight"]}, weights, {"format": "pt"})
    return root


@pytest.fixture(scope="module")
def local(tree):
    return openlance.load(str(tree))


@pytest.fixture(scope="module")
def running(tree, short, tmp_path_factory, until) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("ray")
    with serving(folder, until, "--model", str(tree), "--name", "nano", "--queue", "4", RAY_TMPDIR=short,
                 OPENLANCE_ADMIN_KEY="boss") as one:  # fmt: skip
        yield one


def frames(client, job) -> np.ndarray:
    return read_media(client.videos.download_content(job.id).read()).pixels


def test_images_come_from_one_checkpoint_with_streams_and_previews(running, local, pixels):
    client = running.client
    assert [model.id for model in client.models.list()] == ["nano"]
    made = client.images.generate(prompt="a red circle", n=2, size="48x32", extra_body=FEW)
    for k, one in enumerate(made.data):
        (alone,) = local.generate("a red circle", height=32, width=48, seed=7 + k, num_inference_steps=2)
        assert np.abs(pixels(one.b64_json).astype(int) - np.array(alone)).max() <= 1
    events = list(client.images.generate(prompt="a star", stream=True, partial_images=2, extra_body={"seed": 7}))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    png = io.BytesIO()
    Image.fromarray(pixels(made.data[0].b64_json)).save(png, "PNG")
    edited = client.images.edit(image=("a.png", png.getvalue()), prompt="make it blue", extra_body=FEW)
    assert pixels(edited.data[0].b64_json).ndim == 3


def test_chat_answers_and_streams(running, local):
    asked = {"model": "nano", "messages": [{"role": "user", "content": "what is a circle?"}], "max_tokens": 12}
    whole = running.client.chat.completions.create(**asked).choices[0]
    chunks = list(running.client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_clips_come_from_the_other_checkpoint(running, local, until):
    client = running.client
    job = client.videos.create_and_poll(prompt="a red circle moves left", extra_body=SMALL)
    assert (job.status, job.progress) == ("completed", 100)
    how = {"seed": 7, "num_inference_steps": 2, "num_frames": 5, "height": 32, "width": 32}
    (alone,) = local.generate_video(["a red circle moves left"], **how)
    (other,) = openlance.load("nano").generate_video(["a red circle moves left"], **how)
    found = frames(client, job).astype(int)
    near, far = (np.abs(found - clip.pixels).mean() for clip in (alone, other))
    assert near < 8 < 24 < far  # H.264 of what is nearly noise
    assert client.videos.download_content(job.id, variant="thumbnail").read()
    assert client.videos.delete(job.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job.id)
    assert client.images.generate(prompt="a star", extra_body=FEW).data
    until(lambda: len(running.counted("openlance_batch_size_count")) == 2)
    assert all(running.counted("openlance_batch_size_count").values())


def test_each_class_of_error_is_the_error_object(running):
    client = running.client
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a star", size="7x7x7")
    assert (refused.value.code, refused.value.param) == ("invalid_value", "size")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a star", model="other")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.RateLimitError) as full:
        client.images.generate(prompt="a star", n=5)
    assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"]) > 0


def test_a_deleted_job_stops_in_its_replica(running, until):
    def steps() -> float:
        """Of the replica for videos, which tells what it counts when it is done with a request."""
        client.videos.create_and_poll(prompt="a star", extra_body=SMALL)
        time.sleep(0.2)
        (count,) = (n for name, n in running.counted("openlance_step_seconds_count").items() if "videos" in name)
        return count

    client = running.client
    before = steps()
    job = client.videos.create(prompt="a star", extra_body=LONG)
    until(lambda: client.videos.retrieve(job.id).progress > 0)
    assert client.videos.retrieve(job.id).status == "in_progress" and client.videos.delete(job.id).deleted
    assert steps() - before < 100  # of 200
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job.id)


def test_operators_see_cancel_and_drain(running, until):
    admin = httpx2.Client(base_url=f"{running.url}/admin", headers={"Authorization": "Bearer boss"})
    client = running.client
    job = client.videos.create(prompt="a star", extra_body=LONG)
    until(lambda: client.videos.retrieve(job.id).progress > 0)
    seen = admin.get("/queue").json()
    assert [one["makes"] for one in seen["running"]] == ["video"] and seen["waiting"] == []
    assert admin.delete("/queue").json() == {"cancelled": 1}
    assert client.videos.poll(job.id).error.code == "cancelled"
    assert admin.post("/drain").json()["status"] == "draining" and not running.ready()
    with pytest.raises(openai.InternalServerError) as drained:
        client.images.generate(prompt="a star", extra_body=FEW)
    assert drained.value.code == "draining"
    assert admin.post("/resume").json()["status"] == "ready"


def test_a_killed_replica_fails_what_it_did_and_another_takes_its_place(running, until):
    client = running.client
    done = client.videos.create_and_poll(prompt="a star", extra_body=SMALL)
    content = frames(client, done)
    job = client.videos.create(prompt="a star", extra_body=LONG)
    until(lambda: client.videos.retrieve(job.id).progress > 0)
    (replica,) = (pid for pid, title in family(running.process.pid).items() if "nano-videos" in title)
    os.kill(replica, signal.SIGKILL)
    failed = client.videos.poll(job.id)
    assert (failed.status, failed.error.code) == ("failed", "server_restarted")
    assert np.array_equal(frames(client, done), content)
    assert client.images.generate(prompt="a star", extra_body=FEW).data  # the other replica goes on
    again = client.videos.create_and_poll(prompt="a star", extra_body=SMALL)  # waits for the new one
    assert np.array_equal(frames(client, again), content)
    until(running.ready, 30)


def test_the_end_leaves_no_process(running, until):
    client = running.client
    job = client.videos.create(prompt="a star", extra_body=LONG)
    until(lambda: client.videos.retrieve(job.id).progress > 0)
    before = family(running.process.pid)
    assert sum("ServeReplica" in title for title in before.values()) == 2
    began = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    running.process.wait(20)
    assert time.monotonic() - began < 10 and not alive(before)


@pytest.fixture(scope="module")
def cluster(short) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """A cluster of somebody else's, and the variables by which others join it."""
    more = {"RAY_TMPDIR": short, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | more,
    ) as process:  # fmt: skip
        yield process, more | {"RAY_ADDRESS": process.stdout.readline().strip()}


def test_a_cluster_is_joined_grows_and_is_left_as_it_was(cluster, tmp_path, until):
    process, more = cluster
    busy = threading.Event()

    def draw(client: OpenAI) -> None:
        while not busy.is_set():
            client.images.generate(prompt="a star", extra_body={"num_inference_steps": 50})

    with serving(tmp_path, until, "--max-replicas", "2", "--target-requests", "1", **more) as running:
        clients = [threading.Thread(target=draw, args=(running.client,)) for _ in range(4)]
        for thread in clients:
            thread.start()
        try:
            until(lambda: time.sleep(0.5) or len(running.counted("openlance_batch_size_count")) == 2, 120)
        finally:
            busy.set()
            for thread in clients:
                thread.join()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(20)
    until(lambda: not any("ServeReplica" in title for title in family(process.pid).values()), 20)
    assert any("raylet" in title for title in family(process.pid).values())


def test_a_cluster_that_is_not_there_is_said(capsys):
    assert main(["serve", "--ray", "--address", "127.0.0.1:1", "--port", "0"]) == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
