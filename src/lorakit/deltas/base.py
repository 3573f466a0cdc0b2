"""Delta, a change of one matrix, and LowRank, the change scale * B @ A.

A delta knows no layer: a Site reads the layer's matrix and applies factors to the layer's input.
"""

from collections.abc import Iterator, Mapping
from typing import Required, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.lora_autograd import add_low_rank, is_traced
from lorakit.linalg import check_factors, multiply_wide
from lorakit.sites.base import Site
from lorakit.spec import SCALES, Settings, Spec


class DeltaOptions(TypedDict, total=False):
    """The keyword arguments of every Delta."""

    alpha: Required[float]
    scale_rule: str
    dropout: float
    kind: str
    kernel: tuple[int, ...]
    output_slice: tuple[int, ...]


def options_of(
    settings: Settings,
    kind: str,
    kernel: tuple[int, ...],
    output_slice: tuple[int, ...] = (),
) -> DeltaOptions:
    """Return the keyword arguments of the delta of a layer with these settings.

    Args:
        settings: of the layer.
        kind: of the site; see Delta for this and the next two.
        kernel: size of the convolution kernel.
        output_slice: outputs of a fused layer that are changed.
    """
    return {
        "alpha": settings.alpha,
        "scale_rule": settings.scale_rule,
        "dropout": settings.dropout,
        "kind": kind,
        "kernel": kernel,
        "output_slice": output_slice,
    }


class Delta(nn.Module):
    """A change of a matrix (out, in), in any parameterisation.

    Args:
        rank: `scale` is computed from it and alpha.
        alpha: strength; with `scale_rule` it gives `scale`.
        scale_rule: a name from `lorakit.spec.SCALES`.
        dropout: probability with which an input is dropped during training.
        kind: kind of the site it was made for ("linear", "conv1d", "embedding", …), which files
            store; empty if a file does not store it.
        kernel: size of the convolution kernel, which files store; empty for other layers.
        output_slice: outputs of a fused layer that are changed: number of groups, outputs of a
            group, first output in each group, number of outputs in each group; empty for all.

    Attributes:
        name: the name in Spec.delta.
        kinds: kinds of sites that it can change; empty for all.
        inits: values of Spec.init that it can start with; empty for all.
        biases: whether its files can hold biases.
        by_token: whether it replaces rows of single tokens.
        is_product: whether the change is scale * B @ A with factors A and B, and nothing else.
        has_matrix_rank: whether its rank is that of the change, so that more than min(in, out)
            adds nothing.
        zero_parameter: name of the parameter that starts at zero, which gets the first gradient;
            empty if a batch may give it none.
    """

    name = ""
    kinds: tuple[str, ...] = ()
    inits: tuple[str, ...] = ()
    biases = True
    by_token = False
    is_product = False
    has_matrix_rank = True
    zero_parameter: str

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
        self.alpha = float(alpha)
        self.scale_rule = scale_rule
        self.dropout = float(dropout)
        self.kind = kind
        self.kernel = tuple(kernel)
        self.output_slice = tuple(output_slice)
        self.scale: float = SCALES[scale_rule](alpha, max(rank, 1))

    def options(self) -> DeltaOptions:
        """Return the keyword arguments that give a new delta these settings."""
        return {
            "alpha": self.alpha,
            "scale_rule": self.scale_rule,
            "dropout": self.dropout,
            "kind": self.kind,
            "kernel": self.kernel,
            "output_slice": self.output_slice,
        }

    @classmethod
    def faults(cls, site: Site, settings: Settings, spec: Spec) -> list[str]:
        """Return the reasons why the matrix of a site cannot be changed with these settings."""
        faults: list[str] = []
        if cls.kinds and site.kind not in cls.kinds:
            faults.append(f"serves {', '.join(cls.kinds)}, not a layer of kind {site.kind}")
        if cls.kinds and site.output_slice:
            faults.append("a part of a fused layer can only have delta 'lora'")
        if cls.inits and settings.init not in cls.inits:
            faults.append(f"has its own start, init={settings.init!r} cannot be used")
        if spec.bias != "none" and not cls.biases:
            faults.append(f"its files cannot hold biases, asked for bias={spec.bias!r}")
        return [f"delta {cls.name!r}: {fault}" for fault in faults]

    @classmethod
    def make_shared(
        cls, shapes: Mapping[str, tuple[int, int]], spec: Spec, generator: torch.Generator
    ) -> nn.Module | None:
        """Return the module that all layers of an adapter share; None for most deltas.

        Args:
            shapes: (out, in) of the adapted matrices, by layer name.
            spec: of the adapter.
            generator: source of all randomness; it depends on the seed alone.
        """
        return None

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "Delta":
        """Return a delta that changes nothing yet, for the base matrix M.

        Args:
            A: (rank, in), as Spec.init gives it; all parameters get its dtype and device.
            M: (out, in), the base's matrix.
            generator: source of all other randomness; it depends on the seed and the layer's name.
            shared: the result of `make_shared`.
            **options: as Delta.
        """
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """The rank of the change."""
        raise NotImplementedError

    @property
    def initial_rank(self) -> int:
        """The rank at the start of training, which `scale` depends on."""
        return self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix, or of each matrix of a stack."""
        raise NotImplementedError

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes of a stack of matrices, (experts,); empty for one matrix."""
        return ()

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        """Yield the reasons why it does not fit a matrix of this shape."""
        if tuple(self.shape) != tuple(shape):
            yield f"changes a matrix of {tuple(self.shape)}, the layer's is {tuple(shape)}"

    def complete_for_layer(
        self, kind: str, kernel: tuple[int, ...], shape: tuple[int, int]
    ) -> None:
        """Set what its file did not store, from the layer that it is attached to."""
        self.kind = self.kind or kind
        self.kernel = self.kernel or tuple(kernel)

    def matrix(self, M: Tensor | None = None) -> Tensor:
        """Return the change of the base matrix M, of its shape.

        It is float32, or float64 if a parameter is.
        """
        raise NotImplementedError

    def forward(self, site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the change of the layer's output `y` for its input `x`: shape and dtype of y."""
        x = F.dropout(x, self.dropout, self.training)
        return site.apply(layer, self.matrix(site.read(layer)).to(y.dtype), x)

    def add_change(
        self,
        site: Site,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        in_place: bool,
    ) -> Tensor:
        """Return out + weight * (the change of the layer's output y for its input x).

        Args:
            site: of the layer's matrix.
            layer: the layer.
            x: its input.
            y: its own output.
            out: y plus the changes that were added before.
            weight: of the adapter.
            in_place: whether out may be overwritten.
        """
        change = self(site, layer, x, y)
        return out + (change if weight == 1.0 else change * weight)

    def extra_repr(self) -> str:
        out, inputs = self.shape
        size = f"{inputs} -> {out}, rank={self.rank}, scale={self.scale:g}"
        return f"{size}, dropout={self.dropout:g}, kind={self.kind}"


def override_faults(delta: str, settings: Settings, spec: Spec, reason: str) -> list[str]:
    """Return the fault of a layer with another rank, alpha or scale rule than the spec's.

    Args:
        delta: name of the delta whose layers must agree in them.
        settings: of the layer.
        spec: of the adapter.
        reason: the reason why they must agree.
    """
    names = ("rank", "alpha", "scale_rule")
    different = [name for name in names if getattr(settings, name) != getattr(spec, name)]
    if not different:
        return []
    return [f"delta {delta!r}: {reason}, so {', '.join(different)} cannot be overridden"]


def draw_uniform(like: Tensor, generator: torch.Generator | None, *size: int) -> Tensor:
    """Return uniform(±1/sqrt(inputs)) of a size (…, inputs), with the dtype and device of `like`.

    It is drawn on the CPU.

    >>> bool(draw_uniform(torch.ones(1), torch.Generator(), 9, 4).abs().max() <= 0.5)
    True
    """
    unit = torch.rand(size, generator=generator) * 2 - 1
    return (unit / size[-1] ** 0.5).to(like)


class LowRank(Delta):
    """The low-rank change `scale * B @ A` of a matrix (out, in), with trained factors A and B.

    Args:
        A: (rank, in), floating; the factor next to the input. (experts, rank, in) for a stack of
            matrices.
        B: (out, rank), same rank, dtype and device as A; (experts, out, rank) for a stack.
        alpha: strength; with `scale_rule` it gives `scale`.
        scale_rule: a name from `lorakit.spec.SCALES`.
        dropout: probability with which an input of A is dropped during training.
        kind: kind of the site it was made for; see Delta for this and the next two.
        kernel: size of the convolution kernel.
        output_slice: outputs of a fused layer that are changed.

    Raises:
        SpecError: A and B do not share a rank; the message names both shapes.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 4.1.

    >>> LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=2.0).matrix().tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    name = "lora"
    zero_parameter = "B"
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
        check_factors(A, B)
        super().__init__(
            A.shape[-2],
            alpha=alpha,
            scale_rule=scale_rule,
            dropout=dropout,
            kind=kind,
            kernel=kernel,
            output_slice=output_slice,
        )
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "LowRank":
        """Return a delta with this A (rank, in) and B = 0, for the base matrix M (out, in)."""
        return cls(A, A.new_zeros(*M.shape[:-1], A.shape[-2]), **options)

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def stack(self) -> tuple[int, ...]:
        return tuple(self.A.shape[:-2])

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[-2], self.A.shape[-1]

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        out, inputs = shape
        if self.shape[1] != inputs:
            yield f"A is {tuple(self.A.shape)}, the layer takes {inputs}"
        if self.shape[0] != out:
            yield f"B is {tuple(self.B.shape)}, the layer gives {out}"

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B of the change scale * B @ A, as the forward pass uses them."""
        return self.A, self.B

    def matrix(self, M: Tensor | None = None) -> Tensor:
        A, B = self.factors()
        return self.scale * multiply_wide(B, A)

    def add_change(
        self,
        site: Site,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        in_place: bool,
    ) -> Tensor:
        # A compiler fuses plain operations with their neighbours, and function transforms cannot
        # look inside the single operation.
        can_fuse = self.is_product and site.is_dense
        if not can_fuse or is_traced():
            return super().add_change(site, layer, x, y, out, weight, in_place=in_place)
        dropout = self.dropout if self.training else 0.0
        scale = self.scale * weight
        in_place = in_place and out.is_contiguous()
        return add_low_rank(out, x, self.A, self.B, scale, dropout, in_place=in_place)

    def forward(self, site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the change of the layer's output `y` for its input `x`: shape and dtype of y.

        The factors are cast to y's dtype; x is never copied to theirs.
        """
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        A, B = self.factors()
        projected = site.project(layer, A.to(y.dtype), x)
        return site.expand(layer, B.to(y.dtype), projected * self.scale, y)
