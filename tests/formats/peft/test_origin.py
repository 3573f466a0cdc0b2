"""The files of an adapter are those that lorakit wrote, or the adapter is refused."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import AdapterFileError
from lorakit.formats.peft.weights import SIGNATURE, sign

from ..models import fill, llama, logits
from ..rewrite import CONFIG, WEIGHTS, make_foreign, read_metadata, rewrite

HASH_FAULT = "the tensors or the header are not those that lorakit wrote: their hash is another"


def small(folder: Path) -> Path:
    """Save an adapter of two layers with different ranks, so that the config has patterns."""
    model = nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 4)})
    spec = Spec(rank=2, alpha=3.5, overrides={"q": {"rank": 1}})
    return fill(lorakit.attach(model, spec)).save(folder)


def attention(folder: Path) -> Path:
    """Save an adapter whose layers are packed."""
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)})
    return fill(lorakit.attach(model, Spec(rank=2, targets=["in_proj", "out_proj"]))).save(folder)


def refused(folder: Path) -> AdapterFileError:
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(folder)
    return caught.value


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("save", [small, attention])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_no_flipped_bit_is_loaded(save, name: str, tmp_path: Path) -> None:
    path = save(tmp_path) / name
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 41):
        flip(path, bit)
        refused(tmp_path)
        path.write_bytes(content)
    Adapter.load(tmp_path)


def test_a_flipped_bit_of_a_tensor_is_told_with_the_way_out(tmp_path: Path) -> None:
    path = small(tmp_path) / WEIGHTS
    flip(path, 8 * len(path.read_bytes()) - 9)
    assert str(refused(tmp_path)) == (
        f"The adapter in {tmp_path} cannot be trusted: 1 fault.\n"
        f"  {HASH_FAULT}\n"
        "Nothing was loaded. If the files are meant to be as they are, "
        f"lorakit.Adapter.load('{tmp_path}', unchecked=True).save(folder) writes them again."
    )


def test_the_way_out_writes_a_whole_file_again(tmp_path: Path) -> None:
    path = small(tmp_path) / WEIGHTS
    flip(path, 8 * len(path.read_bytes()) - 9)
    changed = Adapter.load(tmp_path, unchecked=True)
    assert Adapter.load(changed.save(tmp_path)) == changed


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"r": 3}, "adapter_config.json: r = 3, lorakit wrote 2"),
        ({"lora_alpha": 4}, "adapter_config.json: lora_alpha = 4, lorakit wrote 3.5"),
        ({"use_rslora": True}, "adapter_config.json: use_rslora = True, lorakit wrote False"),
        ({"inference_mode": 1}, "adapter_config.json: inference_mode = 1, lorakit wrote True"),
        (
            {"layers_to_transform": [0]},
            "adapter_config.json: layers_to_transform = [0], lorakit did not write it",
        ),
    ],
)
def test_an_edited_config_is_told(change: dict[str, object], fault: str, tmp_path: Path) -> None:
    path = small(tmp_path) / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert refused(tmp_path).faults == [fault]


def test_a_key_that_is_gone_is_told(tmp_path: Path) -> None:
    path = small(tmp_path) / CONFIG
    values = json.loads(path.read_text())
    del values["rank_pattern"]
    path.write_text(json.dumps(values))
    (fault,) = refused(tmp_path).faults
    assert fault == "adapter_config.json: rank_pattern is missing: lorakit wrote {'^q$': 1}"


@pytest.mark.parametrize("addition", [{"revision": "main"}, {"to_come": None}, {"off": False}])
def test_another_form_and_keys_without_effect_pass(
    addition: dict[str, object], tmp_path: Path
) -> None:
    path = small(tmp_path) / CONFIG
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**dict(reversed(values.items())), **addition}, indent=7))
    Adapter.load(tmp_path)


@pytest.mark.parametrize("key", ["spec", "modules", "packed", "format", "config"])
def test_an_entry_without_one_of_its_keys_is_refused(key: str, tmp_path: Path) -> None:
    attention(tmp_path)
    metadata = read_metadata(tmp_path)
    entry = json.loads(metadata["lorakit"])
    del entry[key]
    metadata["lorakit"] = json.dumps(entry)
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata)
    assert refused(tmp_path).faults


def test_weights_without_the_entry_are_refused(tmp_path: Path) -> None:
    attention(tmp_path)
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, {"format": "pt"})
    error = refused(tmp_path)
    assert error.faults == [
        "the config says that lorakit wrote the adapter, but the header of the weights has no "
        "lorakit entry: it was lost, or another program wrote the weights"
    ]
    assert "unchecked=True).save(folder) writes them again." in error.advice


def test_an_entry_without_the_hash_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    metadata = read_metadata(tmp_path)
    del metadata[SIGNATURE]
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata)
    assert refused(tmp_path).faults == [
        f"the header has no {SIGNATURE} entry: the hash of the content was lost"
    ]


def test_a_config_of_another_adapter_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "first")
    second = fill(lorakit.attach(llama(), Spec(rank=3, alpha=7))).save(tmp_path / "second")
    (tmp_path / "first" / CONFIG).write_bytes((second / CONFIG).read_bytes())
    assert "adapter_config.json: r = 3, lorakit wrote 2" in refused(tmp_path / "first").faults


def test_weights_of_another_program_under_a_config_of_lorakit_are_refused(tmp_path: Path) -> None:
    small(tmp_path)
    metadata = {"format": "pt"}
    tensors = {key: 2 * tensor for key, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, tmp_path / WEIGHTS, metadata)
    assert len(refused(tmp_path).faults) == 1


def test_files_of_other_programs_need_no_hash(tmp_path: Path) -> None:
    adapter = Adapter.load(small(tmp_path))
    make_foreign(tmp_path)
    read = Adapter.load(tmp_path)
    assert {name: delta.scale for name, delta in read.deltas.items()} == {
        name: delta.scale for name, delta in adapter.deltas.items()
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_an_adapter_that_peft_saved_again_is_of_peft(task_type: str, tmp_path: Path) -> None:
    model = llama()
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets="qv")))
    adapter.provenance["task_type"] = task_type
    adapter.save(tmp_path / "ours")
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        theirs = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "ours"))
    assert not [str(one.message) for one in raised if "Unexpected keyword" in str(one.message)]
    theirs.save_pretrained(tmp_path / "again")
    other = llama()
    lorakit.attach(other, Adapter.load(tmp_path / "again"))
    assert torch.equal(logits(other), logits(model))


def test_format_1_is_refused_and_read_unchecked(tmp_path: Path) -> None:
    adapter = Adapter.load(small(tmp_path))
    metadata = read_metadata(tmp_path)
    entry = json.loads(metadata["lorakit"])
    first = {key: entry[key] for key in ("spec", "modules", "provenance")}
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt", "lorakit": json.dumps(first)})
    values = json.loads((tmp_path / CONFIG).read_text())
    del values["auto_mapping"]
    (tmp_path / CONFIG).write_text(json.dumps(values))
    assert refused(tmp_path).faults == [
        "the file is of format 1, which holds no hash of its content"
    ]
    assert Adapter.load(tmp_path, unchecked=True) == adapter


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    rewrite(tmp_path, entries={"format": 3})
    fault = "header: format 3 is newer than 2; a newer lorakit reads it"
    assert refused(tmp_path).faults == [fault]


def test_room_for_a_conversion_is_skipped(tmp_path: Path) -> None:
    adapter = Adapter.load(small(tmp_path))
    rewrite(tmp_path, entries={"model": {"heads": {"q": 4}}})
    assert Adapter.load(tmp_path) == adapter


def test_the_signature_sees_every_part() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    metadata = {"lorakit": "{}", "format": "pt"}
    seen = {sign(metadata, tensors), sign({**metadata, SIGNATURE: "x"}, tensors)}
    assert len(seen) == 1
    seen.add(sign({**metadata, "format": "pu"}, tensors))
    seen.add(sign(metadata, {**tensors, "a": torch.zeros(3, 2)}))
    seen.add(sign(metadata, {**tensors, "b": torch.zeros(1, dtype=torch.float16)}))
    seen.add(sign(metadata, {**tensors, "b": -torch.zeros(1)}))
    seen.add(sign(metadata, {"a": tensors["a"], "c": tensors["b"]}))
    assert len(seen) == 6
