"""Laws of values: outputs and merged weights against the dense formula in float64."""

import copy
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import lorakit
from lorakit.inject import mixed_batch

from .table import Row, error, fill, largest, randn, same_bits, state, within

SCALE = 4.5 / 3  # alpha / rank of Row.spec
RANK_2_SCALE = 4.5 / 2


def attached_equals_dense(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    base = row.base_output()
    x = row.x()
    want = row.dense(model, row.change(adapter, SCALE))
    plain = row.plain(base, adapter, SCALE)
    y = model.layer(x)
    assert within(y, want, plain, row.dtype)
    assert error(base, want) > 0.1  # the adapter changes the output
    by_name = model.layer(x=x) if row.kind.startswith("conv1d") else model.layer(input=x)
    assert torch.equal(by_name, y)
    assert model.layer(x[:0]).shape == (0, *want.shape[1:])
    one = row.first_input
    assert within(model.layer(x[one]), want[one], plain[one], row.dtype)


def merged_equals_attached(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    change = row.change(adapter, SCALE)
    want = row.dense(model, change)
    plain = row.formula(model, change, row.dtype)
    lorakit.merge(model)
    assert within(model.layer(row.x()), want, plain, row.dtype)
    lorakit.detach(model)
    assert within(model.layer(row.x()), want, plain, row.dtype)


def merge_rounds_once(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    other = fill(lorakit.attach(model, row.spec(), name="other"), seed=5)
    lorakit.enable(model, {"default": 0.5, "other": -2.0})
    M = row.matrix(model.layer.weight.detach().double().clone())
    exact = M + 0.5 * row.change(adapter, SCALE) - 2.0 * row.change(other, SCALE)
    lorakit.merge(model)
    got = row.matrix(model.layer.weight.detach()).double()
    if row.precision in ("float32", "float64"):
        assert error(got, exact) <= 8 * torch.finfo(row.dtype).eps * largest(exact)
        return
    best = (exact.to(row.dtype).double() - exact).abs()
    # A change that is no plain product is a longer sum in float32: near a tie it may round the
    # other way.
    slack = 0.0 if row.delta == "lowrank" else 1e-6 * largest(exact)
    wrong = int(((got - exact).abs() > best + slack).sum())
    assert wrong == 0, f"{wrong} of {got.numel()} weights are wrongly rounded"


def unmerge_restores_bits(row: Row, folder: Path) -> None:
    model, _ = row.attached()
    before = state(model)
    output = model(row.x())
    undo = lorakit.merge(model)
    assert not same_bits(state(model), before)
    assert lorakit.enabled(model) == {}
    lorakit.unmerge(model, undo)
    assert same_bits(state(model), before)
    assert lorakit.enabled(model) == {"default": 1.0}
    assert torch.equal(model(row.x()), output)


def two_adapters_add_up(row: Row, folder: Path) -> None:
    model, one = row.attached("one")
    two = fill(lorakit.attach(model, row.spec(rank=2), name="two"), seed=9)
    base = row.base_output()
    change_one = row.change(one, SCALE)
    change_two = row.change(two, RANK_2_SCALE)
    lorakit.enable(model, {"one": 0.5, "two": -2.0})
    want = row.dense(model, 0.5 * change_one, -2.0 * change_two)
    plain = row.plain(base, one, SCALE, 0.5)
    plain = row.plain(plain, two, RANK_2_SCALE, -2.0, base)
    assert within(model.layer(row.x()), want, plain, row.dtype)
    lorakit.enable(model, "two")
    want = row.dense(model, change_two)
    plain = row.plain(base, two, RANK_2_SCALE)
    assert within(model.layer(row.x()), want, plain, row.dtype)


def alpha_scales(row: Row, folder: Path) -> None:
    one = row.attached()[1].deltas["layer"]
    two = row.attached(alpha=9.0)[1].deltas["layer"]
    assert abs(one.scale - SCALE) < 1e-12
    if row.delta not in ("dora", "offset"):
        assert torch.equal(two.matrix(), 2 * one.matrix())
    root_scale = 4.5 / 3**0.5
    _, rooted = row.attached(scale_rule="alpha/sqrt(rank)")
    root = rooted.deltas["layer"]
    assert abs(root.scale - root_scale) < 1e-12
    assert error(root.matrix(row.base()), row.change(rooted, root_scale)) < 1e-5


def the_output_has_the_scale(row: Row, folder: Path) -> None:
    model, adapter = row.attached(alpha=-9.0, scale_rule="alpha/sqrt(rank)")
    scale = -9.0 / 3**0.5
    want = row.dense(model, row.change(adapter, scale))
    plain = row.plain(row.base_output(), adapter, scale)
    assert within(model.layer(row.x()), want, plain, row.dtype)


def rank_bounds_the_change(row: Row, folder: Path) -> None:
    for rank in (1, 3):
        _, adapter = row.attached(rank=rank)
        delta = adapter.deltas["layer"]
        most = rank
        if row.delta == "loha":
            most = min(rank**2, *delta.shape)
        if row.delta == "lokr":  # the ranks of both factors, multiplied
            rank_of_w2 = rank if delta.w2 is None else min(delta.w2.shape)
            most = min(delta.w1.shape) * rank_of_w2
        if row.delta in ("loha", "lokr"):
            change = row.change(adapter, 1.0)
        else:
            A, B = row.factors(adapter, 1.0)
            change = B @ A
        assert int(torch.linalg.matrix_rank(change, rtol=1e-5)) == most


def dropout_drops_the_delta_alone(row: Row, folder: Path) -> None:
    if row.embeds or row.is_swapped:
        return  # refused, see test_refusals
    model, adapter = row.attached(dropout=1.0)
    model.train()
    if row.delta == "dora":
        # The magnitudes stay, over the norm of the changed rows.
        left = (row.row_factor(adapter, SCALE).unsqueeze(1) - 1) * row.base()
        plain = row.formula(model, left, row.dtype)
        assert within(model.layer(row.x()), row.dense(model, left), plain, row.dtype)
    else:
        assert torch.equal(model(row.x()), row.model()(row.x()))
    without, _ = row.attached()
    assert torch.equal(model.eval()(row.x()), without(row.x()))
    model, _ = row.attached(dropout=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.train()
        assert not torch.equal(model(row.x()), model(row.x()))
    model.eval()
    assert torch.equal(model(row.x()), model(row.x()))


def moved_with_the_model(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    model.to(torch.float64)
    assert {p.dtype for p in adapter.parameters()} == {torch.float64}
    x = row.x() if row.embeds else row.x().double()
    assert error(model.layer(x), row.dense(model, row.change(adapter, SCALE))) < 1e-12


ROUTED = (
    ["one", None, {"one": 0.5, "two": -2.0}, "two"],
    ["two", "one", ["one", "two"], "one"],
)
# The ways to compute rows of different adapters: (MAX_WASTE, MIN_BATCHED_INPUTS).
WAYS = ((1 << 40, 0), (-1, 1 << 40), (-1, 0))


def rows_alone(model: nn.Module, routed: list[object], x: Tensor) -> Tensor:
    """Return the output of each row, computed alone with its adapters."""
    outputs: list[Tensor] = []
    for at, which in enumerate(routed):
        lorakit.enable(model, which)
        outputs.append(model.layer(x[at : at + 1])[0])
    return torch.stack(outputs)


def rows_equal_alone(row: Row, folder: Path) -> None:
    if row.is_swapped:
        return  # refused: all rows have the same weight
    model, one = row.attached("one")
    two = fill(lorakit.attach(model, row.spec(rank=2), name="two"), seed=9)
    factors = [*one.parameters(), *two.parameters()]
    x = torch.cat([row.x(), row.x().flip(1)])
    exact = copy.deepcopy(model).double()
    lorakit.enable(model, None)
    # Of all rows at once: a product of other sizes may round otherwise.
    base = model.layer(x)
    for routed in ROUTED:
        alone = rows_alone(model, routed, x)
        want = rows_alone(exact, routed, x if row.embeds else x.double()).detach()
        pull = randn(*alone.shape, seed=8).to(row.dtype)
        expected = torch.autograd.grad((alone * pull).sum(), factors)
        for max_waste, min_inputs in WAYS:
            with (
                mock.patch.dict(mixed_batch.MAX_WASTE, {row.dtype: max_waste}),
                mock.patch.object(mixed_batch, "MIN_BATCHED_INPUTS", min_inputs),
                lorakit.route(model, routed),
            ):
                got = model.layer(x)
            for at, which in enumerate(routed):
                assert within(got[at], want[at], alone[at], row.dtype)
                assert which is not None or torch.equal(got[at], base[at])
            if row.precision in ("float32", "float64"):
                near = 1e-6 if row.precision == "float32" else 1e-14
                assert error(got, alone.detach().double()) <= near * largest(got)
                grads = torch.autograd.grad((got * pull).sum(), factors, materialize_grads=True)
                assert_near(grads, expected, 4 * near)
    lorakit.enable(model, ["one", "two"])
    assert model.layer.lorakit.state.route is None
    assert not torch.allclose(model.layer(x), got)


def assert_near(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float) -> None:
    """Assert that tensors are equal up to a share of the largest value of all."""
    most = max(largest(tensor) for tensor in want)
    for one, other in zip(got, want, strict=True):
        assert error(one, other.double()) <= tolerance * most
