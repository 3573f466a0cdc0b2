"""`chat`: commands, lines of a pipe, and a terminal of 80 columns."""

import io
import json
import os
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import Spec, attach
from lorakit.cli.__main__ import main
from lorakit.cli.chat import name_adapters
from lorakit.cli.chat_commands import COMMANDS, Writer, format_columns
from lorakit.errors import SpecError
from lorakit.models.open import open_model


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a conversation."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    shutil.copytree(tiny_llama, folder)
    for name, key in {
        "config.json": "max_position_embeddings",
        "tokenizer_config.json": "model_max_length",
    }.items():
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, key: 512}))
    return folder


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose answers differ from those of the base."""
    loaded = open_model(str(model), None, "causal-lm")
    made = attach(loaded.model, Spec(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.save(tmp_path_factory.mktemp("adapters") / "mine")


@pytest.fixture
def ask(
    model: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """A chat whose lines come through a pipe; it returns its exit code, stdout and stderr."""

    def run(*lines: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        words = ["--model", str(model), "--adapter", str(adapter), "--max-new-tokens", "6"]
        code = main(["chat", *words, *flags])
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_lines_of_a_pipe_are_answered_as_generate_does(
    ask: Any, model: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model), "--prompt", "cat?", "--chat", "--max-new-tokens", "6"]
    texts = []
    for one in ([], ["--adapter", str(adapter)]):
        assert main(["generate", *words, *one]) == 0
        texts.append(capsys.readouterr().out.strip())
    code, out, _ = ask("cat?", "/reset", "/adapter none", "", "cat?")
    told = f"{texts[1]}\nThe conversation begins anew.\n* none\n  mine\n{texts[0]}\n"
    assert (code, out) == (0, told)


@pytest.mark.slow
def test_a_conversation_is_saved_as_a_row_that_train_takes(
    ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    path = tmp_path / "new" / "chat.jsonl"
    code, out, _ = ask("/system old", "cat?", "dog?", f"/save {path}")
    assert code == 0 and out.endswith(f"1 row in {path}, as train reads them\n")
    (row,) = map(json.loads, path.read_text().splitlines())
    roles = [turn["role"] for turn in row["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert main(["preview", "--model", str(model), "--data", str(path)]) == 0
    code, _, errors = ask("cat?", f"/save {path}")
    assert code == 2 and "exists already" in errors


@pytest.mark.slow
def test_json_is_one_object_with_the_rows(ask: Any, adapter: Path) -> None:
    code, out, _ = ask("cat?", flags=("--json",))
    found = json.loads(out)
    assert code == 0 and found["adapters"] == {"mine": str(adapter)}
    assert [turn["role"] for turn in found["rows"][0]["messages"]] == ["user", "assistant"]


@pytest.mark.slow
def test_two_answers_stand_beside_each_other(ask: Any) -> None:
    code, out, _ = ask("/compare cat?")
    head, rule, *lines = out.splitlines()
    assert code == 0 and head == f"none{' ' * 35}│ mine" and len(rule) == 79
    assert all(line[39:40] in ("│", "") for line in lines)


@pytest.mark.parametrize("width", [80, 81, 120])
def test_columns_fit(width: int) -> None:
    text = "the cat sat on a mat and saw one small red dog run to its warm house " * 3
    lines = format_columns({"none": text, "mine": f"{text}\n\nend"}, width).splitlines()
    assert max(map(len, lines)) <= width and len({line.find("│") for line in lines}) == 1
    words = [line.split("│")[1].split() for line in lines[2:]]
    assert list(chain.from_iterable(words)) == [*text.split(), "end"]


def test_streamed_lines_break_between_words() -> None:
    out = io.StringIO()
    writer = Writer(out, 10)
    for piece in ("\n the ", "catty ", "sat on", " a mat\n\n", "and "):
        writer.write(piece)
    assert out.getvalue().split("\n") == ["the catty", "sat on a", "mat", "", "and"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/compair", "There is no command /compair. Did you mean '/compare'?"),
        ("/adapter mien", "AdapterNameError: There is no adapter 'mien'. Did you mean 'mine'?"),
        ("/save", "A file is needed.\n/save FILE."),
        ("/save x.jsonl", "Nothing was said yet.\nNothing was written."),
        ("/compare", "Nothing was said yet.\nGive a text: /compare TEXT."),
    ],
)
def test_a_command_that_is_not_possible_is_refused(ask: Any, line: str, told: str) -> None:
    code, _, errors = ask(line)
    assert code == 2 and told in errors


@pytest.mark.slow
def test_help_names_every_command(ask: Any) -> None:
    _, out, _ = ask("/help")
    assert [line.split()[0] for line in out.splitlines()] == [*COMMANDS]


def test_adapters_have_names_that_tell_them_apart(tmp_path: Path) -> None:
    assert name_adapters(["a=runs/x", "runs/y/"]) == {"a": "runs/x", "y": "runs/y/"}
    with pytest.raises(SpecError) as refused:
        name_adapters(["runs/x", "other/x", "none=runs/z"])
    assert refused.value.faults == [
        "other/x: 'x' is runs/x already",
        "runs/z: 'none' stands for the base alone",
    ]
    folder = tmp_path / "rank=8"
    folder.mkdir()
    assert name_adapters([str(folder)]) == {"rank=8": str(folder)}


# --- in a terminal -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_chat_in_a_terminal(model: Path, adapter: Path, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    pytest.importorskip("prompt_toolkit")
    paths = os.pathsep.join(map(os.path.abspath, sys.path[1:]))
    child = pexpect.spawn(
        sys.executable,
        ["-m", "lorakit", "chat", "--model", str(model), "--adapter", str(adapter)],
        env={**os.environ, "PYTHONPATH": paths, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        cwd=str(tmp_path),
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=60,
    )
    child.expect("mine>")
    child.sendline("/compare the cat?")
    child.expect("none {35}│ mine")
    child.expect("mine>")
    child.sendintr()  # an empty line, not the end
    child.expect("mine>")
    child.sendline("/compair")
    child.expect("Did you mean '/compare'")
    child.expect("mine>")
    child.sendline("the cat?")
    child.expect("mine>")
    child.sendline("/save chat.jsonl")
    child.expect("1 row in chat.jsonl")
    child.expect("mine>")
    child.send("/adapter no\t")
    child.expect("ne")
    child.sendline()
    child.expect("none>")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert len(json.loads((tmp_path / "chat.jsonl").read_text())["messages"]) == 2
