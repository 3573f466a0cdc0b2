"""The report of a run: its fields as run.json and report.json have them."""

import platform
import resource
import sys
from importlib.metadata import version
from typing import Any, NotRequired, TypedDict

import torch

import lorakit
from lorakit.plan.report import Description
from lorakit.train.origin import OriginFacts

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors")
Metrics = dict[str, Any]  # by name: numbers, as `evaluate` gives them


class RunFacts(TypedDict):
    """Facts of a run that are known before its first step."""

    model: str
    model_name: str
    task: str
    labels: list[str]
    rows: int
    rows_held_out: int
    packed: bool
    logits: str | None
    base_dtype: str
    mixed_precision: str
    rows_cut: int
    rows_repeated: int
    rows_shared: int
    max_length: int
    lr: float
    trainable_parameters: int
    total_parameters: int
    adapted_modules: int
    coverage: dict[str, Any]
    spec: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    base_fingerprint: str
    data_hash: str
    versions: dict[str, str]
    plan: Description | None
    started_from: OriginFacts | None


class RunStart(RunFacts):
    """The facts of a run and its metrics before the first step: run.json."""

    before: Metrics | None


class RunReport(RunStart):
    """The whole report of a run: report.json."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    wall_seconds: float
    peak_memory_bytes: int
    loss_first: float
    loss_last: float
    loss_steps: int
    loss_of_first_steps: float | None
    loss_of_last_steps: float | None
    after: Metrics | None
    best_step: int | None
    stopped_early: bool
    output: str
    loss_spikes: list[int]
    loss_climbed: bool
    plot: NotRequired[str]


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a run depends on."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"lorakit": lorakit.__version__, "python": platform.python_version(), **libraries}


def peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
