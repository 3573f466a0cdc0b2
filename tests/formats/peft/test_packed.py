"""Parts of fused layers and attention's own weights on disk: read back to the bit, and the same
outputs in PEFT.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BloomConfig, BloomModel, GPT2Config, GPT2Model, Phi3Config, Phi3Model

import lorakit
from lorakit import Spec
from lorakit.errors import AdapterFileError

from ...laws.models import seeded
from ...laws.table import fill, same_bits
from ..rewrite import rewrite

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".is_gradient_checkpointing. is deprecated:FutureWarning",
        "fan_in_fan_out is set to False but the target module is .Conv1D.:UserWarning",
    )
]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "gpt2": (GPT2Model, lambda: GPT2Config(**SMALL)),
    "bloom": (BloomModel, lambda: BloomConfig(**{**SMALL, "n_layer": 2, "n_head": 4})),
    "phi3": (Phi3Model, lambda: Phi3Config(**{**SMALL, "num_key_value_heads": 2})),
}
IDS = torch.tensor([[5, 9, 7, 3, 8, 2]])
# Another rank and another scale for each part: 1.5, 0.7 and -4 / 5, none a power of two of another.
UNEQUAL = {"overrides": {"*.k": {"rank": 2, "alpha": 1.4}, "*.v": {"rank": 5, "alpha": -4.0}}}


def unequal(dtype: str = "float32", **more: Any) -> Spec:
    return Spec(**{"rank": 3, "alpha": 4.5, "targets": "qkv", "dtype": dtype, **UNEQUAL, **more})


class Attending(nn.Module):
    """A model with one attention of torch's own beside a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.rest = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.attention(x, x.flip(1), x + 1)[0])


def attending() -> Attending:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Attending().eval()


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parts_of_unequal_ranks_and_scales_are_read_back_to_the_bit(
    family: str, dtype: str, tmp_path: Path
) -> None:
    kind, config = MODELS[family]
    adapter = fill(lorakit.attach(seeded(kind, config()), unequal(dtype)))
    read = lorakit.Adapter.load(adapter.save(tmp_path / "out"))
    assert same_bits(dict(read.named_parameters()), dict(adapter.named_parameters()))
    assert read == adapter
    assert {n: (d.rank, d.scale, d.dropout) for n, d in read.deltas.items()} == {
        n: (d.rank, d.scale, d.dropout) for n, d in adapter.deltas.items()
    }


def test_dropouts_of_parts_are_read_back(tmp_path: Path) -> None:
    kind, config = MODELS["gpt2"]
    spec = Spec(rank=2, targets="qkv", dropout=0.1, overrides={"*.k": {"dropout": 0.5}})
    adapter = fill(lorakit.attach(seeded(kind, config()), spec))
    read = lorakit.Adapter.load(adapter.save(tmp_path / "out"))
    assert read == adapter and sorted({d.dropout for d in read.deltas.values()}) == [0.1, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    "targets",
    ["qkv", "k", ["v", "q", "gate", "dense_h_to_4h", "c_fc"]],
    ids=["qkv", "k", "several"],
)
def test_peft_gives_the_same_outputs_from_a_file_of_parts(
    family: str, targets: Any, tmp_path: Path
) -> None:
    kind, config = MODELS[family]
    if isinstance(targets, list):
        targets = [
            t
            for t in targets
            if any(
                n.endswith(f".{t}")
                for n in lorakit.inject.places.find_places(seeded(kind, config()))
            )
        ]
    model = seeded(kind, config())
    overrides = {
        p: c for p, c in UNEQUAL["overrides"].items() if targets == "qkv" or p[2:] in targets
    }
    fill(lorakit.attach(model, unequal(targets=targets, overrides=overrides))).save(
        tmp_path / "out"
    )
    theirs = peft.PeftModel.from_pretrained(seeded(kind, config()), str(tmp_path / "out"))
    with torch.no_grad():
        want, base = model(IDS).last_hidden_state, seeded(kind, config())(IDS).last_hidden_state
        got = theirs(IDS).last_hidden_state
    assert (got - want).abs().max() < 2e-5 * want.abs().max() < (want - base).abs().max()


@pytest.mark.parametrize(
    "targets", [["in_proj", "out_proj"], ["in_proj"], "qkvo", "v", ["out_proj"]], ids=str
)
def test_attention_is_read_back_to_the_bit_and_peft_gives_the_same_outputs(
    targets: Any, tmp_path: Path
) -> None:
    model = attending()
    overrides = {"*.k": {"rank": 2, "alpha": 1.4}} if targets == "qkvo" else {}
    overrides |= (
        {"out_proj": {"rank": 4, "alpha": -3.0}}
        if "out_proj" in targets or targets == "qkvo"
        else {}
    )
    adapter = fill(
        lorakit.attach(
            model, Spec(rank=3, alpha=4.5, targets=targets, overrides=overrides, bias="adapted")
        )
    )
    read = lorakit.Adapter.load(adapter.save(tmp_path / "out"))
    assert (
        same_bits(dict(read.named_parameters()), dict(adapter.named_parameters()))
        and read == adapter
    )
    both = overrides.keys() - {"*.k"} and targets != ["out_proj"]
    with nullcontext() if both else pytest.warns(UserWarning, match="missing adapter keys"):
        theirs = peft.PeftModel.from_pretrained(attending(), str(tmp_path / "out"))
    with torch.no_grad():
        assert (theirs(X) - model(X)).abs().max() < 1e-5 < (model(X) - attending()(X)).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
def test_attention_of_peft_gives_the_same_outputs(rslora: bool, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=8,
        lora_alpha=3,
        target_modules=["attention", "rest"],
        use_rslora=rslora,
        rank_pattern={"attention": 3},
        alpha_pattern={"attention": 5},
    )
    theirs = peft.get_peft_model(attending(), config)
    for seed, (name, parameter) in enumerate(theirs.named_parameters()):
        if "lora_" in name:
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) / 3
            )
    theirs.eval().save_pretrained(str(tmp_path))
    model, adapter = attending(), lorakit.Adapter.load(tmp_path)
    assert {*adapter.deltas} == {"rest", "attention.in_proj", "attention.out_proj"}
    lorakit.attach(model, adapter)
    with torch.no_grad():
        assert (theirs(X) - model(X)).abs().max() < 1e-5 < (model(X) - attending()(X)).abs().max()
    # A later PEFT that adds it once says so by its version.
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**told, "peft_version": "0.22.0"}))
    once = lorakit.Adapter.load(tmp_path).deltas["attention.out_proj"]
    assert 2 * once.scale == adapter.deltas["attention.out_proj"].scale
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    again = lorakit.Adapter.load(lorakit.Adapter.load(tmp_path).save(tmp_path / "again"))
    assert same_bits(dict(again.named_parameters()), dict(adapter.named_parameters()))
    reread = peft.PeftModel.from_pretrained(attending(), str(tmp_path / "again"))
    with torch.no_grad():
        assert (reread(X) - theirs(X)).abs().max() < 1e-5


def test_an_attention_whose_header_was_lost_means_the_same_unchecked(tmp_path: Path) -> None:
    model = attending()
    adapter = fill(lorakit.attach(model, Spec(rank=3, targets=["in_proj", "out_proj"])))
    adapter.save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path), path, {"format": "pt"})
    with pytest.raises(AdapterFileError, match="has no lorakit entry"):
        lorakit.Adapter.load(tmp_path)
    other = attending()
    lorakit.attach(other, lorakit.Adapter.load(tmp_path, unchecked=True))
    with torch.no_grad():
        assert (other(X) - model(X)).abs().max() < 1e-6


def test_a_scale_that_was_edited_is_refused(tmp_path: Path) -> None:
    kind, config = MODELS["gpt2"]
    fill(lorakit.attach(seeded(kind, config()), unequal())).save(tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    told["alpha_pattern"] = {key: 2 * alpha for key, alpha in told["alpha_pattern"].items()}
    rewrite(tmp_path, told)
    with pytest.raises(AdapterFileError) as caught:
        lorakit.Adapter.load(tmp_path)
    assert (
        "h.0.attn.c_attn   the scale of h.0.attn.c_attn.q is 1.5 in the header, 3 in the config"
        in str(caught.value)
    )
