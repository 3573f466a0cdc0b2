"""The part of a place that a start uses."""

from typing import Protocol

from torch import Tensor, nn

from lorakit.sites.base import Site


class PlaceLike(Protocol):
    """A layer, and the site that reads its matrix."""

    @property
    def layer(self) -> nn.Module: ...

    @property
    def site(self) -> Site: ...

    @property
    def weight_name(self) -> str:
        """Full name of the stored weight."""
        ...

    @property
    def matrix(self) -> Tensor:
        """The matrix (out, in), or the stack of matrices of experts."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""
        ...
