"""/admin: a key of its own opens it; what runs and waits is seen and stopped, and a server is drained and resumes."""

import threading

import httpx2
import pytest
from openai import OpenAI

from openlance.cli.main import main

LONG = {"prompt": "a star", "size": "32x32", "num_inference_steps": 200}
FEW = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def running(pipe, serving, tmp_path_factory):
    with serving(pipe, folder=tmp_path_factory.mktemp("admin"), api_keys=("user",), admin_key="operator") as server:
        yield server


@pytest.fixture
def ask(running):
    def call(method, path, key="operator"):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.request(method, f"{running.url}{path}", headers=headers)

    return call


@pytest.fixture
def client(running):
    return OpenAI(base_url=f"{running.url}/v1", api_key="user", max_retries=0)


ROUTES = [
    ("GET", "/admin/queue"), ("DELETE", "/admin/queue"), ("DELETE", "/admin/queue/x"), ("POST", "/admin/drain"),
    ("POST", "/admin/resume"), ("POST", "/admin/sweep"),
]  # fmt: skip


@pytest.mark.parametrize("method, path", ROUTES)
def test_no_other_key_opens_it_and_its_key_opens_nothing_else(ask, running, method, path):
    for key in (None, "user", "operator2", "Bearer operator"):
        answer = ask(method, path, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_admin_key")
    assert running.serving.worker.state == "ready"
    assert ask("GET", "/v1/models").json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("method, path", ROUTES)
def test_without_a_key_there_are_no_such_routes(server, method, path):
    for key in ("none", "None"):
        answer = httpx2.request(method, f"{server.url}{path}", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 404
    assert not [path for path in server.config.app.openapi()["paths"] if path.startswith("/admin")]


def start(client, **more):
    """The id of the request that makes a video, and of the video."""
    headers = {"Authorization": f"Bearer {client.api_key}"}
    answer = httpx2.post(f"{client.base_url}videos", json=LONG | more, headers=headers)
    return answer.headers["x-request-id"], answer.json()["id"]


def test_what_runs_and_waits_is_seen_and_stopped(ask, client, until):
    first, second = start(client, num_frames=5), start(client, guidance_scale=2.5)
    queue = until(lambda: (found := ask("GET", "/admin/queue").json())["running"] and found)
    assert [one["request_id"] for one in queue["running"]] == [first[0]]
    assert [one["request_id"] for one in queue["waiting"]] == [second[0]]
    assert queue["status"] == "ready" and queue["running"][0]["seconds"] >= queue["waiting"][0]["seconds"] >= 0
    assert "a star" not in str(queue)
    assert ask("DELETE", f"/admin/queue/{second[0]}").json() == {"cancelled": 1}
    assert ask("DELETE", f"/admin/queue/{second[0]}").status_code == 404
    assert ask("DELETE", "/admin/queue").json() == {"cancelled": 1}
    for _, job in (first, second):
        ended = until(lambda job=job: (f := client.get(f"/videos/{job}", cast_to=dict))["status"] == "failed" and f)
        assert ended["error"]["code"] == "cancelled"
    assert until(lambda: ask("GET", "/admin/queue").json()["running"] == [])


def test_a_drained_server_ends_what_it_has_and_takes_nothing_new(ask, client, until):
    _, job = start(client, num_inference_steps=20)
    assert ask("POST", "/admin/drain").json() == {"status": "draining"}
    ready = ask("GET", "/ready", None)
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    answer = httpx2.post(
        str(client.base_url) + "images/generations", json={"prompt": "a star"}, headers={"Authorization": "Bearer user"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0
    until(lambda: client.get(f"/videos/{job}", cast_to=dict)["status"] == "completed")
    threading.Timer(0.2, lambda: ask("POST", "/admin/resume")).start()
    until(lambda: ask("GET", "/ready", None).status_code == 200)
    assert client.images.generate(prompt="a star", size="32x32", extra_body=FEW).data


def test_a_sweep_removes_what_is_too_old_at_once(ask, client, running):
    made = client.images.generate(prompt="a star", size="32x32", response_format="url", extra_body=FEW)
    store = running.serving.store
    store.db.execute("UPDATE files SET created_at = 0")
    assert ask("POST", "/admin/sweep").json() == {"status": "ready"}
    assert httpx2.get(made.data[0].url).status_code == 404


@pytest.mark.parametrize(
    "line, what",
    [
        (["--media-private"], "--media-private is about the hosts"),
        (["--media-host", "http://example.com"], "a host's name alone"),
        (["--api-key", "a", "--admin-key", " a "], "choose another"),
    ],
)
def test_settings_that_open_too_much_are_refused(line, what, capsys, tmp_path):
    assert main(["serve", "--port", "0", "--folder", str(tmp_path / "new"), *line]) == 2
    assert what in capsys.readouterr().err and not (tmp_path / "new").exists()
