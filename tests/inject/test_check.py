"""A weight that is read past its layer: known families lend it changed, and `check` names every
other.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorakit
from lorakit import Spec
from lorakit.errors import AdapterNameError, SpecError, TargetError
from lorakit.inject.places import find_places

from ..laws.table import fill, same_bits, state
from ..models.families import CLASSES, FAMILIES, GROUPED, SPECIAL, TINY, WORDS, Family, logits

SPEECH = {k: v for k, v in TINY.items() if k != "max_position_embeddings"}
STATE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, **SPECIAL}
READERS = {
    "mamba2": (
        Family(
            "Mamba2ForCausalLM",
            {**STATE, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
            WORDS,
            {},
            "",
            {},
        ),
        {"conv1d", "out_proj"},
    ),
    "falcon_mamba": (
        Family("FalconMambaForCausalLM", {**STATE, "time_step_rank": 4}, WORDS, {}, "", {}),
        {"conv1d", "x_proj", "dt_proj", "out_proj"},
    ),
    "lfm2": (
        Family(
            "Lfm2ForCausalLM",
            {
                **GROUPED,
                "layer_types": ["conv", "full_attention"],
                "block_multiple_of": 8,
                **SPECIAL,
            },
            WORDS,
            {},
            "",
            {},
        ),
        {"conv"},
    ),
    "recurrent_gemma": (
        Family(
            "RecurrentGemmaForCausalLM",
            {**TINY, "num_hidden_layers": 3, "lru_width": 16, **SPECIAL},
            WORDS,
            {},
            "",
            {},
        ),
        {"conv_1d"},
    ),
    "wavlm": (
        Family(
            "WavLMForSequenceClassification",
            {
                **SPEECH,
                "conv_dim": [8, 8],
                "conv_kernel": [4, 2],
                "conv_stride": [4, 2],
                "num_labels": 3,
                "num_feat_extract_layers": 2,
                "num_conv_pos_embeddings": 4,
                "num_conv_pos_embedding_groups": 2,
                "classifier_proj_size": 8,
                "mask_time_prob": 0.0,
            },
            {
                "input_values": torch.randn(2, 200, generator=torch.Generator().manual_seed(1)),
                "labels": CLASSES,
            },
            {},
            "",
            {},
        ),
        {"q_proj", "k_proj", "v_proj", "out_proj"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "children"), READERS.values(), ids=READERS)
def test_children_read_by_their_parent_are_adapted_by_swapping(
    family: Family, children: set[str]
) -> None:
    model = family.build(torch.float64)
    inputs, values, known = family.given(torch.float64), state(model), find_places(model)
    assert {n.rpartition(".")[2] for n, p in known.items() if p.site.swaps_weight} == children
    base = logits(model, inputs)
    targets = [n for n, p in known.items() if p.site.swaps_weight]
    adapter = lorakit.attach(model, Spec(rank=1, targets=targets, dtype="float64"))
    assert lorakit.check(model, **inputs) == targets and adapter.target_names
    fill(adapter)
    on = logits(model, inputs)
    assert float((on - base).abs().max()) > 1e-6
    model(**inputs).loss.backward()
    assert all(p.grad.any() for p in adapter.parameters())
    lorakit.merge(model)
    torch.testing.assert_close(logits(model, inputs), on, rtol=1e-9, atol=1e-9)
    lorakit.detach(model)
    assert all(not torch.equal(state(model)[f"{n}.weight"], values[f"{n}.weight"]) for n in targets)


def test_files_name_the_child_and_not_its_parent() -> None:
    model = FAMILIES["mamba"].build()
    assert lorakit.attach(model, Spec(rank=2)).target_names == (
        "dt_proj",
        "in_proj",
        "out_proj",
        "x_proj",
    )


def test_dropout_of_swapped_weights_is_refused() -> None:
    model = FAMILIES["mamba"].build()
    with pytest.raises(SpecError) as told:
        lorakit.attach(model, Spec(rank=2, dropout=0.1))
    assert len(told.value.faults) == 6
    assert told.value.faults[0] == (
        "backbone.layers.0.mixer.x_proj   dropout 0.1: MambaMixer reads this weight itself, so "
        "the input of A cannot be seen; "
        "set it to 0 for this name with overrides"
    )
    assert lorakit.attached(model) == {}


class Past(nn.Module):
    """Calls one layer, calls and reads a second, reads a third, and leaves a fourth alone."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.both, self.read, self.idle = (nn.Linear(4, 4) for _ in range(4))
        self.seen = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x).to(self.read.weight.dtype) + torch.zeros_like(self.called.weight).sum()
        x = self.both(F.dropout(x, 0.5, self.training)) @ self.both.weight.T
        return self.seen(F.linear(input=x, weight=self.read.weight))


def test_weights_read_directly_and_idle_layers_are_named() -> None:
    model, x = Past(), torch.ones(3, 4)
    lorakit.attach(model, Spec(rank=1))
    values, random = state(model), torch.random.get_rng_state()
    with pytest.raises(TargetError) as told:
        lorakit.check(model, x)
    assert str(told.value) == (
        "3 of 4 adapted layers without a part in Past's forward.\n"
        "  both   is read without being called (by __get__): the change has no effect there\n"
        "  read   is read without being called (by linear): the change has no effect there\n"
        "  idle   did not run\n"
        "Leave them out with exclude=[...], or give an input that reaches them. Nothing was "
        "changed."
    )
    assert same_bits(state(model), values) and torch.equal(torch.random.get_rng_state(), random)
    assert all(len(m._forward_hooks) <= 1 and not m._forward_pre_hooks for m in model.modules())


def test_a_tied_head_is_named_only_if_it_is_no_layer() -> None:
    class Tied(nn.Module):
        def __init__(self, head: nn.Module | None):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), head
            if head is not None:
                head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            h = self.words(ids)
            return self.head(h) if self.head is not None else h @ self.words.weight.T

    ids = torch.arange(4)
    fine, wrong = Tied(nn.Linear(4, 9, bias=False)), Tied(None)
    lorakit.attach(fine, Spec(rank=1, targets=["words"]))
    assert lorakit.check(fine, ids) == ["words"]
    lorakit.attach(wrong, Spec(rank=1, targets=["words"]))
    with pytest.raises(TargetError, match="words   is read without being called"):
        lorakit.check(wrong, ids)


def test_a_model_without_adapters_is_refused() -> None:
    with pytest.raises(AdapterNameError, match="No adapter is attached to this Linear"):
        lorakit.check(nn.Linear(2, 2), torch.ones(1, 2))


def test_a_forward_that_fails_leaves_no_hook() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    lorakit.attach(model, Spec(rank=1))
    with pytest.raises(RuntimeError):
        lorakit.check(model, torch.ones(2, 5))
    assert len(model[0]._forward_hooks) == 1 and not model[0]._forward_pre_hooks
    assert lorakit.check(model, torch.ones(2, 4)) == ["0"]
