"""tie: one pair of factors for an embedding and a head that shares its weight."""

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lorakit
from lorakit.algebra.combination import combine
from lorakit.algebra.truncation import resize
from lorakit.deltas.base import LowRank
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterFileError, SpecError
from lorakit.formats import loralib
from lorakit.plan.meta_adapter import attach_on_meta as planned
from lorakit.rank_search.grow import extend

from ..laws.table import bits, error, fill, state
from ..models.tied import FAMILIES, logits, tied_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
families = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.tensor([[3, 0, 5, 3], [1, 6, 0, 2]])


class Tied(nn.Module):
    """An embedding, a layer, and a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid, self.head = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mid(self.embed(ids))))


def own() -> Tied:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tied().double().eval()


def spec(**fields: Any) -> lorakit.Spec:
    return lorakit.Spec(
        **{
            "rank": 2,
            "alpha": 3.0,
            "targets": ["embed", "head"],
            "tie": True,
            "dtype": "float64",
            **fields,
        }
    )


def both(family: str) -> list[str]:
    _, embedding, head = FAMILIES[family]
    return [embedding, head, *(["shared"] if family == "t5" else [])]


def adapted(family: str) -> tuple[Any, lorakit.Adapter]:
    model = tied_model(family)
    return model, fill(
        lorakit.attach(model, lorakit.Spec(rank=2, alpha=3.0, targets=both(family), tie=True))
    )


def dense(model: Tied, A: torch.Tensor, B: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """Return what the model gives with the one sum written out; A (2, 7) and B (5, 2) are the
    embedding's.
    """
    W = model.embed.weight.detach() + weight * 1.5 * (B @ A).T
    return F.linear(torch.tanh(model.mid(F.embedding(IDS, W))), W, model.head.bias)


def test_attached_is_dense_with_one_change_on_both_sides():
    model, base = own(), own()(IDS)
    adapter = lorakit.attach(model, spec())
    assert torch.equal(model(IDS), base)
    fill(adapter)
    A, B = adapter.deltas["embed"].A, adapter.deltas["embed"].B
    assert error(base, model(IDS)) > 0.1 and error(model(IDS), dense(model, A, B).detach()) < 1e-12
    lorakit.enable(model, {"default": 0.5})
    assert error(model(IDS), dense(model, A, B, 0.5).detach()) < 1e-12
    lorakit.enable(model, None)
    assert torch.equal(model(IDS), base)


def test_a_gradient_is_what_arrives_from_both_uses():
    model = own()
    adapter = fill(lorakit.attach(model, spec()))
    A, B = list(adapter.parameters())
    model(IDS).square().sum().backward()
    want = torch.autograd.grad(dense(model, A, B).square().sum(), [A, B])
    assert all(error(p.grad, w) < 1e-10 for p, w in zip((A, B), want, strict=True))
    for p, at in ((A, (0, 3)), (A, (1, 4)), (B, (2, 0)), (B, (4, 1))):
        values = []
        for step in (1e-6, -2e-6):
            p.data[at] += step
            values.append(float(model(IDS).square().sum().detach()))
        p.data[at] += 1e-6
        assert abs((values[0] - values[1]) / 2e-6 - float(p.grad[at])) < 1e-6 * max(
            1.0, abs(float(p.grad[at]))
        )


def test_one_pair_starts_as_the_embeddings_own_and_counts_once():
    model, apart = own(), own()
    adapter, two = lorakit.attach(model, spec()), lorakit.attach(apart, spec(tie=False))
    assert torch.equal(adapter.deltas["embed"].A, two.deltas["embed"].A)
    assert [n for n, _ in adapter.named_parameters()] == ["embed.A", "embed.B"]
    assert (adapter.parameters_count, two.parameters_count) == (2 * 12, 4 * 12)
    told = lorakit.coverage(model)
    assert (told.trainable_parameters, told.total_parameters) == (24, 24 + 35 + 30 + 7)
    assert [m["name"] for m in told.modules] == ["embed", "head"]
    with torch.device("meta"):
        assert planned(Tied(), spec()).parameters_count == 24


@families
def test_merging_keeps_the_tie_and_unmerge_the_bits(family: str):
    model, _ = adapted(family)
    before, attached = state(model), logits(model)
    assert error(attached, logits(tied_model(family)).double()) > 0.01
    undo = lorakit.merge(model)
    assert error(logits(model), attached.double()) < 1e-5
    assert not undo.untied and model.config.tie_word_embeddings is True
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    lorakit.unmerge(model, undo)
    assert torch.equal(logits(model), attached)
    assert all(
        torch.equal(bits(tensor), bits(before[key])) for key, tensor in model.state_dict().items()
    )
    lorakit.detach(model)
    plain = tied_model(family)
    assert [*model.state_dict()] == [*plain.state_dict()] and torch.equal(
        logits(model), logits(plain)
    )
    assert not any(m._forward_hooks for m in model.modules())


def test_two_that_are_on_at_weights_keep_the_tie_too():
    model = own()
    for seed, name in enumerate(("one", "two")):
        fill(lorakit.attach(model, spec(), name=name, seed=seed))
    lorakit.enable(model, {"one": 0.7, "two": -0.3})
    attached = model(IDS).detach()
    lorakit.merge(model)
    assert model.head.weight is model.embed.weight and error(model(IDS), attached) < 1e-12


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_the_model_has_one_pair_of_its_own(again: Any):
    model = own()
    adapter = fill(lorakit.attach(model, spec()))
    other = again(model)
    assert torch.equal(other(IDS), model(IDS))
    before = model(IDS).detach()
    lorakit.attached(other)["default"].deltas["embed"].A.data.mul_(2.0)
    theirs = lorakit.attached(other)["default"].deltas
    assert torch.equal(theirs["head"].B, theirs["embed"].A.T) and torch.equal(model(IDS), before)
    assert other.head.lorakit._modules["default"].source is other.embed.lorakit._modules["default"]
    kept = adapter.copy()
    assert kept == adapter and kept.deltas["head"].source is kept.deltas["embed"]


def test_training_moves_the_pair_and_stays_tied():
    model = own().train()
    adapter = lorakit.attach(model, spec())
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(IDS).flatten(0, 1), IDS.roll(1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    lorakit.merge(model)
    assert model.head.weight is model.embed.weight


@families
def test_a_file_gives_one_pair_again(family: str, tmp_path: Path):
    model, adapter = adapted(family)
    adapter.save(tmp_path)
    loaded = lorakit.Adapter.load(tmp_path)
    assert loaded == adapter and loaded.parameters_count == adapter.parameters_count
    assert [type(d) for d in loaded.deltas.values()] == [type(d) for d in adapter.deltas.values()]
    other = tied_model(family)
    lorakit.attach(other, loaded)
    assert torch.equal(logits(other), logits(model))
    lorakit.merge(other)
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight


@pytest.mark.slow
@families
def test_peft_computes_the_same_from_our_file(family: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    model, adapter = adapted(family)
    adapter.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tied_model(family), tmp_path).eval()
    assert peft.PeftConfig.from_pretrained(tmp_path).ensure_weight_tying is True
    assert error(logits(theirs.base_model.model), logits(model).double()) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bert"])
def test_a_file_of_peft_is_read_as_it_is(family: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=6, lora_dropout=0.25, target_modules=both(family), ensure_weight_tying=True
    )
    theirs = peft.get_peft_model(tied_model(family), config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_embedding" in name:
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    adapter = lorakit.Adapter.load(tmp_path)
    one, two = (
        adapter.deltas[next(n for n in adapter.deltas if n.endswith(both(family)[0]))],
        [*adapter.deltas.values()],
    )
    # What BERT's head is called keeps PEFT from tying it, without a word: its file holds two pairs.
    assert adapter.spec.tie is any(isinstance(d, TiedLowRank) for d in two) is (family != "bert")
    assert one.dropout == 0 and {d.dropout for d in two if d is not one} == {0.25}
    model = tied_model(family)
    lorakit.attach(model, adapter)
    assert error(logits(model), logits(theirs.base_model.model).double()) < 1e-5
    lorakit.detach(model)
    if family != "bert":
        assert lorakit.attach(model, adapter.spec).parameters_count == adapter.parameters_count


def test_an_edited_file_is_refused(tmp_path: Path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    model = own()
    fill(lorakit.attach(model, spec())).save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
        metadata = file.metadata()
    tensors["base_model.model.head.lora_A.weight"][0, 0] += 1
    save_file(tensors, path, metadata)
    with pytest.raises(AdapterFileError) as caught:
        lorakit.Adapter.load(tmp_path, unchecked=True)
    assert (
        "header: tie is on, but no layer has the factors of an embedding: one of them was edited"
        in str(caught.value)
    )


def test_a_spec_that_says_more_than_the_factors_is_not_saved(tmp_path: Path):
    adapter = lorakit.attach(own(), spec(tie=False))
    with pytest.raises(AdapterFileError) as caught:
        lorakit.Adapter(spec(), adapter.deltas).save(tmp_path / "a")
    assert "spec   tie is on, but no delta has the factors of an embedding" in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_config_without_tie_does_not_name_it(tmp_path: Path):
    lorakit.attach(own(), spec(tie=False)).save(tmp_path)
    assert "ensure_weight_tying" not in json.loads((tmp_path / "adapter_config.json").read_text())


def test_a_larger_pair_goes_on_from_a_smaller_one():
    small = fill(lorakit.attach(own(), spec()))
    large = lorakit.attach(own(), spec(rank=3))
    extend(small, large)
    assert error(large.deltas["head"].matrix(), small.deltas["head"].matrix()) < 1e-12
    assert bool(large.deltas["embed"].A[2].any())  # what is new of it can learn


@pytest.mark.parametrize("size", [{"rank": 1}, {"energy": 0.8}, {"parameters": 12}], ids=str)
def test_a_resized_pair_is_one_pair(size: dict[str, Any], tmp_path: Path):
    adapter = fill(lorakit.attach(own(), spec()))
    made = resize(adapter, **size).adapter
    assert (
        made.spec.tie is True
        and [*made.deltas] == ["embed", "head"]
        and made.parameters_count == 12
    )
    made.save(tmp_path)
    assert lorakit.Adapter.load(tmp_path) == made
    model = own()
    lorakit.attach(model, made)
    lorakit.merge(model)
    assert model.head.weight is model.embed.weight


def test_a_sum_of_pairs_is_two_pairs_that_compute_alike():
    one, two = (fill(lorakit.attach(own(), spec(), seed=n), seed=n) for n in (0, 1))
    made = combine([(one, 1.0), (two, 0.5)]).adapter
    assert made.spec.tie is False and [type(d) for d in made.deltas.values()] == [LowRank, LowRank]
    want = one.deltas["embed"].matrix() + 0.5 * two.deltas["embed"].matrix()
    assert (
        error(made.deltas["embed"].matrix(), want) < 1e-12
        and error(made.deltas["head"].matrix(), want.T) < 1e-12
    )


def test_a_file_of_loralib_holds_both_sides(tmp_path: Path):
    adapter = fill(lorakit.attach(own(), spec()))
    tensors = torch.load(
        loralib.write(tmp_path / "a.pt", adapter.spec, adapter.deltas, {}), weights_only=True
    )
    assert torch.equal(tensors["head.lora_A"], adapter.deltas["embed"].B.T)


def test_dropout_on_the_head_alone_is_no_other_change():
    model = own()
    adapter = fill(lorakit.attach(model, spec(dropout=0.5, overrides={"embed": {"dropout": 0.0}})))
    assert [d.dropout for d in adapter.deltas.values()] == [0.0, 0.5]
    A, B = adapter.parameters()
    assert error(model(IDS), dense(model, A, B).detach()) < 1e-12
    assert not torch.equal(model.train()(IDS), model(IDS))


class Convolved(nn.Module):
    """An embedding whose weight a GPT-2 layer has."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), Conv1D(5, 7)
        self.head.weight = self.embed.weight


def untied() -> nn.Module:
    model = own()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return model


@pytest.mark.parametrize(
    ("make", "fields", "said"),
    [
        (
            own,
            {"targets": ["embed"]},
            "head   shares a weight with embed, and is not adapted: name both as targets",
        ),
        (
            own,
            {"targets": ["head"]},
            "embed   shares a weight with head, and is not adapted: name both as targets",
        ),
        (
            own,
            {"targets": ["mid"]},
            "embed   shares a weight with head, and is not adapted: name both as targets",
        ),
        (untied, {}, "Tied   has no embedding that shares its weight with another layer"),
        (
            own,
            {"overrides": {"head": {"rank": 3, "alpha": 1.0}}},
            "head   has rank 3, alpha 1.0, embed has 2, 3.0",
        ),
        (
            own,
            {"overrides": {"head": {"init": "gaussian"}}},
            "head   has init 'gaussian', embed has 'kaiming'",
        ),
        (
            own,
            {"delta": "dora"},
            "embed   delta 'dora': one pair for both is plain low rank, started by kaiming, "
            "gaussian",
        ),
        (
            own,
            {"init": "pissa"},
            "embed   init 'pissa': one pair for both is plain low rank, started by kaiming, "
            "gaussian",
        ),
        (
            Convolved,
            {},
            "head   shares the weight of embed, and is of kind conv1d: an embedding and linear "
            "layers can have",
        ),
    ],
)
def test_refused_by_name(make: Any, fields: dict[str, Any], said: str):
    model = make()
    before = [n for n, _ in model.named_modules()]
    with pytest.raises(SpecError) as caught:
        lorakit.attach(model, spec(**fields))
    assert said in str(caught.value) and "Nothing was attached." in str(caught.value)
    assert [n for n, _ in model.named_modules()] == before and not lorakit.attached(model)


def test_tie_is_yes_or_no():
    with pytest.raises(SpecError, match="tie: True or False is needed, got 'yes'"):
        spec(tie="yes")


def test_a_start_that_moves_is_refused_by_the_plan_too():
    with (
        torch.device("meta"),
        pytest.raises(
            SpecError, match="head   has the factors of an embedding: init 'pissa' cannot"
        ),
    ):
        planned(Tied(), spec(init="pissa"))
