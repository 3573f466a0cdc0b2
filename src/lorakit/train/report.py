"""The report of a run, and what of it the machine tells."""

import platform
import resource
import sys
from importlib.metadata import version

import torch

import lorakit


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    named = {name: version(name) for name in ("torch", "transformers", "accelerate", "safetensors")}
    return {"lorakit": lorakit.__version__, "python": platform.python_version(), **named}


def peak_memory() -> int:
    """Return the most memory that was in use at once, in bytes: of the GPU where there is one, else
    of the process.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
