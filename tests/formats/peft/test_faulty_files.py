"""A file that cannot be trusted is refused with every reason, and saving leaves a whole file or the
old one.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import AdapterFileError
from lorakit.formats.peft import weights
from lorakit.formats.peft.methods import METHODS_BY_TYPE
from lorakit.formats.peft.spec_header import spec_from_header, spec_to_header

from ..models import fill, llama, logits
from ..rewrite import Change, make_foreign, rewrite

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Q0, Q1 = (f"base_model.model.model.layers.{i}.self_attn.q_proj" for i in (0, 1))
V0 = "base_model.model.model.layers.0.self_attn.v_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = fill(lorakit.attach(llama(), Spec(rank=2, alpha=4, targets="qv")))
    return adapter.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter, with and without lorakit's own entry in the header."""
    target = tmp_path / "adapter"
    target.mkdir()
    for name in (CONFIG, WEIGHTS):
        (target / name).write_bytes((saved / name).read_bytes())
    return target


def refused(folder: Path) -> list[str]:
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(folder)
    message = str(caught.value)
    assert str(folder) in message and "Nothing was loaded." in message
    return caught.value.faults or [message]


def edit(folder: Path, **changes: Any) -> None:
    rewrite(folder, changes)


def retensor(folder: Path, change: Change, header: bool = True, **entries: Any) -> None:
    if not header:
        make_foreign(folder)
    rewrite(folder, {}, change, entries)


def test_a_sound_file_loads(folder: Path) -> None:
    assert len(Adapter.load(folder).deltas) == 4
    make_foreign(folder)
    assert len(Adapter.load(folder).deltas) == 4


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_cut_off(folder: Path, share: float) -> None:
    path = folder / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    (message,) = refused(folder)
    size = int(share * len(whole))
    assert f"{path} ({size:,} bytes) is cut off, or does not hold tensors: " in message


@pytest.mark.parametrize(
    "content", [b"\0" * 4096, b"no tensors here" * 99, b"{}", pickle.dumps({"a": 1})]
)
def test_something_else(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    assert "is cut off, or does not hold tensors" in refused(folder)[0]


def put(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({key: value})


def spoil(key: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors[key][0].fill_(value)


def drop(*keys: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: [tensors.pop(key) for key in keys]


A, B = ".lora_A.weight", ".lora_B.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], None], list[str]]] = {
    "A missing": (drop(Q0 + A), [f"{Q0}   A is missing"]),
    "B missing": (drop(Q0 + B), [f"{Q0}   B is missing"]),
    "ranks differ": (
        put(Q0 + B, torch.ones(16, 3)),
        [f"{Q0}   A is (2, 16) and B is (16, 3): the ranks differ"],
    ),
    "rank is not the config's": (
        lambda t: t.update({Q0 + A: torch.ones(3, 16), Q0 + B: torch.ones(16, 3)}),
        [f"{Q0}   has rank 3, adapter_config.json says 2"],
    ),
    "no matrix": (
        put(Q0 + A, torch.ones(2, 16, 1)),
        [f"{Q0}   A is (2, 16, 1), a matrix is needed"],
    ),
    "extra key": (
        put("base_model.model.model.norm.weight", torch.ones(16)),
        [
            "base_model.model.model.norm.weight   is not part of the adapter that "
            "adapter_config.json describes"
        ],
    ),
    "magnitudes of DoRA": (
        put(Q0 + ".lora_magnitude_vector", torch.ones(16)),
        [f"{Q0}   magnitude is extra: use_dora is off"],
    ),
    "bias that is not said to train": (
        put(Q0 + ".base_layer.bias", torch.ones(16)),
        [f"{Q0}.bias   is not part of the adapter that adapter_config.json describes"],
    ),
    "NaN": (spoil(Q0 + A, float("nan")), [f"{Q0}{A}   16 of 32 values are NaN or infinite"]),
    "infinite": (spoil(V0 + B, -float("inf")), [f"{V0}{B}   2 of 16 values are NaN or infinite"]),
    "whole numbers": (
        put(Q0 + A, torch.ones(2, 16, dtype=torch.int64)),
        [f"{Q0}{A}   is int64: a floating dtype is needed"],
    ),
    "several": (
        lambda t: [drop(Q0 + B)(t), spoil(Q1 + A, float("nan"))(t), put("x", torch.ones(1))(t)],
        [
            f"{Q1}{A}   16 of 32 values are NaN or infinite",
            f"{Q0}   B is missing",
            "base_model.model.x   is not part of the adapter that adapter_config.json describes",
        ],
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_faulty_tensors(case: str, folder: Path) -> None:
    change, faults = TENSORS[case]
    retensor(folder, change, header=False)
    assert refused(folder) == faults


def test_empty_file(folder: Path) -> None:
    retensor(folder, dict.clear, header=False)
    assert refused(folder) == ["the file holds no tensor"]


def test_header_lists_the_modules(folder: Path) -> None:
    retensor(folder, drop(Q0 + A, Q0 + B))
    assert refused(folder) == [f"{Q0}   is missing: the header lists it"]
    path = "base_model.model.model.layers.0.mlp.up_proj"
    retensor(
        folder,
        lambda t: t.update(
            {
                Q0 + A: torch.ones(2, 16),
                Q0 + B: torch.ones(16, 2),
                path + A: torch.ones(2, 16),
                path + B: torch.ones(24, 2),
            }
        ),
    )
    assert refused(folder) == [f"{path}   is extra: the header does not list it"]


def test_header_is_checked(folder: Path) -> None:
    retensor(folder, lambda t: None, spec=5, modules=["a"])
    assert refused(folder) == [
        "header: spec = 5 is not an object",
        "header: modules = ['a'] is not an object",
    ]
    retensor(
        folder,
        lambda t: None,
        spec={"rank": 2, "rnk": 3},
        modules={k: "linear" for k in Adapter.__dict__ if k == "x"},
    )
    assert all("is extra" in fault for fault in refused(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules", 3),
        ("packed", 3),
        ("packed", {"q": 3}),
        ("packed", {"q": {"rank": 0, "rows": [], "ratio": 1.0}}),
        ("packed", {"q": {"rank": 1, "rows": [1, 2], "ratio": 1.0}}),
        ("packed", {"q": {"rank": 1, "rows": [], "ratio": "1"}}),
        ("token_rows", [1]),
        ("token_rows", {"size": -1}),
        ("told", 3),
        ("told", {"inputs": "3"}),
        ("told", {"kernel": 3}),
    ],
)
def test_entries_of_the_header_are_checked(key: str, value: object, folder: Path) -> None:
    retensor(folder, lambda t: None, **{key: {"a": value}})
    assert f"header: {key}['a'] = {value!r} is malformed" in refused(folder)


def test_another_delta_in_the_header_is_seen(folder: Path) -> None:
    spec = Adapter.load(folder).spec.to_dict()
    retensor(folder, lambda t: None, spec={**spec_to_header(Spec.from_dict(spec)), "delta": "dora"})
    assert refused(folder) == [
        "header: delta = 'dora', adapter_config.json describes LORA with use_dora = False: "
        "one of them was edited"
    ]


@pytest.mark.parametrize("delta", ["vera", "loha", "lokr", "adalora"])
@pytest.mark.parametrize("other", ["lora", "dora"])
def test_lora_in_the_header_of_another_type_is_seen(delta: str, other: str, tmp_path: Path) -> None:
    model = nn.ModuleDict({"q": nn.Linear(6, 6)})
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets="q", delta=delta)))
    folder = adapter.save(tmp_path / "adapter")
    spec = {**spec_to_header(adapter.spec), "delta": other}
    retensor(folder, lambda t: None, spec=spec)
    assert refused(folder) == [
        f"header: delta = {other!r}, adapter_config.json describes {delta.upper()}: "
        "one of them was edited"
    ]


@pytest.mark.parametrize("spec", [{"rank": 2, "rnk": 3}, {"rank": 2.5, "alpha": "x"}])
def test_spec_of_the_header_is_checked(folder: Path, spec: dict[str, Any]) -> None:
    retensor(folder, lambda t: None, spec=spec)
    (fault, *_) = refused(folder)
    assert fault in (
        "'rnk' is no field of Spec; did you mean 'rank'?",
        "rank: a whole number of at least 1 is needed, got 2.5",
    )


def test_header_is_not_json(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "lorakit": "{"})
    assert "The lorakit entry in the header of" in refused(folder)[0]
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "lorakit": "[1]"})
    assert refused(folder) == ["header: an object is needed, got [1]"]


def test_edited_config_is_seen(folder: Path) -> None:
    edit(folder, lora_alpha=8)
    faults = refused(folder)
    assert (
        faults[0]
        == f"{Q0}   scale is 2 in the header, 4 by adapter_config.json: one of them was edited"
        and len(faults) == 4
    )
    edit(folder, lora_alpha=4, use_rslora=True)
    assert len(refused(folder)) == 4


UNSUPPORTED = {
    "lora_bias": True,
    "alora_invocation_tokens": [3],
    "use_qalora": True,
    "use_bdlora": {"x": 1},
    "layer_replication": [[0, 1], [0, 1]],
    "megatron_config": {"a": 1},
    "loftq_config": {"loftq_bits": 4},
    "corda_config": {"a": 1},
    "lora_ga_config": {"a": 1},
    "arrow_config": {"a": 1},
    "kasa_config": {"a": 1},
    "velora_config": {"a": 1},
    "monteclora_config": {"a": 1},
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_unsupported_option_is_refused_by_name(key: str, folder: Path) -> None:
    edit(folder, **{key: UNSUPPORTED[key]})
    assert refused(folder) == [
        f"adapter_config.json: {key} = {UNSUPPORTED[key]!r} is not supported"
    ]
    edit(folder, **{key: None})
    Adapter.load(folder)


def test_every_refused_key_has_a_test() -> None:
    assert set(UNSUPPORTED) == METHODS_BY_TYPE["LORA"].refused_keys


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga"])
def test_start_that_changes_the_base_is_refused(init: str, folder: Path) -> None:
    edit(folder, init_lora_weights=init)
    assert refused(folder) == [
        f"adapter_config.json: init_lora_weights = {init!r} stores the factors relative to a base "
        "that it changed; save with PEFT's path_initial_model_for_weight_conversion"
    ]


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"use_dorra": True},
        "adapter_config.json: unknown key 'use_dorra' = True may change the meaning of the "
        "tensors; did you mean 'use_dora'?",
    ),
    "rank is text": (
        {"r": "2"},
        "adapter_config.json: r = '2' is of the wrong type: a whole number is needed",
    ),
    "alpha is a list": (
        {"lora_alpha": [4]},
        "adapter_config.json: lora_alpha = [4] is of the wrong type: a finite number is needed",
    ),
    "dropout out of range": (
        {"lora_dropout": 3},
        "adapter_config.json: dropout: a probability from 0 to 1 is needed, got 3",
    ),
    "alpha is 0": (
        {"lora_alpha": 0},
        "adapter_config.json: alpha: a finite float32 number other than 0 is needed, got 0",
    ),
    "pattern is a list": (
        {"rank_pattern": ["q_proj"]},
        "adapter_config.json: rank_pattern = ['q_proj'] is of the wrong type: "
        "an object of whole numbers is needed",
    ),
    "no regular expression": (
        {"alpha_pattern": {"q(": 3}},
        "adapter_config.json: alpha_pattern holds 'q(', which is not a "
        "regular expression: missing ), unterminated subpattern at position 1",
    ),
    "bias": (
        {"bias": "some"},
        "adapter_config.json: bias = 'some' is none of none, lora_only, all",
    ),
    "rank of another": ({"r": 4}, f"{Q0}   has rank 2, adapter_config.json says 4"),
    "targets are numbers": (
        {"target_modules": [3]},
        "adapter_config.json: target_modules = [3] is of the wrong type: "
        "a string or a list of strings is needed",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_faulty_config(case: str, folder: Path) -> None:
    changes, fault = CONFIGS[case]
    retensor(folder, lambda t: None, header=False)
    edit(folder, **changes)
    assert refused(folder)[0] == fault


@pytest.mark.parametrize(
    "harmless", [{"a_key_to_come": None}, {"another": False}, {"third": {}}, {"revision": "main"}]
)
def test_harmless_keys_pass(harmless: dict[str, Any], folder: Path) -> None:
    edit(folder, **harmless)
    Adapter.load(folder)


def test_faults_of_config_and_tensors_are_named_together(folder: Path) -> None:
    edit(folder, lora_bias=True, peft_type="LORA", init_lora_weights="olora")
    retensor(folder, lambda t: [spoil(Q0 + A, float("nan"))(t), drop(Q1 + B)(t)], header=False)
    faults = refused(folder)
    assert (
        len(faults) == 4
        and faults[0].startswith("adapter_config.json: ")
        and f"{Q1}   B is missing" in faults
    )
    with pytest.raises(AdapterFileError, match=r"cannot be trusted: 4 faults\.\n"):
        Adapter.load(folder)


def test_what_is_no_adapter(folder: Path, tmp_path: Path) -> None:
    edit(folder, peft_type="IA3")
    assert (
        "describes 'IA3'; the supported values of peft_type are "
        "LORA, VERA, LOHA, LOKR, ADALORA.\nNothing was loaded." in refused(folder)[0]
    )
    (folder / CONFIG).write_text('{"peft_type": "LORA",')
    assert "is not JSON: " in refused(folder)[0]
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00")
    assert "is not JSON: " in refused(folder)[0]
    (folder / CONFIG).write_text("[1]")
    assert (
        "describes [1]; the supported values of peft_type are LORA, VERA, LOHA, LOKR, ADALORA."
        in refused(folder)[0]
    )
    (folder / CONFIG).unlink()
    assert (
        refused(folder)[0]
        == f"{folder} is not an adapter: there is no {folder / CONFIG}.\nNothing was loaded."
    )
    file = folder / WEIGHTS
    assert refused(file)[0].endswith(f"Nothing was loaded. Name its folder: {folder}")
    assert f"{tmp_path / 'none'} is not an adapter" in refused(tmp_path / "none")[0]


def test_folder_of_adapters_is_hinted_at(folder: Path) -> None:
    assert refused(folder.parent)[0].endswith(
        "Nothing was loaded. There are adapters in it: adapter."
    )


def test_config_without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert refused(folder)[0] == (
        f"{folder} has a config, but neither adapter_model.safetensors nor "
        "adapter_model.bin.\nNothing was loaded."
    )


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["LORAKIT_TEST_TRAP"],)


def test_pickle_runs_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("LORAKIT_TEST_TRAP", str(trap))
    make_foreign(folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / PICKLE)
    assert len(Adapter.load(folder).deltas) == 4
    torch.save({**tensors, "x": Malicious()}, folder / PICKLE)
    message = refused(folder)[0]
    assert f"{folder / PICKLE} (" in message and "is cut off, or does not hold tensors" in message
    assert not trap.exists()
    (folder / PICKLE).write_bytes(pickle.dumps(Malicious()))
    refused(folder)
    assert not trap.exists()
    for content in (b"", b"PK\x03\x04 cut", b"\x80\x02."):
        (folder / PICKLE).write_bytes(content)
        assert "is cut off, or does not hold tensors" in refused(folder)[0]
    for content in ([1], {"a": 1}, {1: torch.ones(1)}):
        torch.save(content, folder / PICKLE)
        assert "does not hold tensors by name" in refused(folder)[0]


def test_header_carries_the_spec_and_where_it_came_from(tmp_path: Path) -> None:
    spec = Spec(rank=2, targets="qv", overrides={"layers.0.*": {"rank": 1}})
    adapter = fill(lorakit.attach(llama(), spec, seed=7))
    adapter.provenance |= {
        "base_model": "tiny/llama",
        "task_type": "CAUSAL_LM",
        "metrics": {"loss": 1.5},
    }
    adapter.save(tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    header = json.loads(metadata["lorakit"])
    assert header["provenance"] == {
        "base_fingerprint": lorakit.fingerprint(llama()),
        "seed": 7,
        "base_model": "tiny/llama",
        "task_type": "CAUSAL_LM",
        "metrics": {"loss": 1.5},
    }
    assert spec_from_header(header["spec"]) == spec
    assert header["modules"] == dict.fromkeys(adapter.deltas, "linear")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["task_type"], config["peft_type"]) == (
        "tiny/llama",
        "CAUSAL_LM",
        "LORA",
    )
    assert (
        config["target_modules"] == ["q_proj", "v_proj"]
        and config["r"] == 2
        and config["lora_alpha"] == 32
    )
    assert Adapter.load(tmp_path).provenance == adapter.provenance


@pytest.mark.parametrize("moment", ["config", "weights", "sync", "first place"])
def test_a_crash_while_saving_leaves_the_old_file(
    moment: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    adapter = fill(lorakit.attach(llama(), Spec(rank=3)))

    def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:99])
        raise OSError("no space left on device")

    def fail(*args: object, **more: object) -> None:
        raise OSError("no space left on device")

    where, name, what = {
        "config": (Path, "write_text", fail),
        "weights": (weights, "save_file", half),
        "sync": (os, "fsync", fail),
        "first place": (Path, "replace", fail),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, what)
        with pytest.raises(OSError, match="no space left"):
            adapter.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    adapter.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert Adapter.load(folder) == adapter


def test_nothing_is_written_of_what_is_not_finite(tmp_path: Path) -> None:
    adapter = fill(lorakit.attach(llama(), Spec(rank=2, targets="qv")))
    first, second = list(adapter.deltas)[:2]
    adapter.deltas[first].A.data[0, 0] = float("nan")
    adapter.deltas[second].B.data[0] = float("inf")
    with pytest.raises(AdapterFileError) as caught:
        adapter.save(tmp_path / "out")
    assert str(caught.value) == (
        "2 tensors cannot be saved.\n"
        f"  base_model.model.{first}.lora_A.weight   1 of 32 values are NaN or infinite\n"
        f"  base_model.model.{second}.lora_B.weight   2 of 16 values are NaN or infinite\n"
        f"Nothing was written to {tmp_path / 'out'}."
    )
    assert not (tmp_path / "out").exists()


def test_tensors_without_values_cannot_be_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    adapter = lorakit.attach(model, Spec(rank=1))
    with pytest.raises(
        AdapterFileError,
        match=r"base_model\.model\.0\.lora_A\.weight   has no values: it is on the meta device",
    ):
        adapter.save(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    adapter = lorakit.attach(llama(), Spec(rank=1))
    path = tmp_path / "adapter.safetensors"
    path.write_text("mine")
    with pytest.raises(AdapterFileError) as caught:
        adapter.save(path)
    assert str(caught.value) == f"{path} is a file; an adapter is a folder.\nNothing was written."
    assert path.read_text() == "mine"


def names(*names: str) -> nn.Module:
    model = nn.Module()
    for name in names:
        *path, last = name.split(".")
        here = model
        for part in path:
            if part not in dict(here.named_children()):
                here.add_module(part, nn.Module())
            here = here.get_submodule(part)
        here.add_module(last, nn.Linear(6, 6))
    return model


def test_names_that_end_in_one_another_stay_apart(tmp_path: Path) -> None:
    """An override by the full name `q` also matches `a.q`; every layer keeps its own settings."""
    model = names("q", "a.q", "b.a.q", "a[0]", "a0", "x+y")
    adapter = fill(lorakit.attach(model, Spec(rank=2)))
    for at, (name, delta) in enumerate(list(adapter.deltas.items())):
        if name in ("q", "a.q", "a[0]"):
            adapter.deltas[name] = lorakit.LowRank(
                torch.ones(at + 1, 6), torch.ones(6, at + 1), alpha=3.0 + at
            )
        else:
            delta.A.data.fill_(0.5)
    read = Adapter.load(adapter.save(tmp_path))
    assert {n: (d.rank, d.alpha, d.scale) for n, d in read.deltas.items()} == {
        n: (d.rank, d.alpha, d.scale) for n, d in adapter.deltas.items()
    }
    assert read.content_hash() == adapter.content_hash()
    lorakit.detach(model)
    lorakit.attach(model, read)
    assert list(lorakit.attached(model)["default"].deltas) == [
        "q",
        "a.q",
        "b.a.q",
        "a[0]",
        "a0",
        "x+y",
    ]
    only = lorakit.attach(names("q", "a.q"), Spec(rank=2, targets=r"^q"))
    assert list(only.deltas) == ["q"]
    lorakit.attach(names("q", "a.q"), Adapter.load(only.save(tmp_path / "only")), any_base=True)


def test_kinds_of_a_mixed_model_are_kept(tmp_path: Path) -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(nn.Embedding(9, 6), Conv1D(6, 6), nn.Linear(6, 6))
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets=["0", "1", "2"], dtype="bfloat16")))
    read = Adapter.load(adapter.save(tmp_path))
    assert read == adapter and [d.kind for d in read.deltas.values()] == [
        "embedding",
        "conv1d",
        "linear",
    ]
    assert read.dtype == torch.bfloat16


def test_hash_sees_every_part(tmp_path: Path) -> None:
    model = llama()
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets="qv")))
    seen = {adapter.content_hash()}
    for change in (
        lambda d: d.A.data[0, 0].add_(1e-6),
        lambda d: d.B.data[-1, -1].neg_(),
        lambda d: setattr(d, "scale", 3.0),
        lambda d: setattr(d, "dropout", 0.1),
        lambda d: setattr(d, "kind", "conv1d"),
        lambda d: d.to(torch.bfloat16),
    ):
        twin = adapter.copy()
        change(next(iter(twin.deltas.values())))
        seen.add(twin.content_hash())
        assert twin != adapter
    assert len(seen) == 7
    assert Adapter.load(adapter.save(tmp_path)).content_hash() in seen
    assert adapter.copy().to(torch.bfloat16).dtype == torch.bfloat16
    assert torch.isfinite(logits(model)).all()


def test_whole_parameter_without_dimensions(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.temperature

    model = nn.Sequential(nn.Linear(4, 4), Scaled())
    adapter = fill(lorakit.attach(model, Spec(rank=1, targets=["0"], full_modules=["1"])))
    read = Adapter.load(adapter.save(tmp_path))
    assert read == adapter and read.full_parameters["1.temperature"].shape == ()


@pytest.mark.parametrize(
    ("ids", "dtype", "fault"),
    [
        ([1, 3], torch.int64, "trainable_tokens_delta   is int64: a floating dtype is needed"),
        ([1, 10**20], torch.float32, "is [1, 100000000000000000000] for it: a list of ids"),
    ],
    ids=["dtype", "id"],
)
def test_token_rows_that_no_embedding_has_are_refused(
    ids: list[int], dtype: torch.dtype, fault: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    spec = Spec(rank=1, targets=("1",), token_rows={"0": (1, 3)})
    lorakit.attach(model, spec).save(tmp_path)
    make_foreign(tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        (key,) = (name for name in tensors if name.endswith("trainable_tokens_delta"))
        tensors[key] = tensors[key].to(dtype)

    rewrite(tmp_path, {"trainable_token_indices": {"0": ids}}, change)
    assert any(fault in line for line in refused(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["[]", "1.5", '{"a":1}'])
def test_a_config_of_more_values_than_memory_allows_is_refused(value: str, folder: Path) -> None:
    path = folder / CONFIG
    path.write_text('{"x": [' + f"{value}," * 200_000 + "0]}")
    (message,) = refused(folder)
    assert message.startswith(f"{path} is not JSON: ")
    assert "values are more than the 100,000 that are read" in message


@pytest.mark.slow
def test_a_file_of_more_tensors_than_are_read_is_refused(folder: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {str(i): empty for i in range(100_001)}
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    (message,) = refused(folder)
    assert "100,001 tensors are more than the 100,000 read" in message
