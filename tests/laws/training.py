"""Laws of training: what trains, and with which gradients."""

from pathlib import Path

import torch
from torch import Tensor

import lorakit

from .table import UNBIASED, Row, bits, error, fill, largest, randn, within
from .values import SCALE


def only_the_delta_trains(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    trained = list(adapter.parameters())
    ids = {id(parameter) for parameter in trained}
    assert {id(p) for p in model.parameters() if p.requires_grad} == ids
    model(row.x()).float().square().mean().backward()
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in ids)
    for parameter in trained:
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any()


def gradient_equals_differences(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    named = dict(adapter.deltas["layer"].named_parameters())
    names = [f"lorakit.default.{name}" for name in named]
    inputs = torch.tensor([[5, 0, 5]]) if row.embeds else row.x(3).requires_grad_()

    def output(x: Tensor, *factors: Tensor) -> Tensor:
        parameters = dict(zip(names, factors, strict=True))
        return torch.func.functional_call(model.layer, parameters, (x,))

    assert torch.autograd.gradcheck(output, (inputs, *named.values()))


def gradient_takes_the_norm_as_constant(row: Row, folder: Path) -> None:
    """DoRA's gradient is that of magnitude * V / |V| with |V| held fixed (its section 4.3)."""
    model, adapter = row.attached()
    delta = adapter.deltas["layer"]
    pull = randn(*model.layer(row.x()).shape, seed=8)
    factors = [delta.A, delta.B, delta.magnitude]
    got = torch.autograd.grad((model.layer(row.x()) * pull).sum(), factors)
    V = row.base() + SCALE * delta.B @ delta.A
    M = delta.magnitude.unsqueeze(1) * V / V.detach().norm(dim=1, keepdim=True)
    weight = row.as_weight(M, model.layer.weight)
    y = row.of.dense(weight, getattr(model.layer, "bias", None), row.x())
    want = torch.autograd.grad((y * pull).sum(), factors)
    if row.kind == "embedding-padded":
        want[0][:, 3] = 0  # nothing is learned from padding
    for one, other in zip(got, want, strict=True):
        assert error(one, other) < 1e-10 * max(1.0, largest(other))


def first_step_moves_B_alone(row: Row, folder: Path) -> None:
    model = row.model()
    delta = lorakit.attach(model, row.spec()).deltas["layer"]
    first = delta.get_parameter(delta.zero_parameter)
    names = (delta.zero_parameter, "magnitude")
    others = [parameter for key, parameter in delta.named_parameters() if key not in names]
    starts_with_product = row.delta == "offset"
    assert all(parameter.any() for parameter in others)
    assert first.any() == starts_with_product
    model(row.x()).float().square().mean().backward()
    assert first.grad.any()
    assert all(parameter.grad.any() == starts_with_product for parameter in others)


def a_layer_used_twice_is_adapted_twice(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    model.layer(row.x()).sum().backward()
    once = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    model.zero_grad()
    (model.layer(row.x()) + model.layer(row.x())).sum().backward()
    # With a start, A's gradient has two terms: the order of sums is another.
    slack = 8 * torch.finfo(adapter.dtype).eps if row.delta == "offset" else 0.0
    for name, parameter in adapter.named_parameters():
        want = 2 * once[name]
        assert largest(parameter.grad - want) <= slack * largest(want)


BIASES = {"none": (), "all": ("layer.bias", "rest.bias"), "adapted": ("layer.bias",)}


def biases_train_and_merge(row: Row, folder: Path) -> None:
    if row.delta in UNBIASED:
        return  # refused, see tests/deltas
    for bias, names in BIASES.items():
        model = row.model()
        own = dict(model.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in own.items()}
        adapter = lorakit.attach(model, row.spec(bias=bias))
        trained = adapter.full_parameters
        assert list(trained) == [name for name in names if name in own]
        base = row.model()(row.x())
        assert torch.equal(model(row.x()), base)
        fill(adapter)
        output = model(row.x())
        output.float().sum().backward()
        for parameter in trained.values():
            assert parameter.grad is not None
            assert parameter.grad.any()
        assert all(parameter.grad is None for parameter in own.values())
        lorakit.enable(model, None)
        assert torch.equal(model(row.x()), base)
        lorakit.enable(model, "default")
        assert torch.equal(model(row.x()), output)
        read = lorakit.Adapter.load(adapter.save(folder / bias))
        assert read == adapter
        assert read.spec.bias == bias
        fresh = row.model()
        lorakit.attach(fresh, read)
        assert torch.equal(fresh(row.x()), output)
        undo = lorakit.merge(model)
        merged_biases_are_those_of_the_adapter(row, model, output)
        for name, parameter in trained.items():
            assert torch.equal(own[name], parameter.to(row.dtype))
            assert not torch.equal(own[name], before[name])
        lorakit.unmerge(model, undo)
        assert all(torch.equal(bits(own[name]), bits(before[name])) for name in own)
        assert torch.equal(model(row.x()), output)
        lorakit.detach(model)
        after = dict(model.named_parameters())
        assert all(after[name] is own[name] for name in own)
        assert torch.equal(model(row.x()), base)


def merged_biases_are_those_of_the_adapter(
    row: Row, model: torch.nn.Sequential, output: Tensor
) -> None:
    """Assert that the merged layer is its formula, and the model's output is that before it."""
    nothing = torch.zeros(())
    want = row.formula(model, nothing, torch.float64)
    plain = row.formula(model, nothing, row.dtype)
    assert within(model.layer(row.x()), want, plain, row.dtype)
    rounding = torch.finfo(row.dtype).eps * largest(output)
    assert error(model(row.x()), output.detach().double()) <= 64 * rounding


def padding_stays(row: Row, folder: Path) -> None:
    if row.kind != "embedding-padded":
        return
    model = row.model()
    ids = torch.tensor([3, 5, 3])
    if row.delta == "dora":
        # A magnitude scales the padding row too: only a row of zeros stays.
        model.layer.weight.data[3] = 0
    before = model.layer(ids).detach().clone()
    adapter = lorakit.attach(model, row.spec())
    delta = adapter.deltas["layer"]
    delta.get_parameter(delta.zero_parameter).data.fill_(1.0)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    model.layer(ids).float().square().sum().backward()
    optimizer.step()
    after = model.layer(ids)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
