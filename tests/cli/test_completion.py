"""Completion offers commands, flags, choices, files and builtin names, in real shells."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorakit.cli.__main__ import COMMANDS, main
from lorakit.cli.completion import complete_line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "builds").mkdir()
    (tmp_path / "rows.csv").write_text("text\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = {
    "a command": ("lorakit ext", ["extract"]),
    "a flag": ("lorakit train --sch", ["--schedule"]),
    "a switch": ("lorakit train --no-over", ["--no-overwrite"]),
    "a flag is offered once": ("lorakit train --schedule linear --sch", []),
    "a choice": ("lorakit train --schedule co", ["constant", "cosine"]),
    "a builtin model, and files": ("lorakit train --model bu", ["builtin:minilm", "builds/"]),
    "a builtin after its colon": ("lorakit train --model builtin:", ["builtin:minilm"]),
    "the second of several": ("lorakit train --data rows.csv built", ["builtin:stdlib-docs"]),
    "a shell": ("lorakit completion z", ["zsh"]),
    "files are left to the shell": ("lorakit resize ", []),
    "after a switch": ("lorakit train --resume c", []),
    "an open quotation mark": ("lorakit train --sch 'li", []),
    "no such command": ("lorakit trian --da", []),
}


@pytest.mark.parametrize(("line", "words"), CASES.values(), ids=CASES)
def test_words_that_complete_a_line(line: str, words: list[str], folder: Path) -> None:
    assert list(complete_line(line)) == words


def test_every_command_and_flag_is_offered_with_a_purpose() -> None:
    assert {*COMMANDS} < {*complete_line("lorakit ")}
    for name in COMMANDS:
        assert all(complete_line(f"lorakit {name} --").values())


def test_a_shell_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 2
    told = capsys.readouterr().err
    assert "SpecError: A shell is needed: bash, zsh or fish.\n  in ~/.bashrc:  source <(" in told


# --- in a shell ----------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Return variables by which a shell finds this lorakit as a command."""
    command = folder / "bin" / "lorakit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lorakit "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ.get("PATH", "")])
    paths = os.pathsep.join(map(os.path.abspath, sys.path[1:]))
    return {**os.environ, "PATH": path, "PYTHONPATH": paths, "TERM": "dumb", "HOME": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lorakit ext", ["extract"]),
        ("lorakit train --schedule ", ["constant", "linear", "cosine", "inverse-sqrt", "cyclic"]),
        ("lorakit train --model builtin:", ["minilm"]),  # bash completes behind the colon
        ("lorakit train --output r", []),
    ],
)
def test_bash_asks_for_the_words_of_its_line(line: str, words: list[str], folder: Path) -> None:
    code = (
        'source <(lorakit completion bash)\nCOMP_LINE="$1" COMP_POINT=${#1}\n_lorakit lorakit\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", line],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (done.stdout.split(), done.stderr) == (words, "")


START = {
    "bash": ["--noprofile", "--norc", "-i"],
    "zsh": ["-d", "-i"],
    "fish": ["--no-config", "-i"],
}
SETUP = {
    "bash": "source <(lorakit completion bash)",
    "zsh": "autoload -U compinit && compinit -u && source <(lorakit completion zsh)",
    "fish": "lorakit completion fish | source",
}


@pytest.fixture(params=START)
def terminal(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """A shell in a terminal, with the script loaded."""
    pexpect = pytest.importorskip("pexpect")
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} on this machine")
    variables = {**environment(folder), "ZDOTDIR": str(folder)}
    child = pexpect.spawn(
        request.param,
        START[request.param],
        env=variables,
        cwd=str(folder),
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 200),
    )
    child.sendline(f"{SETUP[request.param]}; echo it is loaded | tr a-z A-Z")
    child.expect("IT IS LOADED")
    yield child
    child.close(force=True)


@pytest.mark.slow
def test_the_tab_key_completes_a_word(terminal: Any) -> None:
    terminal.send("lorakit train --model nothing --schedule lin\t")
    terminal.expect("linear")
    terminal.send("--output rows.c\t")
    terminal.expect("rows.csv")
    terminal.send("\x15lorakit train --model builtin:m\t")  # after deletion of the line
    terminal.expect("builtin:minilm")
