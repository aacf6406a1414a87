"""The queue: who runs with whom, who leaves, what is full, what fails, and what is left of it after a restart."""

import asyncio
import json
import logging
import pickle
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI

from openlance.config.sampling import Decoding
from openlance.errors import UserError
from openlance.inference.checking import Search
from openlance.sequence import tasks
from openlance.serve.app import JSONLines
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure
from openlance.serve.metrics import Metrics
from openlance.serve.store import Job, Store
from openlance.serve.worker import Item, Piece, Step, Worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FEW = {"num_inference_steps": 2}
LONG = {"num_inference_steps": 200, "size": "32x32"}


@pytest.fixture
def worker(pipe):
    """Of its own, and not yet running, so that a test says what waits when it begins."""
    made = Worker(pipe, ServeConfig(queued=8), Metrics())
    yield made
    if made.thread.is_alive():
        made.close(10)


def item(pipe, prompt, seed, size=(32, 32), steps=2, **more):
    request = pipe.front.request(tasks.the_task(tasks.text_to_visual, "image"), prompt, asked=(None, *size))
    how = pipe.sampling([request], num_inference_steps=steps, **more)
    cells = int(np.prod(pipe.codec.latent_grid((1, *size))))
    return Item(request=request, how=how, seed=seed, cells=cells)


def test_alone_is_as_in_a_batch_of_several_sizes_with_one_cancelled(pipe, worker):
    sizes = [(32, 32), (48, 32), (64, 64), (32, 40)]
    items = [item(pipe, "a red circle", seed, size) for seed, size in enumerate(sizes)]
    items[2].listener = lambda event: worker.cancel([items[2]]) if isinstance(event, Step) else None
    worker.put(items)
    worker.thread.start()
    for seed, (one, size) in enumerate(zip(items, sizes)):
        if seed == 2:
            assert pytest.raises(Failure, one.result.result, 20).value.code == "cancelled"
            continue
        (alone,) = pipe.generate("a red circle", height=size[0], width=size[1], seed=seed, num_inference_steps=2)
        # But for a level of 255 here and there, where sums of another order round otherwise.
        assert np.abs(one.result.result(20).pixels[0].astype(int) - np.array(alone)).max() <= 1
    assert worker.metrics.registry.get_sample_value("openlance_batch_size_sum") == 4
    assert worker.metrics.registry.get_sample_value("openlance_batch_size_count") == 1


def test_the_oldest_heads_the_next_pass_and_its_kind_joins_up_to_the_cap(pipe, worker):
    a = [item(pipe, "a", n, size=(64, 64)) for n in range(4)]
    b = item(pipe, "b", 0, guidance_scale=1.0)
    worker.most = 130
    worker.put([a[0], b, *a[1:]])
    assert worker._take() == [a[0], a[1]] and worker._take() == [b] and worker._take() == a[2:]


def test_a_check_draws_again_beside_others_as_the_call_does(pipe, worker):
    """What is doubtful waits for its next draw behind what came meanwhile; each result is that of the call alone."""
    prompts = ['the text "Q8"', "a red circle", 'the text "7X"']
    items = [item(pipe, prompt, 5 + n, size=(64, 64), steps=4) for n, prompt in enumerate(prompts)]
    for one in (items[0], items[2]):
        one.search = Search(request=one.request, seed=one.seed, most=3)
    steps, begun = [], []
    items[0].listener = lambda event: (steps if isinstance(event, Step) else begun).append(event)
    worker.put(items)
    worker.thread.start()
    found = [one.result.result(60) for one in items]
    for n, (one, prompt) in enumerate(zip(found, prompts)):
        more = {"check": 3} if items[n].search else {}
        (alone,) = pipe.generate(prompt, seed=5 + n, num_inference_steps=4, **more)
        assert np.abs(one.pixels[0].astype(int) - np.array(alone)).max() <= 1
        assert (one.verdict and one.verdict.draw) == (alone.verdict and alone.verdict.draw)
    assert [s.done for s in steps] == list(range(1, 4 * found[0].verdict.draws + 1)) and steps[0].total == 12
    assert len(begun) == 1 and found[0].verdict.draws > 1


def test_who_leaves_is_not_drawn_again(pipe, worker):
    one = item(pipe, 'the text "Q8"', 5, size=(64, 64), steps=4)
    one.search = Search(request=one.request, seed=5, most=100)
    one.listener = lambda event: worker.cancel([one]) if isinstance(event, Step) and event.done == 6 else None
    worker.put([one])
    worker.thread.start()
    assert pytest.raises(Failure, one.result.result, 60).value.code == "cancelled"
    assert one.search.draws == 1 and pickle.loads(pickle.dumps(one)).search.most == 100


def test_one_too_large_for_the_cap_goes_alone_and_is_not_overtaken_by_its_kind(pipe, worker):
    small, large, last = item(pipe, "a", 0), item(pipe, "a", 1, size=(64, 64)), item(pipe, "a", 2)
    worker.most = 40
    worker.put([small, large, last])
    assert [worker._take() for _ in range(3)] == [[small], [large], [last]]


def test_nothing_starves(pipe, worker):
    """A kind that keeps arriving is not served before another one that was there earlier, nor a small one before a
    large one of its kind."""
    rare = item(pipe, "b", 0, guidance_scale=1.0)
    worker.most, served = 32, []
    worker.put([item(pipe, "a", 0), item(pipe, "a", 1), rare])
    while rare not in served:
        served += worker._take()
        worker.put([item(pipe, "a", len(served)) for _ in range(2)])  # two more come for every two that go
    assert served.index(rare) == 2


def test_who_was_just_served_is_waited_for_a_moment_and_shares_the_next_pass(pipe, worker):
    items = [item(pipe, "a", n) for n in range(4)]
    worker.put(items[:1])
    assert worker._take() == items[:1]
    worker.spent = 60.0
    worker.put(items[1:3])
    threading.Timer(0.2, worker.put, [items[3:]]).start()
    assert worker._take() == items[1:]
    worker.spent, began = 1.0, time.monotonic()
    worker.put([item(pipe, "a", 9)])
    assert len(worker._take()) == 1 and time.monotonic() - began < 0.5  # nobody comes back: not for long
    began = time.monotonic()
    worker.spent, worker.most = 60.0, 32
    worker.put([item(pipe, "a", n) for n in range(3)])
    assert len(worker._take()) == 2 and time.monotonic() - began < 0.5  # the pass is full


def test_who_leaves_a_pass_takes_no_further_part_in_it(pipe, worker):
    items, rows = [item(pipe, "a", n, steps=6, guidance_scale=1.0) for n in range(3)], []
    items[1].listener = lambda event: worker.cancel([items[1]]) if isinstance(event, Step) and event.done == 2 else None
    hook = pipe.lance("und", "gen").latent_in.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    worker.put(items)
    worker.thread.start()
    made = [items[n].result.result(20) for n in (0, 2)]
    hook.remove()
    assert pytest.raises(Failure, items[1].result.result, 20).value.code == "cancelled"
    assert rows == [48] * 2 + [32] * 4
    for seed, clip in zip((0, 2), made):
        how = {"height": 32, "width": 32, "num_inference_steps": 6, "guidance_scale": 1.0}
        (alone,) = pipe.generate("a", seed=seed, **how)
        assert np.abs(clip.pixels[0].astype(int) - np.array(alone)).max() <= 1


def test_a_full_queue_says_when_to_come_back(pipe, worker):
    worker.pace = 2.0
    worker.put([item(pipe, "a", n) for n in range(7)])
    with pytest.raises(Failure) as told:
        worker.put([item(pipe, "a", n) for n in range(2)])
    assert (told.value.status, told.value.code, told.value.headers["retry-after"]) == (429, "queue_full", "14")
    assert len(worker.pending) == 7
    worker.admit(1)
    with pytest.raises(Failure, match="7 results are waiting already"):  # before anything is made ready for them
        worker.admit(2)


def test_what_does_not_fit_in_memory_fails_alone_and_the_next_runs(pipe, worker):
    """A real allocation that no machine has, in the pass that asks for it."""
    items = [item(pipe, "a", n) for n in range(3)]
    items[1].listener = lambda event: np.empty(1 << 60, np.uint8)
    worker.put(items)
    worker.thread.start()
    assert pytest.raises(Failure, items[1].result.result, 20).value.code == "out_of_memory"
    assert all(one.result.result(20).frames == 1 for one in (items[0], items[2]))
    after = item(pipe, "a", 0)
    worker.put([after])
    assert after.result.result(20).frames == 1


def test_a_worker_that_only_fails_is_not_ready(pipe, worker):
    """An answer in a pass that fails is not told twice, and who was with it gets its own."""
    request = [tasks.say("what is a circle?"), tasks.reply()]
    good, bad = (Item(request=request, how=Decoding(max_new_tokens=6), seed=0) for _ in range(2))
    pieces = []
    good.listener = lambda event: pieces.append(event.text) if isinstance(event, Piece) else None
    bad.listener = lambda event: {}["a defect"] if isinstance(event, Piece) else None
    worker.put([good, bad])
    worker.thread.start()
    assert pytest.raises(Failure, bad.result.result, 20).value.code == "internal_error"
    assert "".join(pieces) == good.result.result(20) == pipe.fill_text([request], good.how)[0]
    for _ in range(2):
        assert worker.state == "ready"
        again = item(pipe, "a", 0)
        again.listener = lambda event: {}["a defect"]
        worker.put([again])
        assert pytest.raises(Failure, again.result.result, 20)
    assert "failed" in worker.state


def test_the_end_fails_what_waits_and_what_runs_within_a_step(pipe, worker):
    running, waiting = item(pipe, "a", 0, steps=200), item(pipe, "b", 0, steps=199)
    begun = threading.Event()
    running.listener = lambda event: begun.set()
    worker.put([running, waiting])
    worker.thread.start()
    assert begun.wait(20)
    worker.close(5)
    assert [pytest.raises(Failure, one.result.result, 0).value.code for one in (running, waiting)] == [
        "server_shutdown"
    ] * 2
    with pytest.raises(Failure, match="shutting down"):
        worker.put([item(pipe, "a", 0)])


def test_who_leaves_frees_the_worker(client, server, until):
    def ask():
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.4).images.generate(prompt="a star", extra_body=LONG)

    ask()
    assert until(lambda: not server.serving.worker.running, 5)
    answer = client.images.generate(prompt="a star", stream=True, size="32x32", extra_body={"num_inference_steps": 200})
    until(lambda: server.serving.worker.running)
    answer.close()
    assert until(lambda: not server.serving.worker.running, 5)


def test_clients_together_share_a_pass_and_get_their_own(client, server, pipe, pixels):
    def ask(seed):
        return client.images.generate(prompt="a star", size="32x32", extra_body=FEW | {"seed": seed}).data[0].b64_json

    alone = [ask(seed) for seed in range(6)]
    before = server.serving.metrics.registry.get_sample_value("openlance_batch_size_count")
    with ThreadPoolExecutor(6) as clients:
        together = list(clients.map(ask, range(6)))
    assert all(np.abs(pixels(a).astype(int) - pixels(b)).max() <= 1 for a, b in zip(together, alone))
    assert server.serving.metrics.registry.get_sample_value("openlance_batch_size_count") - before < 6


def test_a_full_server_is_asked_again(pipe, serving, tmp_path):
    with serving(pipe, folder=tmp_path, queued=1) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for scale in (2.0, 3.0):
            client.post("/videos", body={"prompt": "a", "guidance_scale": scale} | LONG, cast_to=object)
            time.sleep(0.1)
        with pytest.raises(openai.RateLimitError) as told:
            client.images.generate(prompt="a star")
        assert told.value.code == "queue_full" and 1 <= int(told.value.response.headers["retry-after"]) <= 120
        assert "x-should-retry" not in told.value.response.headers
        listed = client.get("/videos", cast_to=dict)["data"]
        for job in listed:
            client.delete(f"/videos/{job['id']}", cast_to=object)
        assert client.images.generate(prompt="a star", size="32x32", extra_body=FEW).data


def test_a_killed_server_loses_nothing_that_was_done(pipe, serving, tmp_path):
    """`openlance serve` as a process, killed in the middle of a job; another server takes its folder over."""
    small = {"prompt": "a star", "size": "32x32", "num_frames": 5}
    line = [sys.executable, "-m", "openlance.cli.main", "serve", "--port", "0", "--folder", str(tmp_path)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = (json.loads(line)["message"] for line in process.stderr)
            url = next(re.search(r"http://127\.0\.0\.1:\d+", text) for text in said if "running on" in text)[0]
            client = OpenAI(base_url=f"{url}/v1", api_key="none")
            done = client.videos.poll(client.post("/videos", body=small | FEW, cast_to=dict)["id"])
            content = client.videos.download_content(done.id).read()
            killed = client.post("/videos", body=small | LONG, cast_to=dict)["id"]
            with pytest.raises(UserError, match="another folder"):
                Store(ServeConfig(folder=tmp_path))
        finally:
            process.kill()
    (tmp_path / "files" / "orphan.mp4").write_bytes(b"what was being written")
    with serving(pipe, folder=tmp_path) as server:
        jobs = {job["id"]: job for job in httpx2.get(f"{server.url}/v1/videos").json()["data"]}
        assert jobs[killed]["error"]["code"] == "server_restarted" and jobs[done.id]["status"] == "completed"
        assert httpx2.get(f"{server.url}/v1/videos/{done.id}/content").content == content
        assert not (tmp_path / "files" / "orphan.mp4").exists()


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    """Its jobs say nothing of checks."""
    store = Store(ServeConfig(folder=tmp_path))
    store.add(Job(id="video_a", model="nano", prompt="a", num_frames=5, width=32, height=32, seed=3))
    store.db.execute("ALTER TABLE jobs DROP COLUMN verdict")
    store.close()
    store = Store(ServeConfig(folder=tmp_path))
    store.add(Job(id="video_b", model="nano", prompt="b", num_frames=5, width=32, height=32, seed=3))
    store.complete("video_b", {"mp4": b"x"}, 4, "{}")
    assert (store.job("video_a").verdict, store.job("video_b").verdict, store.job("video_b").seed) == (None, "{}", 4)
    store.close()


def test_files_go_by_age_and_by_bytes_the_oldest_first(tmp_path):
    store = Store(ServeConfig(folder=tmp_path, keep_bytes=25, keep=1000))
    names = [store.keep(bytes(10), "png") for _ in range(3)]
    assert pytest.raises(Failure, store.path, names[0]).value.status == 404
    assert [store.path(name).stat().st_size for name in names[1:]] == [10, 10]
    store.db.execute("UPDATE files SET created_at = created_at - 2000 WHERE name = ?", (names[1],))
    store.sweep()
    assert [path.name for path in store.files.iterdir()] == [names[2]]
    store.close()


def test_a_disk_that_is_gone_is_said(tmp_path):
    store = Store(ServeConfig(folder=tmp_path))
    store.files.rmdir()
    store.files.write_bytes(b"in the way")
    assert pytest.raises(Failure, store.keep, b"x", "png").value.code == "storage_failed"
    store.close()


def test_keys_health_metrics_and_origins(pipe, serving, tmp_path):
    with serving(pipe, folder=tmp_path, api_keys=("one", "two"), origins=("http://page.test",)) as server:
        url = server.url
        for path, key, status in [
            ("/health", None, 200), ("/ready", None, 200), ("/metrics", None, 200), ("/v1/models", None, 401),
            ("/v1/models", "three", 401), ("/v1/models", "two", 200), ("/openapi.json", None, 401),
        ]:  # fmt: skip
            answer = httpx2.get(url + path, headers={"Authorization": f"Bearer {key}"} if key else {})
            assert answer.status_code == status, path
        with pytest.raises(openai.AuthenticationError) as told:
            OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
        assert told.value.code == "invalid_api_key"
        text = httpx2.get(f"{url}/metrics").text
        names = ("queue_depth", "wait_seconds", "step_seconds", "batch_size", "phase_seconds", "http_requests")
        assert all(f"openlance_{name}" in text for name in names) and "process_resident_memory_bytes" in text
        asked = {"Origin": "http://page.test", "Access-Control-Request-Method": "POST"}
        allowed = httpx2.options(f"{url}/v1/models", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "http://page.test"
        other = httpx2.options(f"{url}/v1/models", headers=asked | {"Origin": "http://evil.test"})
        assert "access-control-allow-origin" not in other.headers
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


def test_the_loop_goes_on_while_clips_are_made_and_written(client):
    """Answers about models while the worker draws and files are written."""
    body = {"prompt": "a star", "num_frames": 17, "size": "64x64", "num_inference_steps": 2}
    job = client.post("/videos", body=body, cast_to=dict)["id"]
    slowest = 0.0
    while client.get(f"/videos/{job}", cast_to=dict)["status"] not in ("completed", "failed"):
        began = time.perf_counter()
        client.models.list()
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.5


def test_a_failure_in_a_stream_is_heard(later, server, until):
    async def ask():
        answer = await later.images.generate(
            prompt="a star", stream=True, size="32x32", extra_body=LONG | {"size": None}
        )
        return [event async for event in answer]

    def stop():
        (running,) = until(lambda: server.serving.worker.running)
        server.serving.worker.cancel([running])

    with ThreadPoolExecutor(1) as other:
        other.submit(stop)
        with pytest.raises(openai.APIError) as told:
            asyncio.run(ask())
    assert told.value.code == "cancelled"


def test_logs_are_lines_of_json_with_the_request(client, caplog, until):
    with caplog.at_level(logging.INFO, "openlance.serve"):
        client.models.list()
        (record,) = until(lambda: [r for r in caplog.records if getattr(r, "route", "") == "/v1/models"])
    line = json.loads(JSONLines().format(record))
    assert (line["status"], line["method"], line["level"]) == (200, "GET", "info")
