"""A site that a user of the library adds: the page that shows it runs in tests/docs; what cannot be
meant is refused.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Spec
from lorakit.deltas.dora import DoRA
from lorakit.errors import SpecError
from lorakit.sites.base import DenseSite, Site
from lorakit.sites.find import SITES, register
from lorakit.sites.linear import LinearSite

from ..laws.table import fill


class Special(nn.Linear): ...


class Own(DenseSite[Special]):
    kind = "own"

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, Special)

    def read(self, layer: Special) -> Tensor:
        return layer.weight.detach()

    def to_weight(self, layer: Special, M: Tensor) -> Tensor:
        return M


class Doubling(nn.Linear):
    """y = W (2 x) + bias"""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(2 * input, self.weight, self.bias)


class DoublingSite(Site[Doubling]):
    kind = "doubling"

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, Doubling)

    def read(self, layer: Doubling) -> Tensor:
        return layer.weight.detach()

    def to_weight(self, layer: Doubling, M: Tensor) -> Tensor:
        return M

    def project(self, layer: Doubling, A: Tensor, x: Tensor) -> Tensor:
        return nn.functional.linear(2 * x, A)

    def expand(self, layer: Doubling, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        return nn.functional.linear(projected, B)


class Greedy(LinearSite):  # type: ignore[misc]  # the fault that is to be refused
    kind = "linear"


class Unnamed(Own):
    kind = "no word"


pytestmark = pytest.mark.usefixtures("kept_sites")


def test_the_site_added_last_takes_precedence() -> None:
    model = nn.Sequential(Special(3, 4), nn.Linear(4, 2))
    assert [p.site.kind for p in lorakit.select(model, ["0", "1"]).values()] == ["linear", "linear"]
    register(Own())
    adapter = lorakit.attach(model, Spec(rank=1, targets=["0", "1"]))
    assert [delta.kind for delta in adapter.deltas.values()] == ["own", "linear"]


def test_a_site_with_products_of_its_own_merges_as_attached() -> None:
    register(DoublingSite())
    model, x = nn.Sequential(Doubling(3, 4)), torch.randn(5, 3)
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets=["0"])))
    attached = model(x)
    with lorakit.route(model, ["default"] * 4 + [None]):
        routed = model(x)
    lorakit.merge(model)
    torch.testing.assert_close(model(x), attached)
    torch.testing.assert_close(routed[:4], attached[:4])
    assert adapter.deltas["0"].kind == "doubling"
    assert not torch.allclose(routed[4], attached[4])


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            Greedy(),
            "Greedy cannot be added.\n  kind 'linear' is taken\n"
            "  LinearSite is final: a class derived "
            "from it would take its layers\nKinds that are taken: {kinds}.",
        ),
        (Unnamed(), "Unnamed cannot be added.\n  kind 'no word' is no identifier\n"),
        (
            Own,
            "A site is an instance of a class derived from lorakit.sites.base.Site, got <class",
        ),
    ],
)
def test_invalid_sites_are_refused(added: Any, message: str) -> None:
    before = dict(SITES)
    with pytest.raises(SpecError) as caught:
        register(added)
    # Other tests of the same process may have added kinds of their own.
    assert str(caught.value).startswith(message.replace("{kinds}", ", ".join(before)))
    assert {"linear", "conv1d", "torchao"} <= before.keys() and before == SITES


def test_a_part_with_dora_is_refused_before_it_trains() -> None:
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12)})
    spec = Spec(rank=1, delta="dora", targets="k", parts={"qkv": {"q": 4, "k": 4, "v": 4}})
    with pytest.raises(SpecError) as caught:
        lorakit.attach(model, spec)
    assert str(caught.value) == (
        "1 layer cannot be adapted with these settings.\n"
        "  qkv.k   delta 'dora': a part of a fused layer can only have delta 'lora'; use it, or "
        "name "
        "the whole layer\nNothing was attached."
    )
    assert not lorakit.attached(model)


def test_a_part_with_dora_is_not_saved(tmp_path: Any) -> None:
    delta = DoRA.start(torch.ones(1, 4), torch.ones(4, 4), alpha=1.0, output_slice=(1, 12, 4, 4))
    with pytest.raises(lorakit.LorakitError) as caught:
        lorakit.Adapter(Spec(rank=1, delta="dora", targets=["qkv.k"]), {"qkv.k": delta}).save(
            tmp_path / "out"
        )
    assert str(caught.value) == (
        "qkv.k cannot be saved: PEFT has no layout for a part of a fused layer with delta 'dora'.\n"
        "Nothing was written."
    )
    assert not (tmp_path / "out").exists()
