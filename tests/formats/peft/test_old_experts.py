"""Adapters made with transformers 4, with a pair of factors for each expert: the outputs are those
of PEFT, which converts them.
"""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorakit
from lorakit import Adapter
from lorakit.errors import AdapterMismatch

from ...sites.experts import experts_model, logits
from ..models import randn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
# The block of experts, the names of gate, up and down, and the inner width.
FAMILIES = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2"), 48),
    "qwen3-moe": ("mlp", ("gate_proj", "up_proj", "down_proj"), 24),
}
UPPER, LOWER = ("w1", "w3", "gate_proj", "up_proj"), ("w2", "down_proj")
HIDDEN, EXPERTS, RANK = 32, 4, 3
WEIGHTS = "adapter_model.safetensors"


def base(family: str) -> Any:
    return experts_model(family).float()


def list_layers(family: str, layer: int) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the adapted layers of one block, by name."""
    block, (gate, up, down), width = FAMILIES[family]
    path = f"model.layers.{layer}"
    shapes = {f"{path}.self_attn.q_proj": (32, HIDDEN), f"{path}.{block}.gate": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        start = f"{path}.{block}.experts.{expert}"
        shapes[f"{start}.{gate}"] = shapes[f"{start}.{up}"] = (width, HIDDEN)
        shapes[f"{start}.{down}"] = (HIDDEN, width)
    return shapes


def save_old(family: str, folder: Path, without: tuple[str, ...] = (), **more: Any) -> Path:
    """Write the files that PEFT wrote with transformers 4."""
    tensors: dict[str, Tensor] = {}
    for layer in range(2):
        for name, (outputs, inputs) in list_layers(family, layer).items():
            if name.endswith(without):
                continue
            key = f"base_model.model.{name}.lora"
            tensors[f"{key}_A.weight"] = randn(RANK, inputs, seed=len(tensors)) / 4
            tensors[f"{key}_B.weight"] = randn(outputs, RANK, seed=len(tensors)) / 4
    names = ["q_proj", "gate", *FAMILIES[family][1]]
    targets = [name for name in names if not name.endswith(without)]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": targets, **more}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def is_same(got: Tensor, want: Tensor) -> bool:
    return float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())


@pytest.mark.parametrize("without", [(), ("gate",), UPPER, (*UPPER, *LOWER)])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_peft(family: str, without: tuple[str, ...], tmp_path: Path) -> None:
    save_old(family, tmp_path, without)
    theirs = peft.PeftModel.from_pretrained(base(family), tmp_path).eval()
    want = logits(theirs).detach()
    assert float((want - logits(base(family))).abs().max()) > 0.1
    model = base(family)
    adapter = lorakit.attach(model, Adapter.load(tmp_path))
    assert is_same(logits(model).detach(), want)
    if "w2" not in without:
        stack = adapter.deltas["model.layers.0.mlp.experts.down_proj"]
        assert stack.A.shape[:2] == (EXPERTS, RANK)
        note = "names of 'default' mapped to the model's, as model.layers.0."
        assert note in str(lorakit.coverage(model))
    again = adapter.save(tmp_path / "again")
    assert Adapter.load(again) == adapter
    theirs = peft.PeftModel.from_pretrained(base(family), again).eval()
    assert is_same(logits(theirs).detach(), want)
    lorakit.merge(model)
    assert is_same(logits(model).detach(), want)


def test_parts_keep_their_own_scales(tmp_path: Path) -> None:
    """PEFT reads no such file: it doubles one rank and one alpha for all."""
    more = {"use_rslora": True, "alpha_pattern": {"w3": 5, r"experts\.1\.w1": 2}}
    save_old("mixtral", tmp_path, **more)
    model = base("mixtral")
    adapter = lorakit.attach(model, Adapter.load(tmp_path))
    delta = adapter.deltas["model.layers.1.mlp.experts.gate_up_proj"]
    tensors = load_file(tmp_path / WEIGHTS)
    for expert in range(EXPERTS):
        parts: list[Tensor] = []
        for name in ("w1", "w3"):
            layer = f"model.layers.1.block_sparse_moe.experts.{expert}.{name}"
            key = f"base_model.model.{layer}.lora"
            product = tensors[f"{key}_B.weight"].double() @ tensors[f"{key}_A.weight"].double()
            alpha = 5 if name == "w3" else 2 if expert == 1 else 6
            parts.append(product * alpha / RANK**0.5)
        assert torch.allclose(delta.matrix()[expert].double(), torch.cat(parts), atol=1e-5)


def test_experts_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    save_old("mixtral", tmp_path)
    path = tmp_path / WEIGHTS
    key = "base_model.model.model.layers.0.block_sparse_moe.experts.0.w1.lora"
    tensors = load_file(path)
    for factor in "AB":
        last = f"{key}_{factor}.weight".replace("experts.0", "experts.7")
        tensors[last] = tensors[f"{key}_{factor}.weight"].clone()
    tensors[f"{key}_A.weight"] = torch.ones(RANK, 5)
    save_file(tensors, path, {"format": "pt"})
    adapter, model = Adapter.load(tmp_path), base("mixtral")
    before = adapter.copy()
    with pytest.raises(AdapterMismatch) as caught:
        lorakit.attach(model, adapter)
    assert str(caught.value).endswith(
        "The adapter was made with transformers 4, and its experts cannot be joined as "
        "transformers 5 stores them.\n"
        "  model.layers.0.block_sparse_moe.experts.0.w1   A is (3, 5), the layer takes 32\n"
        "  model.layers.0.block_sparse_moe.experts.7.w1   is of expert 7, the model has 4\n"
        "Nothing was attached."
    )
    assert adapter == before
