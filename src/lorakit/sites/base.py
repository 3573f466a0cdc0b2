"""Site: how a layer stores its matrix M (out, in), and how it computes M x.

A site knows no method of adaptation. Merging calls `read`, `to_weight`, `widen` and `add_changes`;
the factored forward calls `project` and `expand`. A new storage derives from `Site`, or from
`DenseSite` where the layer multiplies the last axis of its input.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.spec import Settings

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    LayerT = TypeVar("LayerT", bound=nn.Module, default=Any)
else:
    from typing import TypeVar

    LayerT = TypeVar("LayerT", bound=nn.Module)


class MatrixChange(Protocol):
    """The part of a delta that a site uses: the change of a matrix, built in full.

    Attributes:
        is_product: whether the change is scale * B @ A with factors A and B, and nothing else.
    """

    is_product: bool

    def matrix(self, M: Tensor | None = None) -> Tensor:
        """Return the change of the base matrix M, of its shape, in float32 or better."""
        ...


# The weight of an enabled adapter, the site that its delta changes, and the delta.
WeightedChange: TypeAlias = "tuple[float, Site, MatrixChange]"


class Site(ABC, Generic[LayerT]):
    """The way layers of one class store the matrix M (out, in), with output M x + bias.

    An instance holds no layer: every method takes it. Methods that a subclass does not define work
    for a layer without padding, convolution kernel, quantisation or fused projections. `project`,
    `expand` and `apply` are the factored forward; a site that swaps the weight needs none of them.

    Attributes:
        kind: name of this kind of site, an identifier; files of adapters store it.
        input_axes: number of axes of one input. The axes before them are batch and tokens.
        output_slice: position in the fused matrix of a site that is a slice of it: number of
            groups, outputs of a group, first output in each group, number of outputs in each group.
            Empty for a full matrix.
        child_name: name of the child module that holds the weight, where files name the child
            instead of the layer; empty otherwise.
        is_dense: whether the products with A and B are `torch.nn.functional.linear`, on the last
            axis.
        is_lookup: whether the input is token ids, so that A x selects columns of A.
        is_quantised: whether the layer stores M in int8 or 4 bits.
        swaps_weight: whether the layer reads the weight itself, so that the changed weight must be
            swapped in while it runs.
    """

    kind: str
    input_axes: int = 1
    output_slice: tuple[int, ...] = ()
    child_name: str = ""
    is_dense: bool = False
    is_lookup: bool = False
    is_quantised: bool = False
    swaps_weight: bool = False

    @property
    def full_site(self) -> "Site":
        """The site of the full matrix: another one for a slice of a fused matrix."""
        return self

    @abstractmethod
    def supports(self, layer: nn.Module) -> bool:
        """Return True if the layer is of this kind and stores its matrix as this site reads it."""

    def weight_name(self) -> str:
        """Return the name of the stored weight, relative to the layer."""
        return "weight"

    @abstractmethod
    def read(self, layer: LayerT) -> Tensor:
        """Return M (out, in), detached: a view of the stored weight in its dtype if possible."""

    @abstractmethod
    def to_weight(self, layer: LayerT, M: Tensor) -> Tensor:
        """Return M (out, in) in the shape and axis order of the stored weight."""

    def quantised_form(self, layer: LayerT) -> str:
        """Return the name of the layer's quantised storage; an empty string for full precision."""
        return ""

    def requantise(self, layer: LayerT, M: Tensor) -> nn.Parameter | None:
        """Return M quantised like the layer's weight; None if there is no way to do it."""
        return None

    def widen(self, change: Tensor) -> Tensor:
        """Return a change of this site's matrix as a change of `full_site`'s: zero elsewhere."""
        return change

    def add_changes(self, layer: LayerT, changes: Iterable[WeightedChange]) -> Tensor:
        """Return M plus changes of it or of slices of it, summed in float32 or better."""
        total = self.read(layer)
        for weight, site, delta in changes:
            base = site.read(layer)
            change = site.widen(delta.matrix(base))
            change = change.to(total.device)
            dtype = torch.promote_types(total.dtype, change.dtype)
            total = total.to(dtype) + weight * change
        return total

    def fan_in(self, layer: LayerT) -> int:
        """Return the number of inputs that are non-zero at once: the initial A is scaled by it."""
        return self.read(layer).shape[-1]

    def project(self, layer: LayerT, A: Tensor, x: Tensor) -> Tensor:
        """Return A x: (..., in) -> (..., rank)."""
        raise NotImplementedError

    def expand(self, layer: LayerT, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        """Return B A x in the shape of the layer's output y.

        Args:
            layer: the layer.
            B: (out, rank).
            projected: A x, (..., rank).
            y: output of the layer.
        """
        raise NotImplementedError

    def apply(self, layer: LayerT, M: Tensor, x: Tensor) -> Tensor:
        """Return M x in the shape of the layer's output, for changes that are no product B A."""
        raise NotImplementedError

    def bias(self, layer: LayerT) -> Tensor | None:
        """Return the layer's bias in a shape that broadcasts over its output; None without one."""
        return getattr(layer, "bias", None)

    def broadcast_outputs(self, layer: LayerT, vector: Tensor) -> Tensor:
        """Return a vector (out,) in a shape that broadcasts over the layer's output."""
        return vector

    def scatter_outputs(self, values: Tensor, fill: float) -> Tensor:
        """Return values (..., out) of this site's outputs among all outputs of `full_site`.

        The other outputs get the value `fill`.
        """
        return values

    def mask_padding(self, layer: LayerT, A: Tensor) -> Tensor:
        """Return A with zeros in the columns of padding inputs."""
        return A

    def kernel(self, layer: LayerT) -> tuple[int, ...]:
        """Return the size of the convolution kernel, which files keep; empty for other layers."""
        return ()

    def owns_output(self, layer: LayerT) -> bool:
        """Return True if nothing but the layer and its hook has a reference to the output.

        Then the change may be added in place.
        """
        return False

    def faults(self, layer: LayerT, settings: Settings) -> list[str]:
        """Return the reasons why this layer cannot be adapted with these settings."""
        return []

    def rank_faults(self, layer: LayerT, rank: int) -> list[str]:
        """Return the fault of a product B @ A with a rank above any that the matrix can have."""
        M = self.read(layer)
        outputs, inputs = M.shape[-2:]
        return compare_rank(rank, inputs, outputs)


class DenseSite(Site[LayerT]):
    """A layer that multiplies the last axis of its input by M; the products are final.

    A layer that computes M x in another way derives from `Site`.
    """

    is_dense = True

    @final
    def project(self, layer: LayerT, A: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, A)

    @final
    def expand(self, layer: LayerT, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        return F.linear(projected, B)

    @final
    def apply(self, layer: LayerT, M: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, M)

    def owns_output(self, layer: LayerT) -> bool:
        if type(layer).forward is not nn.Linear.forward:
            return False
        return len(layer._forward_hooks) == 1


def compare_rank(rank: int, inputs: int, outputs: int, name: str = "out") -> list[str]:
    """Return the fault of a rank above the smaller size of the matrix, if there is one.

    Args:
        rank: the rank.
        inputs: number of inputs.
        outputs: number of outputs.
        name: name of the outputs in the message.

    >>> compare_rank(5, 8, 4)
    ['rank 5 is above min(in, out) = 4 (8 -> 4)']
    """
    smallest = min(inputs, outputs)
    if rank <= smallest:
        return []
    sizes = f"{inputs} -> {outputs}"
    return [f"rank {rank} is above min(in, {name}) = {smallest} ({sizes})"]


def keeps_forward(layer: nn.Module, layer_class: type[nn.Module]) -> bool:
    """Return True if the layer is of this class and does not override its forward."""
    return isinstance(layer, layer_class) and type(layer).forward is layer_class.forward


def own_weight(layer: nn.Module, key: str = "weight") -> Tensor | None:
    """Return a floating-point parameter that the layer itself holds; None if there is none."""
    weight = layer._parameters.get(key)
    if weight is None or not is_plain(weight):
        return None
    return weight


def is_plain(weight: Tensor) -> bool:
    """Return True for floating-point values of 16 bits or more that are stored densely.

    >>> is_plain(torch.ones(2)), is_plain(torch.ones(2).to(torch.float8_e5m2))
    (True, False)
    """
    is_dense = weight.layout == torch.strided
    return is_dense and weight.is_floating_point() and weight.itemsize > 1
