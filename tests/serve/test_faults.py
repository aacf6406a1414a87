"""What breaks around a server: the disk, its folder, its memory, its thread, its clients; and how it ends.

The server is `openlance serve` in a process of its own where a limit or a signal is to hit it alone.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from openlance.config.sampling import Decoding
from openlance.errors import UserError
from openlance.sequence import tasks
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure
from openlance.serve.metrics import Metrics
from openlance.serve.store import FAILED, Job, Store
from openlance.serve.worker import Item, Worker

IMAGES, VIDEOS = "/v1/images/generations", "/v1/videos"
SMALL = {"prompt": "a star", "size": "32x32", "num_inference_steps": 1}
CLIP = SMALL | {"num_frames": 5}
linux = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")


class Process:
    """`openlance serve` in a folder, with a client."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        line = [sys.executable, "-m", "openlance.cli.main", "serve", "--port", "0", "--folder", str(folder)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(line, stderr=log)
        self.http = httpx2.Client(timeout=60)

    @property
    def url(self) -> str:
        found = re.search(r"running on (http://127\.0\.0\.1:\d+)", self.log.read_text())
        return found[1] if found else ""

    def post(self, path, **body):
        return self.http.post(self.url + path, json=body)

    def get(self, path):
        return self.http.get(self.url + path)

    def ended(self, name):
        """A job, when it has ended."""
        while (job := self.get(f"{VIDEOS}/{name}").json())["status"] in ("queued", "in_progress"):
            time.sleep(0.05)
        return job

    def memory(self) -> int:
        """Bytes of address space."""
        return 1024 * int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])

    @contextmanager
    def limited(self, what: int, most: int):
        """Less of something than it is used to."""
        before = resource.prlimit(self.process.pid, what)
        resource.prlimit(self.process.pid, what, (most, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, what, before)


@pytest.fixture(scope="module")
def process(tmp_path_factory, until):
    running = Process(tmp_path_factory.mktemp("faults") / "served")
    try:
        until(lambda: running.url and running.get("/ready").status_code == 200, 60)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def error_of(answer, status):
    error = answer.json()["error"]
    assert answer.status_code == status and error["message"] and answer.headers["x-should-retry"] == "false", error
    return error["code"]


@linux
def test_a_disk_that_takes_nothing_fails_the_job_and_nothing_else(process, until):
    """Every write of the server fails, as on a full disk: a job that runs, a new one, a link, a deletion."""
    kept = process.ended(process.post(VIDEOS, **CLIP).json()["id"])
    content = process.get(f"{VIDEOS}/{kept['id']}/content").content
    files = set((process.folder / "files").iterdir())
    job = process.post(VIDEOS, **CLIP | {"num_inference_steps": 40}).json()["id"]
    until(lambda: process.get(f"{VIDEOS}/{job}").json()["progress"])
    with process.limited(resource.RLIMIT_FSIZE, 0):
        assert process.ended(job)["error"]["code"] == "storage_failed"
        assert error_of(process.post(VIDEOS, **CLIP), 507) == "storage_failed"
        assert error_of(process.post(IMAGES, **SMALL, response_format="url"), 507) == "storage_failed"
        assert process.post(IMAGES, **SMALL).status_code == 200
        assert process.get(f"{VIDEOS}/{kept['id']}/content").content == content
        assert {one["status"] for one in process.get(VIDEOS).json()["data"]} == {"completed", "failed"}
        assert set((process.folder / "files").iterdir()) == files
    assert process.ended(process.post(VIDEOS, **CLIP).json()["id"])["status"] == "completed"
    assert process.get(f"{VIDEOS}/{job}").json()["status"] == "failed"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may make a disk")
def test_a_full_disk_is_used_up_and_freed_again(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("no disk can be made here")
    try:
        store = Store(ServeConfig(folder=tmp_path))
        job = store.add(Job(id="a", model="nano", prompt="a", num_frames=1, width=8, height=8, seed=0))
        names = []
        with pytest.raises(Exception, match="takes nothing") as told:
            while True:
                names.append(store.keep(bytes(20_000), "png"))
        assert (told.value.code, len(names) > 5) == ("storage_failed", True)
        with suppress(OSError):
            (tmp_path / "rest").write_bytes(bytes(1 << 20))
        with pytest.raises(Exception, match="takes nothing"):
            store.complete(job.id, {"mp4": bytes(20_000)})
        store.fail(job.id, told.value)
        assert store.job(job.id).status == FAILED
        assert {path.name for path in store.files.iterdir()} == set(names)
        assert all(store.path(name).stat().st_size == 20_000 for name in names)
        (tmp_path / "rest").unlink()
        store.sweep()
        assert not store.unsaved and store.keep(b"x", "png")
        store.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@linux
def test_too_little_memory_fails_what_is_too_large_and_the_next_small_one_works(process):
    """Real allocations that the machine refuses, in passes of one and of several."""
    process.post(IMAGES, **SMALL)
    large = SMALL | {"size": "128x128"}
    with process.limited(resource.RLIMIT_AS, process.memory() + 40_000_000):
        job = process.post(VIDEOS, **large, num_frames=121).json()["id"]
        assert process.ended(job)["error"]["code"] == "out_of_memory"
        assert process.post(IMAGES, **SMALL).status_code == 200
        said = {"messages": [{"role": "user", "content": "a star"}], "modalities": ["video"], "num_frames": 121}
        answer = process.post("/v1/chat/completions", size="128x128", num_inference_steps=1, **said)
        assert error_of(answer, 500) == "out_of_memory"
        assert process.post(IMAGES, **SMALL).status_code == process.get("/ready").status_code == 200
    assert process.post(IMAGES, **large).status_code == 200


def opened(process, body, length=None):
    """A connection that has sent a request for images and reads nothing of the answer."""
    host, port = process.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((host, int(port)))
    head = f"POST {IMAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: {length or len(body)}\r\n\r\n"
    connection.sendall(f"{head}{body}".encode())
    return connection


def test_who_reads_or_writes_slowly_holds_up_nobody_and_the_end_comes_within_ten_seconds(process, until):
    """Four images that nobody reads and a body that never ends, while others are served; then the end, with these open,
    a stream of which nobody reads a word, and a job that runs."""
    large = '{"prompt": "a star", "n": 4, "size": "128x128", "num_inference_steps": 1}'
    slow = [opened(process, large), opened(process, "{", 1000)]
    assert [process.post(IMAGES, **SMALL).status_code for _ in range(3)] == [200] * 3
    slow.append(opened(process, '{"prompt": "a star", "stream": true, "num_inference_steps": 200, "size": "32x32"}'))
    job = process.post(VIDEOS, **CLIP | {"num_inference_steps": 200}).json()["id"]
    began = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    process.process.wait(20)
    assert time.monotonic() - began < 10
    for connection in slow:
        connection.close()
    store = Store(ServeConfig(folder=process.folder))
    assert store.job(job).error_code == "server_shutdown"
    assert {one.status for one in store.page(100, None, True)[0]} <= {"completed", "failed"}
    store.close()
    assert "Traceback" not in process.log.read_text().partition("Shutting down")[2]


def test_a_folder_that_is_deleted_is_said_and_never_half_used(pipe, serving, tmp_path, until):
    with serving(pipe, folder=tmp_path / "served") as server, httpx2.Client(base_url=server.url, timeout=60) as http:

        def ended(name):
            def job():
                found = http.get(f"{VIDEOS}/{name}").json()
                return found if found["status"] in ("completed", "failed") else None

            return until(job)

        done = ended(http.post(VIDEOS, json=CLIP).json()["id"])["id"]
        for path in server.serving.store.files.iterdir():
            path.unlink()
        assert http.get(f"{VIDEOS}/{done}/content").json()["error"]["code"] == "not_found"
        shutil.rmtree(tmp_path / "served" / "files")  # it is made again
        done = ended(http.post(VIDEOS, json=CLIP).json()["id"])["id"]
        assert http.get(f"{VIDEOS}/{done}/content").status_code == 200
        running = http.post(VIDEOS, json=CLIP | {"num_inference_steps": 60}).json()["id"]
        shutil.rmtree(tmp_path / "served")
        assert ended(running)["error"]["code"] == "storage_failed"
        assert error_of(http.post(VIDEOS, json=CLIP), 507) == "storage_failed"
        assert http.post(IMAGES, json=SMALL).status_code == 200
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "its folder is gone")
        assert not list((tmp_path / "served").rglob("*.mp4"))


def test_a_worker_that_dies_is_said_and_nobody_waits_for_it(pipe, serving, tmp_path, until):
    """The thread is ended from outside in the middle of a pass."""
    with serving(pipe, folder=tmp_path) as server, httpx2.Client(base_url=server.url, timeout=60) as http:
        worker = server.serving.worker
        jobs = [http.post(VIDEOS, json=CLIP | {"num_inference_steps": n}).json()["id"] for n in (200, 199)]
        until(lambda: worker.running)
        end = ctypes.py_object(SystemExit)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.thread.ident), end) == 1
        until(lambda: http.get("/ready").status_code == 503)
        assert http.get("/health").status_code == 200
        until(lambda: all(http.get(f"{VIDEOS}/{job}").json()["status"] == "failed" for job in jobs))
        assert {http.get(f"{VIDEOS}/{job}").json()["error"]["code"] for job in jobs} == {"worker_ended"}
        assert error_of(http.post(IMAGES, json=SMALL), 503) == "worker_ended"


def broken(folder: Path, what: str) -> None:
    """A folder with a finished job, and something wrong with its database."""
    store = Store(ServeConfig(folder=folder))
    store.add(Job(id="a", model="nano", prompt="a", num_frames=1, width=8, height=8, seed=0))
    for n in range(200):
        store.add(Job(id=f"{n}", model="nano", prompt="a" * 200, num_frames=1, width=8, height=8, seed=0))
    store.complete("a", {"mp4": b"x"})
    store.close()
    database = folder / "jobs.db"
    if what == "missing":
        database.unlink()
    elif what == "none":
        database.write_bytes(b"no database" * 1000)
    elif what == "damaged":
        with database.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(8192))
    else:
        with sqlite3.connect(database) as db:
            db.execute("DROP TABLE files")
            db.execute("CREATE TABLE files (other TEXT)")
        db.close()


@pytest.mark.parametrize("what", ["missing", "none", "damaged", "another"])
def test_a_database_that_cannot_be_used_is_one_sentence_and_nothing_is_touched(tmp_path, what):
    broken(tmp_path, what)
    (file,) = (tmp_path / "files").iterdir()
    with pytest.raises(UserError, match="jobs.db.*(put it back|good copy).*choose another folder$") as told:
        Store(ServeConfig(folder=tmp_path))
    assert "\n" not in str(told.value) and file.read_bytes() == b"x"


def test_a_step_that_goes_on_is_waited_for_once_and_its_client_is_told(pipe):
    worker = Worker(pipe, ServeConfig(), Metrics())
    item = Item(request=[tasks.say("what is a circle?"), tasks.reply()], how=Decoding(max_new_tokens=2), seed=0)
    begun, go_on = threading.Event(), threading.Event()

    def listen(event):
        begun.set()
        go_on.wait(30)

    item.listener = listen
    worker.put([item])
    worker.thread.start()
    assert begun.wait(120)
    began = time.monotonic()
    worker.close(0.5)
    assert pytest.raises(Failure, item.result.result, 0).value.code == "server_shutdown"
    worker.close(0.5)
    assert time.monotonic() - began < 0.9
    go_on.set()
    worker.thread.join(30)
