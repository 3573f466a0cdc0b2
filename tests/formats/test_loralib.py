"""Files of microsoft/LoRA's package: read, attached, written; every tensor lands where it belongs,
or the file is refused.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import AdapterFileError, AdapterMismatch
from lorakit.formats import loralib as file
from lorakit.inject.places import find_places

from ..laws.models import gpt2, logits
from ..laws.table import fill as fill_adapter
from ..loralib.layers import KINDS, Kind, fill, inputs, make, ours


def plain_layer(layer: Any, kind: Kind) -> nn.Module:
    """Return the base's own layer under an adapted one."""
    if kind.options.get("fan_in_fan_out"):
        base: Any = Conv1D(layer.out_features, layer.in_features)
    elif isinstance(layer, nn.Embedding):
        base = nn.Embedding(*kind.args, padding_idx=layer.padding_idx)
    elif isinstance(layer, nn.Linear):
        base = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    else:
        options = {
            "padding": layer.padding,
            "groups": layer.groups,
            "stride": layer.stride,
            "bias": layer.bias is not None,
            "padding_mode": layer.padding_mode,
        }
        base = getattr(nn, kind.name)(*kind.args, **options)
    base.weight.data.copy_(layer.weight.data)
    if layer.__dict__["_parameters"].get("bias") is not None:
        base.bias.data.copy_(layer.bias.data)
    return base


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_layer_learned_is_read(kind: Kind, tmp_path: Path) -> None:
    layer = make(ours, kind, r=2, lora_alpha=3)
    theirs, path = nn.ModuleDict({"it": fill(layer)}).double().train(), tmp_path / "lora.pt"
    torch.save(ours.lora_state_dict(theirs), path)
    x = inputs(kind)
    x = x.double() if x.is_floating_point() else x
    plain = nn.ModuleDict({"it": plain_layer(layer, kind)}).double()
    on = kind.options.get("enable_lora")
    adapter = Adapter(
        *file.read(path, alpha=3, model=plain, enable_lora={"it": on} if on else None)
    )
    assert file.is_loralib_file(path)
    want, base = theirs["it"](x).detach(), plain["it"](x).detach()
    lorakit.attach(plain, adapter)
    torch.testing.assert_close(plain["it"](x), want, rtol=0, atol=1e-9)
    assert float((want - base).abs().max()) > 0.1
    # An adapter of such a file is one like any other.
    read = Adapter.load(adapter.save(tmp_path / "peft")) if not adapter.spec.parts else adapter
    assert read.content_hash() == adapter.content_hash()


@pytest.mark.parametrize("on", [[True, False, True], [False, False, True], [True, True, True]])
def test_merged_linear_is_the_parts_of_a_fused_layer(on: list[bool], tmp_path: Path) -> None:
    model, path = gpt2(), tmp_path / "lora.pt"
    words = [word for word, used in zip("qkv", on, strict=True) if used]
    adapter = fill_adapter(
        lorakit.attach(model, Spec(rank=2, alpha=6, targets=[f"c_attn.{w}" for w in words]))
    )
    want = logits(model)
    file.write(path, adapter.spec, adapter.deltas, adapter.full_parameters)
    stored = torch.load(path, weights_only=True)
    assert {key: tuple(t.shape) for key, t in stored.items()} == {
        f"transformer.h.{i}.attn.c_attn.lora_{end}": shape
        for i in (0, 1)
        for end, shape in (("A", (2 * len(words), 16)), ("B", (16 * len(words), 2)))
    }
    layer = ours.MergedLinear(16, 48, r=2, lora_alpha=6, enable_lora=on, fan_in_fan_out=True)
    layer.load_state_dict(
        {k: stored[f"transformer.h.0.attn.c_attn.{k}"] for k in ("lora_A", "lora_B")}, strict=False
    )
    known = find_places(model)
    change = sum(known[n].site.widen(d.matrix()) for n, d in adapter.deltas.items() if ".h.0." in n)
    torch.testing.assert_close(layer.change().T, change)
    read = Adapter(*file.read(path, alpha=6, enable_lora={"c_attn": on}))
    assert list(read.deltas) == list(adapter.deltas)
    assert all(
        torch.equal(a, b) for a, b in zip(read.parameters(), adapter.parameters(), strict=True)
    )
    other = gpt2()
    lorakit.attach(other, read)
    assert torch.equal(logits(other), want)


def test_written_equals_read_and_another_scale_goes_into_B(tmp_path: Path) -> None:
    model = nn.ModuleDict({"q": nn.Linear(6, 5), "v": nn.Linear(6, 5), "head": nn.Linear(5, 2)})
    spec = Spec(
        rank=2,
        alpha=4,
        targets=["q", "v"],
        full_modules=("head",),
        overrides={"v": {"rank": 1, "alpha": 3}},
    )
    adapter = fill_adapter(lorakit.attach(model, spec))
    path = file.write(
        tmp_path / "new" / "lora.pt", adapter.spec, adapter.deltas, adapter.full_parameters
    )
    assert {k: tuple(t.shape) for k, t in torch.load(path, weights_only=True).items()} == {
        "head.weight": (2, 5),
        "head.bias": (2,),
        "q.lora_A": (2, 6),
        "q.lora_B": (5, 2),
        "v.lora_A": (1, 6),
        "v.lora_B": (5, 1),
    }
    read = Adapter(*file.read(path, alpha=4))
    assert (
        read.spec.full_modules == ("head",)
        and read.spec.bias == "none"
        and read.spec.settings("v").rank == 1
    )
    for name, delta in adapter.deltas.items():
        torch.testing.assert_close(read.deltas[name].matrix(), delta.matrix())
    assert torch.equal(read.deltas["q"].B, adapter.deltas["q"].B)
    assert torch.equal(read.full_parameters["head.bias"], adapter.full_parameters["head.bias"])


@pytest.mark.parametrize(
    ("keys", "mode"), [(["a.bias"], "adapted"), (["a.bias", "b.bias"], "all"), ([], "none")]
)
def test_biases_beside_the_factors(keys: list[str], mode: str, tmp_path: Path) -> None:
    path, model = tmp_path / "lora.bin", nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tensors = {
        "a.lora_A": torch.ones(1, 3),
        "a.lora_B": torch.ones(3, 1),
        **{key: torch.ones(3) for key in keys},
    }
    torch.save({"model_state_dict": tensors}, path)
    adapter = Adapter(*file.read(path, alpha=1))
    assert adapter.spec.bias == mode and sorted(adapter.full_parameters) == keys
    lorakit.attach(model, adapter)
    assert float(model["a"](torch.zeros(3)).detach()[0]) == (
        1.0 if keys else float(model["a"].bias.detach()[0])
    )


A, B = torch.ones(2, 4), torch.ones(6, 2)
WRONG = {
    "one factor": ({"a.lora_A": A}, {}, "a   lora_B is missing"),
    "no factors": ({"a.weight": A}, {}, "no key ends in lora_A"),
    "not finite": (
        {"a.lora_A": A / 0, "a.lora_B": B},
        {},
        "a.lora_A   8 of 8 values are NaN or infinite",
    ),
    "ranks": (
        {"a.lora_A": torch.ones(3, 4), "a.lora_B": B},
        {},
        "a   lora_A is (3, 4), lora_B is (6, 2): matrices with one rank are needed",
    ),
    "merged on eval": (
        {"a.lora_A": A, "a.lora_B": B, "a.weight": torch.ones(6, 4)},
        {},
        "a   has its weight in the file, and in eval mode loralib adds the change to it: save "
        "lora.lora_state_dict(model)",
    ),
    "parts": (
        {"a.lora_A": torch.ones(4, 4), "a.lora_B": B},
        {},
        "a   lora_A is (4, 4), lora_B is (6, 2): 2 parts of a MergedLinear; "
        "enable_lora={'a': [True, False, True]} or the like says which",
    ),
    "other parts": (
        {"a.lora_A": torch.ones(4, 4), "a.lora_B": B},
        {"enable_lora": {"a": [True]}},
        "a   lora_A is (4, 4), lora_B is (6, 2); enable_lora=[True] does not fit",
    ),
    "no such part": (
        {"a.lora_A": A, "a.lora_B": B},
        {"enable_lora": {"b": [True]}},
        "enable_lora: 'b' matches none of the factors",
    ),
    "shape": (
        {"a.lora_A": A, "a.lora_B": B},
        {"model": nn.ModuleDict({"a": nn.Linear(5, 6)})},
        "a   lora_A is (2, 4), lora_B is (6, 2); the layer is 5 -> 6",
    ),
    "name": (
        {"a.lora_A": A, "a.lora_B": B},
        {"model": nn.ModuleDict({"c": nn.Linear(4, 6)})},
        "a   is not in ModuleDict",
    ),
    "kind": (
        {"a.lora_A": A, "a.lora_B": B},
        {"model": nn.ModuleDict({"a": nn.GELU()})},
        "a   is a GELU, which cannot be adapted",
    ),
    "kernel": (
        {"a.lora_A": A, "a.lora_B": B},
        {"model": nn.ModuleDict({"a": nn.Conv2d(4, 6, 3)})},
        "a   lora_A is (2, 4), lora_B is (6, 2); the layer's matrix is 6 x 36 with a kernel of "
        "(3, 3)",
    ),
}


@pytest.mark.parametrize(("tensors", "options", "fault"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(
    tensors: dict[str, Tensor], options: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "lora.pt"
    torch.save(tensors, path)
    with pytest.raises(AdapterFileError) as told:
        file.read(path, alpha=1, **options)
    assert told.value.faults == [fault]
    assert str(told.value).startswith(f"{path} cannot be read as a file of loralib: 1 fault.\n")
    assert str(told.value).endswith("Nothing was loaded.")


def test_one_enabled_part_without_a_model_does_not_attach() -> None:
    """The file looks like that of a smaller layer: what stops it is the layer's shape."""
    one = Adapter(
        Spec(rank=2, targets=["c_attn"]),
        {"c_attn": lorakit.LowRank(torch.ones(2, 16), torch.ones(16, 2), alpha=1)},
    )
    with pytest.raises(AdapterMismatch, match="B is \\(16, 2\\), the layer gives 48"):
        lorakit.attach(nn.ModuleDict({"c_attn": nn.Linear(16, 48)}), one)


def test_other_files_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("words")
    torch.save({"q.lora_A.weight": A}, tmp_path / "peft.bin")
    torch.save([A], tmp_path / "list.pt")
    assert not any(
        file.is_loralib_file(tmp_path / name)
        for name in ("text.pt", "peft.bin", "list.pt", "none.pt", "")
    )
    for name, text in (
        ("text.pt", "is cut off, or does not hold tensors"),
        ("list.pt", "does not hold tensors by name"),
    ):
        with pytest.raises(AdapterFileError, match=text):
            file.read(tmp_path / name, alpha=1)


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.pt"
    with pytest.raises(AdapterFileError) as caught:
        file.read(path, alpha=1)
    assert str(caught.value) == f"There is no file {path}.\nNothing was loaded."


def test_loading_one_without_alpha_says_how(tmp_path: Path) -> None:
    path = tmp_path / "lora.pt"
    torch.save({"a.lora_A": A, "a.lora_B": B}, path)
    with pytest.raises(AdapterFileError) as told:
        Adapter.load(path)
    assert str(told.value) == (
        f"{path} is a file of loralib, which does not hold alpha.\n"
        "Adapter(*lorakit.formats.loralib.read(path, alpha=...)) reads it. Nothing was loaded."
    )


def test_what_loralib_has_no_layer_for_is_not_written(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(4, 6, 3), "fused": nn.Linear(4, 12), "plain": nn.Linear(4, 4)}
    )
    adapter = lorakit.attach(
        model,
        Spec(
            rank=1,
            targets=["conv", "fused.q", "fused.kv", "plain"],
            parts={"fused": {"q": 4, "kv": 8}},
        ),
    )
    with pytest.raises(AdapterFileError) as told:
        file.write(tmp_path / "lora.pt", adapter.spec, adapter.deltas, adapter.full_parameters)
    assert str(told.value) == (
        "2 layers cannot be written for loralib.\n"
        "  conv   is lora of a convolution2d layer, which loralib's layout cannot hold\n"
        "  fused   its parts are not equal blocks of outputs of one rank, as those of a "
        "MergedLinear are\n"
        "Nothing was written."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.shared
@pytest.mark.slow
def test_the_published_adapter_lands_on_a_model_of_its_shape(shared: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    path = shared / "models" / "real-adapters" / "roberta_base_lora_mnli.bin"
    model = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=1000, max_position_embeddings=514, type_vocab_size=1, num_labels=3)
    ).eval()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    assert file.is_loralib_file(path)
    adapter = Adapter(*file.read(path, alpha=16, model=model))
    counts = [
        sum(p.numel() for d in adapter.deltas.values() for p in d.parameters()),
        sum(p.numel() for p in adapter.full_parameters.values()),
    ]
    assert counts == [294_912, 592_899] and adapter.parameters_count == 294_912 + 592_899
    assert {delta.scale for delta in adapter.deltas.values()} == {2.0} and adapter.spec.rank == 8
    lorakit.attach(model, adapter)
    names = {n.replace(".lorakit.default.", ".lora_"): p for n, p in model.named_parameters()}
    assert all(torch.equal(names[key], tensor) for key, tensor in stored.items())
    told = lorakit.coverage(model)
    assert len(told.modules) == 24 and told.trainable_parameters == 294_912 + 592_899
