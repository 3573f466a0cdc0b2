"""The stored tensors that a merge changes: by the names that they have in the base's files."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorakit.errors import MergeError
from lorakit.spec import is_inside
from lorakit.text import plural

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Change:
    """One tensor in the base's files that a merge changes.

    Attributes:
        name: in the files.
        new: the merged values.
        stored: the base's; None for a tensor that the files do not hold.
    """

    name: str
    new: Tensor
    stored: Tensor | None

    def at(self, dtype: torch.dtype | None) -> Tensor:
        """Return the new values in a dtype; None stands for that of the base's tensor."""
        if dtype is None and self.stored is not None:
            dtype = self.stored.dtype
        return self.new.detach().to("cpu", dtype)

    def count(self, dtype: torch.dtype | None) -> int:
        """Return the number of values that differ from the base's in a dtype."""
        new = self.at(dtype)
        if self.stored is None or self.stored.shape != new.shape:
            return new.numel()
        return int((new != self.stored.to(new.dtype)).sum())


def find_changes(
    model: "PreTrainedModel",
    before: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    added: Collection[str],
) -> list[Change]:
    """Return the stored tensors that a merge changed.

    Args:
        model: the merged model, without adapters.
        before: the base's values of the parameters that changed, by name.
        stored: the tensors of the base's files.
        added: modules and parameters that the files need not hold.

    Raises:
        MergeError: a tensor is not in the files, or has other values there than were loaded; all
            are named.
    """
    new, old = _state(model), {}
    for path, values in before.items():
        shared = new[path].data_ptr()
        old |= {name: values for name, now in new.items() if now.data_ptr() == shared}
    new, old = _as_stored(model, new), _as_stored(model, {**new, **old})
    changed = {name for name, tensor in new.items() if _differs(tensor, old.get(name))}
    names = {name: _find_name(name, model.base_model_prefix, stored) for name in changed}
    written = {new[name].data_ptr() for name, place in names.items() if place}
    changes: list[Change] = []
    faults: list[str] = []
    for name in sorted(changed):
        place = names[name]
        if place is None and is_inside(name, added):
            changes.append(Change(name, new[name], None))
        elif place is None and new[name].data_ptr() not in written:
            faults.append(f"{name}   is not in the base's files")
        elif place is not None:
            faults += _value_faults(place, old[name], stored[place])
            changes.append(Change(place, new[name], stored[place]))
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'changed tensor')} cannot be put into the base's files.",
            faults,
            "Merge in memory, with lorakit.merge. Nothing was written.",
        )
    return changes


def _state(model: "PreTrainedModel") -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _as_stored(model: "PreTrainedModel", state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the changes of names and layout that transformers makes as it loads."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, state))


def _differs(new: Tensor, old: Tensor | None) -> bool:
    if old is None or new.shape != old.shape:
        return True
    return new.data_ptr() != old.data_ptr() and not torch.equal(new, old)


def _find_name(name: str, prefix: str, stored: Mapping[str, Tensor]) -> str | None:
    """Return the name in the files; they may lack the name of the model without its head."""
    for one in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if one in stored:
            return one
    return None


def _value_faults(name: str, loaded: Tensor, stored: Tensor) -> Iterator[str]:
    same_shape = loaded.shape == stored.shape
    if same_shape and not torch.equal(stored.to(loaded.dtype), loaded.cpu()):
        yield f"{name}   has other values in the base's files than in the loaded model"
