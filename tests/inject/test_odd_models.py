"""Odd models: everything is right, or refused in words before anything is changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune

import lorakit
from lorakit.errors import LorakitError, MergeError, ModelError, TargetError

from ..laws.table import bits, error, fill, randn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

X = randn(3, 4, seed=1)
SPEC = lorakit.Spec(rank=1, alpha=1, dtype="float64")


def plain() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    for at, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=at))
    return model


class Twice(nn.Module):
    """A layer that is called twice, and one over a transposed view of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = plain()[0], plain()[2]
        self.second.weight = nn.Parameter(self.first.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.tanh(self.first(x))))


class LayerDrop(nn.Module):
    """Layers of which one is skipped in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([plain()[0], plain()[2]])

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers)[: 1 if self.training else 2]:
            x = torch.tanh(layer(x))
        return x


def with_script() -> nn.Sequential:
    return plain().append(torch.jit.script(plain()[0]))


def with_trace() -> nn.Sequential:
    return plain().append(torch.jit.trace(plain()[0], X))


def half_pruned() -> nn.Sequential:
    model = plain()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def half_normed() -> nn.Sequential:
    model = plain()
    parametrizations.weight_norm(model[0])
    return model


def expanded() -> nn.Sequential:
    model = plain()
    model[0].weight = nn.Parameter(randn(4).expand(4, 4))
    return model


def with_sparse() -> nn.Sequential:
    model = plain()
    model[0].unused = nn.Parameter(torch.eye(4).to_sparse())
    return model


def in_cycle() -> nn.Sequential:
    model = plain()
    model[0].__dict__["parent"] = model
    return model


def one_object_twice() -> nn.Sequential:
    layer = plain()[0]
    return nn.Sequential(layer, nn.Tanh(), layer)


def compiled() -> nn.Module:
    return torch.compile(plain(), backend="eager")


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "twice": Twice,
    "layer drop": LayerDrop,
    "script inside": with_script,
    "trace inside": with_trace,
    "half pruned": half_pruned,
    "half normed": half_normed,
    "expanded": expanded,
    "sparse": with_sparse,
    "cycle": in_cycle,
    "one object twice": one_object_twice,
    "compiled": compiled,
    "parallel": lambda: nn.DataParallel(plain()),
}


right = pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT)


def make_adapted(build: Callable[[], nn.Module]) -> tuple[nn.Module, lorakit.Adapter]:
    model = build().eval()
    return model, fill(lorakit.attach(model, SPEC))


@right
@pytest.mark.slow
def test_merge_equals_attached_and_unmerge_and_detach_restore_the_bits(
    build: Callable[[], nn.Module],
) -> None:
    model = build().eval()
    tensors, base = dict(model.state_dict()), model(X)
    values = {name: bits(tensor) for name, tensor in tensors.items() if not tensor.is_sparse}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    fill(lorakit.attach(model, SPEC))
    attached = model(X)
    undo = lorakit.merge(model)
    assert error(model(X), attached.detach()) < 1e-12
    lorakit.unmerge(model, undo)
    assert torch.equal(model(X), attached)
    lorakit.detach(model)
    assert torch.equal(model(X), base)
    assert list(model.state_dict()) == list(tensors)
    assert all(torch.equal(bits(model.state_dict()[name]), values[name]) for name in values)
    assert flags == {name: own.requires_grad for name, own in model.named_parameters()}


@right
@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing_and_a_loaded_one_is_the_saved(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = build().eval()
    base = model(X)
    adapter = lorakit.attach(model, SPEC)
    assert torch.equal(model(X), base)
    fill(adapter)
    again = build().eval()
    lorakit.attach(again, lorakit.Adapter.load(adapter.save(tmp_path / "adapter")))
    assert torch.equal(again(X), model(X))


@right
@pytest.mark.slow
def test_gradients_of_both_orders_and_modes(build: Callable[[], nn.Module]) -> None:
    model, adapter = make_adapted(build)
    x = X.clone().requires_grad_()
    gradient = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    gradient.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    if "DataParallel" in type(model).__name__:
        return  # without a GPU it is the model inside
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(X, torch.ones_like(X)))
        tangent = forward_ad.unpack_dual(y).tangent
    step = 1e-6
    assert error(tangent, (model(X + step) - model(X - step)).detach() / (2 * step)) < 1e-7
    assert error(gradient.sum(), tangent.sum().detach()) < 1e-10


def all_pruned() -> nn.Sequential:
    model = half_pruned()
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(4, 4))


def with_lorakit_child() -> nn.Sequential:
    model = plain()
    model[0].lorakit = nn.Linear(4, 4)
    return model


def in_inference_mode() -> nn.Sequential:
    with torch.inference_mode():
        return plain()


def in_float8() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[LorakitError], str]] = {
    "lazy": (
        lambda: plain().append(nn.LazyLinear(2)),
        ModelError,
        "  3.weight   is lazy: run the model on an input first, which gives it a shape\n",
    ),
    "uninitialised parameter": (
        lambda: plain().append(nn.LazyBatchNorm1d()),
        ModelError,
        "  3.weight   is lazy",
    ),
    "inference": (
        in_inference_mode,
        ModelError,
        "  0.weight   was made in inference mode, so no gradient passes it: "
        "copy.deepcopy(model), called outside of that mode, gives a model that can train\n",
    ),
    "own lorakit": (
        with_lorakit_child,
        ModelError,
        "0 has an attribute 'lorakit' of its own, the name under which a layer keeps its "
        "adapters.\nRename it, or leave this layer out. ",
    ),
    "script": (
        lambda: torch.jit.script(plain()),
        TargetError,
        "  the model   is compiled by TorchScript: attach to the module that it was made from\n",
    ),
    "pruned": (
        all_pruned,
        TargetError,
        "  2   is pruned: torch.nn.utils.prune.remove makes its weight a parameter again\n",
    ),
    "parametrised": (
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        TargetError,
        "  the model   has a parametrization: "
        "torch.nn.utils.parametrize.remove_parametrizations makes its weight a parameter again\n",
    ),
    "weight norm": (
        old_weight_norm,
        TargetError,
        "  the model   is under weight_norm: torch.nn.utils.remove_weight_norm makes its weight a "
        "parameter again\n",
    ),
    "spectral norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        TargetError,
        "  the model   is under spectral_norm: torch.nn.utils.remove_spectral_norm makes",
    ),
    "complex": (
        lambda: nn.Linear(4, 4, dtype=torch.complex64),
        TargetError,
        "  the model   stores its weight as torch.complex64, which no product here takes\n",
    ),
    "float8": (in_float8, TargetError, "  the model   stores its weight as torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words_before_anything_is_changed(case: str) -> None:
    build, kind, text = REFUSED[case]
    model = build()
    modules = [(name, list(module._forward_hooks)) for name, module in model.named_modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(kind) as caught:
        lorakit.attach(model, lorakit.Spec(rank=1, targets="all-linear"))
    assert text in str(caught.value)
    assert str(caught.value).endswith("Nothing was attached.")
    assert modules == [(name, list(one._forward_hooks)) for name, one in model.named_modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


def test_coverage_says_why_a_layer_is_left_out() -> None:
    report = str(lorakit.coverage(half_pruned())).splitlines()
    assert (
        "  note: 0 is pruned: torch.nn.utils.prune.remove makes its weight a parameter again"
    ) in report


@pytest.mark.parametrize("module", ["attention", "lstm"])
def test_a_weight_that_a_module_computes_is_no_place(module: str) -> None:
    model: Any = nn.MultiheadAttention(4, 1) if module == "attention" else nn.LSTM(4, 4)
    name = "in_proj_weight" if module == "attention" else "weight_hh_l0"
    parametrizations.weight_norm(model, name)
    places = lorakit.select(model, ["*"])
    assert list(places) == (["out_proj"] if module == "attention" else ["weight_ih_l0"])


def pruned(layer: nn.Module, *names: str) -> nn.Module:
    for name in names:
        prune.l1_unstructured(layer, name, 0.5)
    return layer


PRUNED = "is pruned: torch.nn.utils.prune.remove makes its weight a parameter again"
PARAMETRISED = (
    "has a parametrization: torch.nn.utils.parametrize.remove_parametrizations makes its weight a "
    "parameter again"
)
COMPUTED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "attention": (
        lambda: pruned(nn.MultiheadAttention(4, 1), "in_proj_weight"),
        "qkvo",
        f"  in_proj_weight   {PRUNED}\n",
    ),
    "separate": (
        lambda: pruned(nn.MultiheadAttention(4, 1, kdim=3), "q_proj_weight"),
        "q",
        f"  q_proj_weight   {PRUNED}\n",
    ),
    "in a transformer": (
        lambda: parametrizations.weight_norm(
            nn.TransformerEncoderLayer(8, 2, 16).self_attn, "in_proj_weight"
        ),
        "attention",
        f"  in_proj_weight   {PARAMETRISED}\n",
    ),
    "output": (
        lambda: nn.ModuleList([nn.MultiheadAttention(4, 1), pruned(nn.Conv2d(4, 4, 3), "weight")]),
        "conv",
        f"  1   {PRUNED}\n",
    ),
    "recurrent": (
        lambda: pruned(nn.LSTM(4, 4), "weight_ih_l0", "weight_hh_l0"),
        "q",
        f"  weight_hh_l0   {PRUNED}\n  weight_ih_l0   {PRUNED}\n",
    ),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_a_refusal_names_the_weights_that_a_module_computes(case: str) -> None:
    build, targets, text = COMPUTED[case]
    model: Any = build()
    if case == "in a transformer":
        model.out_proj = pruned(model.out_proj, "weight")
    with pytest.raises(TargetError) as caught:
        lorakit.attach(model, lorakit.Spec(rank=1, targets=targets))
    assert text in str(caught.value)


def test_a_pattern_that_finds_only_computed_weights_says_so() -> None:
    model = pruned(nn.Bilinear(4, 4, 3), "weight")
    with pytest.raises(TargetError) as caught:
        lorakit.attach(model, lorakit.Spec(rank=1, targets=["*"]))
    assert caught.value.faults == [f"'*'   0 layers   weight {PRUNED}"]


def test_coverage_names_the_weights_that_a_module_computes() -> None:
    model = pruned(nn.MultiheadAttention(4, 1), "in_proj_weight")
    assert f"  note: in_proj_weight {PRUNED}" in str(lorakit.coverage(model)).splitlines()


@pytest.mark.slow
def test_five_thousand_nested_modules(tmp_path: Path) -> None:
    model: nn.Module = plain()[0]
    weight: Any = model.weight
    for _ in range(5000):
        model = nn.Sequential(model)
    adapter = fill(lorakit.attach(model, SPEC))
    assert len(lorakit.coverage(model).modules) == 1
    before = weight.detach().clone()
    undo = lorakit.merge(model)
    assert not torch.equal(weight, before)
    lorakit.unmerge(model, undo)
    assert torch.equal(weight, before)
    read = lorakit.Adapter.load(adapter.save(tmp_path / "adapter"))
    lorakit.detach(model)
    lorakit.attach(model, read)
    lorakit.detach(model)
    assert weight.requires_grad


def test_a_model_without_values_can_be_adapted_but_not_merged() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    lorakit.attach(model, lorakit.Spec(rank=1))
    assert model(torch.ones(1, 4, device="meta")).shape == (1, 4)
    with pytest.raises(MergeError, match=r"0\.weight   has no values: it is on the meta device"):
        lorakit.merge(model)
    assert lorakit.enabled(model) == {"default": 1.0}
    lorakit.detach(model)


@pytest.mark.parametrize("operation", ["attach", "merge"])
def test_what_is_made_inside_inference_mode_can_train(operation: str) -> None:
    model = plain()
    with torch.inference_mode():
        adapter = lorakit.attach(model, SPEC)
        if operation == "merge":
            lorakit.merge(model)
            lorakit.detach(model)
    trained = adapter if operation == "attach" else model
    model(X).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


@pytest.mark.slow
def test_function_transforms_agree_with_autograd() -> None:
    model, adapter = make_adapted(plain)
    x = X.clone().requires_grad_()
    want = torch.autograd.grad(model(x).sum(), [x, *adapter.parameters()])
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).sum()

    by_parameter, by_input = torch.func.grad(loss, argnums=(0, 1))(parameters, X)
    got = [by_input, *(by_parameter[name] for name, own in parameters.items() if own.requires_grad)]
    assert all(error(one, other) < 1e-12 for one, other in zip(got, want, strict=True))
    assert error(torch.func.vmap(model)(X), model(X).detach()) < 1e-12
    exported = torch.export.export(model, (X,)).module()
    assert error(exported(X), model(X).detach()) < 1e-12


DELTAS = ("lora", "dora", "vera", "loha", "lokr", "adalora")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("delta", DELTAS)
def test_the_old_exporter_takes_every_delta_whose_factors_train(delta: str) -> None:
    # The part of torch.onnx.export(dynamo=False) that needs no onnx.
    utils = pytest.importorskip("torch.onnx._internal.torchscript_exporter.utils")
    model = plain().eval()
    fill(lorakit.attach(model, lorakit.Spec(rank=1, alpha=1, delta=delta, dtype="float64")))
    traced = torch.jit.trace(model, X)
    assert error(traced(X).detach(), model(X).detach()) < 1e-12
    graph, _, _ = utils._model_to_graph(model, (X,))
    assert {node.kind().partition("::")[0] for node in graph.nodes()} <= {"onnx", "prim"}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("delta", DELTAS)
def test_the_old_exporter_writes_a_file(delta: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    model = plain().eval()
    fill(lorakit.attach(model, lorakit.Spec(rank=1, alpha=1, delta=delta, dtype="float64")))
    torch.onnx.export(model, (X,), str(tmp_path / "model.onnx"), dynamo=False)
    assert (tmp_path / "model.onnx").stat().st_size
