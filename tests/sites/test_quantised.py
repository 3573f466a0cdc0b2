"""Frozen bases in int8 and 4 bits: the quantised layer's own output plus the factored change;
merged where that keeps it.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.errors import MergeError, ModelError

from ..laws.table import error, fill, randn

X = randn(5, 64).float()


def base() -> nn.Sequential:
    # Rows of whole blocks of 64: bitsandbytes 0.50 reads others with the scales of their neighbours
    # on a CPU.
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32))
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 8)
    return model


def torchao(model: nn.Sequential, bits: int) -> nn.Sequential:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="pip install 'lorakit[quantised]'"
    )
    granularity = pytest.importorskip("torchao.quantization.granularity")
    config = quantization.Int8WeightOnlyConfig()
    if bits == 4:
        config = quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=granularity.PerGroup(16)
        )
    quantization.quantize_(model, config)
    return model


def bitsandbytes(model: nn.Sequential, form: str) -> nn.Sequential:
    bnb = pytest.importorskip("bitsandbytes", reason="pip install 'lorakit[quantised]'")
    for at in (0, 2):
        plain = model[at]
        size = (plain.in_features, plain.out_features)
        layer = (
            bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
            if form == "int8"
            else bnb.nn.Linear4bit(*size, quant_type=form)
        )
        layer.load_state_dict(plain.state_dict())
        model[at] = layer
    return model.to("cpu")


# How it is made; what its outputs may differ by from those in float, relative: hundredths for int8,
# tenths for 4 bits.
COARSEN: dict[str, tuple[Callable[[nn.Sequential], nn.Sequential], float]] = {
    "torchao-int8": (lambda model: torchao(model, 8), 0.01),
    "torchao-int4": (lambda model: torchao(model, 4), 0.15),
    "bitsandbytes-int8": (lambda model: bitsandbytes(model, "int8"), 0.02),
    "bitsandbytes-nf4": (lambda model: bitsandbytes(model, "nf4"), 0.2),
    "bitsandbytes-fp4": (lambda model: bitsandbytes(model, "fp4"), 0.25),
}
FORMS = {
    form: (lambda coarsen=coarsen: coarsen(base()), error)
    for form, (coarsen, error) in COARSEN.items()
}
forms = pytest.mark.parametrize("form", FORMS)
four_bits = pytest.mark.parametrize("form", ["bitsandbytes-nf4", "bitsandbytes-fp4"])


def adapted(form: str, alpha: float = 1.5) -> tuple[nn.Sequential, lorakit.Adapter]:
    model = FORMS[form][0]()
    return model, fill(lorakit.attach(model, lorakit.Spec(rank=3, alpha=alpha)))


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


@forms
def test_fresh_equals_base_and_detach_restores_it(form: str):
    model = FORMS[form][0]()
    before = model(X).detach()
    lorakit.attach(model, lorakit.Spec(rank=3))
    assert torch.equal(model(X), before)
    assert {m["kind"] for m in lorakit.coverage(model).modules} == {"linear"}
    lorakit.detach(model)
    assert torch.equal(model(X), before) and not any(
        "lorakit" in name for name, _ in model.named_modules()
    )


@forms
def test_attached_equals_the_layers_output_plus_the_change(form: str):
    model, adapter = adapted(form)
    plain = FORMS[form][0]()
    for name in ("0", "2"):
        x = randn(5, plain[int(name)].in_features).float()
        want = (
            plain[int(name)](x).detach().double()
            + x.double() @ adapter.deltas[name].matrix().detach().double().T
        )
        assert error(model[int(name)](x), want) < 1e-5


@forms
def test_read_is_the_matrix_that_the_layer_multiplies_by(form: str):
    model = FORMS[form][0]()
    for name, place in lorakit.select(model).items():
        layer = model[int(name)]
        own = (layer(torch.eye(layer.in_features)) - layer.bias).T
        assert error(place.site.read(layer).float(), own.detach().double()) < 1e-5


@forms
def test_the_error_is_that_of_the_base_alone(form: str):
    model, adapter = adapted(form)
    exact, coarse = base(), base()
    for name, place in lorakit.select(FORMS[form][0]()).items():
        coarse[int(name)].weight.data.copy_(place.site.read(place.layer))
    for plain in (exact, coarse):
        lorakit.attach(plain, adapter.copy(), any_base=True)
    plainly = relative(coarse(X), exact(X))
    assert 0 < plainly < FORMS[form][1] < relative(exact(X), base()(X))
    assert relative(model(X), exact(X)) < 1.01 * plainly


@forms
@pytest.mark.parametrize("delta", ["lora", "dora"])
def test_training_lowers_the_loss_and_leaves_the_base(form: str, delta: str):
    model = FORMS[form][0]()
    before = copy.deepcopy(model)(X).detach()
    adapter = lorakit.attach(model, lorakit.Spec(rank=3, delta=delta))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    want, losses = randn(5, 32, seed=3).float(), []
    for _ in range(8):
        loss = (model(X) - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert losses[-1] < 0.9 * losses[0]
    lorakit.enable(model, None)
    assert torch.equal(model(X), before)


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Return all bits of a model: state_dict tells scales beside codes."""
    found = {}
    for name, tensor in model.state_dict().items():
        inner = type(tensor).__module__.startswith("torchao") and tensor.__tensor_flatten__()[0]
        found |= (
            {f"{name}.{n}": getattr(tensor, n).clone() for n in inner}
            if inner
            else {name: tensor.clone()}
        )
    return found


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one
    )


@forms
def test_merging_is_refused_where_rounding_moves_more_than_the_adapter(form: str):
    model, adapter = adapted(form, alpha=0.003)
    on, before = model(X).detach(), stored(model)
    with pytest.raises(MergeError) as caught:
        lorakit.merge(model)
    text = str(caught.value)
    assert (
        "In 2 of 2 weights, rounding the sum would move the output as much as the adapter does, "
        "or more.\n" in text
    )
    assert (
        f"0.weight   is stored as {lorakit.select(model)['0'].site.quantised_form(model[0])}: "
        "rounding would move its" in text
    )
    assert form.partition("-")[0] in text and "(relative), the adapter moves it by" in text
    assert (
        "Merge into a 16-bit copy (`lorakit merge --dtype bfloat16`; in Python, load the base in "
        "full "
        "precision and attach there with any_base=True), use the adapter unmerged, or accept the "
        "loss (`lorakit merge --allow-loss`, "
        "merge(model, allow_loss=True)). Nothing was changed." in text
    )
    assert (
        torch.equal(model(X), on)
        and lorakit.enabled(model) == {"default": 1.0}
        and same_bits(stored(model), before)
    )
    lost, own = (
        float(text.split(cut)[1].split()[0]) for cut in ("move its output by ", "moves it by ")
    )
    assert (
        lost >= own
        and abs(
            own / float(adapter.deltas["0"].matrix().detach().norm() / weight(form, "0").norm()) - 1
        )
        < 0.1
    )


def weight(form: str, name: str, coarse: bool = True) -> Tensor:
    place = lorakit.select(FORMS[form][0]() if coarse else base())[name]
    return place.site.read(place.layer).float()


@forms
@pytest.mark.parametrize("alpha", [0.003, 3.0])
def test_a_merge_is_the_exact_sum_rounded_once_by_the_packages_own_code(form: str, alpha: float):
    model, adapter = adapted(form, alpha=alpha)
    before, attached = stored(FORMS[form][0]()), model(X).detach()
    undo = lorakit.merge(model, allow_loss=alpha < 1)
    exact = base()
    for name in ("0", "2"):
        exact[int(name)].weight.data.copy_(
            weight(form, name) + adapter.deltas[name].matrix().detach()
        )
        told, M = undo.rounding[f"{name}.weight"], weight(form, name)
        got = lorakit.select(model)[name].site.read(model[int(name)]).float()
        assert abs(told.rounding / relative_to(M, got, exact[int(name)].weight) - 1) < 1e-3
        assert abs(told.adapter / relative_to(M, M, exact[int(name)].weight) - 1) < 1e-3
        assert told.changed == int((got != M).sum()) > 0
    want = stored(COARSEN[form][0](exact))
    lorakit.detach(model)
    assert same_bits(stored(model), want) and not same_bits(want, before)
    assert alpha < 1 or relative(model(X), attached) < 3 * FORMS[form][1]


def relative_to(M: Tensor, one: Tensor, other: Tensor) -> float:
    return float((one - other.detach()).norm() / M.norm())


@forms
def test_unmerge_restores_the_stored_bits(form: str):
    model, _ = adapted(form)
    attached, bits = model(X).detach(), stored(model)
    undo = lorakit.merge(model)
    merged = model(X).detach()
    assert 0 < relative(merged, attached) < 3 * FORMS[form][1]
    lorakit.unmerge(model, undo)
    assert torch.equal(model(X), attached) and same_bits(stored(model), bits)
    lorakit.detach(model)
    assert same_bits(stored(model), stored(FORMS[form][0]())) and torch.equal(
        model(X), FORMS[form][0]()(X)
    )


def test_merging_into_a_form_that_cannot_be_made_is_refused():
    model = FORMS["torchao-int8"][0]()
    kind = type(model[0].weight)
    names, form = model[0].weight.__tensor_flatten__()
    other = type("Float6Tensor", (kind,), {"__module__": kind.__module__})
    kept = other.__tensor_unflatten__(
        {name: getattr(model[0].weight, name) for name in names}, form, None, None
    )
    model[0]._parameters["weight"] = nn.Parameter(kept, requires_grad=False)
    fill(lorakit.attach(model, lorakit.Spec(rank=3)))
    with pytest.raises(MergeError) as caught:
        lorakit.merge(model, allow_loss=True)
    assert "0.weight   a sum cannot be stored as Float6Tensor of torchao here" in str(caught.value)


@four_bits
def test_a_forward_in_eval_mode_leaves_the_weight_and_the_gradient(form: str):
    model = FORMS[form][0]().eval()
    bits = stored(model)
    adapter = fill(lorakit.attach(model, lorakit.Spec(rank=3)))
    with torch.no_grad():
        model(X)
    assert same_bits({k: v for k, v in stored(model).items() if "lorakit" not in k}, bits)
    loss = model(X).square().mean()
    assert all(g.any() for g in torch.autograd.grad(loss, list(adapter.parameters())))
    may_pack = getattr(FORMS[form][0]()[0], "support_avx512bf16_for_cpu", False)
    lorakit.detach(model)
    assert model[0].support_avx512bf16_for_cpu == may_pack


def test_a_packed_base_is_refused():
    model = FORMS["bitsandbytes-nf4"][0]()
    model[2].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError) as caught:
        lorakit.attach(model, lorakit.Spec(rank=3))
    assert (
        "bitsandbytes has packed 1 4-bit layer for inference on this CPU, in a forward in eval "
        "mode: " in str(caught.value)
    )
    assert (
        "no gradient passes them, and their scales were rounded.\n  2\n"
        "Load the base again, and attach" in str(caught.value)
    )
    assert lorakit.attached(model) == {}


@forms
def test_a_16_bit_copy_takes_the_merge(form: str, tmp_path: Path):
    model, adapter = adapted(form)
    read = lorakit.Adapter.load(adapter.save(tmp_path))
    assert read == adapter
    full = base().to(torch.bfloat16)
    lorakit.attach(full, read, any_base=True)
    lorakit.merge(full)
    lorakit.detach(full)
    assert relative(full(X.bfloat16()).float(), model(X)) < FORMS[form][1] + 0.02
