"""Sites of linear layers and embeddings."""

from typing import TYPE_CHECKING, cast, final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorakit.sites.base import DenseSite, Site, is_plain, keeps_forward, own_weight
from lorakit.spec import Settings

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D

# Subclasses of nn.Linear with a forward of their own that does compute M x + bias.
EQUIVALENT_CLASSES = ("FalconLinear",)


@final
class LinearSite(DenseSite[nn.Linear]):
    """torch.nn.Linear: the weight is M itself."""

    kind = "linear"

    def supports(self, layer: nn.Module) -> bool:
        if not isinstance(layer, nn.Linear):
            return False
        # nn.MultiheadAttention reads the weight of its out_proj (NonDynamicallyQuantizableLinear)
        # and never calls that layer, so a hook on it would have no effect.
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            return False
        # Another forward may compute something else than M x + bias (Llama 4's router does).
        is_equivalent = type(layer).__name__ in EQUIVALENT_CLASSES
        if not is_equivalent and not keeps_forward(layer, nn.Linear):
            return False
        weight = own_weight(layer)
        if weight is None:
            return False
        return weight.shape == (layer.out_features, layer.in_features)

    def read(self, layer: nn.Linear) -> Tensor:
        return layer.weight.detach()

    def to_weight(self, layer: nn.Linear, M: Tensor) -> Tensor:
        return M


@final
class Conv1DSite(DenseSite["Conv1D"]):
    """GPT-2's transformers.pytorch_utils.Conv1D: a linear layer that stores M transposed."""

    kind = "conv1d"

    def supports(self, layer: nn.Module) -> bool:
        # By name, so that transformers is not imported for models that do not use it.
        classes = [(known.__module__, known.__name__) for known in type(layer).__mro__]
        if ("transformers.pytorch_utils", "Conv1D") not in classes:
            return False
        return is_plain(cast("Conv1D", layer).weight)

    def read(self, layer: "Conv1D") -> Tensor:
        return layer.weight.detach().T

    def to_weight(self, layer: "Conv1D", M: Tensor) -> Tensor:
        return M.T

    def owns_output(self, layer: "Conv1D") -> bool:
        if type(layer).__name__ != "Conv1D":
            return False
        return len(layer._forward_hooks) == 1


@final
class EmbeddingSite(Site[nn.Embedding]):
    """torch.nn.Embedding: row i of the weight is column i of M, and the input is token ids."""

    kind = "embedding"
    input_axes = 0
    is_lookup = True

    def supports(self, layer: nn.Module) -> bool:
        # A subclass with a forward of its own scales or shifts the rows, so that merged would
        # differ from attached.
        if not keeps_forward(layer, nn.Embedding):
            return False
        return is_plain(cast(nn.Embedding, layer).weight)

    def read(self, layer: nn.Embedding) -> Tensor:
        return layer.weight.detach().T

    def to_weight(self, layer: nn.Embedding, M: Tensor) -> Tensor:
        return M.T

    def fan_in(self, layer: nn.Embedding) -> int:
        return 1

    def project(self, layer: nn.Embedding, A: Tensor, x: Tensor) -> Tensor:
        return F.embedding(x, A.T, padding_idx=layer.padding_idx)

    def expand(self, layer: nn.Embedding, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        return F.linear(projected, B)

    def mask_padding(self, layer: nn.Embedding, A: Tensor) -> Tensor:
        if layer.padding_idx is None:
            return A
        keep = A.new_ones(A.shape[1])
        keep[layer.padding_idx] = 0
        return A * keep

    def faults(self, layer: nn.Embedding, settings: Settings) -> list[str]:
        faults = super().faults(layer, settings)
        if settings.dropout:
            faults.append(
                f"dropout {settings.dropout:g}: an embedding's input is token ids, there is "
                "nothing to drop; set it to 0 for this name with overrides"
            )
        if layer.max_norm is not None:
            faults.append(
                "max_norm: the layer rescales its rows as it reads them, so a change of them "
                "cannot be merged"
            )
        return faults


LINEAR_LAYERS: list[Site] = [
    LinearSite(),
    Conv1DSite(),
    EmbeddingSite(),
]
