"""An exported folder is the base's with the merged tensors in it: nothing else changes."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import lorakit
from lorakit import Adapter, LorakitError, Spec
from lorakit.errors import MergeError, OutputError
from lorakit.files import create_folder
from lorakit.merging.changes import find_changes
from lorakit.merging.export import export

from ..conftest import CHAT
from ..laws.table import bits, fill
from .bases import BASES, build_base

pytestmark = pytest.mark.slow


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return all stored tensors, by file and name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def changed_names(base: Path, merged: Path) -> set[str]:
    """Return the tensors whose bits changed; all others must be the same, in the same places."""
    before, after = tensors_of(base), tensors_of(merged)
    assert before.keys() == after.keys()
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    return {name for name in before if not torch.equal(bits(before[name]), bits(after[name]))}


def adapt(model: Any, targets: Any, **more: Any) -> Adapter:
    """Return a filled adapter on the layers of a model."""
    return fill(lorakit.attach(model, Spec(rank=2, targets=targets, **more), any_base=True))


@pytest.mark.parametrize("base", BASES)
def test_only_what_the_adapter_changes_changes(base: str, tmp_path: Path) -> None:
    folder = build_base(base, tmp_path / "base")
    kind, targets, task = BASES[base].adapter
    model = getattr(transformers, kind).from_pretrained(folder)
    adapter = adapt(model, targets)
    adapter.provenance["task_type"] = task
    # A new pooler is random, and part of the fingerprint.
    report = export(str(folder), adapter, tmp_path / "merged", any_base=True)
    changed = changed_names(folder, tmp_path / "merged")
    assert len(changed) == BASES[base].changed
    assert report["differs_from_base"] > 0
    same = (tmp_path / "merged" / "config.json").read_bytes() == (
        folder / "config.json"
    ).read_bytes()
    assert same
    own = json.loads((folder / "config.json").read_text())["architectures"][0]
    again = getattr(transformers, own).from_pretrained(tmp_path / "merged")
    assert type(again).__name__ == own


def test_tensors_that_no_class_reads_stay(tmp_path: Path) -> None:
    folder = build_base("text and pictures", tmp_path / "base")
    file = folder / "model.safetensors"
    extra = {"mtp.layers.0.weight": torch.ones(2, 3, dtype=torch.bfloat16)}
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt", "by": "somebody"})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    export(str(folder), adapt(model, ["o_proj"]), tmp_path / "merged")
    assert "model.safetensors mtp.layers.0.weight" in tensors_of(tmp_path / "merged")
    assert len(changed_names(folder, tmp_path / "merged")) == 1


def test_shards_and_mixed_dtypes_stay(tiny_llama: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    adapter = adapt(model, "q")
    lorakit.detach(model)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    for file in (tmp_path / "base").glob("*.safetensors"):
        tensors = load_file(file)
        halved = {k: v if "norm" in k else v.bfloat16() for k, v in tensors.items()}
        save_file(halved, file, metadata={"format": "pt"})
    export(str(tmp_path / "base"), adapter, tmp_path / "merged")
    changed = changed_names(tmp_path / "base", tmp_path / "merged")
    assert all("q_proj" in name for name in changed)
    assert len(changed) == 2


def test_a_pickled_base_becomes_safetensors(tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    torch.save(weights, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    export(str(base), adapt(model, "q"), tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == weights.keys()
    assert not (tmp_path / "merged" / "pytorch_model.bin").exists()


BESIDE = {
    "LICENSE": "mine",
    "README.md": "# base",
    "preprocessor_config.json": "{}",
    "generation_config.json": '{"max_length": 7}',
    "tokenizer.model": "pieces",
    "modeling_own.py": "raise SystemExit",
    "1_Pooling/config.json": "{}",
}
STALE = {"onnx/model.onnx": "", "model.gguf": "", "training_args.bin": ""}


def test_files_beside_the_base_are_carried_along_and_others_are_named(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    for name, text in {**BESIDE, **STALE, ".cache/x": ""}.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    said: list[str] = []
    report = export(str(base), adapt(model, "q"), tmp_path / "merged", say=said.append)
    merged = tmp_path / "merged"
    assert {name: (merged / name).read_text() for name in BESIDE} == BESIDE
    assert not any((merged / name).exists() for name in STALE)
    assert report["left_out"] == ["model.gguf", "onnx/", "training_args.bin"]
    assert said == [
        "note: not carried along, as it holds weights: model.gguf, onnx/, training_args.bin"
    ]
    assert not (merged / ".cache").exists()


def test_the_tokenizer_and_template_of_the_adapter_are_used(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    folder = adapt(model, "q").save(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["the cat"]})
    tokenizer.chat_template = CHAT + "!"
    rows = model.config.vocab_size
    assert len(tokenizer) == rows + 1
    tokenizer.save_pretrained(folder)
    with pytest.raises(LorakitError) as caught:
        export(str(tiny_llama), Adapter.load(folder), tmp_path / "merged")
    assert f"The tokenizer has {rows + 1} ids, the embedding {rows} rows." in str(caught.value)
    assert not (tmp_path / "merged").exists()
    lorakit.detach(model)
    model.resize_token_embeddings(rows + 8)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "base")
    export(str(tmp_path / "base"), Adapter.load(folder), tmp_path / "merged", any_base=True)
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.chat_template == CHAT + "!"
    assert merged("the cat", add_special_tokens=False).input_ids == [rows]


def test_a_chat_template_alone_is_used(tiny_llama: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    folder = adapt(model, "q").save(tmp_path / "adapter")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    export(str(tiny_llama), Adapter.load(folder), tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == "{{ messages[0].content }}"


def classifier(tiny_bert: Path, folder: Path, names: Mapping[int, str]) -> Path:
    """Write a classifier with these class names."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=len(names), id2label=dict(names)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("names", [("neg", "neu", "pos"), ("score",)])
def test_class_names_of_the_base_are_kept(
    names: tuple[str, ...], tiny_bert: Path, tmp_path: Path
) -> None:
    base = classifier(tiny_bert, tmp_path / "base", dict(enumerate(names)))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    adapter = adapt(model, "q", full_modules=("classifier",))
    adapter.provenance["task_type"] = "SEQ_CLS"
    export(str(base), adapter, tmp_path / "merged")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "merged")
    assert tuple((config.id2label or {}).values()) == names
    changed = changed_names(base, tmp_path / "merged")
    assert {name.split()[1].rpartition(".")[0] for name in changed} >= {"classifier"}


def test_a_saved_head_without_a_task_type_is_a_classifier(tiny_bert: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    adapter = adapt(model, "q", full_modules=("classifier",))
    export(str(tiny_bert), adapter, tmp_path / "merged")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(again.classifier.weight, adapter.full_parameters["classifier.weight"])
    assert again.config.architectures == ["BertForSequenceClassification"]
    assert again.config.num_labels == 3


def test_a_tensor_that_the_files_do_not_hold_is_named(tiny_llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    adapt(model, "q")
    undo = lorakit.merge(model)
    lorakit.detach(model)
    stored = dict(load_file(tiny_llama / "model.safetensors"))
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))
    del stored[first]
    stored[second] = stored[second] + 1
    with pytest.raises(MergeError) as caught:
        find_changes(model, undo.before, stored, ())
    assert str(caught.value) == (
        "2 changed tensors cannot be put into the base's files.\n"
        f"  {first}   is not in the base's files\n"
        f"  {second}   has other values in the base's files than in the loaded model\n"
        "Merge in memory, with lorakit.merge. Nothing was written."
    )


def test_a_second_process_with_one_output_removes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "merged"

    def write(make: Callable[[], None]) -> None:
        with create_folder(output) as part:
            part.mkdir()
            (part / "who").write_text("second")
            make()

    def finish_first() -> None:
        output.mkdir()
        (output / "who").write_text("first")

    with pytest.raises(OutputError, match="has got files since the beginning"):
        write(finish_first)
    assert (output / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_everything_is_on_the_disk_before_the_folder_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real, rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real(descriptor)

    def renaming(part: Path, target: Path) -> None:
        synced.append("renamed")
        rename(part, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr(Path, "rename", renaming)
    with create_folder(tmp_path / "merged") as part:
        (part / "inside").mkdir(parents=True)
        (part / "inside" / "file").write_text("x")
    at = synced.index("renamed")
    assert {"file", "inside", part.name} <= set(synced[:at])
    assert synced[at + 1 :] == [tmp_path.name]
