"""Laws of structure: what attaching, saving, copying and detaching do to a model."""

import copy
import operator
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

import lorakit
from lorakit.deltas.base import Delta

from .table import RANDOM, UNBIASED, Row, bits, fill, same_bits, state


def other_hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """A hook that a user has registered."""


def fresh_equals_base(row: Row, folder: Path) -> None:
    model = row.model()
    layer_before = model.layer(row.x())
    model_before = model(row.x())
    lorakit.attach(model, row.spec())
    for training in (True, False):
        model.train(training)
        layer_after = model.layer(row.x())
        assert layer_after.dtype == row.dtype
        assert torch.equal(layer_after, layer_before)
        assert torch.equal(model(row.x()), model_before)


def base_is_kept(row: Row, folder: Path) -> None:
    model = row.model()
    handle = model.layer.register_forward_hook(other_hook)
    classes = {name: type(module) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    values = state(model)
    adapter = lorakit.attach(model, row.spec())
    fill(adapter)
    model(row.x())
    modules = dict(model.named_modules())
    assert {name: type(modules[name]) for name in classes} == classes
    assert all("lorakit" in name.split(".") for name in modules.keys() - classes.keys())
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())
    kept = {key: tensor for key, tensor in model.state_dict().items() if key in values}
    assert same_bits(kept, values)
    assert other_hook in model.layer._forward_hooks.values()
    handle.remove()
    assert other_hook not in model.layer._forward_hooks.values()


def traces(model: nn.Module) -> list[object]:
    """Return everything about a model that attaching could leave changed, but for its values."""
    modules = dict(model.named_modules())
    hooks: dict[str, object] = {}
    for name, module in modules.items():
        for key, value in module.__dict__.items():
            if isinstance(value, dict) and "hooks" in key:
                hooks[f"{name}.{key}"] = list(value)
    return [
        {name: type(module) for name, module in modules.items()},
        {name: sorted(module.__dict__) for name, module in modules.items()},
        hooks,
        {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        model.training,
    ]


def detach_leaves_no_trace(row: Row, folder: Path) -> None:
    model = row.model()
    model.layer.register_forward_hook(other_hook)
    model.rest.bias.requires_grad_(False)
    before = traces(model)
    values = state(model)
    output = model(row.x())
    fill(lorakit.attach(model, row.spec()))
    bias = "none" if row.delta in UNBIASED else "all"
    fill(lorakit.attach(model, row.spec(bias=bias), name="other"), seed=3)
    assert not torch.equal(model(row.x()), output)
    lorakit.detach(model, "other")
    lorakit.detach(model)
    assert traces(model) == before
    assert same_bits(state(model), values)
    assert torch.equal(model(row.x()), output)
    assert lorakit.attached(model) == {}
    assert lorakit.enabled(model) == {}


def written_equals_read(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    output = model(row.x())
    read = lorakit.Adapter.load(adapter.save(folder / "out"))
    assert read == adapter
    assert read.spec == adapter.spec
    assert read.provenance == adapter.provenance
    assert same_bits(dict(read.named_parameters()), dict(adapter.named_parameters()))
    fresh = row.model()
    lorakit.attach(fresh, read)
    assert torch.equal(fresh(row.x()), output)


def disabled_equals_base(row: Row, folder: Path) -> None:
    model, _ = row.attached()
    enabled = model(row.x())
    base = row.model()(row.x())
    lorakit.enable(model, None)
    assert torch.equal(model(row.x()), base)
    lorakit.enable(model, "default")
    assert torch.equal(model(row.x()), enabled)
    assert not torch.equal(enabled, base)


def copies_are_independent(row: Row, folder: Path) -> None:
    model, adapter = row.attached()
    output = model(row.x())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(row.x()), output)
        (copied,) = lorakit.attached(twin).values()
        pairs = zip(adapter.parameters(), copied.parameters(), strict=True)
        assert copied == adapter
        assert all(one is not other for one, other in pairs)
        delta = copied.deltas["layer"]
        assert delta is twin.layer.lorakit._modules["default"]
        delta.get_parameter(delta.zero_parameter).data.add_(1)
        lorakit.enable(model, None)
        assert lorakit.enabled(twin) == {"default": 1.0}
        assert not torch.equal(twin(row.x()), output)
        lorakit.enable(model, "default")
        assert torch.equal(model(row.x()), output)
        lorakit.detach(twin)
        assert torch.equal(model(row.x()), output)


def random_tensor(row: Row, delta: Delta) -> Tensor:
    return operator.attrgetter(RANDOM[row.delta])(delta)


def start_depends_on_seed_and_name_alone(row: Row, folder: Path) -> None:
    def start(model: nn.Module, seed: int) -> Tensor:
        delta = lorakit.attach(model, row.spec(), seed=seed).deltas["layer"]
        return random_tensor(row, delta)

    alone = row.model()
    with_another = row.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = start(alone, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        lorakit.attach(with_another, row.spec(targets=["rest"]), name="first", seed=3)
        second = start(with_another, seed=3)
    assert torch.equal(bits(first), bits(second))
    starts_from_weight_alone = row.delta == "offset"
    assert torch.equal(start(row.model(), seed=4), first) == starts_from_weight_alone


def starts_of_layers_differ(row: Row, folder: Path) -> None:
    """Each layer has its own random values, but for VeRA, whose layers share one pair."""
    alone = lorakit.attach(row.model(), row.spec(), seed=3).deltas["layer"]
    both = lorakit.attach(row.model(), row.spec(targets=["rest", "layer"]), seed=3).deltas
    layer = both["layer"]
    rest = both["rest"]
    if row.delta == "vera":
        assert layer.pair is rest.pair
        most_inputs = max(delta.shape[1] for delta in both.values())
        assert tuple(layer.pair.A.shape) == (3, most_inputs)
        return
    values = random_tensor(row, layer)
    others = random_tensor(row, rest)
    assert torch.equal(values, random_tensor(row, alone))
    assert not torch.equal(values.flatten()[:8].sign(), others.flatten()[:8].sign())


def enable_takes_names(row: Row, folder: Path) -> None:
    model, _ = row.attached("one")
    fill(lorakit.attach(model, row.spec(), name="two"), seed=4)
    for which, weights in [
        ("one", {"one": 1.0}),
        (["two"], {"two": 1.0}),
        (("one", "two"), {"one": 1.0, "two": 1.0}),
        (None, {}),
        ([], {}),
        ({"one": 0.25}, {"one": 0.25}),
        ({"one": 2, "two": -1}, {"one": 2.0, "two": -1.0}),
    ]:
        lorakit.enable(model, which)
        assert lorakit.enabled(model) == weights
    outputs: list[Tensor] = []
    for which in (None, "one", "two", ["one", "two"], {"one": 0.25}):
        lorakit.enable(model, which)
        outputs.append(model(row.x()))
    for i, output in enumerate(outputs):
        assert all(not torch.equal(output, other) for other in outputs[:i])
    lorakit.enable(model, {"one": 0.0})
    assert torch.equal(model(row.x()), outputs[0])
