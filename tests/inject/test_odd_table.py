"""The table of odd models by actions: each cell is right, or refused in words; none is wrong."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

import lorakit
from lorakit.errors import LorakitError
from lorakit.sites.slot import base_modules, base_parameters

from ..laws.table import bits, error, fill
from ..sources import sample
from . import test_odd_models as odd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
Build = Callable[[], nn.Module]


def deep() -> nn.Module:
    model: nn.Module = odd.plain()[0]
    for _ in range(5000):
        model = nn.Sequential(model)
    return model


def two_parameters_on_one_storage() -> nn.Module:
    model: Any = odd.plain()
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


def viewed() -> nn.Module:
    model: Any = odd.plain()
    whole = odd.randn(8, 4)
    model[0].weight, model[2].weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4)).double()


def in_ddp() -> nn.Module:
    return DistributedDataParallel(odd.plain())


MODELS: dict[str, Build] = {
    **odd.RIGHT,
    **{name: build for name, (build, _, _) in odd.REFUSED.items()},
    "shared storage": two_parameters_on_one_storage,
    "views": viewed,
    "meta": on_meta,
    "DDP": in_ddp,
    "5,000 deep": deep,
}


@contextmanager
def change_outputs(model: nn.Module, adapter: lorakit.Adapter) -> Iterator[None]:
    """Add the dense change to the output of each adapted layer of a plain model."""
    layers = dict(base_modules(model))
    names = {name.removeprefix("_orig_mod.").removeprefix("module."): name for name in layers}

    def hook(name: str) -> Callable[..., Tensor]:
        return lambda layer, inputs, y: y + inputs[0] @ adapter.deltas[name].matrix().T

    handles = []
    for name in adapter.deltas:
        found = layers.get(name) or layers[names[name]]
        handles.append(found.register_forward_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def start(build: Build) -> nn.Module:
    """Return a model in eval mode; torch's own functions do not reach 5,000 levels."""
    model = build()
    for _, module in base_modules(model):
        module.training = False
    return model


def make(build: Build) -> tuple[nn.Module, lorakit.Adapter]:
    model = start(build)
    return model, fill(lorakit.attach(model, odd.SPEC))


def input_of(model: nn.Module) -> Tensor:
    _, parameter = next(base_parameters(model))
    return odd.X.to(parameter.device)


def compare(build: Build, compute: Callable[[nn.Module, lorakit.Adapter], list[Tensor]]) -> None:
    """Compare a result of the adapted model with that of the plain one with the dense changes."""
    model, adapter = make(build)
    plain = start(build)
    for _, parameter in base_parameters(plain):
        parameter.requires_grad_(False)
    try:
        with change_outputs(plain, adapter):
            wanted = compute(plain, adapter)
    except Exception as refused:  # what the plain model cannot do
        with pytest.raises(type(refused)):
            compute(model, adapter)
        return
    found = compute(model, adapter)
    assert [one.shape for one in found] == [one.shape for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        if not one.is_meta:
            largest = max(1.0, float(other.detach().abs().max()))
            assert error(one.detach(), other.detach()) < 1e-12 * largest


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.data for name, one in base_parameters(model) if not one.is_sparse}


def attach(build: Build, folder: Path) -> None:
    model = start(build)
    tensors = values_of(model)
    before = {name: one.clone() for name, one in tensors.items()}
    lorakit.attach(model, odd.SPEC)
    for name, tensor in before.items():
        assert tensor.is_meta or torch.equal(bits(tensors[name]), bits(tensor))


def forward(build: Build, folder: Path) -> None:
    compare(build, lambda model, adapter: [model(input_of(model))])


def backward(build: Build, folder: Path) -> None:
    def compute(model: nn.Module, adapter: lorakit.Adapter) -> list[Tensor]:
        x = input_of(model).clone().requires_grad_()
        return list(torch.autograd.grad(model(x).square().sum(), [x, *adapter.parameters()]))

    compare(build, compute)


def differentiate_twice(build: Build, folder: Path) -> None:
    def compute(model: nn.Module, adapter: lorakit.Adapter) -> list[Tensor]:
        x = input_of(model).clone().requires_grad_()
        (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), [x, *adapter.parameters()]))

    compare(build, compute)


def differentiate_forward(build: Build, folder: Path) -> None:
    def compute(model: nn.Module, adapter: lorakit.Adapter) -> list[Tensor]:
        x = input_of(model)
        with forward_ad.dual_level():
            y = model(forward_ad.make_dual(x, torch.ones_like(x)))
            tangent: Any = forward_ad.unpack_dual(y).tangent
            return [tangent]

    compare(build, compute)


def transform(build: Build, folder: Path) -> None:
    def compute(model: nn.Module, adapter: lorakit.Adapter) -> list[Tensor]:
        x = input_of(model)
        return [torch.func.vmap(model)(x), torch.func.jacrev(model)(x)]

    compare(build, compute)


def trace(build: Build, folder: Path) -> None:
    plain, (model, _) = start(build), make(build)
    x = input_of(model)
    try:
        torch.jit.trace(plain, x, check_trace=False)
    except (RuntimeError, RecursionError) as refused:  # what the plain model cannot do
        with pytest.raises(type(refused)):
            torch.jit.trace(model, x, check_trace=False)
        return
    traced: Any = torch.jit.trace(model, x, check_trace=False)
    found = traced(x)
    assert found.is_meta or error(found.detach(), model(x).detach()) < 1e-12


def run(model: nn.Module) -> Tensor | None:
    """Return the output of a model; None if torch cannot run it at all."""
    try:
        return model(input_of(model)).detach()
    except RecursionError:
        return None


def is_same(found: Tensor | None, wanted: Tensor | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found.is_meta or torch.equal(found, wanted)


def merge(build: Build, folder: Path) -> None:
    model, _ = make(build)
    wanted = run(model)
    lorakit.merge(model)
    found = run(model)
    assert found is wanted or error(found, wanted) < 1e-12  # type: ignore[arg-type]


def unmerge(build: Build, folder: Path) -> None:
    model, _ = make(build)
    before = {name: one.clone() for name, one in values_of(model).items()}
    lorakit.unmerge(model, lorakit.merge(model))
    after = values_of(model)
    assert all(torch.equal(bits(after[name]), bits(one)) for name, one in before.items())


def detach(build: Build, folder: Path) -> None:
    model = start(build)
    names, wanted = list(values_of(model)), run(model)
    fill(lorakit.attach(model, odd.SPEC))
    lorakit.detach(model)
    assert is_same(run(model), wanted)
    assert list(values_of(model)) == names


def save(build: Build, folder: Path) -> None:
    _, adapter = make(build)
    adapter.save(folder / "adapter")
    read = lorakit.Adapter.load(folder / "adapter")
    assert read.content_hash() == adapter.content_hash()


def load(build: Build, folder: Path) -> None:
    model, adapter = make(build)
    again = start(build)
    lorakit.attach(again, lorakit.Adapter.load(adapter.save(folder / "adapter")))
    assert is_same(run(again), run(model))


ACTIONS: Mapping[str, Callable[[Build, Path], None]] = {
    action.__name__: action
    for action in (
        attach,
        forward,
        backward,
        differentiate_twice,
        differentiate_forward,
        transform,
        trace,
        merge,
        unmerge,
        detach,
        save,
        load,
    )
}
REFUSED_MODELS = {*odd.REFUSED, "DDP"}
# Cells in which an action is refused although the model can be adapted.
REFUSED_CELLS = {("meta", action) for action in ("merge", "unmerge", "save", "load")}


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("name", "action"), sample(product(MODELS, ACTIONS), every=5))
def test_each_cell_is_right_or_refused(name: str, action: str, tmp_path: Path) -> None:
    is_refused = name in REFUSED_MODELS or (name, action) in REFUSED_CELLS
    if is_refused:
        with pytest.raises(LorakitError):
            run_cell(name, action, tmp_path)
    else:
        run_cell(name, action, tmp_path)


def run_cell(name: str, action: str, folder: Path) -> None:
    """Do one action with a model; one that cannot be adapted is refused before any action."""
    if name in REFUSED_MODELS:
        lorakit.attach(MODELS[name](), odd.SPEC)
    ACTIONS[action](MODELS[name], folder)


def test_the_table_is_complete() -> None:
    """Each cell is a test of its own, in any process: right or refused, as these lists say."""
    refused = len(REFUSED_MODELS) * len(ACTIONS) + len(REFUSED_CELLS)
    cells = len(MODELS) * len(ACTIONS)
    assert {*MODELS} >= REFUSED_MODELS | {name for name, _ in REFUSED_CELLS}
    assert (cells - refused, refused) == (200, 148)
