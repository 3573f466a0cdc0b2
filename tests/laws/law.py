"""The laws, as plain functions of a row and a folder: the tests hold them, and planted faults must
break them.
"""

import copy
import operator
import pickle
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import lorakit
from lorakit.inject import mixed_batch

from .table import KINDS, RANDOM, ROWS, UNBIASED, Row, bits, error, fill, randn, same_bits, state

SCALE = 4.5 / 3  # alpha / rank of Row.spec


def user_hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """A hook of somebody else's."""


def within(got: Tensor, want: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether the error is at most twice that of the plain expression at the same dtype, or
    one rounding.

    In float64 `want` is rounded too, by sums in another order: eight roundings.
    """
    roundings = 8 if dtype == torch.float64 else 1
    return error(got, want) <= 2 * error(plain, want) + roundings * torch.finfo(dtype).eps * float(
        want.abs().max()
    )


def fresh_equals_base(row: Row, folder: Path) -> None:
    model = row.model()
    before, before_all = model.layer(row.x()), model(row.x())
    lorakit.attach(model, row.spec())
    for training in (True, False):
        model.train(training)
        after = model.layer(row.x())
        assert after.dtype == row.dtype
        assert torch.equal(after, before)
        assert torch.equal(model(row.x()), before_all)


def base_is_kept(row: Row, folder: Path) -> None:
    model = row.model()
    handle = model.layer.register_forward_hook(user_hook)
    modules = {name: type(module) for name, module in model.named_modules()}
    parameters, values = dict(model.named_parameters()), state(model)
    adapter = lorakit.attach(model, row.spec())
    fill(adapter)
    model(row.x())
    after = dict(model.named_modules())
    assert {name: type(after[name]) for name in modules} == modules
    assert all("lorakit" in name.split(".") for name in after.keys() - modules.keys())
    assert isinstance(model.layer, nn.Module) and isinstance(model.rest, nn.Linear)
    assert all(
        dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items()
    )
    kept = {key: tensor for key, tensor in model.state_dict().items() if key in values}
    assert same_bits(kept, values)
    assert user_hook in model.layer._forward_hooks.values()
    handle.remove()
    assert user_hook not in model.layer._forward_hooks.values()


def only_the_delta_trains(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    trained = list(adapter.parameters())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    model(row.x()).float().square().mean().backward()
    for parameter in model.parameters():
        assert (parameter.grad is not None) == any(parameter is p for p in trained)
    for parameter in trained:
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0


def attached_equals_dense(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    base = row.model().layer(row.x()).detach()
    want = row.dense(model, row.change(adapter, SCALE))
    assert within(model.layer(row.x()), want, row.plain(base, adapter, SCALE), row.dtype)
    assert error(base, want) > 0.1  # or the law would hold for an adapter that does nothing
    x = row.x()
    keyword = model.layer(input=x) if not row.kind.startswith("conv1d") else model.layer(x=x)
    assert torch.equal(keyword, model.layer(x))
    assert model.layer(x[:0]).shape == (0, *want.shape[1:])
    assert within(
        model.layer(x[row.one]), want[row.one], row.plain(base, adapter, SCALE)[row.one], row.dtype
    )


def merged_equals_attached(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    want = row.dense(model, row.change(adapter, SCALE))
    once = row.formula(model, row.change(adapter, SCALE), row.dtype)
    lorakit.merge(model)
    assert within(model.layer(row.x()), want, once, row.dtype)
    lorakit.detach(model)
    assert within(model.layer(row.x()), want, once, row.dtype)


def merge_rounds_once(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    other = fill(lorakit.attach(model, row.spec(), name="other"), seed=5)
    lorakit.enable(model, {"default": 0.5, "other": -2.0})
    M = row.matrix(model.layer.weight.detach().double().clone())
    exact = M + 0.5 * row.change(adapter, SCALE) - 2.0 * row.change(other, SCALE)
    lorakit.merge(model)
    got = row.matrix(model.layer.weight.detach())
    if row.precision in ("bfloat16", "float16"):
        rounded, exact = exact.to(row.dtype).double(), exact.expand(got.shape)
        # What is no plain product is a longer sum in float32: next to a tie it may tip the other
        # way.
        slack = 0.0 if row.delta == "lowrank" else 1e-6 * float(exact.abs().max())
        wrong = int(((got.double() - exact).abs() > (rounded - exact).abs() + slack).sum())
        assert wrong == 0, f"{wrong} of {got.numel()} weights are wrongly rounded"
    else:
        assert float((got.double() - exact).abs().max()) <= 8 * torch.finfo(row.dtype).eps * float(
            exact.abs().max()
        )


def unmerge_restores_bits(row: Row, folder: Path) -> None:
    model, _ = row.attached()
    before, output = state(model), model(row.x())
    undo = lorakit.merge(model)
    assert not same_bits(state(model), before)
    assert lorakit.enabled(model) == {}
    lorakit.unmerge(model, undo)
    assert same_bits(state(model), before)
    assert lorakit.enabled(model) == {"default": 1.0}
    assert torch.equal(model(row.x()), output)


def detach_leaves_no_trace(row: Row, folder: Path) -> None:
    model = row.model()
    model.layer.register_forward_hook(user_hook)
    model.rest.bias.requires_grad_(False)

    def trace() -> list[object]:
        return [
            {name: type(module) for name, module in model.named_modules()},
            {name: sorted(module.__dict__) for name, module in model.named_modules()},
            {
                name: {
                    k: list(v)
                    for k, v in module.__dict__.items()
                    if isinstance(v, dict) and "hooks" in k
                }
                for name, module in model.named_modules()
            },
            {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
            model.training,
        ]

    before, values, output = trace(), state(model), model(row.x())
    fill(lorakit.attach(model, row.spec()))
    fill(
        lorakit.attach(
            model, row.spec(bias="none" if row.delta in UNBIASED else "all"), name="other"
        ),
        seed=3,
    )
    assert not torch.equal(model(row.x()), output)
    lorakit.detach(model, "other")
    lorakit.detach(model)
    assert trace() == before
    assert same_bits(state(model), values)
    assert torch.equal(model(row.x()), output)
    assert lorakit.attached(model) == {} and lorakit.enabled(model) == {}


def written_equals_read(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    output = model(row.x())
    read = lorakit.Adapter.load(adapter.save(folder / "out"))
    assert read == adapter and read.spec == adapter.spec
    assert read.provenance == adapter.provenance
    assert same_bits(dict(read.named_parameters()), dict(adapter.named_parameters()))
    fresh = row.model()
    lorakit.attach(fresh, read)
    assert torch.equal(fresh(row.x()), output)


def disabled_equals_base(row: Row, folder: Path) -> None:
    model, _ = row.attached()
    on, base = model(row.x()), row.model()(row.x())
    lorakit.enable(model, None)
    assert torch.equal(model(row.x()), base)
    lorakit.enable(model, "default")
    assert torch.equal(model(row.x()), on) and not torch.equal(on, base)


def gradient_equals_differences(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    names, factors = zip(*adapter.deltas["layer"].named_parameters(), strict=True)
    inputs = (torch.tensor([[5, 0, 5]]),) if row.embeds else (row.x(3).requires_grad_(),)

    def output(*values: Tensor) -> Tensor:
        named = {f"lorakit.default.{k}": v for k, v in zip(names, values, strict=False)}
        return torch.func.functional_call(model.layer, named, values[len(factors) :])

    assert torch.autograd.gradcheck(output, (*factors, *inputs))


def gradient_takes_the_norm_as_constant(row: Row, folder: Path) -> None:
    """DoRA's gradient is that of magnitude * V / |V| written out, with |V| held fixed (its paper,
    section 4.3).
    """
    model, adapter = row.attached()
    delta, pull = adapter.deltas["layer"], randn(*model.layer(row.x()).shape, seed=8)
    factors = [delta.A, delta.B, delta.magnitude]
    got = torch.autograd.grad((model.layer(row.x()) * pull).sum(), factors)
    V = row.base() + SCALE * delta.B @ delta.A
    W = delta.magnitude.unsqueeze(1) * V / V.detach().norm(dim=1, keepdim=True)
    kind, weight = KINDS[row.kind], model.layer.weight
    W = W.T if kind.transposed else W
    if kind.rows:
        W = weight.detach().index_copy(0, torch.tensor(kind.rows), W)
    W = W.reshape(weight.shape)
    y = kind.dense(W, getattr(model.layer, "bias", None), row.x())
    want = torch.autograd.grad((y * pull).sum(), factors)
    if row.kind == "embedding-padded":
        want[0][:, 3] = 0  # nothing is learned from padding
    assert all(
        error(g, w) < 1e-10 * max(1.0, float(w.abs().max())) for g, w in zip(got, want, strict=True)
    )


def two_adapters_add_up(row: Row, folder: Path) -> None:
    model, one = row.attached("one")
    two = fill(lorakit.attach(model, row.spec(rank=2), name="two"), seed=9)
    lorakit.enable(model, {"one": 0.5, "two": -2.0})
    base = row.model().layer(row.x()).detach()
    want = row.dense(model, 0.5 * row.change(one, SCALE), -2.0 * row.change(two, 4.5 / 2))
    plain = row.plain(row.plain(base, one, SCALE, 0.5), two, 4.5 / 2, -2.0, base)
    assert within(model.layer(row.x()), want, plain, row.dtype)
    lorakit.enable(model, "two")
    assert within(
        model.layer(row.x()),
        row.dense(model, row.change(two, 4.5 / 2)),
        row.plain(base, two, 4.5 / 2),
        row.dtype,
    )


def copies_are_independent(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    output = model(row.x())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(row.x()), output)
        (held,) = lorakit.attached(twin).values()
        zero = held.deltas["layer"].zero_parameter
        assert held == adapter and all(
            own is not twin
            for own, twin in zip(adapter.parameters(), held.parameters(), strict=True)
        )
        assert held.deltas["layer"] is twin.layer.lorakit._modules["default"]
        held.deltas["layer"].get_parameter(zero).data.add_(1)
        lorakit.enable(model, None)
        assert lorakit.enabled(twin) == {"default": 1.0}
        assert not torch.equal(twin(row.x()), output)
        lorakit.enable(model, "default")
        assert torch.equal(model(row.x()), output)
        lorakit.detach(twin)
        assert torch.equal(model(row.x()), output)


def dropout_drops_the_delta_alone(row: Row, folder: Path) -> None:
    if row.embeds or row.is_swapped:
        return  # refused, see test_refusals
    model, adapter = row.attached(dropout=1.0)
    if row.delta != "dora":
        assert torch.equal(model.train()(row.x()), row.model()(row.x()))
    else:  # DoRA keeps its magnitudes, over the norm of what it has learned
        left = (row.share(adapter, SCALE).unsqueeze(1) - 1) * row.base()
        once = row.formula(model, left, row.dtype)
        assert within(model.train().layer(row.x()), row.dense(model, left), once, row.dtype)
    assert torch.equal(model.eval()(row.x()), row.attached()[0](row.x()))
    model, _ = row.attached(dropout=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert not torch.equal(model.train()(row.x()), model(row.x()))
    assert torch.equal(model.eval()(row.x()), model(row.x()))


def start_depends_on_seed_and_name_alone(row: Row, folder: Path) -> None:
    model, other = row.model(), row.model()

    def drawn(delta: lorakit.deltas.base.Delta) -> Tensor:
        return operator.attrgetter(RANDOM[row.delta])(delta)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = drawn(lorakit.attach(other, row.spec(), seed=3).deltas["layer"])
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        lorakit.attach(model, row.spec(targets=["rest"]), name="first", seed=3)
        later = drawn(lorakit.attach(model, row.spec(), seed=3).deltas["layer"])
    assert torch.equal(bits(one), bits(later))
    other = drawn(lorakit.attach(row.model(), row.spec(), seed=4).deltas["layer"])
    assert torch.equal(other, one) == (
        row.delta == "moved"
    )  # that start depends on the weight alone
    both = lorakit.attach(row.model(), row.spec(targets=["rest", "layer"]), seed=3).deltas
    if row.delta == "vera":  # one pair for all, of the largest sizes
        assert both["layer"].pair is both["rest"].pair
        assert [*both["layer"].pair.A.shape] == [3, max(both[n].shape[1] for n in both)]
    else:
        assert torch.equal(drawn(both["layer"]), one)
        assert not torch.equal(
            drawn(both["layer"]).flatten()[:8].sign(), drawn(both["rest"]).flatten()[:8].sign()
        )


def first_step_moves_B_alone(row: Row, folder: Path) -> None:
    model = row.model()
    delta = lorakit.attach(model, row.spec()).deltas["layer"]
    others = [
        p for key, p in delta.named_parameters() if key not in (delta.zero_parameter, "magnitude")
    ]
    assert all(p.any() for p in others) and delta.get_parameter(delta.zero_parameter).any() == (
        row.delta == "moved"
    )
    model(row.x()).float().square().mean().backward()
    assert delta.get_parameter(delta.zero_parameter).grad.any()
    assert all(p.grad.any() == (row.delta == "moved") for p in others)


def alpha_scales(row: Row, folder: Path) -> None:
    one, two = row.attached()[1], row.attached(alpha=9.0)[1]
    if row.delta not in ("dora", "moved"):
        assert torch.equal(two.deltas["layer"].matrix(), 2 * one.deltas["layer"].matrix())
    root = row.attached(scale_rule="alpha/sqrt(rank)")[1].deltas["layer"]
    assert abs(root.scale - 4.5 / 3**0.5) < 1e-12 and abs(one.deltas["layer"].scale - 1.5) < 1e-12
    want = row.change(row.attached(scale_rule="alpha/sqrt(rank)")[1], 4.5 / 3**0.5)
    assert error(root.matrix(row.base()), want) < 1e-5
    # the forward uses the same scale
    model, adapter = row.attached(alpha=-9.0, scale_rule="alpha/sqrt(rank)")
    base = row.model().layer(row.x()).detach()
    scale = -9.0 / 3**0.5
    assert within(
        model.layer(row.x()),
        row.dense(model, row.change(adapter, scale)),
        row.plain(base, adapter, scale),
        row.dtype,
    )


def rank_bounds_the_change(row: Row, folder: Path) -> None:
    for rank in (1, 3):
        adapter = row.attached(rank=rank)[1]
        delta, most = adapter.deltas["layer"], rank
        if row.delta == "loha":
            most = min(rank**2, *delta.shape)
        if row.delta == "lokr":  # the ranks of both factors, multiplied
            most = min(delta.w1.shape) * (rank if delta.w2 is None else min(delta.w2.shape))
        whole = row.delta in ("loha", "lokr")
        A, B = (
            (row.change(adapter, 1.0), torch.eye(delta.shape[0]).double())
            if whole
            else row.factors(adapter, 1.0)
        )
        assert int(torch.linalg.matrix_rank(B @ A, rtol=1e-5)) == most


def enable_takes_names(row: Row, folder: Path) -> None:
    model, _ = row.attached("one")
    fill(lorakit.attach(model, row.spec(), name="two"), seed=4)
    for which, on in [
        ("one", {"one": 1.0}),
        (["two"], {"two": 1.0}),
        (("one", "two"), {"one": 1.0, "two": 1.0}),
        (None, {}),
        ([], {}),
        ({"one": 0.25}, {"one": 0.25}),
        ({"one": 2, "two": -1}, {"one": 2.0, "two": -1.0}),
    ]:
        lorakit.enable(model, which)
        assert lorakit.enabled(model) == on
    outputs = []
    for which in ("one", "two", ["one", "two"], None, {"one": 0.25}, {"one": 0.0}):
        lorakit.enable(model, which)
        outputs.append(model(row.x()))
    assert torch.equal(outputs[3], outputs[5])
    assert all(not torch.equal(outputs[i], outputs[j]) for i in range(5) for j in range(i))


def a_layer_used_twice_is_adapted_twice(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    model.layer(row.x()).sum().backward()
    once = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    model.zero_grad()
    (model.layer(row.x()) + model.layer(row.x())).sum().backward()
    # A's gradient has two terms where it stands beside its start: the order of sums is another.
    slack = 8 * torch.finfo(adapter.dtype).eps if row.delta == "moved" else 0.0
    pairs = [(p.grad, 2 * once[name]) for name, p in adapter.named_parameters()]
    assert all(
        float((got - want).abs().max()) <= slack * float(want.abs().max()) for got, want in pairs
    )


def moved_with_the_model(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    model.to(torch.float64)
    assert {p.dtype for p in adapter.parameters()} == {torch.float64}
    x = row.x() if row.embeds else row.x().double()
    assert error(model.layer(x), row.dense(model, row.change(adapter, SCALE))) < 1e-12


def biases_train_and_merge(row: Row, folder: Path) -> None:
    if row.delta in UNBIASED:
        return  # refused, see test_deltas
    for mode, names in [
        ("none", []),
        ("all", ["layer.bias", "rest.bias"]),
        ("adapted", ["layer.bias"]),
    ]:
        names = [name for name in names if name in dict(row.model().named_parameters())]
        model = row.model()
        own = dict(model.named_parameters())
        before = {name: own[name].detach().clone() for name in own}
        adapter = lorakit.attach(model, row.spec(bias=mode))
        assert list(adapter.full_parameters) == names
        assert torch.equal(model(row.x()), row.model()(row.x()))
        fill(adapter)
        on = model(row.x())
        on.float().sum().backward()
        assert all(
            adapter.full_parameters[name].grad is not None
            and adapter.full_parameters[name].grad.any()
            for name in names
        )
        assert all(own[name].grad is None for name in own)
        lorakit.enable(model, None)
        assert torch.equal(model(row.x()), row.model()(row.x()))
        lorakit.enable(model, "default")
        assert torch.equal(model(row.x()), on)
        read = lorakit.Adapter.load(adapter.save(folder / mode))
        assert read == adapter and read.spec.bias == mode
        fresh = row.model()
        lorakit.attach(fresh, read)
        assert torch.equal(fresh(row.x()), on)
        undo = lorakit.merge(model)
        merged = row.formula(model, torch.zeros(()), row.dtype)
        assert within(
            model.layer(row.x()),
            row.formula(model, torch.zeros(()), torch.float64),
            merged,
            row.dtype,
        )
        assert error(model(row.x()), on.detach().double()) <= 64 * torch.finfo(
            row.dtype
        ).eps * float(on.detach().abs().max())
        for name in names:
            assert torch.equal(
                own[name], adapter.full_parameters[name].to(row.dtype)
            ) and not torch.equal(own[name], before[name])
        lorakit.unmerge(model, undo)
        assert all(torch.equal(bits(own[name]), bits(before[name])) for name in own)
        assert torch.equal(model(row.x()), on)
        lorakit.detach(model)
        assert all(dict(model.named_parameters())[name] is own[name] for name in own)
        assert torch.equal(model(row.x()), row.model()(row.x()))


def padding_stays(row: Row, folder: Path) -> None:
    if row.kind != "embedding-padded":
        return
    model, ids = row.model(), torch.tensor([3, 5, 3])
    before = model.layer(ids)[0].detach().clone()
    if row.delta == "dora":  # a magnitude scales the row as well: what stays is zero
        model.layer.weight.data[3] = 0
        before.zero_()
    adapter = lorakit.attach(model, row.spec())
    delta = adapter.deltas["layer"]
    delta.get_parameter(delta.zero_parameter).data.fill_(1.0)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    model.layer(ids).float().square().sum().backward()
    optimizer.step()
    assert torch.equal(model.layer(ids)[0], before)
    assert not torch.equal(model.layer(ids)[1], row.model().layer(ids)[1])


def rows_equal_alone(row: Row, folder: Path) -> None:
    if row.is_swapped:
        return  # refused: the weight is one for all rows
    model, one = row.attached("one")
    two = fill(lorakit.attach(model, row.spec(rank=2), name="two"), seed=9)
    factors, x = [*one.parameters(), *two.parameters()], torch.cat([row.x(), row.x().flip(1)])
    exact = copy.deepcopy(model).double()
    lorakit.enable(model, None)
    base = model.layer(x)  # of all rows at once: a product of other sizes may round otherwise
    for routed in (
        ["one", None, {"one": 0.5, "two": -2.0}, "two"],
        ["two", "one", ["one", "two"], "one"],
    ):
        alone, want = [], []
        for at, which in enumerate(routed):
            for twin, outputs in ((model, alone), (exact, want)):
                lorakit.enable(twin, which)
                rows = x[at : at + 1] if twin is model or row.embeds else x[at : at + 1].double()
                outputs.append(
                    twin.layer(rows)[0] if twin is model else twin.layer(rows)[0].detach()
                )
        alone = torch.stack(alone)
        pull = randn(*alone.shape, seed=8).to(row.dtype)
        pulled = torch.autograd.grad((alone * pull).sum(), factors)
        for waste, long in ((1 << 40, 0), (-1, 1 << 40), (-1, 0)):  # each way to compute it
            limits = (
                mock.patch.dict(mixed_batch.MAX_WASTE, {row.dtype: waste}),
                mock.patch.object(mixed_batch, "MIN_BATCHED_INPUTS", long),
            )
            with limits[0], limits[1], lorakit.route(model, routed):
                got = model.layer(x)
            for at, which in enumerate(routed):
                assert within(got[at], want[at], alone[at], row.dtype)
                assert which is not None or torch.equal(got[at], base[at])
            if row.precision in ("float32", "float64"):
                near = 1e-6 if row.precision == "float32" else 1e-14
                assert error(got, alone.detach().double()) <= near * float(got.detach().abs().max())
                grads = torch.autograd.grad((got * pull).sum(), factors, materialize_grads=True)
                most = max(float(g.abs().max()) for g in pulled)
                assert all(
                    error(g, p.double()) <= 4 * near * most
                    for g, p in zip(grads, pulled, strict=True)
                )
    lorakit.enable(model, ["one", "two"])
    assert model.layer.lorakit.state.route is None and not torch.allclose(model.layer(x), got)


LAWS = [
    fresh_equals_base,
    base_is_kept,
    only_the_delta_trains,
    attached_equals_dense,
    merged_equals_attached,
    merge_rounds_once,
    unmerge_restores_bits,
    detach_leaves_no_trace,
    written_equals_read,
    disabled_equals_base,
    two_adapters_add_up,
    copies_are_independent,
    dropout_drops_the_delta_alone,
    start_depends_on_seed_and_name_alone,
    first_step_moves_B_alone,
    alpha_scales,
    rank_bounds_the_change,
    enable_takes_names,
    a_layer_used_twice_is_adapted_twice,
    moved_with_the_model,
    biases_train_and_merge,
    padding_stays,
    rows_equal_alone,
]
__all__ = [
    "LAWS",
    "ROWS",
    "gradient_equals_differences",
    "gradient_takes_the_norm_as_constant",
    "randn",
]
