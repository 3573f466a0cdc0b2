"""What machines hold and how fast this one is."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from lorakit.errors import SpecError
from lorakit.text import near_misses

HERE = "this machine"
CONTEXT = 512 << 20  # bytes that CUDA, its libraries and PyTorch's kernels take of a GPU
TINY = 9  # operations of the tiny step that is measured: three forward, six backward
FRAGMENTS = 0.05  # share of a GPU that its allocator loses between blocks
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Name -> MiB as nvidia-smi shows them. An A100 has 40 or 80 GB; the plain name means the larger.
GPUS = {
    "T4": 15360,
    "RTX 2080 Ti": 11264,
    "RTX 3080": 10240,
    "RTX 4090": 24564,
    "L4": 23034,
    "A100 40GB": 40960,
    "A100": 81920,
    "H100": 81559,
    "H200": 143771,
}


@dataclass(frozen=True)
class Device:
    """A machine that may run a step.

    Attributes:
        name: as tables show it.
        size: bytes of memory.
        usable: bytes that tensors may take.
        gpu: whether it is a GPU.
    """

    name: str
    size: int
    usable: int
    gpu: bool = True


def find_device(name: str) -> Device:
    """Return a device by name, spelled in any way: "2080ti", "RTX 4090", "this machine".

    Raises:
        SpecError: none is called so; near misses are named.

    >>> find_device("rtx4090").name, find_device("2080 Ti").size >> 20
    ('RTX 4090', 11264)
    """
    known = (
        {_key(n): n for n in (*GPUS, HERE)}
        | {_key(n).removeprefix("rtx"): n for n in GPUS}
        | {"cpu": HERE, "a10080gb": "A100"}
    )
    found = known.get(_key(name))
    if found is None:
        hint = near_misses(_key(name), known)
        for key in re.findall(r"'(\w+)'", hint):
            hint = hint.replace(f"'{key}'", f"'{known[key]}'")
        raise SpecError(
            f"No device is called {name!r}. {hint}".rstrip(),
            advice=f"Devices: {', '.join((*GPUS, HERE))}.",
        )
    return this_machine() if found == HERE else _gpu(found, GPUS[found] << 20)


def all_devices() -> list[Device]:
    """Return this machine and every GPU there is a name for."""
    return [this_machine(), *(_gpu(name, size << 20) for name, size in GPUS.items())]


def this_machine(*, cpu: bool = False) -> Device:
    """Return the GPU of this machine where it has one (and `cpu` is not asked for), else its main
    memory, or what a container
    may have of it."""
    if torch.cuda.is_available() and not cpu:
        return _gpu(HERE, torch.cuda.get_device_properties(0).total_memory)
    size = psutil.virtual_memory().total
    for file in CGROUPS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            size = min(size, int(text))
    # What the process is already: Python, PyTorch, transformers.
    return Device(HERE, size, max(0, size - psutil.Process().memory_info().rss), gpu=False)


def _gpu(name: str, size: int) -> Device:
    return Device(name, size, int(size * (1 - FRAGMENTS)) - CONTEXT)


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower().replace("nvidia", "").replace("geforce", ""))


@dataclass(frozen=True)
class Rate:
    """How fast a machine computes.

    Attributes:
        flops: matrix products, a multiply-add being two, a second.
        moved: bytes that other operations read and write, a second; 0 where they are not counted.
        call: seconds that any operation takes of itself, with what autograd does for it.
    """

    flops: float
    moved: float = 0.0
    call: float = 0.0

    def seconds(self, flops: int, moved: int, calls: int) -> float:
        """Return how long these take one after the other."""
        return flops / self.flops + (moved / self.moved if self.moved else 0.0) + calls * self.call


def measure_rate(width: int, rows: int, dtype: torch.dtype) -> Rate:
    """Measure this machine, in about half a second: a product of the model's width, a sum of large
    tensors, a tiny step.

    Args:
        width: of the model.
        rows: tokens of a step.
        dtype: that products are computed in.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, rows = min(max(width, 16), 4096), min(max(rows, 16), 1024)
    x, w = (
        torch.ones(rows, width, dtype=dtype, device=device),
        torch.ones(width, width, dtype=dtype, device=device),
    )
    y = torch.ones(rows, 8 * width, dtype=dtype, device=device)
    small = torch.ones(8, 8, device=device, requires_grad=True)
    product, addition = _median(lambda: x @ w), _median(lambda: y + y)
    return Rate(
        2 * rows * width**2 / product,
        3 * y.nbytes / addition,
        _median(lambda: (small @ small + small).sum().backward()) / TINY,
    )


def _median(call: Callable[[], Any], seconds: float = 0.15) -> float:
    """Return the median time of a call."""
    gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if gpu else lambda: None
    clock = (
        time.perf_counter if gpu else time.thread_time
    )  # what else the machine does is not counted
    call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        wait()
        begun = clock()
        call()
        wait()
        times.append(clock() - begun)
    return sorted(times)[len(times) // 2]
