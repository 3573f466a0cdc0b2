"""Public names, signatures and flags are as recorded: they change only on purpose.

`make record` (or `python tests/test_surface.py`) writes tests/surface.txt and docs/cli.md again;
read the diff.
"""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lorakit

ROOT = Path(__file__).parents[1]
SURFACE, PAGES = ROOT / "tests" / "surface.txt", ROOT / "docs" / "cli.md"


def signature(thing: object) -> str:
    """Return names, kinds and defaults of the arguments.

    Annotations are left out: they print differently from one Python to the next.
    """
    found = inspect.signature(thing)  # type: ignore[arg-type]
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def members(cls: type) -> dict[str, object]:
    """Return the public methods and properties that the class itself defines."""
    own = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return {
        n: v
        for n, v in own.items()
        if inspect.isfunction(v) or isinstance(v, property | classmethod | staticmethod)
    }


def surface() -> str:
    lines = []
    for name in lorakit.__all__:
        thing = getattr(lorakit, name)
        lines.append(f"{name}{signature(thing)}")
        for member, value in sorted(members(thing).items()) if inspect.isclass(thing) else ():
            text = (
                "" if isinstance(value, property) else signature(getattr(value, "__func__", value))
            )
            lines.append(f"    .{member}{text}")
    return "\n".join(lines) + "\n"


def pages(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the help of every command as a page; width and colour of the terminal do not count."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    from lorakit.cli.__main__ import help_pages

    head = (
        "# The command line\n\nWhat `--help` says, command by command. "
        "Written by `make record`; a test compares it.\n"
    )
    titles = {name: f"lorakit {name}".strip() for name in help_pages()}
    return head + "".join(
        f"\n## {titles[name]}\n\n```text\n{text.strip()}\n```\n"
        for name, text in help_pages().items()
    )


def test_names_are_sorted_and_have_a_home():
    assert lorakit.__all__ == sorted(lorakit.__all__) == sorted(lorakit._HOME)
    assert set(lorakit.__all__) <= set(dir(lorakit))


@pytest.mark.slow
def test_no_module_hides_a_name():
    """`lorakit.attach` is the function, also after something has imported the module
    `lorakit.attach`.
    """
    homes = ", ".join(f"lorakit.{home}" for home in sorted(set(lorakit._HOME.values())))
    code = (
        f"import {homes}, types\n"
        "values = {name: getattr(lorakit, name) for name in lorakit.__all__}\n"
        "print([name for name, value in values.items() if isinstance(value, types.ModuleType)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'lorakit' has no attribute 'atach'"):
        lorakit.atach  # noqa: B018


@pytest.mark.parametrize("name", lorakit.__all__)
def test_public_names_say_what_they_give(name: str):
    thing = getattr(lorakit, name)
    callables = {name: thing}
    if inspect.isclass(thing):
        callables |= {
            f"{name}.{k}": getattr(v, "__func__", v)
            for k, v in members(thing).items()
            if not isinstance(v, property)
        }
    for told, value in callables.items():
        first = (inspect.getdoc(value) or "").partition("\n")[0]
        assert first.endswith((".", "?")) and not first.startswith(f"{name}("), (
            f"{told} has no first sentence: {first!r}"
        )


def test_signatures_are_as_recorded():
    assert surface() == SURFACE.read_text("utf-8"), "on purpose? then: make record"


def test_help_is_as_recorded(monkeypatch: pytest.MonkeyPatch):
    # Word by word: where lines break differs from one Python to the next.
    assert pages(monkeypatch).split() == PAGES.read_text("utf-8").split(), (
        "on purpose? then: make record"
    )


if __name__ == "__main__":
    SURFACE.write_text(surface(), "utf-8")
    PAGES.parent.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        PAGES.write_text(pages(patch), "utf-8")
