"""The server under an hour of everything that clients do, with two restarts in the middle.

    python benchmarks/soak.py                    # at least 4,000 requests, for 55 minutes; or: make soak
    python benchmarks/soak.py --requests 300 --minutes 0     # ends with the requests, in about a minute

`openlance serve` with nano in a process of its own, over loopback, with caps on its disk so small that they bite. Eight
clients draw small images, edit, ask, make videos, leave, send rubbish, read and write slowly (`soak_clients.py`). At a
tenth of it the server is told to end (SIGTERM), at a fifth it is killed (SIGKILL); it begins again in its folder. So
one life is long enough to tell a leak from pools that fill: resident memory is read every second, and the slope of a
life is the median of the slopes between all pairs of its samples after its warm-up (Theil and Sen), per thousand
requests. Warm-up is the first quarter, and at least 2,000 requests.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
from common import RESULTS, markdown, verdict, write_results
from soak_clients import CANCELLED, Clients, Ledger

CLIENTS = 8
CAP = 1_000_000  # bytes of files that the server may keep
KEEP_HOURS = 0.1  # for which it keeps them
SLOPE_MB, END_S = 1.0, 10.0  # what is wanted: per 1,000 requests, seconds to a graceful end
WARM = 2000  # requests in which the pools of a new process fill
ENOUGH = 1000  # requests after them of which the slope means something
COLORS = ("#2563eb", "#dc2626", "#16a34a")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 320, 60, 34, 46


@dataclass
class Sample:
    life: int
    seconds: float
    requests: int
    rss: int
    anonymous: int  # bytes of it that no file has
    files: int
    disk: int
    database: int
    descriptors: int
    threads: int


@dataclass
class Server:
    """`openlance serve` on one address and one folder, through all its lives."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None
    lives: int = 0
    outages: list[tuple[float, float]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    def begin(self) -> None:
        line = [sys.executable, "-m", "openlance.cli.main", "serve", "--model", "nano", "--port", self.port]
        line += ["--folder", self.folder / "kept", "--keep-gb", CAP / 1e9, "--keep-hours", KEEP_HOURS]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [str(word) for word in line], stderr=log, stdout=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        self.lives += 1
        until = time.monotonic() + 120
        while True:
            try:
                if httpx2.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the server does not begin: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def end(self, sign: signal.Signals) -> None:
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(sign)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()  # the same, where it has ended
        self.ends.append({"signal": sign.name, "seconds": round(time.monotonic() - began, 2)})

    def restart(self, sign: signal.Signals) -> None:
        began = time.monotonic()
        self.outages.append((began, float("inf")))
        self.end(sign)
        self.begin()
        self.outages[-1] = (began, time.monotonic())

    def down(self, since: float) -> bool:
        """Whether it is being restarted, or was since then."""
        return any(end >= since for _, end in self.outages)

    def sample(self, seconds: float, requests: int) -> Sample | None:
        """What it takes of the machine, None while it does not run."""
        place = Path(f"/proc/{self.process.pid}") if self.process else Path("/nowhere")
        try:
            _, resident, of_files, *_ = map(int, (place / "statm").read_text().split())
            descriptors, threads = (len(os.listdir(place / name)) for name in ("fd", "task"))
        except (OSError, ValueError):
            return None
        page = os.sysconf("SC_PAGE_SIZE")
        sizes = [size for path in (self.folder / "kept" / "files").glob("*") if (size := _size(path)) is not None]
        database = sum(_size(path) or 0 for path in (self.folder / "kept").glob("jobs.db*"))
        return Sample(
            life=self.lives, seconds=round(seconds, 1), requests=requests, rss=resident * page,
            anonymous=(resident - of_files) * page, files=len(sizes), disk=sum(sizes), database=database,
            descriptors=descriptors, threads=threads,
        )  # fmt: skip

    def defects(self) -> list[str]:
        """Lines of the log that tell of a defect."""
        found = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                said = json.loads(line)
                bad = "exception" in said or said["level"] not in ("info", "warning")
            except (ValueError, KeyError, TypeError):
                bad = True
            if bad:
                found.append(line)
        return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # swept meanwhile
        return None


def soak(server: Server, ledger: Ledger, args: argparse.Namespace) -> tuple[list[Sample], list[dict[str, int]], float]:
    """Samples, what the audits found, and seconds."""
    clients = Clients(server.url, ledger, KEEP_HOURS * 3600, server.down, args.seed)
    began, samples, audits = time.monotonic(), list[Sample](), list[dict[str, int]]()
    running, stop, numbers = threading.Event(), threading.Event(), iter(range(10**9))
    idle = threading.Barrier(CLIENTS + 1)  # between two cards, for an audit

    def share() -> float:
        """How much of it is over: of the time, and of the requests that are wanted at least."""
        left = ledger.done / args.requests
        return min(left, (time.monotonic() - began) / (60 * args.minutes)) if args.minutes else left

    def play() -> None:
        while not stop.is_set():
            if not running.is_set():
                idle.wait()
                running.wait()
            clients.play(next(numbers))

    def pause() -> None:
        running.clear()
        idle.wait()
        audits.append(clients.audit(CAP))

    running.set()
    threads = [threading.Thread(target=play, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    restarts = [(0.1, signal.SIGTERM), (0.2, signal.SIGKILL)]
    while share() < 1 and time.monotonic() - began < 60 * (args.minutes * 1.5 + 10):
        time.sleep(args.every)
        if (sample := server.sample(time.monotonic() - began, ledger.done)) is not None:
            samples.append(sample)
        if restarts and share() >= restarts[0][0]:
            server.restart(restarts.pop(0)[1])
            pause()
            running.set()
        if server.process.poll() is not None:
            ledger.problem(f"the server ended by itself with {server.process.returncode}")
            break
    seconds = time.monotonic() - began
    if server.process.poll() is None:
        pause()
        _settled(server, ledger)
    stop.set(), running.set()
    for thread in threads:
        thread.join(60)
    return samples, audits, seconds


def _settled(server: Server, ledger: Ledger) -> None:
    """At the end nothing waits or runs, and a small request is answered at once."""
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        few = {"prompt": "a star", "size": "16x16", "num_inference_steps": 1}
        if http.post("/v1/images/generations", json=few).status_code != 200 or http.get("/ready").status_code != 200:
            ledger.problem("at the end it does not work")
        if "\nopenlance_queue_depth 0.0\n" not in http.get("/metrics").text:
            ledger.problem("at the end the queue is not empty")
        after, ended = "", ("completed", "failed")
        while True:
            page = http.get(f"/v1/videos?limit=100{after}").json()
            for job in page["data"]:
                if job["status"] not in ended:
                    ledger.problem(f"at the end {job['id']} is {job['status']}")
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
    if half := [path.name for path in (server.folder / "kept" / "files").glob(".*")]:
        ledger.problem(f"half-written files are left: {half[:5]}")


def slope_of(samples: list[Sample]) -> dict[str, Any]:
    """Megabytes per thousand requests of one life, after its warm-up: the median over all pairs of samples.

    None where too few requests came after it.
    """
    first, last = samples[0].requests, samples[-1].requests
    begin = first + max((last - first) / 4, WARM)
    warm = [s for s in samples if s.requests >= begin]
    warm = warm[:: max(len(warm) // 300, 1)]
    pairs = [(a, b) for a, b in combinations(warm, 2) if b.requests > a.requests]
    slopes = [(b.rss - a.rss) / (b.requests - a.requests) / 1000 for a, b in pairs]
    return {
        "requests": last - first,
        "mb_per_1000": round(statistics.median(slopes), 3) if slopes and last - begin >= ENOUGH else None,
        "first_mb": round((warm or samples)[0].rss / 1e6, 1), "last_mb": round(samples[-1].rss / 1e6, 1),
        "most_mb": round(max(s.rss for s in samples) / 1e6, 1),
    }  # fmt: skip


def drawing(samples: list[Sample]) -> str:
    """Resident memory over the requests, a line for every life, as SVG."""
    across, down = WIDTH - LEFT - 20, HEIGHT - TOP - BOTTOM
    most, last = max(s.rss for s in samples) * 1.1, max(s.requests for s in samples) or 1
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for n in range(5):
        x, y = LEFT + across * n / 4, TOP + down * (1 - n / 4)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + across}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most * n / 4e6:.0f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{last * n / 4:.0f}</text>')
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 8}" text-anchor="middle">requests</text>')
    parts.append(f'<text x="{LEFT - 40}" y="18">resident memory, MB; a color for each life of the server</text>')
    for life in sorted({s.life for s in samples}):
        mine = [s for s in samples if s.life == life]
        spots = [(LEFT + across * s.requests / last, TOP + down * (1 - s.rss / most)) for s in mine]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        color = COLORS[(life - 1) % len(COLORS)]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>')
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" {style}>'
    return "\n".join([head, *parts, "</svg>\n"])


def report(server: Server, ledger: Ledger, samples: list[Sample], audits: list[dict[str, int]], seconds: float):
    """Data and rows; the last column says what is wanted, and the data whether all of it holds."""
    lives = [slope_of([s for s in samples if s.life == life]) for life in sorted({s.life for s in samples})]
    judged = [one["mb_per_1000"] for one in lives if one["mb_per_1000"] is not None]
    slope, defects = max(judged, default=None), server.defects()
    kinds = {kind: sum(n for (k, _), n in ledger.outcomes.items() if k == kind) for kind, _ in ledger.outcomes}
    total = sum(kinds.values())
    cut = sum(n for (_, outcome), n in ledger.outcomes.items() if outcome == "interrupted")
    failed = sum(n for status, n in ledger.statuses.items() if status >= 500 and status != 503)
    unavailable = ledger.statuses[503]
    disk = max(s.disk for s in samples)
    end = max((one["seconds"] for one in server.ends if one["signal"] == "SIGTERM"), default=0.0)
    rows = [
        ["requests / minutes", f"{ledger.done} / {seconds / 60:.1f}", ""],
        ["cancelled / malformed", f"{sum(kinds.get(k, 0) for k in CANCELLED) / total:.1%} / "
         f"{kinds.get('malformed', 0) / total:.1%}", ""],
        ["cut off by a restart / answers 503 meanwhile", f"{cut} / {unavailable}", ""],
        *([f"life {n}: requests, MB after warm-up / at the end / most, MB per 1,000 requests",
           f"{one['requests']}, {one['first_mb']} / {one['last_mb']} / {one['most_mb']}, {one['mb_per_1000']}", ""]
          for n, one in enumerate(lives, 1)),
        ["largest slope, MB per 1,000 requests", "too few requests" if slope is None else slope,
         "" if slope is None else verdict(slope, SLOPE_MB)],
        ["most bytes of files / of the database", f"{disk} / {max(s.database for s in samples)}",
         verdict(disk, 1.1 * CAP)],
        ["descriptors / threads, most",
         f"{max(s.descriptors for s in samples)} / {max(s.threads for s in samples)}", ""],
        ["files there / gone by rule, at each audit",
         "; ".join(f"{one['there']} / {one['gone_by_rule']}" for one in audits), ""],
        ["answers 500 or 507", failed, verdict(failed, 1)],
        ["defects in the log", len(defects), verdict(len(defects), 1)],
        ["problems (lost files, jobs without an end, wrong answers)", len(ledger.problems),
         verdict(len(ledger.problems), 1)],
        ["seconds to a graceful end", end, verdict(end, END_S)],
    ]  # fmt: skip
    good = all("NO" not in str(row[-1]) for row in rows) and len(server.ends) == 3
    data = {
        "good": good, "requests": ledger.done, "seconds": seconds, "clients": CLIENTS,
        "caps": {"bytes": CAP, "hours": KEEP_HOURS}, "kinds": kinds,
        "outcomes": {" ".join(key): n for key, n in ledger.outcomes.items()},
        "statuses": dict(ledger.statuses), "codes": dict(ledger.codes), "lives": lives, "audits": audits,
        "ends": server.ends, "problems": ledger.problems, "defects": defects[:20],
        "median_s": {kind: round(statistics.median(values), 3) for kind, values in ledger.seconds.items()},
        "samples": [asdict(s) for s in samples[:: max(len(samples) // 600, 1)]],
    }  # fmt: skip
    return data, rows


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=4000, help="at least so many")
    parser.add_argument("--minutes", type=float, default=55, help="for so long; 0: until the requests are done")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with it
    with tempfile.TemporaryDirectory() as folder:
        server, ledger = Server(Path(folder), free_port()), Ledger()
        try:
            server.begin()
            samples, audits, seconds = soak(server, ledger, args)
            if server.process.poll() is None:
                server.end(signal.SIGTERM)
        finally:
            if server.process is not None:
                server.process.kill()
        data, rows = report(server, ledger, samples, audits, seconds)
    table = markdown(["", "measured", "wanted"], rows)
    line = f"`{' '.join(['python', 'benchmarks/soak.py', *sys.argv[1:]])}`, {CLIENTS} clients, nano.\n\n"
    path = write_results("soak", data, line + table, args.out)
    path.with_suffix(".svg").write_text(drawing(samples), encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8") + f"\n![Memory]({path.stem}.svg)\n", encoding="utf-8")
    print("\n".join(data["problems"] + data["defects"]))
    sys.exit(0 if data["good"] else 1)


if __name__ == "__main__":
    main()
