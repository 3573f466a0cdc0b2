"""Adapters extracted from a full fine-tune: the difference of two models.

Matrices become low-rank factors; norms, biases and heads become full parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.algebra.compatibility import base_fingerprint
from lorakit.algebra.outcome import (
    Approximation,
    Ledger,
    Outcome,
    build_adapter,
    empty_delta,
    pool_spectra,
)
from lorakit.algebra.truncation import (
    choose_ranks,
    left_out_note,
    size_faults,
    squared_norm,
    truncate_dense,
)
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inject.fingerprint import describe_base
from lorakit.inject.places import Place, find_places
from lorakit.linalg import Factors, Svd, randomised_svd
from lorakit.patterns import matches
from lorakit.sites.slot import base_modules
from lorakit.spec import Spec, full_name, is_inside
from lorakit.text import plural

FIRST_DIRECTIONS = 32  # computed first for an energy; doubled until they hold it


@dataclass(frozen=True)
class PlacePair:
    """The same place in the base and in the tuned model."""

    base: Place
    tuned: Place

    @property
    def base_matrix(self) -> Tensor:
        """M (out, in) of the base, or a stack."""
        return self.base.matrix

    def difference(self) -> Tensor:
        """Return the change of the matrix: (out, in), float32, or float64 if the weights are."""
        M = self.base_matrix
        tuned = self.tuned.matrix
        wide = torch.promote_types(M.dtype, tuned.dtype)
        wide = torch.promote_types(wide, torch.float32)
        return tuned.to(M.device, wide) - M.to(wide)


@dataclass
class ExtractionPlan:
    """The way in which each difference of two models is stored.

    Attributes:
        matrices: places whose difference becomes low-rank factors, by name.
        full_parameters: tensors that are stored in full, by name.
        full_modules: modules that are stored in full.
        bias: value of Spec.bias for the biases among the full parameters.
        left_out: parameters that differ, but that the request leaves out.
    """

    matrices: dict[str, PlacePair] = field(default_factory=dict[str, PlacePair])
    full_parameters: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    full_modules: list[str] = field(default_factory=list[str])
    bias: str = "none"
    left_out: list[str] = field(default_factory=list[str])


def extract(
    base: nn.Module,
    tuned: nn.Module,
    *,
    rank: int | None = None,
    energy: float | None = None,
    size_bytes: int | None = None,
    leave_out: tuple[str, ...] = (),
    heads: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Outcome:
    """Return the adapter that brings a base nearest to a model that was fine-tuned from it.

    The difference of each matrix is computed in float32 or better; its leading directions become A
    and B. Norms, biases and heads that differ are stored in full. A difference that can be stored
    neither way is refused by name, unless `leave_out` names it.

    Exactly one of `rank`, `energy` and `size_bytes` sets the size.

    Args:
        base: the model before fine-tuning.
        tuned: the same architecture afterwards.
        rank: largest rank of a matrix.
        energy: share of the squared norm of each difference to keep, above 0 and at most 1.
        size_bytes: budget for all tensors of the adapter: full parameters first, then directions by
            energy per byte. A matrix without any is left out, with a note.
        leave_out: names or name patterns of modules and parameters whose difference is not wanted.
        heads: modules that the base has with random weights, or that should be stored in full.
        dtype: of the adapter's tensors.

    Returns:
        `residual` and `energy` count the matrices only; `at_best` is a lower bound for any factors
        of these ranks (large matrices are decomposed by a randomised SVD).

    Raises:
        SpecError: no size or several, or one out of its range.
        AdapterMismatch: the models differ in names or shapes (new tokens), in buffers, or in
            nothing; all are named.

    Cost: one matrix at a time is in float64 with its decomposition; both models are in memory.
    Source: Halko, Martinsson and Tropp, arXiv 0909.4061 (the decomposition of large matrices).

    >>> one, two = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    >>> _ = two.load_state_dict(one.state_dict())
    >>> _ = two[0].weight.data.add_(1.0)
    >>> outcome = extract(one, two, rank=1)
    >>> round(outcome.energy, 6)
    1.0
    >>> (outcome.adapter.deltas["0"].matrix() - 1).abs().max().item() < 1e-6
    True
    """
    faults = size_faults(rank=rank, energy=energy, size_bytes=size_bytes)
    if rank is None and energy is None and size_bytes is None:
        faults.append("no size is given: a rank, an energy, or a number of bytes is needed")
    if faults:
        raise SpecError("This size is not possible.", faults, "Nothing was extracted.")
    plan = plan_extraction(base, tuned, tuple(leave_out), tuple(heads))
    ranks: Mapping[str, int | None]
    if size_bytes is not None:
        ranks = _ranks_within(size_bytes, plan, dtype)
    elif rank is not None:
        ranks = {name: min(rank, *pair.base_matrix.shape) for name, pair in plan.matrices.items()}
    else:
        ranks = dict.fromkeys(plan.matrices)
    ledger = Ledger()
    for name, pair in plan.matrices.items():
        ledger.add(name, _approximate(pair.difference(), ranks[name], energy, dtype))
    notes: list[str] = []
    if plan.full_parameters:
        notes.append(f"stored in full: {', '.join(plan.full_parameters)}")
    if plan.left_out:
        notes.append(f"left out as requested, though it changed: {', '.join(plan.left_out)}")
    notes += left_out_note([name for name in plan.matrices if name not in ledger.factors])
    adapter = _build(base, plan, ledger.factors, dtype)
    return ledger.outcome(adapter, tuple(notes))


def _approximate(
    dense: Tensor, rank: int | None, energy: float | None, dtype: torch.dtype
) -> Approximation:
    """Return factors of a difference by rank, or by energy if the rank is None."""
    if rank is None:
        share = energy or 1.0
        return truncate_dense(dense, directions_for_energy(dense, share), 0, share, dtype)
    if rank == 0:
        return Approximation.left_out(squared_norm(dense))
    return truncate_dense(dense, leading_directions(dense, rank), rank, None, dtype)


def _ranks_within(size_bytes: int, plan: ExtractionPlan, dtype: torch.dtype) -> dict[str, int]:
    """Return the ranks whose factors fit, with the full parameters, into a number of bytes."""
    full_values = sum(tensor.numel() for tensor in plan.full_parameters.values())
    full_bytes = full_values * dtype.itemsize
    costs = {
        name: dtype.itemsize * pair.base.values_per_rank for name, pair in plan.matrices.items()
    }
    cheapest = min(costs.values(), default=0)
    budget = size_bytes - full_bytes
    if budget < cheapest:
        raise SpecError(
            f"{size_bytes:,} bytes are too few: parameters stored in full take {full_bytes:,}, "
            f"one direction at least {cheapest:,}.",
            advice="Give more bytes. Nothing was extracted.",
        )
    if not costs:
        return {}
    # Only spectra are kept: all decompositions together would take more memory than the models.
    spectra: dict[str, Tensor] = {}
    for name, pair in plan.matrices.items():
        svd = leading_directions(pair.difference(), max(1, budget // costs[name]))
        spectra[name] = pool_spectra(svd.S)
    return choose_ranks(spectra, costs, parameters=budget)


def leading_directions(dense: Tensor, rank: int) -> Svd:
    """Return at least `rank` leading directions of a matrix, or all if it has fewer."""
    return randomised_svd(dense, min(rank, *dense.shape[-2:]))


def directions_for_energy(dense: Tensor, energy: float) -> Svd:
    """Return as many leading directions as keep this share of the squared norm, or all."""
    smaller_side = min(dense.shape[-2:])
    needed = energy * squared_norm(dense)
    count = FIRST_DIRECTIONS
    while True:
        svd = leading_directions(dense, count)
        values = svd.S
        if values.shape[-1] >= smaller_side or float(values.square().sum()) >= needed:
            return svd
        count *= 2


def plan_extraction(
    base: nn.Module, tuned: nn.Module, leave_out: tuple[str, ...], heads: tuple[str, ...]
) -> ExtractionPlan:
    """Return the way in which each difference of two models is stored.

    Args:
        base: the model before fine-tuning.
        tuned: the model afterwards.
        leave_out: names or name patterns whose difference is not wanted.
        heads: modules to store in full.

    Raises:
        AdapterMismatch: the models do not fit together, differ in a tensor that an adapter cannot
            hold, or in nothing; all are named.
    """
    old, new = _tensors_of(base), _tensors_of(tuned)
    paths = list({**old, **new})
    unwanted = {path for path in paths if _is_named(path, leave_out)}
    faults = _unused_patterns(paths, leave_out)
    for path in paths:
        fault = "" if path in unwanted else _shape_fault(old.get(path), new.get(path))
        if fault:
            faults.append(f"{path}   {fault}")
    if faults:
        raise _not_extractable(faults)
    changed = [path for path in old if path in new and not _is_equal(old[path], new[path])]
    sorter = _Sorter(base, tuned, new, heads)
    for path in changed:
        if path not in unwanted:
            sorter.add(path)
    if sorter.faults:
        raise _not_extractable(sorter.faults)
    plan = sorter.plan()
    plan.left_out = [path for path in changed if path in unwanted]
    if not plan.matrices and not plan.full_parameters:
        raise AdapterMismatch(
            "The two models are equal: there is nothing to extract.",
            advice="Nothing was extracted.",
        )
    return plan


def _not_extractable(faults: Sequence[str]) -> AdapterMismatch:
    return AdapterMismatch(
        "The tuned model cannot be written as a change of this base: "
        f"{plural(len(faults), 'fault')}.",
        faults,
        "Name what is not wanted with leave_out (--leave-out). Nothing was extracted.",
    )


class _Sorter:
    """Sorts the tensors that differ into matrices, full parameters and faults."""

    def __init__(
        self,
        base: nn.Module,
        tuned: nn.Module,
        new: Mapping[str, Tensor],
        heads: tuple[str, ...],
    ):
        self.base_places, self.tuned_places = find_places(base), find_places(tuned)
        self.layers = {place.layer_name for place in self.base_places.values()}
        # Parts of a fused layer have no weight of their own.
        self.place_of_weight = {
            place.weight_name: name
            for name, place in self.base_places.items()
            if name in self.tuned_places and not place.is_part
        }
        self.parameters = dict(tuned.named_parameters(remove_duplicate=False))
        self.new = new
        self.heads = heads
        self.matrices: dict[str, PlacePair] = {}
        self.biases: list[str] = []
        self.full_modules: dict[str, None] = dict.fromkeys(heads)
        self.faults: list[str] = []

    def add(self, path: str) -> None:
        """Sort one tensor that differs."""
        layer, _, key = path.rpartition(".")
        if is_inside(path, self.heads):
            return
        if path in self.place_of_weight:
            name = self.place_of_weight[path]
            self.matrices[name] = PlacePair(self.base_places[name], self.tuned_places[name])
        elif path not in self.parameters:
            self.faults.append(f"{path}   changed, and is a buffer: an adapter holds none")
        elif key == "bias" and layer in self.layers:
            self.biases.append(path)
        elif not layer or any(is_inside(adapted, [layer]) for adapted in self.layers):
            self.faults.append(
                f"{path}   changed, but its module contains adapted layers, so it cannot be "
                "stored in full"
            )
        else:
            self.full_modules[layer] = None

    def plan(self) -> ExtractionPlan:
        """Return the plan for all tensors that were added."""
        full_parameters = {path: self.new[path] for path in self.biases}
        inside = tuple(f"{module}." for module in self.full_modules)
        for path, tensor in self.new.items():
            if path.startswith(inside) and path in self.parameters:
                full_parameters[path] = tensor
        return ExtractionPlan(
            self.matrices, full_parameters, list(self.full_modules), self._bias_setting()
        )

    def _bias_setting(self) -> str:
        if not self.biases:
            return "none"
        adapted = {pair.base.layer_name for pair in self.matrices.values()}
        layers = {path.rpartition(".")[0] for path in self.biases}
        return "adapted" if layers <= adapted else "all"


def _unused_patterns(paths: Sequence[str], leave_out: tuple[str, ...]) -> list[str]:
    return [
        f"{pattern!r}   is to be left out, but names nothing"
        for pattern in leave_out
        if not any(_is_named(path, (pattern,)) for path in paths)
    ]


def _shape_fault(old: Tensor | None, new: Tensor | None) -> str:
    """Return the fault of a tensor that is missing in a model or has another shape, or ""."""
    if new is None:
        return "is only in the base"
    if old is None:
        return "is only in the tuned model"
    if old.shape == new.shape:
        return ""
    hint = ""
    new_rows = new.shape[0] - old.shape[0]
    if new_rows > 0 and old.shape[1:] == new.shape[1:]:
        hint = (
            f": {plural(new_rows, 'new row')}; with tokens, resize the base first "
            "(resize_token_embeddings)"
        )
    return f"is {tuple(new.shape)}, the base's {tuple(old.shape)}{hint}"


def _is_named(path: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a pattern matches a tensor's name, or that of a module around it."""
    words = path.split(".")
    for count in range(1, len(words) + 1):
        name = ".".join(words[:count])
        if any(matches(pattern, name) for pattern in patterns):
            return True
    return False


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and stored buffers by name; a shared one under all of its names."""
    tensors: dict[str, Tensor] = {}
    for name, module in base_modules(model):
        not_stored = module._non_persistent_buffers_set
        buffers = {key: value for key, value in module._buffers.items() if key not in not_stored}
        for key, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None:
                tensors[full_name(name, key)] = tensor.detach()
    return tensors


def _is_equal(one: Tensor, two: Tensor) -> bool:
    wide = torch.promote_types(one.dtype, two.dtype)
    return torch.equal(one.to(wide), two.to(one.device, wide))


def _build(
    base: nn.Module, plan: ExtractionPlan, factors: Mapping[str, Factors], dtype: torch.dtype
) -> Adapter:
    like = {name: empty_delta(pair.base) for name, pair in plan.matrices.items()}
    full_modules = tuple(plan.full_modules)
    spec = Spec(targets=tuple(like) or "none", full_modules=full_modules, bias=plan.bias)
    facts: dict[str, object] = {
        "base_fingerprint": base_fingerprint(base, full_modules),
        **describe_base(base),
        "extracted": True,
    }
    parameters = {path: tensor.to(dtype) for path, tensor in plan.full_parameters.items()}
    return build_adapter(like, spec, factors, parameters, facts, dtype)
