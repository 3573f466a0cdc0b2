"""Code of a model's folder runs if the flag is given, and never because standard input says so."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import lorakit
from lorakit.adapter import Adapter
from lorakit.cli.__main__ import COMMANDS, help_pages, main
from lorakit.errors import ModelError
from lorakit.merging.export import export
from lorakit.models.load import load
from lorakit.models.open import open_model
from lorakit.models.read import load_config
from lorakit.plan.meta_model import load_meta_model

from ..laws.table import fill

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
(pathlib.Path({folder!r}) / "ran").write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "its-own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MAPPED = {
    "AutoConfig": "own.OwnConfig",
    "AutoModelForCausalLM": "own.OwnModel",
    "AutoModelForSequenceClassification": "own.OwnModel",
}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model folder whose config, model and tokenizer name code in it; the code leaves a file."""
    target = Path(shutil.copytree(tiny_llama, tmp_path / "own"))
    (target / "own.py").write_text(CODE.format(folder=str(tmp_path)))
    config = json.loads((target / "config.json").read_text())
    config |= {"model_type": "its-own", "auto_map": MAPPED}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(autouse=True)
def always_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))


@pytest.fixture
def adapter(tiny_llama: Path) -> Adapter:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    return fill(lorakit.attach(model, lorakit.Spec(rank=2, targets="q"), any_base=True))


LOADS: dict[str, Callable[[str, Adapter, Path], object]] = {
    "load": lambda name, adapter, output: load(name, "causal-lm"),
    "a classifier": lambda name, adapter, output: load(name, "classify", labels=["a", "b"]),
    "config": lambda name, adapter, output: load_config(name),
    "open": lambda name, adapter, output: open_model(name, adapter, "causal-lm"),
    "plan": lambda name, adapter, output: load_meta_model(name),
    "export": lambda name, adapter, output: export(name, adapter, output),
}


@pytest.mark.parametrize("how", LOADS)
def test_no_code_of_a_folder_runs(how: str, folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        LOADS[how](str(folder), adapter, tmp_path / "out")
    assert "Nothing of it was run." in str(caught.value)
    assert "--trust-remote-code" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_no_code_of_a_tokenizer_runs(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", folder / "config.json")
    path = folder / "tokenizer_config.json"
    named = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    with pytest.raises(ModelError, match="Nothing of it was run"):
        load(str(folder), "causal-lm")
    assert not (tmp_path / "ran").exists()


def words(command: str, folder: Path, tmp_path: Path) -> list[str]:
    """Return a request of each command that loads a model."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "the cat sat"}\n' * 8)
    model, rows = ["--model", str(folder)], ["--data", str(data)]
    output = ["--output", str(tmp_path / "out")]
    adapter = str(tmp_path / "adapter")
    return {
        "train": [*model, *rows, *output],
        "eval": [*model, *rows],
        "generate": [*model, "--prompt", "the"],
        "chat": model,
        "merge": [*model, "--adapter", adapter, *output],
        "plan": model,
        "preview": [*model, *rows],
        "rank": [*model, *rows],
        "inspect": [adapter, *model],
        "combine": [adapter, adapter, *model, *output],
        "resize": [adapter, "--rank", "1", *model, *output],
        "extract": ["--base", str(folder), "--tuned", str(folder), "--rank", "1", *output],
    }[command]


WITHOUT_A_MODEL = {"demo", "explain", "init", "completion"}


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_A_MODEL))
def test_no_command_runs_it(
    command: str,
    folder: Path,
    adapter: Adapter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter.save(tmp_path / "adapter")
    assert main([command, *words(command, folder, tmp_path)]) == 2
    assert "Nothing of it was run." in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert "with all your rights" in " ".join(help_pages()[command].split())


@pytest.mark.slow
def test_the_flag_runs_it(
    folder: Path, adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = words("eval", folder, tmp_path)
    assert main(["eval", *request, "--trust-remote-code"]) == 0
    assert (tmp_path / "ran").exists()


def test_attention_code_of_a_repository_is_refused(folder: Path, tiny_llama: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    config["attn_implementation"] = "somebody/attention"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_config(str(folder))
    assert str(caught.value).splitlines()[0] == (
        f"The config of {folder} asks for attention code of a repository: somebody/attention."
    )
