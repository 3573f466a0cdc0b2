"""Ours loads in PEFT and PEFT's in ours, and both then compute the same, for every option that both
have.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, Spec

peft = pytest.importorskip("peft")

from ..models import FAMILIES, bert, fill, logits, randn  # noqa: E402


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns of what it then does as it should: tied embeddings, fan_in_fan_out set from the
    layer's type.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning
        )
        warnings.filterwarnings("ignore", "Setting .save_embedding_layers. to .True.", UserWarning)
        warnings.filterwarnings(
            "ignore",
            "fan_in_fan_out is set to False but the target module is .Conv1D.",
            UserWarning,
        )
        yield


def test_a_model_from_a_folder_gives_the_adapter_its_name(tmp_path: Path) -> None:
    FAMILIES["llama"]().save_pretrained(tmp_path / "base")
    model = type(FAMILIES["llama"]()).from_pretrained(tmp_path / "base")
    lorakit.attach(model, Spec(rank=2)).save(tmp_path / "a")
    assert peft.PeftConfig.from_pretrained(tmp_path / "a").base_model_name_or_path == str(
        tmp_path / "base"
    )


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Tell whether two outputs agree to 1e-6 of their size."""
    return float((got - want).abs().max()) <= 1e-6 * max(1.0, float(want.abs().max()))


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, all-linear": ("llama", {}),
    "llama, rank and alpha": ("llama", {"rank": 5, "alpha": 3.5, "targets": "qv"}),
    "llama, alpha / sqrt(rank)": (
        "llama",
        {"scale_rule": "alpha/sqrt(rank)", "targets": "attention"},
    ),
    "llama, overrides": (
        "llama",
        {"overrides": {"layers.0.*": {"rank": 2, "alpha": 7}, "q_proj": {"rank": 5}}},
    ),
    "llama, a scale rule of its own": (
        "llama",
        {"targets": "qv", "overrides": {"q_proj": {"scale_rule": "alpha/sqrt(rank)"}}},
    ),
    "llama, dropout": ("llama", {"dropout": 0.5, "targets": "mlp"}),
    "llama, regular expression": ("llama", {"targets": r".*layers\.1\..*_proj"}),
    "llama, one layer of two": ("llama", {"targets": ["layers.0.self_attn.q_proj"]}),
    "llama, exclude": ("llama", {"exclude": ["layers.1.*", "up_proj"]}),
    "llama, embedding": ("llama", {"targets": ["embed_tokens", "q_proj"]}),
    "llama, gaussian": ("llama", {"init": "gaussian", "targets": "qv"}),
    "llama, pissa": ("llama", {"init": "pissa"}),
    "llama, olora, alpha / sqrt(rank)": (
        "llama",
        {"init": "olora", "scale_rule": "alpha/sqrt(rank)"},
    ),
    "llama, pissa on an embedding": (
        "llama",
        {"init": "pissa-fast", "targets": ["embed_tokens", "q_proj"]},
    ),
    "llama, some layers of pissa": (
        "llama",
        {"overrides": {"layers.0.*": {"init": "pissa", "rank": 3}}},
    ),
    "gpt2, pissa of parts": ("gpt2", {"init": "pissa", "targets": ["c_attn.q", "c_attn.v"]}),
    "gpt2, attention": ("gpt2", {"targets": "attention"}),
    "gpt2, all-linear": ("gpt2", {"rank": 3}),
    "gpt2, all biases": ("gpt2", {"targets": "attention", "bias": "all"}),
    "gpt2, biases of adapted layers": ("gpt2", {"targets": ["c_attn"], "bias": "adapted"}),
    "bert, head whole": ("bert", {"targets": "qv", "full_modules": ["classifier"]}),
    "bert, head by pattern": ("bert", {"targets": "qv", "full_modules": ["*ssifier"]}),
    "bert, head whole and all biases": (
        "bert",
        {"targets": "qv", "full_modules": ["classifier"], "bias": "all"},
    ),
    "bert, biases of adapted layers": ("bert", {"targets": "qkvo", "bias": "adapted"}),
    "t5, qv": ("t5", {"targets": "qv"}),
    "t5, all-linear": ("t5", {}),
    "llama, rows of tokens": ("llama", {"targets": "qv", "token_rows": (13, 7)}),
    "llama, rows of embedding and head": (
        "llama",
        {"targets": "qv", "token_rows": {"embed_tokens": (13,), "lm_head": (7, 1)}},
    ),
    "tied llama, rows of tokens": ("tied", {"targets": "qv", "token_rows": (13, 7)}),
    "tied llama, rows of tokens apart": (
        "tied",
        {"targets": "qv", "token_rows": {"embed_tokens": (13,), "lm_head": (7, 13)}},
    ),
    "tied llama, rows of the head alone": (
        "tied",
        {"targets": "qv", "token_rows": {"lm_head": (7, 13)}},
    ),
    "tied llama, rows of tokens alone": ("tied", {"targets": "none", "token_rows": (13, 7)}),
    "tied llama, rows of tokens and dora": (
        "tied",
        {"delta": "dora", "targets": "qv", "token_rows": (13, 7)},
    ),
    "gpt2, rows of tokens": ("gpt2", {"targets": ["c_attn"], "token_rows": (49, 0, 7)}),
    "gpt2, rows of tokens alone": ("gpt2", {"targets": "none", "token_rows": (49, 0, 7)}),
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
    assert read == adapter and read.spec.targets == adapter.spec.targets
    other = FAMILIES[family]()
    lorakit.attach(other, read)
    assert torch.equal(logits(other), want)


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, list": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "llama, all-linear": ("llama", {"target_modules": "all-linear"}),
    "llama, regular expression": (
        "llama",
        {"target_modules": r".*layers\.1\.self_attn\.(q|k)_proj"},
    ),
    "llama, rslora": ("llama", {"target_modules": ["q_proj"], "use_rslora": True, "r": 5}),
    "llama, patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*k_proj": 5},
            "alpha_pattern": {"up_proj": 3, "0.self_attn.k_proj": 11},
        },
    ),
    "llama, patterns and rslora": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj"],
            "use_rslora": True,
            "rank_pattern": {"^model.layers.0.self_attn.q_proj$": 2},
        },
    ),
    "llama, dropout": ("llama", {"target_modules": ["q_proj"], "lora_dropout": 0.25}),
    "llama, some layers": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "llama, exclude list": (
        "llama",
        {"target_modules": "all-linear", "exclude_modules": ["up_proj", "q_proj"]},
    ),
    "llama, exclude expression": (
        "llama",
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.0\..*"},
    ),
    "llama, embedding": (
        "llama",
        {"target_modules": ["embed_tokens", "q_proj"], "lora_dropout": 0.1},
    ),
    "llama, gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "llama, lm_head whole": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "gpt2, c_attn": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2, all-linear": ("gpt2", {"target_modules": "all-linear"}),
    "gpt2, embedding": ("gpt2", {"target_modules": ["wpe", "c_attn"]}),
    "gpt2, all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "gpt2, biases of adapted layers": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "bias": "lora_only"},
    ),
    "bert, classification": (
        "bert",
        {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    ),
    "bert, classification and all biases": (
        "bert",
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"},
    ),
    "bert, biases of adapted layers": ("bert", {"target_modules": ["query"], "bias": "lora_only"}),
    "t5, q and v": ("t5", {"target_modules": ["q", "v"]}),
    "t5, all biases": ("t5", {"target_modules": ["q", "v"], "bias": "all"}),
    "t5, all-linear": ("t5", {"target_modules": "all-linear"}),
    "llama, rows of tokens": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [13, 7]},
    ),
    "llama, rows of embedding and head": (
        "llama",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [13, 7], "lm_head": [7]},
        },
    ),
    "tied llama, rows of tokens": (
        "tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": [13, 7]},
    ),
    "tied llama, the same rows of both": (
        "tied",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [13, 7], "lm_head": [13, 7]},
        },
    ),
    "tied llama, other rows of the head": (
        "tied",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [13, 7], "lm_head": [13, 8]},
        },
    ),
    "gpt2, rows of tokens": (
        "gpt2",
        {"target_modules": ["c_attn"], "trainable_token_indices": [49, 0]},
    ),
    "gpt2, rows of tokens alone": (
        "gpt2",
        {"target_modules": "dummy-target-modules", "trainable_token_indices": {"wte": [49, 0]}},
    ),
}


def trained_by_peft(family: str, more: dict[str, Any], folder: Path, **how: Any) -> torch.Tensor:
    """Save an adapter of PEFT's with every trained tensor filled; return its logits."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, **more})
    model = peft.get_peft_model(FAMILIES[family](), config).eval()
    for seed, (_, parameter) in enumerate(
        (n, p) for n, p in model.named_parameters() if p.requires_grad
    ):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 8)
    model.save_pretrained(folder, **how)
    return logits(model)


@pytest.mark.slow
@pytest.mark.parametrize("case", THEIRS)
def test_peft_in_ours(case: str, tmp_path: Path) -> None:
    family, more = THEIRS[case]
    want = trained_by_peft(family, more, tmp_path / "theirs")
    adapter = Adapter.load(tmp_path / "theirs")
    model = FAMILIES[family]()
    base = logits(model)
    lorakit.attach(model, adapter)
    assert same(logits(model), want) and not same(want, base)
    lorakit.merge(model)
    assert float((logits(model) - want).abs().max()) < 1e-4 * float(want.abs().max())
    # and back: ours, written again, loads in PEFT
    adapter.save(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(FAMILIES[family](), tmp_path / "ours")
    assert same(logits(again.eval()), want)
    assert Adapter.load(tmp_path / "ours") == adapter


def test_pickled_file_of_peft(tmp_path: Path) -> None:
    want = trained_by_peft(
        "llama", {"target_modules": ["q_proj"]}, tmp_path, safe_serialization=False
    )
    assert (tmp_path / "adapter_model.bin").is_file()
    model = FAMILIES["llama"]()
    lorakit.attach(model, Adapter.load(tmp_path))
    assert same(logits(model), want)


def test_every_key_of_peft_is_known(tmp_path: Path) -> None:
    """A new key of LoraConfig must be listed as read, as ignored or as refused."""
    from lorakit.formats.peft.methods import METHODS_BY_TYPE

    assert set(peft.LoraConfig().to_dict()) <= METHODS_BY_TYPE["LORA"].known_keys


def test_dropout_acts_alike_while_training(tmp_path: Path) -> None:
    model = bert()
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets="qv", dropout=0.5)))
    adapter.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path)
    found = {
        m.p for n, m in theirs.named_modules() if "lora_dropout" in n and isinstance(m, nn.Dropout)
    }
    assert found == {0.5}


KINDS: dict[str, Callable[[], nn.Module]] = dict(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_target_names_mean_the_same_to_peft(family: str, tmp_path: Path) -> None:
    """What we write as target_modules makes PEFT adapt just our layers."""
    for preset in ("all-linear", "attention", "mlp", "o"):
        model = KINDS[family]()
        adapter = lorakit.attach(model, Spec(rank=2, targets=preset))
        adapter.save(tmp_path / preset)
        theirs = peft.PeftModel.from_pretrained(KINDS[family](), tmp_path / preset)
        adapted = {
            n.removeprefix("base_model.model.").rpartition(".lora_A")[0]
            for n, _ in theirs.named_modules()
            if n.endswith(".lora_A")
        }
        assert adapted == set(adapter.deltas)
