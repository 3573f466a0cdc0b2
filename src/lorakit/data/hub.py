"""The hub of models and data sets: whether it can be reached, and what of it is on this machine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from lorakit.text import add_hint, near_misses

PATIENCE = 3.0  # seconds for a connection; the libraries would try for a minute
LISTED = 10_000  # names of a folder that are searched for a near miss


def is_offline() -> bool:
    """Return True if the hub is not used or cannot be reached."""
    from huggingface_hub import constants

    return constants.is_offline_mode() or not _answers(constants.ENDPOINT)


@cache
def _answers(address: str) -> bool:
    """Return True if a server accepts connections; a proxy in front of it is not tested."""
    if getproxies():
        return True
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname, port), timeout=PATIENCE).close()
        except OSError:
            return
        found.append(True)

    # In a thread, because a search for the address has no time limit.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(found)


def cached_model(name: str) -> Path | None:
    """Return the folder of a model of the hub that was downloaded earlier, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


@contextmanager
def data_sets_offline() -> Iterator[None]:
    """Let `datasets` use what it has downloaded in this block, without trying to reach the hub."""
    from datasets import config
    from huggingface_hub import constants

    modules: list[Any] = [constants, config]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def similar_names(path: Path) -> str:
    """Return `Did you mean …?` with names that are similar to the first part of a path that is
    missing, or an empty string.

    >>> similar_names(Path("/bni")), similar_names(Path("/bni/python"))
    ("Did you mean 'bin'?", "Did you mean 'bin'?")
    """
    missing = path
    try:
        while not missing.parent.exists():
            missing = missing.parent
        names = [entry.name for entry in islice(missing.parent.iterdir(), LISTED)]
    except OSError:
        return ""
    return add_hint("", near_misses(missing.name, names))
