"""A drop-in for microsoft/LoRA's package: `import lorakit.loralib as lora` runs code written for
`import loralib as lora`.

Signatures, parameter names, state-dict keys and the draws of a seed are loralib's. Here alone
`eval()` merges and `train()` takes the merge back, as its users expect; but the sum is kept beside
the weight, which nothing ever writes. So a state dict, a copy, a cast and a layer with the same
weight have the base's own bits, and what is loaded or trained while merged counts.

Different from loralib on purpose: every kind of convolution and kernel works, with dropout; what
    trains is told by the layer
and not by a part of its name; layers can be pickled; adapters may have another dtype than the base;
a layer tells r and alpha when it is printed; `layer.weight` stays the base's in eval mode too, and
`layer.merged_weight()` is the sum. For models that you do not want to edit, `lorakit.attach` needs
no such layers.

Source: github.com/microsoft/LoRA, loralib 0.1.2.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.errors import SpecError

BIASES = ("none", "all", "lora_only")


class LoRALayer:
    """What every layer here has: r, lora_alpha, scaling, lora_dropout, merge_weights, merged,
    lora_A and lora_B.

    A layer is merged when it is in eval mode, unless merge_weights is False; r = 0 is the plain
    layer. What changes the weight or a factor while merged (a load, a cast, an optimizer's step, a
    new parameter) counts at the next call. Only what is written through `.data` leaves no trace in
    PyTorch: call `eval()` again after it. As in loralib, gradients reach the factors in train mode,
        or without merge_weights.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    weight: Any
    training: bool
    _parameters: Any
    _sum: tuple[tuple[Tensor, ...], tuple[int, ...], Tensor] | None = (
        None  # of what, in which versions, and the sum
    )

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool):
        if isinstance(r, bool) or not isinstance(r, int) or r < 0:
            raise SpecError(f"r: a whole number of at least 0 is needed, got {r!r}.")
        self.r, self.lora_alpha, self.merge_weights = r, lora_alpha, merge_weights
        self.lora_dropout = nn.Dropout(lora_dropout)
        self.scaling = lora_alpha / r if r else 0.0
        self.merged = False

    def factors(self, A: Sequence[int], B: Sequence[int]) -> None:
        """Make lora_A and lora_B, and freeze the base's weight."""
        self.lora_A = nn.Parameter(self.weight.new_zeros(tuple(A)))
        self.lora_B = nn.Parameter(self.weight.new_zeros(tuple(B)))
        self.weight.requires_grad_(False)

    def reset_lora(self) -> None:
        """Start anew: A as a linear layer's weight starts, B zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def change(self) -> Tensor:
        """Return what is added to the weight, in its layout, float32 or better."""
        raise NotImplementedError

    def product(self) -> Tensor:
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        return self.scaling * (self.lora_B.detach().to(wide) @ self.lora_A.detach().to(wide))

    def adapts(self) -> bool:
        """Whether there is anything to add."""
        # By attribute: a replica of nn.DataParallel has tensors where its parameters were.
        return getattr(self, "lora_A", None) is not None

    def mergeable(self) -> bool:
        return self.adapts()

    def merged_weight(self) -> Tensor:
        """Return the weight with the change, summed in float32 or better and rounded once; made
        anew where a part changed.
        """
        if not self.adapts():
            return self.weight.detach()
        parts = (self.weight, self.lora_A, self.lora_B)
        versions = tuple(0 if p.is_inference() else p._version for p in parts)
        if (
            self._sum is None
            or versions != self._sum[1]
            or any(p is not q for p, q in zip(parts, self._sum[0], strict=True))
        ):
            with torch.inference_mode(False), torch.no_grad():  # the sum outlives an inference mode
                change = self.change()
                self._sum = (
                    parts,
                    versions,
                    (self.weight.to(change.dtype) + change).to(self.weight.dtype),
                )
        return self._sum[2]

    def adding(self) -> bool:
        """Whether the forward adds what the factors give, instead of using the sum.

        A compiled forward always does: it could not see that a part of the sum was changed.
        """
        return self.adapts() and not (self.merged and not torch.compiler.is_compiling())

    def used(self) -> Tensor:
        """Return the weight that the forward uses."""
        return self.weight if self.adding() or not self.adapts() else self.merged_weight()


class _Module(LoRALayer, nn.Module):
    """How a layer's mode, dtype, copies and state dict go together with the merge."""

    def reset_parameters(self) -> None:
        super().reset_parameters()  # pyright: ignore  (of the plain layer)
        if self.adapts():
            self.reset_lora()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self._sum = None
        self.merged = not mode and self.merge_weights and self.mergeable()
        if self.merged:
            self.merged_weight()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        self._sum = None
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sum": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        state_dict, prefix = args[:2]
        for name in ("weight", "bias"):  # loralib 0.1.2 keeps a convolution's own under conv.
            if f"{prefix}conv.{name}" in state_dict:
                state_dict.setdefault(prefix + name, state_dict[f"{prefix}conv.{name}"])
                del state_dict[f"{prefix}conv.{name}"]
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.r}, lora_alpha={self.lora_alpha}, merged={self.merged}"


def _called(layer: nn.Module, args: Any) -> None:
    """Do nothing: torch's encoder layer reads the weights of its linear layers itself unless they
    have a hook.
    """


class Embedding(_Module, nn.Embedding):
    """`loralib.Embedding`: lora_A (r, num_embeddings) starts at zero, lora_B (embedding_dim, r)
    normal.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: int = 1,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, 0.0, merge_weights)
        if r:
            self.factors((r, num_embeddings), (embedding_dim, r))
        self.reset_parameters()

    def reset_lora(self) -> None:
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def mergeable(self) -> bool:
        # With max_norm the rows are rescaled as they are read: those of the sum would be, instead
        # of the base's.
        return self.adapts() and self.max_norm is None

    def change(self) -> Tensor:
        change = self.product().T
        if self.padding_idx is not None:
            change = change.clone()
            change[self.padding_idx] = 0
        return change

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore  (loralib's name of the argument)
        grad = self.scale_grad_by_freq
        y = F.embedding(
            x, self.used(), self.padding_idx, self.max_norm, self.norm_type, grad, self.sparse
        )
        if not self.adding():
            return y
        h = F.embedding(x, self.lora_A.T.to(y.dtype), scale_grad_by_freq=grad)
        if self.padding_idx is not None:
            h = h * (x != self.padding_idx).unsqueeze(-1)
        return y + F.linear(h * self.scaling, self.lora_B.to(y.dtype))


class Linear(_Module, nn.Linear):
    """`loralib.Linear`: with fan_in_fan_out the weight is stored (in, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: int = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        self.fan_in_fan_out = fan_in_fan_out
        self.make()
        self.reset_parameters()
        if fan_in_fan_out:
            self.weight.data = self.weight.data.T
        self.register_forward_pre_hook(_called)

    def make(self) -> None:
        if self.r:
            self.factors((self.r, self.in_features), (self.out_features, self.r))

    def change(self) -> Tensor:
        return self.product().T if self.fan_in_fan_out else self.product()

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore  (loralib's name of the argument)
        weight = self.used()
        y = F.linear(x, weight.T if self.fan_in_fan_out else weight, self.bias)
        return y + self.added(self.lora_dropout(x), y.dtype) if self.adding() else y

    def added(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the factors add for an input, never building their product."""
        return F.linear(F.linear(x, self.lora_A.to(dtype)) * self.scaling, self.lora_B.to(dtype))


class MergedLinear(Linear):
    """`loralib.MergedLinear`: equal parts of one matrix, such as q, k and v; those that enable_lora
    names are adapted.

    lora_A is (r * parts, in) and lora_B (out / all parts * parts, r), part after part.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: int = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        if not enable_lora or out_features % len(enable_lora):
            raise SpecError(
                f"enable_lora: {len(enable_lora)} parts do not divide out_features, {out_features}."
            )
        self.enable_lora = list(enable_lora)
        super().__init__(
            in_features,
            out_features,
            r,
            lora_alpha,
            lora_dropout,
            fan_in_fan_out,
            merge_weights,
            **kwargs,
        )

    def make(self) -> None:
        parts = sum(self.enable_lora)
        if self.r and parts:
            size = self.out_features // len(self.enable_lora)
            self.factors((self.r * parts, self.in_features), (size * parts, self.r))

    def parts(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first row, A, B) of each part that is adapted."""
        count, size = sum(self.enable_lora), self.out_features // len(self.enable_lora)
        rows = [i * size for i, on in enumerate(self.enable_lora) if on]
        yield from zip(rows, self.lora_A.chunk(count), self.lora_B.chunk(count), strict=True)

    def change(self) -> Tensor:
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        whole = torch.zeros(
            self.out_features, self.in_features, dtype=wide, device=self.weight.device
        )
        for row, A, B in self.parts():
            whole[row : row + len(B)] = self.scaling * (B.detach().to(wide) @ A.detach().to(wide))
        return whole.T if self.fan_in_fan_out else whole

    def added(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        h = F.linear(x, self.lora_A.to(dtype)) * self.scaling
        size, found = self.out_features // len(self.enable_lora), iter(self.parts())
        heads = iter(h.split(self.r, dim=-1))
        pieces = [
            F.linear(next(heads), next(found)[2].to(dtype))
            if on
            else h.new_zeros(*h.shape[:-1], size)
            for on in self.enable_lora
        ]
        return torch.cat(pieces, dim=-1)


class ConvLoRA(_Module):
    """loralib's convolution: (B A) viewed as the kernel, so its rank goes up to r * kernel; any
    dimension and kernel.
    """

    kernel_size: tuple[int, ...]

    def prepare(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r:
            first, last = self.kernel_size[0], self.kernel_size[-1]
            out, inputs, *_ = self.weight.shape
            groups = getattr(self, "groups", 1)
            rows = out // groups * math.prod(self.kernel_size) // last
            self.factors((r * first, inputs * groups * last), (rows, r * first))
        self.reset_parameters()

    @property
    def conv(self) -> "ConvLoRA":
        """The layer itself: loralib 0.1.2 holds its convolution one level down."""
        return self

    def change(self) -> Tensor:
        return self.product().view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        convolve: Any = self._conv_forward
        y = convolve(x, self.used(), self.bias)
        if not self.adding():
            return y
        kernel = (self.scaling * (self.lora_B @ self.lora_A)).view(self.weight.shape).to(y.dtype)
        return y + convolve(self.lora_dropout(x), kernel, None)


def _convolution(kind: Any, name: str) -> Any:
    """Return loralib's layer over one of torch's convolutions."""

    def __init__(
        self: Any,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        r: int = 0,
        lora_alpha: int = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        kind.__init__(self, in_channels, out_channels, kernel_size, **kwargs)
        self.prepare(r, lora_alpha, lora_dropout, merge_weights)

    text = f"`loralib.{name}`: torch.nn.{name} with lora_A and lora_B; see ConvLoRA."
    return type(
        name,
        (ConvLoRA, kind),
        {"__init__": __init__, "__doc__": text, "__module__": __name__, "__qualname__": name},
    )


Conv1d, Conv2d, Conv3d = (
    _convolution(kind, kind.__name__) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
)


def _chosen(model: nn.Module, bias: str) -> set[str]:
    """Return the names of what belongs to the adapters: told by the layers, never by a part of a
    name.
    """
    if bias not in BIASES:
        raise NotImplementedError(f"bias={bias!r} is none of {', '.join(BIASES)}")
    chosen = set()
    for path, module in model.named_modules(remove_duplicate=False):
        layer = isinstance(module, LoRALayer) and module.adapts()
        for key in module._parameters:
            takes = bias == "all" or (bias == "lora_only" and layer)
            if (layer and key in ("lora_A", "lora_B")) or (takes and "bias" in key):
                chosen.add(f"{path}.{key}" if path else key)
    return chosen


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Let the factors train, and biases as asked: none, all of the model, or those of adapted
    layers (lora_only).
    """
    chosen, every = _chosen(model, bias), dict(model.named_parameters(remove_duplicate=False))
    train = {id(every[name]) for name in chosen if every.get(name) is not None}
    for parameter in every.values():
        parameter.requires_grad_(id(parameter) in train)


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, Tensor]:
    """Return the factors, and the biases that were asked for: what mark_only_lora_as_trainable lets
    train.
    """
    chosen = _chosen(model, bias)
    return {key: tensor for key, tensor in model.state_dict().items() if key in chosen}
