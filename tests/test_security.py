"""The promises of SECURITY.md: each has a test, here or in another file, that attacks it."""

import ast
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorakit
from lorakit.adapter import Adapter
from lorakit.cli.__main__ import main
from lorakit.cli.yaml_file import read_yaml
from lorakit.data.encode import encode_causal
from lorakit.data.rows import Rows, read_rows
from lorakit.errors import AdapterFileError, DataError, LorakitError, ModelError, SpecError
from lorakit.merging.export import export
from lorakit.models.load import load
from lorakit.models.read import load_config

from .laws.table import fill

ROOT = Path(__file__).parents[1]
WEIGHTS, CONFIG = "model.safetensors", "adapter_config.json"
ROW = '{"text": "the cat sat"}\n'
PROMISE = re.compile(r"^\| (?P<promise>[^|]+) \| `(?P<test>[^|]+)` \|$", re.MULTILINE)


@pytest.mark.slow
def test_every_promise_has_a_test_that_exists() -> None:
    promises = PROMISE.findall((ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(promises) >= 20
    for promise, test in promises:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert name in functions, promise


def test_every_test_of_this_file_holds_a_promise() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    tests = [name for name in names if name.startswith("test_") and "test_every_" not in name]
    assert [name for name in tests if f"tests/test_security.py::{name}`" not in text] == []


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that hostile code makes, if it runs; standard input says yes to every question."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.setenv("LORAKIT_TEST_TRAP", str(tmp_path / "ran"))
    return tmp_path / "ran"


CODE = "import os\nos.mkdir(os.environ['LORAKIT_TEST_TRAP'])\n"


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (os.environ["LORAKIT_TEST_TRAP"],)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model folder that a test makes hostile."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    """The folder of an adapter that a test makes hostile."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    attached = lorakit.attach(model, lorakit.Spec(rank=2, targets="q"), any_base=True)
    return fill(attached).save(tmp_path / "adapter")


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values), "utf-8")


NAMES = ("modeling_llama", "configuration_llama", "tokenization_llama", "processing", "generate")
NAMES += ("torch", "transformers", "pipeline", "conftest", "sitecustomize", "__init__", "own")


@pytest.mark.slow
def test_python_files_beside_a_model_never_run(
    folder: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        (folder / f"{name}.py").write_text(CODE)
    mapped = {"AutoConfig": "own.X", "AutoModelForCausalLM": "own.X", "AutoProcessor": "own.X"}
    change(folder / "config.json", auto_map=mapped, custom_pipelines={"x": {"impl": "own.X"}})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.X", "own.X"]})
    for name in ("processor_config.json", "preprocessor_config.json"):
        change(folder / name, auto_map=mapped, processor_class="X")
    change(folder / "generation_config.json", custom_generate=str(folder))
    data = folder.parent / "rows.jsonl"
    data.write_text(ROW * 4)
    monkeypatch.chdir(folder)
    for command in ("eval", "preview"):
        assert main([command, "--model", str(folder), "--data", str(data)]) == 0
    assert main(["generate", "--model", ".", "--prompt", "the", "--max-new-tokens", "2"]) == 0
    assert not trap.exists()


def test_no_generation_code_is_fetched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "generation_config.json", force_words_ids=[[1]])
    assert main(["generate", "--model", str(folder), "--prompt", "the"]) == 2
    assert "Nothing of it was run." in capsys.readouterr().err


@pytest.mark.slow
def test_no_code_of_a_data_set_runs(trap: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.py").write_text(CODE)
    (data / "rows.jsonl").write_text(ROW)
    assert len(read_rows(str(data))) == 1  # the file, not the script
    (data / "README.md").write_text("---\nlicense: mit\n---\n")  # now it is for `datasets`
    with pytest.raises(DataError, match="Dataset scripts are no longer supported"):
        read_rows(str(data))
    (data / "data.py").unlink()
    (tmp_path / "x").write_bytes(pickle.dumps(Malicious()))
    (data / "a.pkl").write_bytes(pickle.dumps(Malicious()))
    for ending in ("pkl", "pickle", "pyd", "pth", "npy", "npz"):
        with tarfile.open(data / "a.tar", "w") as archive:
            archive.add(tmp_path / "x", f"row.{ending}")
        for file in ("a.tar", "a.pkl"):
            text = f"---\nconfigs:\n- config_name: default\n  data_files: {file}\n---\n"
            (data / "README.md").write_text(text)
            with pytest.raises(DataError):
                read_rows(str(data))
    assert not trap.exists()


def test_no_code_of_an_adapter_folder_runs(
    adapter: Path, tiny_llama: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / "own.py").write_text(CODE)
    monkeypatch.chdir(adapter)
    mapping = {"base_model_class": "X", "parent_library": "own"}
    change(adapter / CONFIG, auto_mapping=mapping, auto_map={"AutoModel": "own.X"})
    with pytest.raises(AdapterFileError, match="auto_map"):
        Adapter.load(adapter)
    assert main(["inspect", str(adapter), "--model", str(tiny_llama)]) == 2
    assert not trap.exists()


def test_a_pickle_in_a_model_runs_nothing(folder: Path, trap: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({**tensors, "x": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load(str(folder), "causal-lm")
    assert caught.value.message == (
        f"{folder} cannot be loaded for causal-lm: it is no pickle, or holds other objects than "
        "tensors"
    )
    (folder / "training_args.bin").write_bytes(pickle.dumps(Malicious()))
    torch.save(tensors, folder / "pytorch_model.bin")
    load(str(folder), "causal-lm")
    assert not trap.exists()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:5000],
    "empty": lambda content: b"",
    "other": lambda content: b"x" * 999,
    "half a zip": lambda content: b"PK\x03\x04" + content[:100],
}


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_in_words(
    damage: str, name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(DAMAGES[damage](content))
    with pytest.raises(ModelError, match="cannot be loaded for causal-lm: "):
        load(str(folder), "causal-lm")
    with pytest.raises(ModelError, match="cannot be loaded as LlamaForCausalLM: "):
        export(str(folder), Adapter.load(adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


REACHES = [
    "{{ ''.__class__.__mro__ }}x{{ messages.__class__.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].mkdir('ran') }}",
    "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{% include 'secret' %}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize("template", REACHES)
def test_a_template_reaches_nothing_outside(
    template: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("SECRET")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = template
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match="cannot render it"):
        encode_causal(Rows("messages", [row], ["rows:1"], "rows"), tokenizer, 64)
    assert os.listdir() == ["secret"]


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [ran]", "!!python/name:os.mkdir", "!!python/module:os"],
)
def test_yaml_makes_plain_values_only(value: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"rank: {value}\n")
    with pytest.raises(SpecError, match="could not determine a constructor"):
        read_yaml(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("name", ["../secret/model.safetensors", "/secret/model.safetensors", ".."])
def test_a_shard_outside_of_the_folder_is_refused(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    keys = list(load_file(folder / WEIGHTS))
    (tmp_path / "secret").mkdir()
    (folder / WEIGHTS).rename(tmp_path / "secret" / WEIGHTS)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(keys, name)}))
    with pytest.raises(ModelError) as caught:
        load(str(folder), "causal-lm")
    assert str(caught.value) == (
        f"{index} names 1 file outside of its folder.\n  {name}\n"
        "Move them into the folder, and name them so in the index. Nothing was loaded."
    )
    with pytest.raises(ModelError, match="outside of its folder"):
        export(str(folder), Adapter.load(adapter), tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 5}', '{"weight_map": {"a": 5}}'])
def test_an_index_of_other_types_is_refused(text: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="is no index of weight files"):
        load(str(folder), "causal-lm")


def test_a_model_does_not_load_an_adapter_or_a_base_of_its_own(folder: Path, adapter: Path) -> None:
    shutil.copy(adapter / CONFIG, folder)
    with pytest.raises(ModelError, match="is a model with an adapter in its folder"):
        load_config(str(folder))


ODD_CONFIGS: list[dict[str, object]] = [
    {"auto_map": 5},
    {"auto_map": {"AutoConfig": 5}},
    {"model_type": ["llama"]},
    {"quantization_config": "x"},
    {"quantization_config": {"quant_method": ["x"]}},
    {"attn_implementation": 5},
    {"attn_implementation": {"": "somebody/attention"}},
    {"dtype": "os"},
    {"id2label": 5},
    {"rope_parameters": {"rope_type": "yarn", "factor": "x"}},
]


@pytest.mark.parametrize("values", ODD_CONFIGS, ids=str)
def test_a_config_of_other_types_is_refused(values: dict[str, object], folder: Path) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(ModelError):
        load(str(folder), "causal-lm")


@pytest.mark.parametrize("name", ["pipeline", "Trainer", "AutoTokenizer", "__name__"])
def test_a_config_names_models_of_transformers_and_nothing_else(
    name: str, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from lorakit.models.own_class import choose_class

    called: list[object] = []
    monkeypatch.setattr(transformers, "pipeline", called.append)
    change(folder / "config.json", architectures=[name])
    chosen = choose_class(load_config(str(folder)), Adapter.load(adapter))
    assert chosen.model_class.__name__ == "AutoModelForCausalLM" and not called


OUTSIDE = ["../secret.jsonl", "{parent}/secret.jsonl", "file://{parent}/secret.jsonl"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_data_outside_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.jsonl").write_text(ROW)
    file = name.format(parent=tmp_path)
    text = f"---\nconfigs:\n- config_name: default\n  data_files: {file}\n---\n"
    (data / "README.md").write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(str(data))
    assert caught.value.message == f"{data} names 1 file outside of it as its data."
    (data / "README.md").unlink()
    (data / "rows.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError):
        read_rows(str(data))


def link_file(folder: Path, secret: Path) -> str:
    (folder / "NOTES.txt").symlink_to(secret / "key")
    return "NOTES.txt"


def link_folder(folder: Path, secret: Path) -> str:
    (folder / "stuff").symlink_to(secret)
    return "stuff"


def link_inside(folder: Path, secret: Path) -> str:
    (folder / "stuff").mkdir()
    (folder / "stuff" / "notes").symlink_to(secret / "key")
    return "stuff/notes"


def link_template(folder: Path, secret: Path) -> str:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to(secret / "key")
    return "additional_chat_templates/x.jinja"


@pytest.mark.parametrize(
    "link", [link_file, link_folder, link_inside, link_template], ids=lambda link: link.__name__
)
def test_a_merge_copies_nothing_that_a_link_shows(
    link: Callable[[Path, Path], str], folder: Path, adapter: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("SECRET")
    linked = adapter if link is link_template else folder
    name = link(linked, secret)
    with pytest.raises(ModelError) as caught:
        export(str(folder), Adapter.load(adapter), tmp_path / "out")
    assert caught.value.message == (
        f"{linked} has 1 link to files outside of it, which a merged model would hold."
    )
    assert caught.value.faults == [f"{name} -> {(linked / name).resolve()}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_snapshot_of_the_hub_links_to_its_own_files(folder: Path, adapter: Path) -> None:
    cache = folder.parent / "models--tiny"
    snapshot = cache / "snapshots" / "0a"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(cache / "blobs" / str(number))
    export(str(snapshot), Adapter.load(adapter), folder.parent / "out")


def test_an_archive_writes_nothing_outside(adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (data / "rows.zip", adapter / "adapter_model.bin"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../evil.jsonl", ROW)
            archive.writestr(f"{tmp_path}/evil.jsonl", ROW)
            archive.writestr("x/data.pkl", pickle.dumps({}))
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: rows.zip\n---\n"
    )
    (data / "a.jsonl").write_text(ROW)
    (adapter / "adapter_model.safetensors").unlink()
    for read in (read_rows, Adapter.load):
        with pytest.raises(LorakitError):
            read(str(data if read is read_rows else adapter))
    assert list(tmp_path.parent.rglob("evil.jsonl")) == []


VIRTUAL: dict[str, Callable[[], torch.Tensor]] = {
    "expanded": lambda: torch.zeros(1).expand(10**6, 10**6),
    "strided": lambda: torch.zeros(1).as_strided((10**5, 10**5), (0, 0)),
    "sparse": lambda: torch.ones(2, 2).to_sparse(),
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_a_small_file_does_not_stand_for_a_large_tensor(kind: str, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    config = json.loads((adapter / CONFIG).read_text("utf-8"))
    (adapter / CONFIG).write_text(json.dumps({**config, "auto_mapping": None}))
    key = next(iter(tensors))
    torch.save({**tensors, key: VIRTUAL[kind]()}, adapter / "adapter_model.bin")
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(adapter)
    assert caught.value.faults == [f"{key}   is not stored value by value"]
