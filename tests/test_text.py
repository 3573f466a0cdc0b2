"""Numbers that count as such, and pieces of text, where the doctests are not enough."""

import io
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import lorakit
from lorakit.spec import is_number, is_whole
from lorakit.text import (
    dtype_name,
    first_line,
    format_bytes,
    format_duration,
    lasting_stderr,
    line_width,
    near_misses,
    plural,
    wrap_lines,
)


@pytest.mark.parametrize("value", [0, 7, -3, 1 << 70], ids=str)
def test_whole_numbers(value: int) -> None:
    assert is_whole(value)


@pytest.mark.parametrize(
    "value", [True, False, 1.0, 1.5, "1", None, [1], (1,), np.int64(1), torch.tensor(1)], ids=repr
)
def test_no_whole_numbers(value: object) -> None:
    assert not is_whole(value)


@pytest.mark.parametrize(
    ("value", "least", "expected"), [(2, 2, True), (1, 2, False), (-1, 0, False)]
)
def test_a_whole_number_has_a_least_value(value: int, least: int, expected: bool) -> None:
    assert is_whole(value, least=least) is expected


@pytest.mark.parametrize("value", [0, 1, -1, 0.0, 1e38, -2.5], ids=str)
def test_numbers(value: float) -> None:
    assert is_number(value)


@pytest.mark.parametrize(
    "value",
    [True, float("nan"), float("inf"), float("-inf"), "0.5", None, 1j, torch.tensor(1.0)],
    ids=repr,
)
def test_no_numbers(value: object) -> None:
    assert not is_number(value)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "float32"), (torch.int8, "int8"), ("float16", "float16"), ("auto", "auto")],
    ids=str,
)
def test_dtype_name(dtype: object, name: str) -> None:
    assert dtype_name(dtype) == name


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n \n  second  \nthird"), "second"),
        (ValueError(""), "ValueError"),
        (KeyError(), "KeyError"),
        (RuntimeError("\n\n"), "RuntimeError"),
    ],
    ids=repr,
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_plural_of_zero_one_and_many() -> None:
    assert [plural(count, "fault") for count in (0, 1, 2)] == ["0 faults", "1 fault", "2 faults"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 50, "1,048,576.0 GiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0005, "0 ms"), (0.999, "999 ms"), (1, "1.0 s"), (119.96, "120.0 s"), (7199, "120 min")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_near_misses_are_none_one_or_several() -> None:
    known = ["q_proj", "k_proj", "v_proj", "norm"]
    assert near_misses("zzz", known) == ""
    assert near_misses("nrm", known) == "did you mean 'norm'?"
    assert near_misses("x_proj", known, 2).count("_proj") == 2


# --- stderr --------------------------------------------------------------------------------------


class ClosedPipe(io.StringIO):
    """A stream whose reader has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [ClosedPipe(), None], ids=["a closed pipe", "none"])
def test_a_message_that_nobody_reads_is_dropped(
    stream: ClosedPipe | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with lasting_stderr():
        print("step 1", file=sys.stderr, flush=True)
        Console(stderr=True).print("step 2")
        sys.stderr.close()
        assert sys.stderr.writable()
    assert sys.stderr is stream
    assert capsys.readouterr().out == ""


def test_messages_arrive_while_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with lasting_stderr():
        print("step 1", file=sys.stderr)
        sys.stderr.close()  # as a handler of logs does at the end
        print("step 2", file=sys.stderr)
    assert capsys.readouterr().err == "step 1\nstep 2\n"


# --- width ---------------------------------------------------------------------------------------


def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken() -> None:
    text = (
        "  q_proj (5 layers)     linear 64 -> 64   default: rank 16, scale 2\nshort\n\na-b "
        + "x" * 30
    )
    wrapped = wrap_lines(text, 20)
    assert wrapped.split() == text.split()
    assert {line for line in wrapped.split("\n") if len(line) > 20} == {"  " + "x" * 30}
    assert wrap_lines(text, None) == text


def test_a_wrapped_command_is_still_one_for_the_shell() -> None:
    wrapped = wrap_lines("  lorakit merge --model one --adapter two --output three", 30)
    assert all(len(line) <= 30 for line in wrapped.split("\n"))
    words = subprocess.run(["sh", "-c", f"printf '%s ' {wrapped}"], capture_output=True, text=True)
    assert words.stdout == "lorakit merge --model one --adapter two --output three "


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert line_width(io.StringIO()) is None
    assert line_width(None) is None
    monkeypatch.setenv("COLUMNS", "72")
    assert line_width(io.StringIO()) == 72


HINTS = re.compile(r"(?<! )[ ]\{(near_misses|did_you_mean|suggest_\w+)\b")


def test_a_hint_is_joined_to_its_text_in_one_way() -> None:
    root = Path(lorakit.__file__).parent
    joined = [path.name for path in root.rglob("*.py") if HINTS.search(path.read_text("utf-8"))]
    assert joined == []


def test_a_terminal_that_does_not_know_its_size_limits_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    _, terminal = pty.openpty()  # its size is 0 by 0
    with open(terminal, "w") as stream:
        assert stream.isatty()
        assert line_width(stream) is None
