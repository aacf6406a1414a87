"""What the clients of `soak.py` do, and what they remember of it.

Every request is a card of a deck that is shuffled with the seed, so that the shares are exact. What the server says is
held against its API: a status that was not to be expected, a failure without the error object, a file that is not the
one that was told before, or is gone for no rule, is a problem.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import socket
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
from common import PROMPTS
from PIL import Image

from openlance.media import Clip
from openlance.serve.media import data_url, encoded

# Of a hundred requests: 5 are cancelled, 2 malformed, 4 slow.
DECK = {
    "image": 22, "partials": 8, "link": 6, "edit": 11, "question": 14, "told": 4, "chat_image": 7, "chat_video": 2,
    "video": 7, "first_frame": 3, "video_edit": 2, "extension": 2, "remix": 3, "pages": 2, "delete": 2,
    "slow_reader": 2, "slow_writer": 2, "leave": 3, "stop": 2, "malformed": 2,
}  # fmt: skip
CANCELLED = ("leave", "stop")
SIDES = (16, 24, 32, 40, 48, 64)
MOST_TOLD = 50  # problems that are written out


class Problem(Exception):
    """The server did what it must not do."""


class Interrupted(Exception):
    """The server was restarted meanwhile."""


@dataclass
class Kept:
    """A file, or a finished job, that the server said it has. size and digest: None where it was not looked at."""

    path: str
    finished: float
    expires: float
    size: int | None = None
    digest: str | None = None
    job: str | None = None
    gone: bool = False


@dataclass
class Ledger:
    """What all clients together were told."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    open: set[str] = field(default_factory=set)  # jobs that nobody has seen the end of

    def problem(self, what: str) -> None:
        with self.lock:
            if len(self.problems) < MOST_TOLD:
                self.problems.append(what)

    def keep(self, kept: Kept) -> Kept:
        with self.lock:
            self.kept.append(kept)
        return kept

    def forget(self, job: str) -> None:
        """Somebody deletes it."""
        with self.lock:
            self.open.discard(job)
            for one in self.kept:
                one.gone |= one.job == job

    @property
    def done(self) -> int:
        """Requests that came to their end."""
        return sum(n for (_, outcome), n in self.outcomes.items() if outcome != "interrupted")


class Clients:
    """Everything a client can do, with inputs of its own.

    Args:
        url: Of the server, the same after a restart.
        ledger: Where all of it is written down.
        keep: Seconds for which the server keeps a link.
        down: Whether the server is being restarted, or was since a time.
        seed: Of everything that is drawn by lot.
    """

    def __init__(self, url: str, ledger: Ledger, keep: float, down: Callable[[float], bool], seed: int) -> None:
        self.url, self.ledger, self.keep, self.down, self.seed = url, ledger, keep, down, seed
        self.http = httpx2.Client(base_url=url, timeout=120, limits=httpx2.Limits(max_connections=64))
        rng = np.random.default_rng(seed)
        noise = [rng.integers(0, 255, (1, h, w, 3), np.uint8) for h, w in ((64, 64), (48, 96), (33, 57))]
        self.pngs = [encoded(Clip(pixels), form) for pixels in noise for form in ("png", "jpeg", "webp")]
        frames = np.zeros((9, 32, 32, 3), np.uint8)
        for n, frame in enumerate(frames):
            frame[8:16, 2 * n : 2 * n + 8] = 255
        self.mp4 = encoded(Clip(frames), "mp4")

    def play(self, number: int) -> None:
        """One request, whatever it is."""
        block, place = divmod(number, sum(DECK.values()))
        cards = [kind for kind, count in DECK.items() for _ in range(count)]
        random.Random(f"{self.seed} {block}").shuffle(cards)
        kind, began, outcome = cards[place], time.monotonic(), "done"
        try:
            getattr(self, f"_{kind}")(random.Random(f"{self.seed} {block} {place}"))
        except Interrupted:
            outcome = "interrupted"
        except (httpx2.TransportError, OSError) as error:
            outcome = "interrupted" if self.down(began) else "problem"
            if outcome == "problem":
                self.ledger.problem(f"{kind}: the connection failed ({error!r})")
        except Exception as error:  # noqa: BLE001  anything else is told, and the soak goes on
            outcome = "problem"
            self.ledger.problem(f"{kind}: {error}" if isinstance(error, Problem) else f"{kind}: {error!r}")
        while outcome == "interrupted" and self.down(time.monotonic()):
            time.sleep(0.1)
        with self.ledger.lock:
            self.ledger.outcomes[kind, outcome] += 1
            self.ledger.seconds.setdefault(kind, []).append(time.monotonic() - began)

    # One exchange.

    def ask(self, method: str, path: str, *good: int, **more: Any) -> httpx2.Response:
        """An answer with status 200, or one of `good`."""
        began = time.monotonic()
        answer = self.http.request(method, path, **more)
        self._judge(answer.status_code, answer.headers, answer.content, good or (200,), path, began)
        return answer

    def _judge(self, status: int, headers: Any, body: bytes, good: tuple[int, ...], path: str, began: float) -> None:
        with self.ledger.lock:
            self.ledger.statuses[status] += 1
        code = None
        if status >= 400:
            try:
                error = json.loads(body)["error"]
                whole = error["message"] and error["type"] and error["code"] and headers["x-request-id"]
                code = error["code"]
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                raise Problem(f"{path}: {status} without an error object: {body[:200]!r}")
            with self.ledger.lock:
                self.ledger.codes[code] += 1
        if status in good:
            return
        if code == "server_shutdown" and self.down(began):
            raise Interrupted
        raise Problem(f"{path}: {status}: {body[:300]!r}")

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What a stream brings. Interrupted where it ends because the server does."""
        began, last = time.monotonic(), None
        with self.http.stream("POST", path, json=body | {"stream": True}) as answer:
            if answer.status_code != 200:
                self._judge(answer.status_code, answer.headers, answer.read(), (200,), path, began)
            with self.ledger.lock:
                self.ledger.statuses[200] += 1
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    last = json.loads(line[6:])
                    if code := (last.get("error") or {}).get("code"):
                        if code == "server_shutdown" and self.down(began):
                            raise Interrupted
                        raise Problem(f"{path}: the stream ends with {last}")
                    yield last

    # Inputs.

    def _drawing(self, rng: random.Random, **more: Any) -> dict[str, Any]:
        size = f"{rng.choice(SIDES)}x{rng.choice(SIDES)}"
        body = {"prompt": rng.choice(PROMPTS), "size": size, "num_inference_steps": rng.randint(1, 4)}
        return body | {"seed": rng.randrange(1 << 20)} | more

    def _moving(self, rng: random.Random, **more: Any) -> dict[str, Any]:
        return self._drawing(rng, size="32x32", num_inference_steps=rng.randint(1, 2)) | {"num_frames": 5} | more

    def _shown(self, rng: random.Random) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_url(rng.choice(self.pngs), "png")}}

    def _chat(self, rng: random.Random, text: str, *parts: Any, **more: Any) -> dict[str, Any]:
        few = {"num_inference_steps": rng.randint(1, 3), "seed": rng.randrange(1 << 20)}
        return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]} | few | more

    # The cards. Images.

    def _image(self, rng: random.Random) -> None:
        form = rng.choice(["png", "png", "jpeg", "webp"])
        body = self._drawing(rng, n=rng.randint(1, 3), output_format=form)
        made = self.ask("POST", "/v1/images/generations", json=body).json()["data"]
        image = Image.open(io.BytesIO(base64.b64decode(made[-1]["b64_json"])))
        if len(made) != body["n"] or image.format != form.upper() or "x".join(map(str, image.size)) != body["size"]:
            raise Problem(f"{body} gave {len(made)} of {image.size}, {image.format}")

    def _link(self, rng: random.Random) -> None:
        body = self._drawing(rng, response_format="url")
        (made,) = self.ask("POST", "/v1/images/generations", json=body).json()["data"]
        path, now = urlsplit(made["url"]).path, time.time()
        self._look(self.ledger.keep(Kept(path, now, now + self.keep)))

    def _partials(self, rng: random.Random) -> None:
        body = self._drawing(rng, num_inference_steps=4, partial_images=rng.randint(0, 3))
        kinds = [event["type"].rpartition(".")[2] for event in self._events("/v1/images/generations", body)]
        if kinds != ["partial_image"] * body["partial_images"] + ["completed"]:
            raise Problem(f"{body['partial_images']} previews were asked for: {kinds}")

    def _edit(self, rng: random.Random) -> None:
        files = [("image[]", png) for png in rng.sample(self.pngs, rng.randint(1, 2))]
        data = {"prompt": "make it blue", "num_inference_steps": "2", "seed": str(rng.randrange(1 << 20))}
        self.ask("POST", "/v1/images/edits", data=data, files=files)

    # Chat.

    def _question(self, rng: random.Random) -> None:
        body = self._chat(rng, "what color is the circle?", self._shown(rng), max_tokens=rng.randint(1, 12))
        if rng.random() < 0.3:
            body["temperature"] = 0.8
        (choice,) = self.ask("POST", "/v1/chat/completions", json=body).json()["choices"]
        if not isinstance(choice["message"]["content"], str):
            raise Problem(f"no answer: {choice}")

    def _told(self, rng: random.Random) -> None:
        body = self._chat(rng, "describe the picture", self._shown(rng), max_tokens=16)
        *_, last = self._events("/v1/chat/completions", body)
        if last["choices"][0]["finish_reason"] not in ("stop", "length"):
            raise Problem(f"a stream ends with {last}")

    def _chat_image(self, rng: random.Random) -> None:
        parts = [self._shown(rng)] * rng.randint(0, 1)
        body = self._chat(rng, rng.choice(PROMPTS), *parts, modalities=["image"])
        (choice,) = self.ask("POST", "/v1/chat/completions", json=body).json()["choices"]
        if choice["message"]["content"][0]["type"] != "image_url":
            raise Problem("no image in the answer")

    def _chat_video(self, rng: random.Random) -> None:
        body = self._chat(rng, rng.choice(PROMPTS), modalities=["video"], size="32x32", num_frames=5)
        (choice,) = self.ask("POST", "/v1/chat/completions", json=body).json()["choices"]
        if choice["message"]["content"][0]["type"] != "video_url":
            raise Problem("no video in the answer")

    # Videos.

    def _begun(self, path: str, **more: Any) -> str:
        job = self.ask("POST", path, **more).json()
        with self.ledger.lock:
            self.ledger.open.add(job["id"])
        return job["id"]

    def _followed(self, name: str) -> None:
        """Look until a job has ended, then at what it made."""
        began = time.monotonic()
        while (job := self.ask("GET", f"/v1/videos/{name}").json())["status"] in ("queued", "in_progress"):
            if time.monotonic() - began > 300:
                raise Problem(f"{name} is {job['status']} since five minutes")
            time.sleep(0.1)
        with self.ledger.lock:
            self.ledger.open.discard(name)
        if job["status"] == "failed":
            if job["error"]["code"] in ("server_restarted", "server_shutdown") and self.down(began):
                raise Interrupted
            raise Problem(f"{name} failed: {job['error']}")
        for variant in ("video", "thumbnail"):
            path = f"/v1/videos/{name}/content?variant={variant}"
            self._look(self.ledger.keep(Kept(path, job["completed_at"], job["expires_at"], job=name)))

    def _video(self, rng: random.Random) -> None:
        self._followed(self._begun("/v1/videos", json=self._moving(rng)))

    def _first_frame(self, rng: random.Random) -> None:
        data = {name: str(value) for name, value in self._moving(rng).items()}
        files = {"input_reference": rng.choice(self.pngs)}
        self._followed(self._begun("/v1/videos", data=data, files=files))

    def _video_edit(self, rng: random.Random) -> None:
        data = {"prompt": "make it blue", "num_inference_steps": "1"}
        self._followed(self._begun("/v1/videos/edits", data=data, files={"video": self.mp4}))

    def _extension(self, rng: random.Random) -> None:
        data = {"prompt": "it moves on", "seconds": "0.4", "num_inference_steps": "1"}
        self._followed(self._begun("/v1/videos/extensions", data=data, files={"video": self.mp4}))

    def _newest(self, rng: random.Random) -> Kept | None:
        """One of the last finished jobs."""
        with self.ledger.lock:
            found = [one for one in self.ledger.kept[-100:] if one.job and not one.gone]
        return rng.choice(found) if found else None

    def _remix(self, rng: random.Random) -> None:
        one = self._newest(rng)
        body = {"prompt": "make it green", "num_inference_steps": 1}
        answer = one and self.ask("POST", f"/v1/videos/{one.job}/remix", 200, 404, json=body)
        if answer and answer.status_code == 200:
            with self.ledger.lock:
                self.ledger.open.add(answer.json()["id"])
            self._followed(answer.json()["id"])

    def _delete(self, rng: random.Random) -> None:
        one = self._newest(rng)
        if one and one.job:
            self.ledger.forget(one.job)
            self.ask("DELETE", f"/v1/videos/{one.job}", 200, 404)  # another one may have deleted it
            self.ask("GET", f"/v1/videos/{one.job}", 404)

    def _pages(self, rng: random.Random) -> None:
        seen, after = set[str](), ""
        for _ in range(3):
            page = self.ask("GET", f"/v1/videos?limit=20{after}", 200, 404).json()
            ids = {job["id"] for job in page.get("data", [])}
            if ids & seen:
                raise Problem("a job is on two pages")
            seen |= ids
            if not page.get("has_more"):
                break
            after = f"&after={page['last_id']}"

    # Slow ones.

    def _slow_reader(self, rng: random.Random) -> None:
        """Six images through a window of a few kilobytes."""
        body = json.dumps(self._drawing(rng, n=6, size="64x64", num_inference_steps=1))
        where = urlsplit(self.url)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(120)
            connection.connect((where.hostname, where.port))
            head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            found = b""
            while piece := connection.recv(2048):
                found += piece
                time.sleep(0.03)
        head_, _, rest = found.partition(b"\r\n\r\n")
        status = int(head_.split()[1]) if head_ else 0
        if status != 200 or len(json.loads(rest)["data"]) != 6:
            raise OSError(f"the answer ends early ({status})")

    def _slow_writer(self, rng: random.Random) -> None:
        body = json.dumps(self._drawing(rng)).encode()

        def drops() -> Iterator[bytes]:
            for n in range(0, len(body), 12):
                yield body[n : n + 12]
                time.sleep(0.1)

        self.ask("POST", "/v1/images/generations", content=drops())

    # Those who want nothing any more.

    def _leave(self, rng: random.Random) -> None:
        """Go away while an image is made: in a stream after its first words, or without having heard anything."""
        body = self._drawing(rng, size="64x64", num_inference_steps=100, stream=rng.random() < 0.5)
        path, began, timeout = "/v1/images/generations", time.monotonic(), httpx2.Timeout(30, read=0.5)
        with suppress(httpx2.ReadTimeout), self.http.stream("POST", path, json=body, timeout=timeout) as answer:
            if answer.status_code != 200:
                self._judge(answer.status_code, answer.headers, answer.read(), (200,), path, began)
            next(answer.iter_lines(), None)

    def _stop(self, rng: random.Random) -> None:
        """Delete a job that waits or runs."""
        body = self._moving(rng, num_inference_steps=100)
        name = self.ask("POST", "/v1/videos", json=body).json()["id"]
        time.sleep(rng.choice([0, 0.3, 1.0]))
        self.ask("DELETE", f"/v1/videos/{name}")
        self.ask("GET", f"/v1/videos/{name}", 404)

    def _malformed(self, rng: random.Random) -> None:
        png = rng.choice(self.pngs)
        cut = png[: rng.randrange(1, len(png))]
        noise = rng.randbytes(rng.randrange(1, 2000))
        head = {"content-type": "multipart/form-data; boundary=x"}
        path, more = rng.choice([
            ("images/generations", {"content": b'{"prompt": '}),
            ("images/generations", {"content": noise}),
            ("images/generations", {"json": {"prompt": "a star", "size": "61x64"}}),
            ("images/generations", {"json": {"prompt": "a star", "model": "other"}}),
            ("images/generations", {"json": {"prompt": "a star", f"unknown_{rng.randrange(1000)}": 1}}),
            ("images/edits", {"data": {"prompt": "x"}, "files": {"image": cut}}),
            ("images/edits", {"data": {"prompt": "x"}, "files": {"image": noise}}),
            ("images/edits", {"content": b"--x\r\nContent-Disposition: form-data; name=", "headers": head}),
            ("videos", {"data": {"prompt": "x", "seconds": "long"}}),
            ("videos/edits", {"data": {"prompt": "x"}, "files": {"video": self.mp4[: rng.randrange(40, 900)]}}),
            ("chat/completions", {"json": {"messages": "what?"}}),
            ("chat/completions", {"json": self._chat(rng, "?", {"type": "image_url", "image_url": {"url": "http://x"}})}),
            (f"{rng.randrange(10**6)}", {"json": {}}),
        ])  # fmt: skip
        self.ask("POST", f"/v1/{path}", 400, 404, **more)

    # What was said to be there.

    def _look(self, one: Kept) -> bool:
        """Read a file and hold it against what it was before. False if it is gone."""
        answer = self.ask("GET", one.path, 200, 404)
        if answer.status_code == 404:
            return False
        digest = hashlib.sha256(answer.content).hexdigest()
        if one.digest not in (None, digest):
            raise Problem(f"{one.path} is another file than before")
        if one.digest is None:
            one.size, one.digest = len(answer.content), digest
        return True

    def audit(self, cap: int) -> dict[str, int]:
        """Look at everything that was said to be there: what is gone has to be too old, or behind `cap` bytes of files
        that are not older. Called while nobody else asks."""
        known = sorted(self.ledger.kept, key=lambda one: one.finished)
        there, gone = list[Kept](), list[tuple[Kept, float]]()
        for one in known:
            if not one.gone:
                if self._look(one):
                    there.append(one)
                else:
                    gone.append((one, time.time()))  # looking at all of them takes a while
        oldest = min((one.finished for one in there), default=time.time())
        largest = max((one.size or 0 for one in known), default=0)
        behind, total = list[int](), 0
        for one in reversed(known):
            total += largest if one.size is None else one.size
            behind.append(total)
        for one, now in gone:
            one.gone = True
            first = bisect_left(known, one.finished - 1, key=lambda other: other.finished)
            newer = behind[len(known) - 1 - first]
            if now < one.expires - 1 and (one.finished > oldest + 1 or newer < 0.9 * cap):
                self.ledger.problem(f"lost: {one.path}, with {newer} bytes of files that are not older")
        for name in list(self.ledger.open):
            status = self.ask("GET", f"/v1/videos/{name}", 200, 404).json().get("status")
            if status in ("queued", "in_progress"):
                self.ledger.problem(f"{name} is {status}, and nothing works on it")
            self.ledger.open.discard(name)
        return {"there": len(there), "gone_by_rule": len(gone)}
