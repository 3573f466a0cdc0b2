"""One thread a process, and a global random state that every test finds the same and leaves as it
was.
"""

from collections.abc import Iterator

import pytest
import torch

from lorakit.sites.find import register


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def added_sites(kept_sites: None) -> None:
    """The sites of the table of laws, for as long as one test."""
    from .table import ADDED

    for added in ADDED:
        register(added)
