"""VeRA: one random frozen pair of factors for all layers, and two trained vectors for each."""

from collections.abc import Iterator, Mapping
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.base import Delta, DeltaOptions, draw_uniform, override_faults
from lorakit.errors import SpecError
from lorakit.linalg import wide_dtype
from lorakit.sites.base import Site
from lorakit.spec import SCALES, Settings, Spec

START_D = 0.1


class SharedPair(nn.Module):
    """The frozen factors of all layers: A (rank, most inputs) and B (most outputs, rank)."""

    A: Tensor
    B: Tensor

    def __init__(self, A: Tensor, B: Tensor):
        super().__init__()
        self.register_buffer("A", A)
        self.register_buffer("B", B)

    def __str__(self) -> str:
        return f"A {tuple(self.A.shape)} and B {tuple(self.B.shape)}"

    def covers(self, shape: tuple[int, int]) -> bool:
        """Return True if the factors of a matrix of this shape can be cut out."""
        out, inputs = shape
        return out <= len(self.B) and inputs <= self.A.shape[1]


class VeRA(Delta):
    """W' = W + diag(b) B diag(d) A, with A and B cut out of the shared pair.

    The shared B contains the scale of alpha and the scale rule.

    Args:
        b: (out,); it starts at zero.
        d: (rank,); it starts at 0.1.
        pair: shared by all layers of an adapter.
        inputs: of the matrix; 0 if a file does not store it.
        **options: as Delta.

    Source: Kopiczko et al., VeRA, arXiv 2310.11454, equation 2 and section 3.2; alpha = rank gives
        its scale, 1.

    >>> pair = SharedPair(torch.ones(1, 3), torch.ones(4, 1))
    >>> b, d = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    >>> VeRA(b, d, pair, inputs=2, alpha=1.0).matrix().tolist()
    [[3.0, 3.0], [6.0, 6.0]]
    """

    name = "vera"
    has_matrix_rank = False
    kinds = ("linear", "conv1d")
    inits = ("kaiming",)
    zero_parameter = "b"

    def __init__(
        self,
        b: Tensor,
        d: Tensor,
        pair: SharedPair,
        inputs: int = 0,
        **options: Unpack[DeltaOptions],
    ):
        super().__init__(len(d), **options)
        self.b = nn.Parameter(b)
        self.d = nn.Parameter(d)
        self.pair = pair
        self.inputs = inputs

    @classmethod
    def faults(cls, site: Site, settings: Settings, spec: Spec) -> list[str]:
        faults = super().faults(site, settings, spec)
        reason = "all layers share one pair of factors"
        return faults + override_faults(cls.name, settings, spec, reason)

    @classmethod
    def make_shared(
        cls, shapes: Mapping[str, tuple[int, int]], spec: Spec, generator: torch.Generator
    ) -> SharedPair | None:
        """Return the shared pair; it depends only on the seed and the largest sizes."""
        if not shapes:
            return None
        outputs = max(shape[0] for shape in shapes.values())
        inputs = max(shape[1] for shape in shapes.values())
        like = torch.empty((), dtype=getattr(torch, spec.dtype))
        gain = 6**0.5
        scale = SCALES[spec.scale_rule](spec.alpha, spec.rank)
        A = draw_uniform(like, generator, spec.rank, inputs) * gain
        B = draw_uniform(like, generator, outputs, spec.rank) * (gain * scale)
        return SharedPair(A, B)

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "VeRA":
        """Return a delta that changes nothing yet: b is zero, d is 0.1."""
        if not isinstance(shared, SharedPair):
            raise TypeError("VeRA.start needs shared=, the pair that VeRA.make_shared returns.")
        shared.to(A.device)
        b, d = A.new_zeros(len(M)), A.new_full((len(A),), START_D)
        return cls(b, d, shared, M.shape[1], **options)

    @property
    def rank(self) -> int:
        return len(self.d)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.b), self.inputs or self.pair.A.shape[1]

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        out, inputs = shape
        limit = self.inputs or self.pair.A.shape[1]
        fits = inputs == limit if self.inputs else inputs <= limit
        if len(self.b) != out or not fits:
            yield f"changes a matrix of {self.shape}, the layer's is {tuple(shape)}"
        elif not self.pair.covers(shape):
            yield f"cannot be cut out of the shared {self.pair}: the layer's is {tuple(shape)}"

    def complete_for_layer(
        self, kind: str, kernel: tuple[int, ...], shape: tuple[int, int]
    ) -> None:
        super().complete_for_layer(kind, kernel, shape)
        self.inputs = shape[1]

    def matrix(self, M: Tensor | None = None) -> Tensor:
        inputs = self.inputs if M is None else M.shape[1]
        if not inputs:
            raise SpecError(
                "A VeRA file of PEFT does not store how many inputs a matrix has.",
                advice="Call matrix(M) with the base's matrix.",
            )
        wide = wide_dtype(self.b)
        A = self.pair.A[:, :inputs].to(self.d.device, wide)
        B = self.pair.B[: len(self.b)].to(self.b.device, wide)
        scaled_A = self.d.to(wide).unsqueeze(1) * A
        scaled_B = self.b.to(wide).unsqueeze(1) * B
        return scaled_B @ scaled_A

    def forward(self, site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        outputs, inputs = self.shape
        # The pair can be on another device than this layer if the model is spread over several.
        A = self.pair.A[:, :inputs].to(y)
        B = self.pair.B[:outputs].to(self.b.device)
        projected = site.project(layer, A, x) * self.d.to(y.dtype)
        scaled_B = self.b.unsqueeze(1) * B
        return site.expand(layer, scaled_B.to(y.dtype), projected, y)
