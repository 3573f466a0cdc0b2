"""Frozen bases in int8 and 4 bits: the quantised layer's own output plus the factored change; merging refuses, with figures."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.errors import MergeError

from .table import error, fill, randn

X = randn(5, 64).float()


def base() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32))
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 8)
    return model


def torchao(bits: int) -> nn.Sequential:
    quantization = pytest.importorskip("torchao.quantization", reason="pip install 'lorakit[quantised]'")
    granularity = pytest.importorskip("torchao.quantization.granularity")
    config = quantization.Int8WeightOnlyConfig()
    if bits == 4:
        config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity.PerGroup(16))
    model = base()
    quantization.quantize_(model, config)
    return model


def bitsandbytes(form: str) -> nn.Sequential:
    bnb = pytest.importorskip("bitsandbytes", reason="pip install 'lorakit[quantised]'")
    model = base()
    for at in (0, 2):
        plain = model[at]
        size = (plain.in_features, plain.out_features)
        layer = (
            bnb.nn.Linear8bitLt(*size, has_fp16_weights=False) if form == "int8" else bnb.nn.Linear4bit(*size, quant_type=form)
        )
        layer.load_state_dict(plain.state_dict())
        model[at] = layer
    return model.to("cpu")


# How it is made; what its outputs may differ by from those in float, relative: hundredths for int8, tenths for 4 bits.
FORMS: dict[str, tuple[Callable[[], nn.Sequential], float]] = {
    "torchao-int8": (lambda: torchao(8), 0.01), "torchao-int4": (lambda: torchao(4), 0.15),
    "bitsandbytes-int8": (lambda: bitsandbytes("int8"), 0.02), "bitsandbytes-nf4": (lambda: bitsandbytes("nf4"), 0.3),
    "bitsandbytes-fp4": (lambda: bitsandbytes("fp4"), 0.35),
}  # fmt: skip
forms = pytest.mark.parametrize("form", FORMS)


def adapted(form: str, **more: object) -> tuple[nn.Sequential, lorakit.Adapter]:
    model = FORMS[form][0]()
    return model, fill(lorakit.attach(model, lorakit.Spec(rank=3, alpha=1.5, **more)))  # type: ignore[arg-type]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


@forms
def test_fresh_equals_base_and_detach_gives_it_back(form: str):
    model = FORMS[form][0]()
    before = model(X).detach()
    lorakit.attach(model, lorakit.Spec(rank=3))
    assert torch.equal(model(X), before)
    assert {m["kind"] for m in lorakit.coverage(model).modules} == {"linear"}
    lorakit.detach(model)
    assert torch.equal(model(X), before) and not any("lorakit" in name for name, _ in model.named_modules())


@forms
def test_attached_is_the_layers_own_output_and_the_change(form: str):
    model, adapter = adapted(form)
    plain = FORMS[form][0]()
    for name in ("0", "2"):
        x = randn(5, plain[int(name)].in_features).float()
        want = plain[int(name)](x).detach().double() + x.double() @ adapter.deltas[name].matrix().detach().double().T
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


@forms
def test_merging_is_refused_with_both_movements(form: str):
    model, adapter = adapted(form)
    on = model(X).detach()
    with pytest.raises(MergeError) as caught:
        lorakit.merge(model)
    text = str(caught.value)
    assert "2 weights cannot be merged: stored as" in text and form.partition("-")[0] in text
    assert (
        "0.weight   rounding the sum back would move its output by about" in text and "(relative), the adapter itself" in text
    )
    assert (
        "any_base=True (`lorakit merge --any-base --dtype bfloat16`), or use the adapter unmerged. Nothing was changed." in text
    )
    assert torch.equal(model(X), on) and lorakit.enabled(model) == {"default": 1.0}
    said = float(text.split("itself moves it by ")[1].split()[0])
    own = adapter.deltas["0"].matrix().detach().norm() / base()[0].weight.detach().norm()
    assert abs(said / float(own) - 1) < 0.1
    lost = float(text.split("move its output by about ")[1].split()[0])
    assert 0.1 * FORMS[form][1] < lost < 2 * FORMS[form][1]


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
