"""What plans are made for: devices by name, with their memory, speed and what an hour costs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openlance.config.values import unknown
from openlance.errors import UserError


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Args:
        name: As makers write it.
        memory: GiB.
        tflops: 10^12 operations a second in bfloat16 with float32 sums, without sparsity (makers' data sheets).
        price: An hour in dollars; typical offers to rent, an order of magnitude and not a quote.

    Raises:
        UserError: If one of these is not a positive number; a price may be 0.
    """

    name: str
    memory: float
    tflops: float
    price: float

    def __post_init__(self) -> None:
        for name in ("memory", "tflops", "price"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or not (value or name == "price"):
                raise UserError(f"{name} is {value:g}: it must be more than 0, such as {name}=80")


DEVICES = (
    Device("A100-40GB", memory=40, tflops=312, price=1.3),
    Device("A100-80GB", memory=80, tflops=312, price=2.0),
    Device("H100-80GB", memory=80, tflops=989, price=3.0),
    Device("H200", memory=141, tflops=989, price=4.0),
    Device("L40S", memory=48, tflops=362, price=1.0),
    Device("RTX4090", memory=24, tflops=165, price=0.4),
    Device("RTX3090", memory=24, tflops=71, price=0.25),
    Device("CPU", memory=16, tflops=0.8, price=0.1),  # two cores of a server with AMX
)
PER_NODE = 8  # devices of one machine, which hybrid sharding keeps one copy of the weights on


def parse_devices(text: str) -> tuple[int, Device]:
    """Read a number of devices, such as "128xA100-80GB"; a device alone is one of them.

    Raises:
        UserError: If it is none; it names the nearest device.
    """
    match = re.fullmatch(r"\s*(?:(\d{1,6})\s*[x×*]\s*)?([A-Za-z0-9 _-]+?)\s*", text)
    if match is None or match[1] == "0":
        raise UserError(f"gpus={text!r} is not a number of devices: write it as 8xH100-80GB or 128xA100-80GB")
    wanted = _plain(match[2])
    for device in DEVICES:
        known = _plain(device.name)
        if wanted in (known, known.removeprefix("rtx"), known.removesuffix("80gb"), f"{known}{device.memory:g}gb"):
            return int(match[1] or 1), device
    raise UserError(unknown("device", match[2], [d.name for d in DEVICES], match[2].upper()))


def _plain(name: str) -> str:
    return re.sub(r"[ _-]", "", name).lower()
