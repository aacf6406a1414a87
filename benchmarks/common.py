"""What the benchmarks share: the machine, its rate of matrix products, random checkpoints, dated results."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openlance.config.values import append_line, lines_of, read_text
from openlance.eval.estimate import Z95

RESULTS = Path(__file__).parent / "results"
OTHER_DEVICE = "The first line is of the machine that made this table."


def machine() -> dict[str, Any]:
    """Hardware and software, and how busy the machine was when this was asked."""
    import torch

    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []


def seconds(run: Callable[[], Any], repeat: int = 3) -> float:
    """The least wall time of some runs after one that warms up."""
    run()
    return min(timed(run) for _ in range(repeat))


def timed(run: Callable[[], Any]) -> float:
    """Wall seconds of a run, with what it launched on a GPU."""
    import torch

    began = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def child(*line: Any, **environment: str) -> dict[str, Any]:
    """What a Python process of its own prints last, a line of JSON; its error ends this one too."""
    done = subprocess.run(
        [sys.executable, *map(str, line)], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and largest of repeated times."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def write_results(name: str, data: dict[str, Any], table: str, out: Path = RESULTS, part: str = "") -> Path:
    """Write <date>-<name>.json and .md, or <date>-<name>-<part>; the table says on what machine it was made."""
    today = datetime.date.today().isoformat()
    data = {"date": today, "machine": machine(), **data}
    out.mkdir(parents=True, exist_ok=True)
    m = data["machine"]
    named = f"{today}-{name}-{part}" if part else f"{today}-{name}"
    head = f"# {name}, {today}\n\n{m['cpu']}, {m['cores']} cores, {m['threads']} threads, torch {m['torch']}, "
    head += f"load {m['load']} at the end. Made by `benchmarks/{name}.py`.\n\n"
    (out / f"{named}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    path = out / f"{named}.md"
    path.write_text(head + table + "\n", encoding="utf-8")
    print(head + table)
    return path


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- name --> and <!-- /name --> in a page."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(first)
    after = rest.partition(last)[2]
    page.write_text(f"{before}{first}\n{text}{last}{after}", encoding="utf-8")


# Runs that go on where they were stopped: one line of JSON for each part that is done.


def recorder(doc: str, only: str) -> argparse.ArgumentParser:
    """The options of a benchmark that runs bit by bit; only: what it can be kept to."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--records", type=Path, required=True, help="a .jsonl file, which grows")
    parser.add_argument("--only", default="", help=f"{only} whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def recorded(records: Path) -> list[dict[str, Any]]:
    """What was recorded so far; nothing where there is no file yet."""
    return [json.loads(line) for line in lines_of(read_text(records)) if line.strip()] if records.is_file() else []


def record(records: Path, line: dict[str, Any]) -> None:
    append_line(records, json.dumps(line))


def paired(old: list[bool], new: list[bool]) -> dict[str, Any]:
    """Difference of shares with its paired 95 % interval, and McNemar's exact p (two-sided)."""
    n, gained = len(old), sum(b and not a for a, b in zip(old, new, strict=True))
    lost = sum(a and not b for a, b in zip(old, new, strict=True))
    difference, discordant = (gained - lost) / n, gained + lost
    half = Z95 * math.sqrt(max(discordant / n - difference**2, 0.0) / n)
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1)) / 2**discordant
    return {
        "n": n, "old": sum(old) / n, "new": sum(new) / n, "gained": gained, "lost": lost, "difference": difference,
        "ci95": [difference - half, difference + half], "p": min(1.0, 2 * tail),
    }  # fmt: skip


def points(found: dict[str, Any]) -> str:
    """The difference of `paired` in points."""
    low, high = (100 * x for x in found["ci95"])
    return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def verdict(value: float, limit: float, at_least: bool = False) -> str:
    good = value >= limit if at_least else value < limit
    return f"{'at least' if at_least else 'under'} {limit:g}: {'yes' if good else 'NO'}"


def random_checkpoint(folder: Path) -> Path:
    """A folder of nano's form with random weights: it draws noise in exactly the time that nano takes."""
    import torch

    from openlance.checkpoint.formats import released_name, write_config
    from openlance.checkpoint.writer import write_tensors
    from openlance.config.model import ModelConfig, nano
    from openlance.model.lance import Lance
    from openlance.model.vit import ViT
    from openlance.text.tokenizer import train_tokenizer
    from openlance.vae.autoencoder import VAE

    torch.manual_seed(0)
    config: ModelConfig = nano()
    write_config(folder, config)
    lance = {released_name(name): value for name, value in Lance(config).state_dict().items()}
    write_tensors(folder / "model.safetensors", lance)
    write_tensors(folder / "vit.safetensors", ViT(config.vit).tower.state_dict())
    VAE(config.vae).save(folder / "vae.safetensors")
    train_tokenizer(PROMPTS, config.vocab_size).save(str(folder / "tokenizer.json"))
    sampling = {"num_inference_steps": 10, "guidance_scale": 3.0, "shift": 2.0, "interval": [0.0, 1.0]}
    names = ("image", "video", "edit", "subject", "question")
    settings = {"height": 64, "width": 64, "sampling": sampling, "system_prompts": dict.fromkeys(names, "")}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def checkpoint(model: str, scratch: Path) -> tuple[str, str]:
    """(folder, what it is): a shipped model or a folder, or random weights in its place where there is none."""
    from openlance.checkpoint.formats import folder_of

    if model != "random" and (folder_of(model) / "model.safetensors").is_file():
        return model, model
    return str(random_checkpoint(scratch)), "random weights of nano's form"


PROMPTS = [
    "a red circle left of a blue square",
    "a small green star",
    "three yellow rings on a white background",
    "a large striped cyan triangle above a cross",
    'the text "A7"',
    "an outlined purple cross",
    "four orange squares",
    "a white ring on black",
]
