"""The server against the Python call: overhead at one client, and throughput of sixteen.

    python benchmarks/serve.py                   # nano over loopback; --quick for a look

All of it in turns in one process: one image from Python and from a client; sixteen images in one Python
call, one after another, and by sixteen clients at once. How late the event loop is while videos are made and written is
seen by a task that wants to run every 5 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from common import PROMPTS, RESULTS, markdown, spread, timed, verdict, write_results
from openai import OpenAI

from openlance import LancePipeline, load
from openlance.serve.app import create_app
from openlance.serve.config import ServeConfig
from openlance.serve.run import Server

CLIENTS = 16
MORE, MORE_S, THROUGHPUT, WAIT, LAG_MS = 0.05, 0.015, 0.9, 2.0, 20.0  # what is wanted


@contextmanager
def served(pipe: LancePipeline, folder: str):
    server = Server(create_app(pipe, ServeConfig(folder=Path(folder))), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and server.serving.worker.state == "ready"):
        time.sleep(0.05)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def draw(client: OpenAI, k: int) -> float:
    """Seconds of one request."""
    began = time.perf_counter()
    client.images.generate(prompt=PROMPTS[k % len(PROMPTS)], size="64x64", extra_body={"seed": k})
    return time.perf_counter() - began


def together(client: OpenAI, rounds: int) -> tuple[float, list[float]]:
    """Seconds of a round of sixteen clients, each of which asks again when it has its image; and of each request."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        each = list(clients.map(lambda k: [draw(client, k) for _ in range(rounds)], range(CLIENTS)))
    return (time.perf_counter() - began) / rounds, [s for some in each for s in some]


def lags(server: Server, client: OpenAI, clips: int) -> list[float]:
    """Milliseconds by which a task of the server's loop comes late while videos are made and written."""
    found, stop = list[float](), threading.Event()

    async def watch() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            found.append((time.perf_counter() - began - 0.005) * 1000)

    watching = asyncio.run_coroutine_threadsafe(watch(), server.servers[0].get_loop())
    body = {"prompt": "a red circle moves left", "num_frames": 17, "size": "64x64"}
    jobs = [client.post("/videos", body=body, cast_to=dict)["id"] for _ in range(clips)]
    while any(client.get(f"/videos/{job}", cast_to=dict)["status"] in ("queued", "in_progress") for job in jobs):
        time.sleep(0.2)
    stop.set()
    watching.result()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    repeat, rounds = (2, 1) if args.quick else (args.repeat, 6)
    pipe, prompts = load("nano"), [PROMPTS[k % len(PROMPTS)] for k in range(CLIENTS)]
    how = {"height": 64, "width": 64}
    times: dict[str, list[float]] = {name: [] for name in ("python", "served", "call", "after", "clients")}
    slowest = list[float]()
    with tempfile.TemporaryDirectory() as folder, served(pipe, folder) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        pipe.generate(prompts, seed=0, **how), draw(client, 0), together(client, 1)
        for _ in range(repeat):
            times["python"].append(timed(lambda: pipe.generate(prompts[0], seed=0, **how)))
            times["served"].append(draw(client, 0))
            times["call"].append(timed(lambda: pipe.generate(prompts, seed=0, **how)))
            times["after"].append(timed(lambda: [pipe.generate(p, seed=k, **how) for k, p in enumerate(prompts)]))
            round_s, each = together(client, rounds)
            times["clients"].append(round_s)
            slowest.append(max(each) / statistics.mean(each))
        late = sorted(lags(server, client, 1 if args.quick else 4))
    middle = {name: statistics.median(values) for name, values in times.items()}
    # Of pairs that were measured one after the other, since a machine that others use has slow minutes.
    over = statistics.median(a - b for a, b in zip(times["served"], times["python"]))
    share, faster = (statistics.median(a / b for a, b in zip(times[n], times["clients"])) for n in ("call", "after"))
    wait, p99 = max(slowest), late[int(0.99 * (len(late) - 1))]
    rows = [
        ["one image, Python / client, s", f"{middle['python']:.3f} / {middle['served']:.3f}", ""],
        ["overhead at one client", f"{over / middle['python']:.1%}", verdict(over / middle["python"], MORE)],
        ["overhead at one client, s", f"{over:.4f}", verdict(over, MORE_S)],
        ["sixteen: one Python call / one after the other / clients, s",
         f"{middle['call']:.2f} / {middle['after']:.2f} / {middle['clients']:.2f}", ""],
        ["throughput of clients / of one call", f"{share:.2f}", verdict(share, THROUGHPUT, at_least=True)],
        ["throughput of clients / of one after the other", f"{faster:.2f}", ""],
        ["slowest request / mean", f"{wait:.2f}", verdict(wait, WAIT)],
        ["event loop late while videos are made, p99, ms", f"{p99:.1f}", verdict(p99, LAG_MS)],
    ]  # fmt: skip
    head = f"nano, 64x64, {pipe.defaults.sampling.num_inference_steps} steps. Medians of {repeat}.\n\n"
    data = {"seconds": {k: spread(v) for k, v in times.items()}, "share": share, "wait": wait, "lag_p99_ms": p99}
    write_results("serve", data, head + markdown(["", "measured", "wanted"], rows), args.out)


if __name__ == "__main__":
    main()
