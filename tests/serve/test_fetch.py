"""Addresses: hosts that were listed, on global networks unless said otherwise, without redirects, within the caps. The
host is a real one, on the loopback interface, which takes `media_private`."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import numpy as np
import pytest
from openai import OpenAI

from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure
from openlance.serve.fetch import fetched, may_reach

FEW = {"num_inference_steps": 2, "seed": 7}


class Handler(BaseHTTPRequestHandler):
    """Answers by path; `files` are sent as they are, and `seen` has every path that was asked for."""

    files: dict[str, bytes] = {}
    seen: list[str] = []

    def do_GET(self):
        self.seen.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif self.path == "/silent":
            time.sleep(1.5)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(bytes(1 << 16))
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x")
        elif data := self.files.get(self.path):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")  # what it says of itself changes nothing
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            self.send_error(404)

    def log_message(self, *args):
        pass


class Host(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # who reads no more


@pytest.fixture(scope="module")
def host(png, mp4):
    Handler.files = {"/a.png": png, "/a.mp4": mp4, "/page": b"<html>"}
    server = Host(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def config(host):
    return ServeConfig(media_hosts=(host,), media_private=True, media_seconds=0.6, video_bytes=1 << 20)


def test_what_is_there_is_read(host, config, png):
    assert fetched(f"http://{host}/a.png", config, "image") == png
    assert fetched(f"HTTP://{host.upper()}/a.png", config, "image") == png


@pytest.mark.parametrize(
    "path, code, what",
    [
        ("/redirect", "media_unreachable", "redirect, which is not followed"),
        ("/none", "media_unreachable", "status 404"),
        ("/slow", "media_unreachable", "too long"),
        ("/silent", "media_unreachable", "too long"),
        ("/short", "media_unreachable", "HTTPException"),
        ("/endless", "media_too_large", "more than the 1048576 bytes"),
    ],
)
def test_what_is_not_there_as_it_should_be_is_refused(host, config, path, code, what):
    began = time.monotonic()
    with pytest.raises(Failure, match=what) as told:
        fetched(f"http://{host}{path}", config, "image")
    assert (told.value.status, told.value.code, told.value.param) == (400, code, "image")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "form",
    [
        "http://localhost/a.png",  # another port
        "http://user@{host}/a.png",
        "http://user:word@{host}/a.png",
        "http://{host}@127.0.0.1/a.png",
        "http://127.0.0.1:{port}/a.png",
        "http://sub.{host}/a.png",
        "http://localhost.:{port}/a.png",
        "http://localhost\\@{host}/a.png",
        "http://{host}/a b.png",
        "http://{host}/a\r\nX: y",
        "http://{host}/\u00e4.png",
        "http://{host}/" + "a" * 5000,
        "http://localhost:99999/a.png",
        "http://[::1]:{port}/a.png",
        "http://[/a.png",
        "ftp://{host}/a.png",
        "gopher://{host}/a.png",
        "file://{host}/etc/passwd",
        "//{host}/a.png",
    ],
)
def test_addresses_of_any_other_form_are_not_followed(host, config, form):
    before = len(Handler.seen)
    with pytest.raises(Failure) as told:
        fetched(form.format(host=host, port=host.partition(":")[2]), config, "image")
    assert told.value.code == "unsupported_url" and len(Handler.seen) == before


def test_a_listed_host_on_a_private_network_needs_more_than_its_name(host):
    with pytest.raises(Failure, match="network that is not read"):
        fetched(f"http://{host}/a.png", ServeConfig(media_hosts=(host,)), "image")


@pytest.mark.parametrize(
    "address, always, at_home",
    [
        ("93.184.216.34", True, True), ("2606:2800:220:1:248:1893:25c8:1946", True, True),
        ("127.0.0.1", False, True), ("10.0.0.1", False, True), ("172.16.0.1", False, True),
        ("::1", False, True), ("fd00::1", False, True), ("::ffff:10.0.0.1", False, True),
        ("64:ff9b::7f00:1", False, True), ("64:ff9b::5db8:d822", True, True), ("::ffff:93.184.216.34", True, True),
        ("169.254.169.254", False, False), ("fe80::1%eth0", False, False), ("::ffff:169.254.169.254", False, False),
        ("0.0.0.0", False, False), ("::", False, False), ("224.0.0.1", False, False), ("ff02::1", False, False),
        ("100.64.0.1", False, False), ("2002:7f00:1::", False, False), ("2001:0:7f00:1::", False, False),
    ],
)  # fmt: skip
def test_which_networks_are_reached(address, always, at_home):
    assert (may_reach(address, False), may_reach(address, True)) == (always, at_home)


def test_a_name_is_resolved_once_and_every_address_of_it_counts(host, config, monkeypatch, png):
    """A name server that answers otherwise the second time leads nowhere else."""
    real, asked = socket.getaddrinfo, []

    def answers(name, port, *args, **more):
        asked.append(name)
        return real("127.0.0.1" if len(asked) == 1 else "169.254.169.254", port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    assert fetched(f"http://{host}/a.png", config, "image") == png and asked == ["localhost"]
    both = real("127.0.0.1", 80, type=socket.SOCK_STREAM) + real("169.254.169.254", 80, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: both)
    with pytest.raises(Failure, match="network that is not read"):
        fetched(f"http://{host}/a.png", config, "image")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_has_to_be_right(tmp_path, monkeypatch, png):
    key, crt = tmp_path / "key.pem", tmp_path / "crt.pem"
    line = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    files = ["-keyout", str(key), "-out", str(crt), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*line.split(), *files], check=True, capture_output=True)
    server, context = Host(("127.0.0.1", 0), Handler), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.files["/b.png"] = png
    name = f"localhost:{server.server_address[1]}"
    config = ServeConfig(media_hosts=(name,), media_private=True)
    with pytest.raises(Failure, match="SSLCertVerificationError"):
        fetched(f"https://{name}/b.png", config, "image")
    monkeypatch.setenv("SSL_CERT_FILE", str(crt))
    assert fetched(f"https://{name}/b.png", config, "image") == png
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("whole")
def test_every_endpoint_takes_them(pipe, serving, tmp_path, host, picture, pixels):
    with serving(pipe, folder=tmp_path, media_hosts=(host,), media_private=True) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        still, moving = f"http://{host}/a.png", f"http://{host}/a.mp4"
        (alone,) = pipe.edit([picture], ["make it blue"], seed=7, num_inference_steps=2)
        body = {"prompt": "make it blue", "url": still} | FEW
        made = httpx2.post(f"{server.url}/v1/images/edits", json=body, timeout=60).json()
        assert np.array_equal(pixels(made["data"][0]["b64_json"]), np.array(alone))
        content = [{"type": "image_url", "image_url": {"url": still}}, {"type": "text", "text": "what color is it?"}]
        said = client.chat.completions.create(model="nano", messages=[{"role": "user", "content": content}])
        assert said.choices[0].message.content == pipe.ask(picture, "what color is it?")
        small = FEW | {"num_frames": 5, "size": "32x32"}
        first = {"prompt": "it moves up", "image_reference": {"image_url": still}} | small
        film = {"prompt": "make it blue", "video_reference": {"video_url": moving}} | FEW
        jobs = [client.post("/videos", body=body, cast_to=dict)["id"] for body in (first, film)]
        assert [client.videos.poll(job).num_frames for job in jobs] == [5, 9]
        page = httpx2.post(f"{server.url}/v1/images/edits", json=body | {"url": f"http://{host}/page"}).json()
        assert page["error"]["code"] == "invalid_value" and "not an image or video" in page["error"]["message"]
        other = httpx2.post(f"{server.url}/v1/images/edits", json=body | {"url": "https://example.com/a.png"}).json()
        assert other["error"]["code"] == "unsupported_url"
