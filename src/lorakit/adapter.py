"""Adapter: the deltas of one training by module name, their Spec, and their provenance."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta
from lorakit.deltas.token_rows import TokenRows
from lorakit.formats import folder as adapter_folder
from lorakit.formats.parts import AdapterParts
from lorakit.spec import Spec, full_name


class Adapter:
    """The result of one training, as a value: it is read, compared and written without a model.

    `attach` makes one from a Spec and puts it on a model. From then on its tensors are those that
    train, so `save` writes their values at that moment. Attaching a loaded adapter puts its own
    tensors on the model; `copy()` keeps them apart.

    Args:
        spec: the spec that it was built from.
        deltas: deltas by module name.
        full_parameters: tensors by parameter name that replace the base's: biases, and parameters
            of modules that train in full.
        provenance: JSON-like facts: base_fingerprint, base_model, task_type, data_hash, seed,
            versions, metrics.
        target_names: module names as a PEFT file lists them (full names, or shorter ones that mean
            the same).

    Attributes:
        tied_deltas: deltas of layers that share a weight with one in `deltas`, while the adapter is
            on a model.
        renamed: the model's name of each layer that the adapter named otherwise, such as
            `_orig_mod.0`, set by `attach`.
        left_out: the reason for each module that the preset "all-linear" left out of a new adapter.
        source: the folder that it was read from; None for one that was made here.

    >>> from lorakit import LowRank
    >>> delta = LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=1.0)
    >>> adapter = Adapter(Spec(rank=1), {"0": delta})
    >>> adapter.parameters_count, adapter == adapter.copy()
    (5, True)
    """

    def __init__(
        self,
        spec: Spec,
        deltas: Mapping[str, Delta],
        full_parameters: Mapping[str, nn.Parameter] | None = None,
        provenance: Mapping[str, Any] | None = None,
        target_names: tuple[str, ...] | str = (),
    ):
        self.spec = spec
        self.deltas = dict(deltas)
        self.full_parameters = dict(full_parameters or {})
        self.provenance = dict(provenance or {})
        self.target_names = target_names or tuple(self.deltas)
        self.tied_deltas: dict[str, Delta] = {}
        self.renamed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.source: Path | None = None

    @property
    def deltas_by_place(self) -> dict[str, Delta]:
        """Deltas by all places that they change, layers that share a weight included."""
        return {**self.deltas, **self.tied_deltas}

    @property
    def trained_tokens(self) -> dict[str, list[int]]:
        """Ids of the tokens whose rows train, by the name of the weight."""
        return {
            full_name(name, "weight"): [int(token) for token in delta.tokens]
            for name, delta in self.deltas.items()
            if isinstance(delta, TokenRows)
        }

    def count_outputs(self) -> int | None:
        """Return the number of outputs of the head that was trained in full; None without one."""
        matrices = [
            parameter
            for path, parameter in self.full_parameters.items()
            if path.endswith("weight") and parameter.ndim == 2
        ]
        return matrices[-1].shape[0] if matrices else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trained tensors by name: `module.A`, `module.B`, and the full parameters."""
        for name, delta in self.deltas.items():
            for key, parameter in delta.named_parameters():
                yield full_name(name, key), parameter
        yield from self.full_parameters.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trained tensors, for an optimizer."""
        return (parameter for _, parameter in self.named_parameters())

    @property
    def parameters_count(self) -> int:
        """Number of trained values, full modules and biases included."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first trained tensor."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first trained tensor."""
        return next(self.parameters()).device

    def to(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401  passed to torch.nn.Module.to
        """Move or cast all tensors in place, as `torch.nn.Module.to` does; returns itself."""
        for delta in self.deltas.values():
            delta.to(*args, **kwargs)
        for parameter in self.full_parameters.values():
            parameter.data = parameter.data.to(*args, **kwargs)
        return self

    def copy(self) -> Self:
        """Return an equal adapter that shares no tensor with this one."""
        return copy.deepcopy(self)

    def __eq__(self, other: object) -> bool:
        """Compare specs, scales and all bits of all tensors; the provenance does not count."""
        if not isinstance(other, Adapter):
            return False
        return self.spec == other.spec and self.content_hash() == other.content_hash()

    # Its tensors change while it trains, so it has no hash; `content_hash` is that of the moment.
    __hash__ = None  # type: ignore[assignment]

    def content_hash(self) -> str:
        """Return a SHA-256 over names, scales, shapes, dtypes and tensor bits."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.deltas.items()):
            form = f"{delta.kind}{delta.kernel or ''}{delta.output_slice or ''}"
            digest.update(f"{name} {form} {delta.scale!r} {delta.dropout!r}\n".encode())
        tensors = [*self.named_parameters(), *self._named_buffers()]
        for name, tensor in sorted(tensors, key=lambda item: item[0]):
            values = tensor.detach().cpu().flatten().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(values.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the frozen tensors of the deltas, each once where several deltas share it."""
        frozen: dict[int, tuple[str, Tensor]] = {}
        for name, delta in sorted(self.deltas.items()):
            for key, buffer in delta.named_buffers():
                frozen[id(buffer)] = full_name(name, key), buffer
        yield from frozen.values()

    def save(self, folder: str | Path) -> Path:
        """Write `adapter_config.json` and `adapter_model.safetensors` in PEFT's layout, atomically.

        Raises:
            AdapterFileError: a tensor holds NaN or infinity; nothing is written.
        """
        parts = AdapterParts(
            self.spec, self.deltas, self.full_parameters, self.provenance, self.target_names
        )
        return adapter_folder.write(folder, parts)

    @classmethod
    def load(cls, folder: str | Path, *, unchecked: bool = False) -> Self:
        """Read an adapter folder, ours or PEFT's.

        Args:
            folder: the folder.
            unchecked: True to read files of lorakit that were changed after they were written, and
                those of format 1, which hold no hash.

        Raises:
            AdapterFileError: something is missing, unknown, cut off, not finite, of a wrong shape,
                or not as lorakit wrote it; all faults are named.
        """
        adapter = cls(*adapter_folder.read(folder, unchecked=unchecked))
        adapter.source = Path(folder)
        return adapter

    def __repr__(self) -> str:
        return (
            f"Adapter({len(self.deltas)} modules, rank {self.spec.rank}, "
            f"{self.parameters_count:,} parameters)"
        )
