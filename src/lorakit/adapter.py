"""Adapter, a value: the deltas of one training by module name, its Spec, and where it came from."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.deltas.base import Delta
from lorakit.deltas.token_rows import TokenRows
from lorakit.formats import folder as adapter_folder
from lorakit.formats.parts import AdapterParts
from lorakit.spec import Spec, full_name


class Adapter:
    """All that one training learned: needs no model to be read, inspected, compared or written.

    `attach` makes one from a Spec and puts it on a model; what it holds is then what trains, so
    `save` writes the state of the moment. Attaching a loaded one puts these very factors on the
    model (`copy()` keeps them apart).

    Args:
        spec: how it was asked for.
        deltas: module name -> Delta.
        full_parameters: parameter name -> tensor that replaces the base's (biases, modules trained whole).
        provenance: JSON-like facts: base_fingerprint, base_model, task_type, data_hash, seed,
            versions, metrics.
        target_names: module names as a PEFT file lists them (full names, or shorter ones that mean
            the same).

    >>> from lorakit import LowRank
    >>> adapter = Adapter(Spec(rank=1), {"0": LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=1.0)})
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
        self.spec, self.deltas, self.full_parameters = (
            spec,
            dict(deltas),
            dict(full_parameters or {}),
        )
        self.provenance, self.target_names = (
            dict(provenance or {}),
            target_names or tuple(self.deltas),
        )
        self.tied_deltas: dict[
            str, Delta
        ] = {}  # of layers that share a weight with one in deltas, while it is on a model

    @property
    def deltas_by_place(self) -> dict[str, Delta]:
        """The deltas by every place of a model that they change, those that share a weight
        included.
        """
        return {**self.deltas, **self.tied_deltas}

    @property
    def trained_tokens(self) -> dict[str, Any]:
        """Ids of the tokens whose rows train, by the name of the weight."""
        return {
            full_name(n, "weight"): [int(i) for i in d.tokens]
            for n, d in self.deltas.items()
            if isinstance(d, TokenRows)
        }

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield `module.A`, `module.B` and the names of whole parameters, with the tensors that
        train.
        """
        for name, delta in self.deltas.items():
            for key, parameter in delta.named_parameters():
                yield full_name(name, key), parameter
        yield from self.full_parameters.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what trains: give it to an optimizer."""
        return (parameter for _, parameter in self.named_parameters())

    @property
    def parameters_count(self) -> int:
        """Number of trained values, whole modules and biases counted in."""
        return sum(p.numel() for p in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def to(self, *args: Any, **kwargs: Any) -> "Adapter":
        """Move or cast all tensors in place, as `torch.nn.Module.to` does; returns itself."""
        for delta in self.deltas.values():
            delta.to(*args, **kwargs)
        for parameter in self.full_parameters.values():
            parameter.data = parameter.data.to(*args, **kwargs)
        return self

    def copy(self) -> "Adapter":
        """Return an equal adapter that shares no tensor with this one."""
        return copy.deepcopy(self)

    def __eq__(self, other: object) -> bool:
        """Tell whether specs, scales and every bit of every tensor agree; provenance does not
        count.
        """
        return (
            isinstance(other, Adapter)
            and self.spec == other.spec
            and self.content_hash() == other.content_hash()
        )

    __hash__ = None  # type: ignore[assignment]  # its tensors change while it trains: use content_hash()

    def content_hash(self) -> str:
        """Return a SHA-256 over names, scales, shapes, dtypes and tensor bits."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.deltas.items()):
            digest.update(
                f"{name} {delta.kind}{delta.kernel or ''}{delta.output_slice or ''} {delta.scale!r} {delta.dropout!r}\n".encode()
            )
        # What is frozen counts too, once where several share it.
        frozen = {
            id(t): (full_name(n, key), t)
            for n, delta in sorted(self.deltas.items())
            for key, t in delta.named_buffers()
        }
        for name, tensor in sorted(
            [*self.named_parameters(), *frozen.values()], key=lambda item: item[0]
        ):
            bits = tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()
            digest.update(
                f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + bits.tobytes()
            )
        return digest.hexdigest()

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
    def load(cls, folder: str | Path) -> "Adapter":
        """Read an adapter folder, ours or PEFT's.

        Raises:
            AdapterFileError: anything missing, extra, cut off, mis-shaped, not finite or not
                understood; all faults are named.
        """
        return cls(*adapter_folder.read(folder))

    def __repr__(self) -> str:
        return f"Adapter({len(self.deltas)} modules, rank {self.spec.rank}, {self.parameters_count:,} parameters)"
