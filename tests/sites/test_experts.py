"""Stacks of experts: the laws on the model families that have them, in each way that transformers
multiplies by them.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorakit
from lorakit.deltas.base import LowRank
from lorakit.errors import SpecError
from lorakit.sites.experts import ExpertsSite, UnsummedWeight

from ..laws.table import bits, error, fill, randn, state
from .experts import FAMILIES, FORMS, experts_model, logits

STACKS = dict.fromkeys(FAMILIES, ("*experts.gate_up_proj", "*experts.down_proj")) | {
    "jetmoe": ("*.weight",)
}
forms = pytest.mark.parametrize(
    ("family", "way"), FORMS, ids=["-".join(filter(None, form)) for form in FORMS]
)
families = pytest.mark.parametrize("family", FAMILIES)


def close(model: Any) -> float:
    """Return what sums in another order may differ by: the norms of these models are in float32."""
    return 2e-5 if next(model.parameters()).dtype == torch.float32 else 2e-6


def changed(model: Any, adapter: lorakit.Adapter, weight: float = 1.0) -> Any:
    """Return a plain copy of a model with the adapter's change in its weights, written out from the
    definition.
    """
    plain = copy.deepcopy(model)
    lorakit.detach(plain)
    for name, delta in adapter.deltas.items():
        change = weight * delta.scale * (delta.B.detach().double() @ delta.A.detach().double())
        own = plain.get_parameter(name if delta.kind == "experts" else f"{name}.weight")
        turned = delta.kind == "experts" and getattr(
            plain.get_submodule(name.rpartition(".")[0]), "is_transposed", False
        )
        own.data.copy_(own.data.double() + (change.mT if turned else change))
    return plain


def adapted(family: str, way: str = "", **more: Any) -> tuple[Any, lorakit.Adapter]:
    model = experts_model(family, way)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return model, fill(lorakit.attach(model, lorakit.Spec(rank=3, alpha=1.5, dtype=dtype, **more)))


@forms
def test_fresh_equals_base(family: str, way: str):
    model = experts_model(family, way)
    before = logits(model)
    adapter = lorakit.attach(model, lorakit.Spec(rank=3))
    assert {d.kind for d in adapter.deltas.values()} == {"linear", "experts"}
    assert torch.equal(logits(model), before)


@pytest.mark.slow
@forms
def test_attached_equals_dense(family: str, way: str):
    model, adapter = adapted(family, way)
    want = logits(changed(model, adapter)).detach()
    assert error(logits(model), want) < close(model)
    assert error(logits(experts_model(family, way)), want) > 0.1


@forms
def test_merged_equals_attached_and_unmerge_restores_bits(family: str, way: str):
    model, _ = adapted(family, way)
    attached, before = logits(model).detach(), state(model)
    undo = lorakit.merge(model)
    assert error(logits(model), attached) < close(model)
    lorakit.unmerge(model, undo)
    after = state(model)
    assert all(torch.equal(bits(after[key]), bits(before[key])) for key in before)
    assert torch.equal(logits(model), attached)


@forms
def test_gradients_are_those_of_the_dense_change(family: str, way: str):
    model, adapter = adapted(family, way)
    logits(model).square().sum().backward()
    plain = changed(model, adapter).requires_grad_(True)
    logits(plain).square().sum().backward()
    for name, delta in adapter.deltas.items():
        if delta.kind != "experts":
            continue
        dense = plain.get_parameter(name).grad
        turned = getattr(plain.get_submodule(name.rpartition(".")[0]), "is_transposed", False)
        dense = dense.mT if turned else dense
        for got, want in (
            (delta.A.grad, delta.scale * delta.B.mT @ dense),
            (delta.B.grad, delta.scale * dense @ delta.A.mT),
        ):
            assert got is not None and got.any()
            assert error(got, want.detach()) < 1e-3 * float(want.detach().abs().max())
    assert all(p.grad is None for n, p in model.named_parameters() if "lorakit" not in n)


@pytest.mark.slow
@forms
def test_two_add_up_and_switch(family: str, way: str):
    model, one = adapted(family, way)
    two = fill(
        lorakit.attach(model, lorakit.Spec(rank=2, targets=[*STACKS[family]]), name="two"), seed=4
    )
    lorakit.enable(model, {"default": 0.5, "two": -2.0})
    both = changed(model, one, 0.5)
    for name, parameter in changed(model, two, -2.0).named_parameters():
        own = both.get_parameter(name)
        own.data.copy_(own + parameter - experts_model(family, way).get_parameter(name))
    assert error(logits(model), logits(both).detach()) < 4 * close(model)
    lorakit.enable(model, None)
    assert torch.equal(logits(model), logits(experts_model(family, way)))


@families
def test_presets_and_coverage_name_the_stacks(family: str):
    model, adapter = adapted(family)
    stacks = [name for name, delta in adapter.deltas.items() if delta.kind == "experts"]
    assert stacks and all(
        delta.A.shape[0] == 4 for delta in adapter.deltas.values() if delta.kind == "experts"
    )
    told = lorakit.coverage(model)
    assert [m["name"] for m in told.modules if m["kind"] == "experts"] == stacks
    assert not any(m["kind"] == "experts" for m in told.skipped)
    bare = experts_model(family)
    lorakit.attach(bare, lorakit.Spec(targets=["q_proj"] if family != "jetmoe" else ["kv_proj"]))
    assert [m["name"] for m in lorakit.coverage(bare).skipped if m["kind"] == "experts"] == stacks
    if family != "jetmoe":
        assert [n for n in lorakit.select(bare, "mlp") if "experts" in n.split(".")] == stacks


@families
def test_copies_and_detach(family: str):
    model, _ = adapted(family)
    want = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), want)
    lorakit.detach(model)
    assert torch.equal(logits(model), logits(experts_model(family)))
    assert not any("lorakit" in name for name, _ in model.named_modules())
    assert torch.equal(logits(twin), want)


@pytest.mark.slow
def test_no_dense_change_is_made(monkeypatch: pytest.MonkeyPatch):
    def summed(self: UnsummedWeight) -> Tensor:
        raise AssertionError("the change was summed")

    monkeypatch.setattr(UnsummedWeight, "build_sum", summed)
    for family, way in FORMS:
        model, _ = adapted(family, way)
        logits(model).sum().backward()


@pytest.mark.slow
def test_compiled_equals_eager_without_a_graph_break():
    model, _ = adapted("qwen3-moe", "batched_mm")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert error(logits(compiled), logits(model).detach()) < close(model)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames the method
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool):
    gradients = []
    for checkpoint in (False, True):
        model, adapter = adapted("mixtral", "eager")
        model.train()
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        logits(model).square().mean().backward()
        gradients.append([p.grad for p in adapter.parameters()])
    assert all(
        torch.allclose(one, two, rtol=1e-6, atol=1e-12) for one, two in zip(*gradients, strict=True)
    )


def test_an_error_restores_the_stack():
    model, _ = adapted("mixtral")
    experts = model.get_submodule("model.layers.0.mlp.experts")
    with pytest.raises(TypeError):
        experts(None, None, None)
    assert isinstance(experts.gate_up_proj, nn.Parameter)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"rank": 40}, "rank 40 is above min(in, out) = 32"),
        ({"rank": 2, "dropout": 0.5}, "reads this weight itself, so the input of A cannot be seen"),
        (
            {"rank": 2, "delta": "dora"},
            "a stack of experts can only have delta 'lora'",
        ),
    ],
)
def test_settings_that_a_stack_cannot_use_are_refused(more: dict[str, Any], fault: str):
    model = experts_model("mixtral")
    with pytest.raises(SpecError) as caught:
        lorakit.attach(model, lorakit.Spec(targets=["experts.down_proj"], **more))
    assert fault in str(caught.value) and lorakit.attached(model) == {}


def unsummed(*batch: int) -> UnsummedWeight:
    return UnsummedWeight(
        randn(*batch, 6, 5), [(randn(*batch, 6, 2, seed=1), randn(*batch, 2, 5, seed=2))]
    )


USES = {
    "linear": lambda M: F.linear(randn(3, 5), M(), randn(6)),
    "linear-transposed": lambda M: F.linear(randn(3, 6), M().transpose(0, 1)),
    "linear-keyword": lambda M: F.linear(randn(3, 5), M(), bias=randn(6)),
    "matmul": lambda M: randn(3, 6) @ M(),
    "matmul-left": lambda M: torch.matmul(M(), randn(5, 3)),
    "mm": lambda M: torch.mm(M(), randn(5, 3)),
    "bmm": lambda M: torch.bmm(randn(4, 3, 6), M(4)),
    "bmm-left": lambda M: torch.bmm(M(4), randn(4, 5, 3)),
    "rows": lambda M: torch.bmm(randn(3, 1, 6), M(4)[torch.tensor([2, 0, 2])]),
    "one": lambda M: F.linear(randn(3, 5), M(4)[1]),
    "slice": lambda M: M(4)[1:3].sum(0),
    "mask": lambda M: M(4)[torch.tensor([True, False, True, False])],
    "einsum": lambda M: torch.einsum("eoi,i->eo", M(4), randn(5)),
    "transpose-batch": lambda M: M(4).transpose(0, 1).contiguous(),
    "keyword": lambda M: F.linear(input=randn(3, 5), weight=M()),
    "sum": lambda M: M().sum(),
    "plus": lambda M: torch.add(M(), 1.0),
}


@pytest.mark.parametrize("use", USES)
def test_an_unsummed_weight_equals_the_sum_in_every_use(use: str):
    got, want = USES[use](unsummed), USES[use](lambda *batch: unsummed(*batch).build_sum())
    assert got.shape == want.shape and error(got, want) < 1e-12


def test_other_deltas_are_summed(monkeypatch: pytest.MonkeyPatch):
    class Own(LowRank):
        is_product = False

        def matrix(self, M: Tensor | None = None) -> Tensor:
            return super().matrix(M)

    model, adapter = adapted("mixtral")
    want = logits(model).detach()
    for delta in adapter.deltas.values():
        delta.__class__ = Own
    monkeypatch.setattr(
        UnsummedWeight,
        "__init__",
        lambda *args: pytest.fail("an unsummed weight is for low rank alone"),
    )
    assert error(logits(model), want) < close(model)
    assert all(
        isinstance(site, ExpertsSite)
        for site in model.model.layers[0].mlp.experts.lorakit.sites.values()
    )
