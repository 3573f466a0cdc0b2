"""Wrapped models, compiled or parallel: names are those of the model inside, in files too."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lorakit
from lorakit.errors import AdapterMismatch, ModelError

from ..laws.table import fill, randn

X = randn(3, 4).float()
SPEC = lorakit.Spec(rank=2, bias="all", full_modules=["1"])


def make_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    for at, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=at))
    return model


def compile_whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compile_layer(model: nn.Sequential) -> nn.Module:
    model[0] = torch.compile(model[0], backend="eager")
    return model


WRAPS = {"compiled": compile_whole, "compiled layer": compile_layer, "parallel": nn.DataParallel}
wraps = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@wraps
@pytest.mark.slow
def test_an_adapter_of_a_wrapped_model_fits_the_plain_one(wrap: type, tmp_path: Path) -> None:
    wrapped = wrap(make_model())
    adapter = fill(lorakit.attach(wrapped, SPEC))
    assert list(adapter.deltas) == ["0", "2"]
    y = wrapped(X)
    plain = make_model()
    lorakit.attach(plain, lorakit.Adapter.load(adapter.save(tmp_path / "adapter")))
    assert torch.allclose(plain(X), y)
    undo = lorakit.merge(wrapped)
    assert torch.allclose(wrapped(X), y, atol=1e-5)
    lorakit.unmerge(wrapped, undo)
    lorakit.detach(wrapped)
    assert torch.equal(wrapped(X), make_model()(X))


def test_wrapper_and_model_inside_are_one_model() -> None:
    model = make_model()
    lorakit.attach(torch.compile(model, backend="eager"), SPEC)
    lorakit.enable(model, None)
    assert lorakit.enabled(nn.DataParallel(model)) == {}
    lorakit.detach(model)


PREFIXES = ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."]


def with_prefix(prefix: str) -> lorakit.Adapter:
    """Return an adapter whose names have a prefix, as if it came from a file."""
    adapter = fill(lorakit.attach(make_model(), SPEC))
    deltas = {f"{prefix}{name}": delta for name, delta in adapter.deltas.items()}
    full = {f"{prefix}{name}": value for name, value in adapter.full_parameters.items()}
    spec = lorakit.Spec(rank=2, bias="all", full_modules=[f"{prefix}1"])
    return lorakit.Adapter(spec, deltas, full, adapter.provenance)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixed_names_are_mapped_and_the_report_says_so(prefix: str, tmp_path: Path) -> None:
    reference = make_model()
    fill(lorakit.attach(reference, SPEC))
    model = make_model()
    adapter = lorakit.attach(model, with_prefix(prefix))
    assert torch.equal(model(X), reference(X))
    note = f"  note: 6 names of 'default' mapped to the model's, as {prefix}0 to 0"
    assert note in str(lorakit.coverage(model)).splitlines()
    read = lorakit.Adapter.load(adapter.save(tmp_path / "adapter"))
    assert list(read.deltas) == ["0", "2"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_plain_names_are_mapped_to_a_model_with_the_prefix(prefix: str) -> None:
    outer: nn.Module = make_model()
    for part in reversed(prefix.rstrip(".").split(".")):
        outer = nn.ModuleDict({part: outer})
    lorakit.attach(outer, with_prefix(""), any_base=True)
    assert list(lorakit.attached(outer)["default"].deltas) == [f"{prefix}0", f"{prefix}2"]


def test_names_that_do_not_map_one_to_one_are_refused() -> None:
    adapter = with_prefix("_orig_mod.")
    adapter.deltas["0"] = adapter.deltas.pop("_orig_mod.2")
    adapter.target_names = tuple(adapter.deltas)
    names = list(adapter.deltas)
    with pytest.raises(AdapterMismatch, match=r"_orig_mod\.0   is not in the model"):
        lorakit.attach(make_model(), adapter)
    assert list(adapter.deltas) == names


def test_a_new_adapter_under_distributed_training_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(make_model())
        with pytest.raises(ModelError) as caught:
            lorakit.attach(wrapped, SPEC)
        assert str(caught.value) == (
            "DistributedDataParallel averages the gradients of the parameters that it was given; "
            "those of a new adapter would differ between the processes.\n"
            "Attach to the model first, then wrap it. Nothing was attached."
        )
        lorakit.attach(wrapped, with_prefix("module."), trainable=False)
        lorakit.detach(wrapped)
    finally:
        torch.distributed.destroy_process_group()
