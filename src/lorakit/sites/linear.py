"""How each kind of layer holds its matrix M (out, in), so that M x + bias is what the layer
computes.

A site knows no method: `read`, `stored` and `widen` are for merging, `project` and `expand` for the
    factored forward.
SITES lists those of the core; `lorakit.sites` adds the storages with a file of their own, and is
where all are found.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorakit.spec import Settings

OWN_FORWARD = ("FalconLinear",)  # subclasses of nn.Linear that write M x + bias in their own words


class Linear:
    """torch.nn.Linear: weight is M itself."""

    kind = "linear"
    rows: tuple[
        int, ...
        # of a part: groups, rows of a group, and where in each the part's begin and how many they are
    ] = ()
    child = (
        ""  # of the layer: the module whose weight this is, where files name that and not the layer
    )
    axes = 1  # of one input: what comes before them is rows of the batch, and tokens
    # whether the layer reads its weight itself, so that it must be lent the changed one while it
    # runs
    lends = False

    @property
    def whole(self) -> "Linear":
        """The site of the whole matrix that this is a part of; itself, mostly."""
        return self

    def supports(self, layer: Any) -> bool:
        """Tell whether this layer is of this kind and its matrix is stored as this site reads it."""
        # MultiheadAttention reads the weight of its out_proj and never calls it: a change would not
        # count. A subclass with a forward of its own may give something else than M x + bias (Llama
        # 4's router does).
        plain = type(layer).forward is nn.Linear.forward or type(layer).__name__ in OWN_FORWARD
        called = (
            isinstance(layer, nn.Linear)
            and plain
            and not isinstance(layer, NonDynamicallyQuantizableLinear)
        )
        weight = layer._parameters.get("weight") if called else None
        return (
            weight is not None
            and weight.is_floating_point()
            and weight.shape == (layer.out_features, layer.in_features)
        )

    def weight_name(self) -> str:
        """Return the name of the stored weight, from the layer on."""
        return "weight"

    def owns_output(self, layer: Any) -> bool:
        """Tell whether the layer's output is new memory that only this layer and its hook have
        seen.
        """
        return type(layer).forward is nn.Linear.forward and len(layer._forward_hooks) == 1

    def read(self, layer: Any) -> Tensor:
        """Return M (out, in), a view of the stored weight in its dtype."""
        return layer.weight.detach()

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        """Return M (out, in) in the shape and order in which the layer keeps it."""
        return M

    def widen(self, change: Tensor) -> Tensor:
        """Return a change of what this site reads as one of the matrix of `whole`: zero in all
        other rows.
        """
        return change

    def quantised_form(self, layer: Any) -> str:
        """Return what coarse form the layer keeps its matrix in; "" where it is M in full."""
        return ""

    def requantise(self, layer: Any, M: Tensor) -> nn.Parameter | None:
        """Return a weight in the coarse form of the layer's own that holds M; None where there is
        no way to it.
        """
        return None

    def add_changes(self, layer: Any, changes: Any) -> Tensor:
        """Return M with changes added: (weight, site, delta) each, of M or of a part of it. The sum
        is in float32 or better.
        """
        M = self.read(layer)
        for weight, site, delta in changes:
            change = site.widen(delta.matrix(site.read(layer)))
            M = M.to(torch.promote_types(M.dtype, change.dtype)) + weight * change.to(M.device)
        return M

    def fan_in(self, layer: Any) -> int:
        """Number of inputs that are non-zero at once: what the initial A is scaled by."""
        return self.read(layer).shape[-1]

    def project(self, layer: Any, A: Tensor, x: Tensor) -> Tensor:
        """Return A x: (..., in) -> (..., rank)."""
        return F.linear(x, A)

    def expand(self, layer: Any, B: Tensor, h: Tensor, y: Tensor) -> Tensor:
        """Return B h: (..., rank) -> (..., out), of the shape of the layer's own output y."""
        return F.linear(h, B)

    def apply(self, layer: Any, M: Tensor, x: Tensor) -> Tensor:
        """Return M x, of the shape of the layer's own output: for changes that are no product of
        two factors.
        """
        return F.linear(x, M)

    def bias(self, layer: Any) -> Tensor | None:
        """Return the layer's bias in the shape that goes with its output; None where it has none."""
        return getattr(layer, "bias", None)

    def broadcast_outputs(self, layer: Any, vector: Tensor) -> Tensor:
        """Return factors (out,) of the outputs in the shape that goes with the layer's output."""
        return vector

    def mask_padding(self, layer: Any, A: Tensor) -> Tensor:
        """Return A with zeros where the layer has inputs that must not count (padding)."""
        return A

    def kernel(self, layer: Any) -> tuple[int, ...]:
        """Return the size of the patch that is a row of A, where there is one: files keep its axes."""
        return ()

    def faults(self, layer: Any, settings: Settings) -> list[str]:
        """Return what of these settings this layer cannot use."""
        out, inputs = self.read(layer).shape[-2:]
        if settings.rank > min(out, inputs):
            return [
                f"rank {settings.rank} is above min(in, out) = {min(out, inputs)} ({inputs} -> {out})"
            ]
        return []


class Conv1DSite(Linear):
    """GPT-2's transformers.pytorch_utils.Conv1D: a Linear that stores M transposed."""

    kind = "conv1d"

    def owns_output(self, layer: Any) -> bool:
        return type(layer).__name__ == "Conv1D" and len(layer._forward_hooks) == 1

    def supports(self, layer: Any) -> bool:
        # By name, so that transformers is not imported for models that do not use it.
        names = [(c.__module__, c.__name__) for c in type(layer).__mro__]
        return (
            "transformers.pytorch_utils",
            "Conv1D",
        ) in names and layer.weight.is_floating_point()

    def read(self, layer: Any) -> Tensor:
        return layer.weight.detach().T

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M.T


class EmbeddingSite(Linear):
    """torch.nn.Embedding: row i of the weight is column i of M, the input is a one-hot vector."""

    kind = "embedding"
    axes = 0

    def supports(self, layer: Any) -> bool:
        # A subclass with a forward of its own scales or shifts the rows: merged would not equal
        # attached.
        plain = isinstance(layer, nn.Embedding) and type(layer).forward is nn.Embedding.forward
        return plain and layer.weight.is_floating_point()

    def read(self, layer: Any) -> Tensor:
        return layer.weight.detach().T

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M.T

    def fan_in(self, layer: Any) -> int:
        return 1

    def project(self, layer: Any, A: Tensor, x: Tensor) -> Tensor:
        return F.embedding(x, A.T, padding_idx=layer.padding_idx)

    def mask_padding(self, layer: Any, A: Tensor) -> Tensor:
        if layer.padding_idx is None:
            return A
        keep = torch.ones(A.shape[1], dtype=A.dtype, device=A.device)
        keep[layer.padding_idx] = 0
        return A * keep

    def faults(self, layer: Any, settings: Settings) -> list[str]:
        faults = super().faults(layer, settings)
        if settings.dropout:
            faults.append(
                f"dropout {settings.dropout:g}: an embedding's input is token ids, there is nothing to drop; "
                "set it to 0 for this name with overrides"
            )
        if layer.max_norm is not None:
            faults.append(
                "max_norm: the layer rescales its rows as it reads them, so a change of them cannot be merged"
            )
        return faults


SITES = {site.kind: site for site in (Linear(), Conv1DSite(), EmbeddingSite())}
