"""Delta: a change of one matrix, and LowRank, s B A. They know no layer; a site tells them how a
layer applies a matrix.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.lora_autograd import add_low_rank, is_traced
from lorakit.errors import SpecError
from lorakit.spec import SCALES, Settings, Spec


class Delta(nn.Module):
    """A change of a matrix (out, in), however it is made: what all parameterisations have in
    common.

    Args:
        rank: what `scale` depends on, beside alpha.
        alpha: strength; with `scale_rule` it gives `scale`.
        scale_rule: a name from `lorakit.spec.SCALES`.
        dropout: probability with which an input is dropped while training.
        kind: the kind of site it was made for ("linear", "conv1d", "embedding", …): files need it;
            "" where one tells none.
        kernel: axes of the patch that a row of the matrix is for, of a convolution: files keep
            them.
        output_slice: which outputs of a fused layer these are: groups, outputs of a group, first, count;
            empty for all.
    """

    name = ""  # in Spec.delta
    kinds: tuple[str, ...] = ()  # of layers that it serves; empty for all
    inits: tuple[str, ...] = ()  # of Spec.init that it can start by; empty for all
    biases = True  # whether its files have a place for them
    by_token = False  # whether it is of single rows, given by token
    # the parameter that starts at zero: the first to get a gradient; "" where a batch may have none
    # for it
    zero_parameter: str
    is_product = False  # whether the change is scale * B @ A and nothing else
    rank: Any  # of the change; a property where a tensor tells it
    shape: Any  # (out, in) of the matrix it changes, or of each matrix of a stack
    stack: Any = ()  # leading axes of a stack of matrices

    def __init__(
        self,
        rank: int,
        *,
        alpha: float,
        scale_rule: str = "alpha/rank",
        dropout: float = 0.0,
        kind: str = "linear",
        kernel: tuple[int, ...] = (),
        output_slice: tuple[int, ...] = (),
    ):
        super().__init__()
        self.alpha, self.scale_rule, self.dropout, self.kind = (
            float(alpha),
            scale_rule,
            float(dropout),
            kind,
        )
        self.kernel, self.output_slice = tuple(kernel), tuple(output_slice)
        self.scale: float = SCALES[scale_rule](alpha, max(rank, 1))

    @classmethod
    def faults(cls, site: Any, settings: Settings, spec: Spec) -> list[str]:
        """Return why what this site holds cannot be changed in this way, with these settings of its
        own.
        """
        told: list[str] = []
        if cls.kinds and site.kind not in cls.kinds:
            told.append(f"serves {', '.join(cls.kinds)}, not a layer of kind {site.kind}")
        if cls.kinds and site.output_slice:
            told.append("a part of a fused layer is changed by plain low rank alone (delta='lora')")
        if cls.inits and settings.init not in cls.inits:
            told.append(f"has a start of its own, init={settings.init!r} has no place in it")
        if spec.bias != "none" and not cls.biases:
            told.append(f"its files have no place for biases, asked for bias={spec.bias!r}")
        return [f"delta {cls.name!r}: {text}" for text in told]

    @classmethod
    def make_shared(
        cls, shapes: Mapping[str, tuple[int, int]], spec: Spec, generator: torch.Generator
    ) -> dict[str, Any]:
        """Return what all layers of one adapter hold together, by the name that `start` takes it
        under.
        """
        return {}

    @classmethod
    def start(cls, A: Tensor, M: Tensor, generator: torch.Generator, **more: Any) -> "Delta":
        """Return one that changes nothing yet, for the base matrix M (out, in).

        Args:
            A: (rank, in), as Spec.init says; of its dtype and device is what is made.
            M: the base's matrix.
            generator: what else is random comes from it; it depends on the seed and the layer's
                name alone.
            **more: what `make_shared` returned, and what the class takes.
        """
        raise NotImplementedError

    @property
    def initial_rank(self) -> int:
        """The rank that was asked for, which `scale` depends on."""
        return self.rank

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        """Yield why it cannot be put on a matrix of this shape."""
        if tuple(self.shape) != tuple(shape):
            yield f"changes a matrix of {tuple(self.shape)}, the layer's is {tuple(shape)}"

    def complete_for_layer(
        self, kind: str, kernel: tuple[int, ...], shape: tuple[int, int]
    ) -> None:
        """Learn of the layer it is put on what its file did not tell."""
        self.kind, self.kernel = self.kind or kind, self.kernel or tuple(kernel)

    def matrix(self, M: Tensor | None = None) -> Tensor:
        """Return what is added to the base matrix M: of its shape, float32, or float64 where a
        parameter is.
        """
        raise NotImplementedError

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return what is added to the layer's output `y` for its input `x`: shape and dtype of y."""
        x = F.dropout(x, self.dropout, self.training)
        return site.apply(layer, self.matrix(site.read(layer)).to(y.dtype), x)

    def add_change(
        self,
        site: Any,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        into: bool,
    ) -> Tensor:
        """Return out + weight * what this adds to the layer's output y for its input x.

        Args:
            site: what holds the layer's matrix.
            layer: the layer.
            x: its input.
            y: its own output.
            out: y, and what was added before.
            weight: of the adapter.
            into: whether out may be overwritten.
        """
        change = self(site, layer, x, y)
        return out + (change if weight == 1.0 else change * weight)

    def extra_repr(self) -> str:
        out, inputs = self.shape
        return f"{inputs} -> {out}, rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}, kind={self.kind}"


def draw_uniform(like: Tensor, generator: torch.Generator, *size: int) -> Tensor:
    """Return uniform(±1/sqrt(inputs)) of this size (…, inputs), drawn on the CPU, with the dtype
    and device of `like`.

    >>> bool(draw_uniform(torch.ones(1), torch.Generator(), 9, 4).abs().max() <= 0.5)
    True
    """
    return ((torch.rand(size, generator=generator) * 2 - 1) / size[-1] ** 0.5).to(like)


class LowRank(Delta):
    """The low-rank change `scale * B @ A` of a matrix (out, in), with its two factors as
    parameters.

    Args:
        A: (rank, in), floating; the factor next to the input. (experts, rank, in) for a stack of
            matrices.
        B: (out, rank), same rank, dtype and device as A; (experts, out, rank) for a stack.
        alpha: strength; with `scale_rule` it gives `scale`.
        scale_rule: a name from `lorakit.spec.SCALES`.
        dropout: probability with which an input of A is dropped while training.
        kind: the kind of site it was made for; `kernel` and `output_slice` likewise, as in Delta.
        kernel: axes of the patch that a row of A is for.
        output_slice: which outputs of a fused layer these are.

    Raises:
        SpecError: A and B do not share a rank; the message names both shapes.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 4.1.

    >>> LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=2.0).matrix().tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    name, zero_parameter = "lora", "B"
    is_product = True

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        *,
        alpha: float,
        scale_rule: str = "alpha/rank",
        dropout: float = 0.0,
        kind: str = "linear",
        kernel: tuple[int, ...] = (),
        output_slice: tuple[int, ...] = (),
    ):
        if (
            A.ndim < 2
            or A.shape[:-2] != B.shape[:-2]
            or A.ndim != B.ndim
            or A.shape[-2] != B.shape[-1]
        ):
            raise SpecError(
                f"A (rank, in) and B (out, rank) must share a rank: A is {tuple(A.shape)}, B is {tuple(B.shape)}."
            )
        super().__init__(
            A.shape[-2],
            alpha=alpha,
            scale_rule=scale_rule,
            dropout=dropout,
            kind=kind,
            kernel=kernel,
            output_slice=output_slice,
        )
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    @classmethod
    def start(
        cls, A: Tensor, M: Tensor, generator: torch.Generator | None = None, **more: Any
    ) -> "LowRank":
        """Return one that changes nothing yet: from an initial A (rank, in) and B = 0, for the base
        matrix M (out, in).
        """
        return cls(A, A.new_zeros(*M.shape[:-1], A.shape[-2]), **more)

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def stack(self) -> tuple[int, ...]:
        """(experts,) of a stack of matrices; () of one."""
        return tuple(self.A.shape[:-2])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix it changes, or of each matrix of a stack."""
        return self.B.shape[-2], self.A.shape[-1]

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        out, inputs = shape
        if self.shape[1] != inputs:
            yield f"A is {tuple(self.A.shape)}, the layer takes {inputs}"
        if self.shape[0] != out:
            yield f"B is {tuple(self.B.shape)}, the layer gives {out}"

    def matrix(self, M: Tensor | None = None) -> Tensor:
        wide = torch.promote_types(torch.promote_types(self.A.dtype, self.B.dtype), torch.float32)
        return self.scale * (self.B.to(wide) @ self.A.to(wide))

    def add_change(
        self,
        site: Any,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        into: bool,
    ) -> Tensor:
        # In a compiled graph plain operations are fused with what is around them, and transforms
        # cannot look inside.
        if site.input_axes != 1 or site.full_site is not site or not self.is_product or is_traced():
            return super().add_change(site, layer, x, y, out, weight, into=into)
        dropout = self.dropout if self.training else 0.0
        return add_low_rank(
            out, x, self.A, self.B, self.scale * weight, dropout, into=into and out.is_contiguous()
        )

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return what is added to the layer's output `y` for its input `x`: shape and dtype of y.

        The factors go to y's dtype; x is never copied to theirs.
        """
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        h = site.project(layer, self.A.to(y.dtype), x)
        return site.expand(layer, self.B.to(y.dtype), h * self.scale, y)
