"""VeRA, LoHa, LoKr and AdaLoRA: ours loads in PEFT and PEFT's in ours, with equal outputs; a faulty
file is refused.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import AdapterFileError

peft = pytest.importorskip("peft")

from lorakit.formats.peft.methods import METHODS_BY_TYPE  # noqa: E402

from ..models import FAMILIES, fill, logits, randn  # noqa: E402
from ..rewrite import make_foreign, rewrite  # noqa: E402


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns of what it then does as it should: fan_in_fan_out set from the layer's type,
    AdaLoRA's own rank_pattern.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning
        )
        warnings.filterwarnings(
            "ignore", "The following rank_pattern keys did not match", RuntimeWarning
        )
        warnings.filterwarnings(
            "ignore",
            "fan_in_fan_out is set to False but the target module is .Conv1D.",
            UserWarning,
        )
        yield


def same(got: Tensor, want: Tensor) -> bool:
    return float((got - want).abs().max()) <= 1e-6 * max(1.0, float(want.abs().max()))


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "vera": ("llama", {"delta": "vera"}),
    "vera, scaled": (
        "llama",
        {
            "delta": "vera",
            "alpha": 3,
            "scale_rule": "alpha/sqrt(rank)",
            "targets": "qv",
            "dropout": 0.1,
        },
    ),
    "vera, gpt2": ("gpt2", {"delta": "vera", "bias": "adapted"}),
    "vera, head whole": (
        "bert",
        {"delta": "vera", "targets": "qv", "full_modules": ["classifier"]},
    ),
    "loha": ("llama", {"delta": "loha"}),
    "loha, overrides": (
        "llama",
        {"delta": "loha", "overrides": {"q_proj": {"rank": 2, "alpha": 7}}, "exclude": ["up_proj"]},
    ),
    "loha, alpha / sqrt(rank)": (
        "bert",
        {"delta": "loha", "scale_rule": "alpha/sqrt(rank)", "targets": "qv"},
    ),
    "lokr": ("llama", {"delta": "lokr"}),
    "lokr, product": ("llama", {"delta": "lokr", "rank": 1}),
    "lokr, scaled": ("bert", {"delta": "lokr", "scale_rule": "alpha/sqrt(rank)", "rank": 2}),
    "adalora": ("llama", {"delta": "adalora"}),
    "adalora, scaled": (
        "llama",
        {"delta": "adalora", "scale_rule": "alpha/sqrt(rank)", "targets": "qv"},
    ),
    "adalora, gpt2": ("gpt2", {"delta": "adalora", "targets": "attention", "bias": "all"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OURS)
def test_ours_in_peft(case: str, tmp_path: Path) -> None:
    family, fields = OURS[case]
    model = FAMILIES[family]()
    base = logits(model)
    adapter = fill(lorakit.attach(model, Spec(**{"rank": 3, "alpha": 6, **fields})))
    want = logits(model)
    assert not same(want, base)
    adapter.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(FAMILIES[family](), tmp_path)
    assert same(logits(theirs.eval()), want)
    read = Adapter.load(tmp_path)
    assert read == adapter
    other = FAMILIES[family]()
    lorakit.attach(other, read)
    assert torch.equal(logits(other), want)


def ada(**more: Any) -> Any:
    return peft.AdaLoraConfig(
        **{"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6, **more}
    )


QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
THEIRS: dict[str, tuple[str, Callable[[], Any]]] = {
    "vera": ("llama", lambda: peft.VeraConfig(r=3, **QV)),
    "vera, all-linear": (
        "llama",
        lambda: peft.VeraConfig(r=3, vera_dropout=0.1, target_modules="all-linear"),
    ),
    "vera, gpt2": (
        "gpt2",
        lambda: peft.VeraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    ),
    "vera, biases": (
        "gpt2",
        lambda: peft.VeraConfig(
            r=3, target_modules=["c_attn"], fan_in_fan_out=True, bias="vera_only"
        ),
    ),
    "loha": ("llama", lambda: peft.LoHaConfig(r=3, alpha=5, **QV)),
    "loha, patterns": (
        "llama",
        lambda: peft.LoHaConfig(
            r=3, alpha=5, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 9}, **QV
        ),
    ),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=3, alpha=5, **QV)),
    "lokr, both": (
        "llama",
        lambda: peft.LoKrConfig(r=1, alpha=5, decompose_both=True, decompose_factor=4, **QV),
    ),
    "adalora": ("llama", lambda: ada(**QV)),
    "adalora, gpt2": ("gpt2", lambda: ada(target_modules=["c_attn"], fan_in_fan_out=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", THEIRS)
def test_peft_in_ours(case: str, tmp_path: Path) -> None:
    family, config = THEIRS[case]
    model = peft.get_peft_model(FAMILIES[family](), config()).eval()
    for seed, (_, parameter) in enumerate(
        (n, p) for n, p in model.named_parameters() if p.requires_grad
    ):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 4)
    want = logits(model)
    model.save_pretrained(tmp_path / "theirs")
    adapter = Adapter.load(tmp_path / "theirs")
    ours = FAMILIES[family]()
    base = logits(ours)
    lorakit.attach(ours, adapter)
    assert same(logits(ours), want) and not same(want, base)
    adapter.save(tmp_path / "ours")
    assert Adapter.load(tmp_path / "ours") == adapter
    again = peft.PeftModel.from_pretrained(FAMILIES[family](), tmp_path / "ours")
    assert same(logits(again.eval()), want)


@pytest.mark.parametrize("delta", ["loha", "lokr", "adalora"])
@pytest.mark.parametrize("rank", [2, 5])
def test_convolutions_there_and_back(delta: str, rank: int, tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(6, 12, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(12 * 16, 5)
        )

    x, model = randn(2, 6, 8, 8), net()
    adapter = fill(lorakit.attach(model, Spec(delta=delta, rank=rank, alpha=6, targets=["0"])))
    want = model(x).detach()
    adapter.save(tmp_path)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(net(), tmp_path).eval()
        assert same(theirs(x), want) and not same(want, net()(x))
        theirs.save_pretrained(tmp_path / "theirs")
        again = net()
        lorakit.attach(again, Adapter.load(tmp_path / "theirs"))
        assert same(again(x), want)


def pruned(tmp_path: Path) -> tuple[Adapter, Tensor]:
    model = FAMILIES["llama"]()
    adapter = fill(lorakit.attach(model, Spec(delta="adalora", rank=4, alpha=6, targets="qv")))
    for at, delta in enumerate(adapter.deltas.values()):
        delta.E.data[at:] = 0  # of ranks 0, 1, 2 and 3
        delta.prune()
    adapter.save(tmp_path)
    return adapter, logits(model)


@pytest.mark.slow
def test_pruned_ranks_load_in_peft_and_here(tmp_path: Path) -> None:
    adapter, want = pruned(tmp_path)
    assert [delta.rank for delta in adapter.deltas.values()] == [0, 1, 2, 3]
    assert same(logits(peft.PeftModel.from_pretrained(FAMILIES["llama"](), tmp_path).eval()), want)
    model, read = FAMILIES["llama"](), Adapter.load(tmp_path)
    assert read == adapter
    lorakit.attach(model, read)
    assert torch.equal(logits(model), want)
    lorakit.merge(model)
    assert float((logits(model) - want).abs().max()) < 1e-4 * float(want.abs().max())


@pytest.mark.parametrize("name", ["VERA", "LOHA", "LOKR", "ADALORA"])
def test_every_key_of_peft_is_known(name: str) -> None:
    config = {
        "VERA": peft.VeraConfig,
        "LOHA": peft.LoHaConfig,
        "LOKR": peft.LoKrConfig,
        "ADALORA": ada,
    }[name]()
    assert set(config.to_dict()) <= METHODS_BY_TYPE[name].known_keys


Q = "base_model.model.model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, Tensor], dict[str, Any]], Any]
FAULTY: dict[str, tuple[str, Change, str]] = {
    "vera, no pair": (
        "vera",
        lambda t, c: t.pop("base_model.vera_A"),
        "base_model.vera_A   is missing: all layers need it",
    ),
    "vera, pair not saved": (
        "vera",
        lambda t, c: c.update(save_projection=False),
        "save_projection is off: the shared factors are not in the file",
    ),
    "vera, pair too small": (
        "vera",
        lambda t, c: t.update({"base_model.vera_B": torch.ones(9, 3)}),
        f"{Q}   does not fit the shared A (3, 16) and B (9, 3)",
    ),
    "vera, half of it": ("vera", lambda t, c: t.pop(f"{Q}.vera_lambda_d"), f"{Q}   d is missing"),
    "loha, one missing": ("loha", lambda t, c: t.pop(f"{Q}.hada_w2_a"), f"{Q}   w2_a is missing"),
    "loha, sizes differ": (
        "loha",
        lambda t, c: t.update({f"{Q}.hada_w2_b": torch.ones(3, 15)}),
        f"{Q}   w2_b is (3, 15), which does not fit the others (out 16, rank 3, in 16)",
    ),
    "loha, rank": (
        "loha",
        lambda t, c: c.update(r=4),
        f"{Q}   has rank 3, adapter_config.json says 4",
    ),
    "loha, another form": (
        "loha",
        lambda t, c: c.update(use_effective_conv2d=True),
        "use_effective_conv2d = True is not",
    ),
    "lokr, both forms": (
        "lokr",
        lambda t, c: t.update({f"{Q}.lokr_w2_a": torch.ones(4, 3)}),
        f"{Q}   w2_a is extra",
    ),
    "adalora, no values": ("adalora", lambda t, c: t.pop(f"{Q}.lora_E"), f"{Q}   E is missing"),
    "adalora, pattern": (
        "adalora",
        lambda t, c: c.update(rank_pattern={f"{Q[17:]}.lora_E": [True, False, True]}),
        f"{Q}   has rank 3, adapter_config.json says 2",
    ),
    "adalora, no pattern": (
        "adalora",
        lambda t, c: c.update(rank_pattern={f"{Q[17:]}.lora_E": 5}),
        f"{Q}   rank_pattern 5 is not a list of 3 truth values",
    ),
    "dora here": (
        "adalora",
        lambda t, c: c.update(use_dora=True),
        "use_dora = True is not supported",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_faulty_file_is_refused(case: str, tmp_path: Path) -> None:
    delta, change, text = FAULTY[case]
    fill(lorakit.attach(FAMILIES["llama"](), Spec(delta=delta, rank=3, targets="qv"))).save(
        tmp_path
    )
    assert Adapter.load(tmp_path)
    make_foreign(tmp_path)
    weights, path = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, config = load_file(weights), json.loads(path.read_text())
    change(tensors, config)
    save_file(tensors, weights)
    path.write_text(json.dumps(config))
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(tmp_path)
    assert any(text in fault for fault in caught.value.faults), caught.value.faults


def test_the_product_of_an_old_file_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 2))
    fill(lorakit.attach(model, Spec(delta="lokr", rank=4, targets=["0"]))).save(tmp_path)
    rewrite(tmp_path, entries={"format": 1})
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(tmp_path, unchecked=True)
    assert str(caught.value).endswith(
        "1 fault.\n  base_model.model.0   w1 and w2 of a one-dimensional convolution are "
        "multiplied in PEFT's order, and the file is of lorakit 0.1.0, which used another: train "
        "it again\nNothing was loaded."
    )


def test_shared_factors_that_are_narrower_than_the_header_says_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    fill(lorakit.attach(model, Spec(delta="vera", rank=2, targets=["0"]))).save(tmp_path)
    narrow = {"base_model.vera_A": torch.ones(2, 3)}
    rewrite(tmp_path, change=lambda tensors: tensors.update(narrow))
    with pytest.raises(AdapterFileError, match=r"6 inputs, which cannot be cut out .* A \(2, 3\)"):
        Adapter.load(tmp_path)
