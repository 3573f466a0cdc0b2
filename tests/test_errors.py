"""The command that installs an extra."""

import json
from importlib import metadata
from typing import Any

import pytest

from lorakit import errors


class Installed:
    """A distribution, with what pip has noted of its origin."""

    def __init__(self, origin: dict[str, Any] | None):
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'lorakit[demo]'"),
        ({"url": "https://a.b/lorakit.whl", "archive_info": {}}, "pip install 'lorakit[demo]'"),
        (
            {"url": "file:///home/me/my%20clone", "dir_info": {}},
            "pip install '.[demo]' (in /home/me/my clone)",
        ),
    ],
)
def test_an_extra_is_installed_from_where_lorakit_came(
    origin: dict[str, Any] | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed(origin))
    assert errors.install_line("demo") == line
    assert errors.install_line("demo", "-U") == line.replace("install", "install -U")


def test_a_source_tree_that_is_not_installed_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert errors.install_line("plot") == "pip install 'lorakit[plot]'"
