"""Devices: the memory of machines, and the speed of this one."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lorakit.errors import SpecError
from lorakit.models.precision import has_bfloat16
from lorakit.text import add_hint, did_you_mean, nearest

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
EMULATING_BFLOAT16 = {"T4", "RTX 2080 Ti"}


@dataclass(frozen=True)
class Device:
    """A machine that may run a step.

    Attributes:
        name: the name that tables show.
        size: bytes of memory.
        usable: bytes that tensors may take.
        gpu: True for a GPU.
        bfloat16: True if it computes in bfloat16, which older GPUs emulate.
    """

    name: str
    size: int
    usable: int
    gpu: bool = True
    bfloat16: bool = True


def find_device(name: str) -> Device:
    """Return a device by name, in any spelling: "2080ti", "RTX 4090", "this machine".

    Raises:
        SpecError: there is none of this name; near misses are named.

    >>> find_device("rtx4090").name, find_device("2080 Ti").size >> 20
    ('RTX 4090', 11264)
    """
    known = _names_by_key()
    found = known.get(_key(name))
    if found is None:
        hint = did_you_mean(known[key] for key in nearest(_key(name), known))
        raise SpecError(
            add_hint(f"No device is called {name!r}.", hint),
            advice=f"Devices: {', '.join((*GPUS, HERE))}.",
        )
    if found == HERE:
        return this_machine()
    return _gpu_called(found)


def _names_by_key() -> dict[str, str]:
    names = {_key(name): name for name in (*GPUS, HERE)}
    for name in GPUS:
        names[_key(name).removeprefix("rtx")] = name
    return {**names, "cpu": HERE, "a10080gb": "A100"}


def all_devices() -> list[Device]:
    """Return this machine and every GPU that has a name here."""
    return [this_machine(), *map(_gpu_called, GPUS)]


def this_machine(*, cpu: bool = False) -> Device:
    """Return the GPU of this machine if it has one, else its main memory.

    Main memory is limited to what a container may use.

    Args:
        cpu: take the main memory in any case.
    """
    if torch.cuda.is_available() and not cpu:
        size = torch.cuda.get_device_properties(0).total_memory
        return _gpu(HERE, size, bfloat16=has_bfloat16(torch.device("cuda", 0)))
    size = psutil.virtual_memory().total
    for file in CGROUPS:
        limit = file.read_text().strip() if file.is_file() else ""
        if limit.isdigit():
            size = min(size, int(limit))
    # Python, PyTorch and transformers are in memory already.
    used = psutil.Process().memory_info().rss
    return Device(HERE, size, max(0, size - used), gpu=False)


def _gpu_called(name: str) -> Device:
    return _gpu(name, GPUS[name] << 20, bfloat16=name not in EMULATING_BFLOAT16)


def _gpu(name: str, size: int, *, bfloat16: bool) -> Device:
    return Device(name, size, int(size * (1 - FRAGMENTS)) - CONTEXT, bfloat16=bfloat16)


def _key(name: str) -> str:
    plain = name.lower().replace("nvidia", "").replace("geforce", "")
    return re.sub(r"[\W_]", "", plain)


@dataclass(frozen=True)
class Rate:
    """Speed of a machine.

    Attributes:
        flops: operations of matrix products a second; a multiply-add counts as two.
        moved: bytes that other operations read and write a second; 0 if they are not counted.
        call: seconds that each operation takes in addition, autograd's part included.
    """

    flops: float
    moved: float = 0.0
    call: float = 0.0

    def seconds(self, flops: int, moved: int, calls: int) -> float:
        """Return the seconds of so much work, one operation after the other."""
        products = flops / self.flops
        others = moved / self.moved if self.moved else 0.0
        return products + others + calls * self.call


def measure_rate(width: int, tokens: int, dtype: torch.dtype) -> Rate:
    """Measure this machine, in about half a second.

    A matrix product, a sum of large tensors and a tiny step are timed.

    Args:
        width: width of the model.
        tokens: tokens of a step.
        dtype: dtype of the products.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = min(max(width, 16), 4096)
    count = min(max(tokens, 16), 1024)
    inputs = torch.ones(count, width, dtype=dtype, device=device)
    matrix = torch.ones(width, width, dtype=dtype, device=device)
    large = torch.ones(count, 8 * width, dtype=dtype, device=device)
    small = torch.ones(8, 8, device=device, requires_grad=True)

    def tiny_step() -> None:
        (small @ small + small).sum().backward()

    product = _median_seconds(lambda: inputs @ matrix)
    addition = _median_seconds(lambda: large + large)
    step = _median_seconds(tiny_step)
    return Rate(2 * count * width**2 / product, 3 * large.nbytes / addition, step / TINY)


def _median_seconds(call: Callable[[], object], seconds: float = 0.15) -> float:
    """Return the median time of a call; on a CPU that of this thread, so load does not count."""
    if torch.cuda.is_available():
        wait, clock = torch.cuda.synchronize, time.perf_counter
    else:
        wait, clock = _no_wait, time.thread_time
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        wait()
        begun = clock()
        call()
        wait()
        times.append(clock() - begun)
    return sorted(times)[len(times) // 2]


def _no_wait() -> None:
    """Do nothing: a CPU has finished when the call returns."""
