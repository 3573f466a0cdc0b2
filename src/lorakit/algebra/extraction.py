"""An adapter out of a full fine-tune: the difference of two models, low rank where it is a matrix,
whole where it is not.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.algebra.combination import size_faults, truncate_dense
from lorakit.algebra.outcome import Ledger, Outcome, build_adapter, pool_spectra
from lorakit.algebra.truncation import choose_ranks
from lorakit.deltas.base import LowRank
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import find_full_modules
from lorakit.inject.places import Place, find_places
from lorakit.linalg import randomised_svd
from lorakit.sites.slot import base_modules
from lorakit.spec import Spec, full_name, matches
from lorakit.text import plural


@dataclass
class ExtractionPlan:
    """What of the difference goes where."""

    matrices: dict[str, tuple[Place, Place]] = field(default_factory=dict)  # (base's, tuned)
    whole: dict[str, Tensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)  # trained whole
    bias: str = "none"
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


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
    """Return the adapter that takes a base nearest to a model that was fine-tuned from it.

    Of each matrix the difference is taken in float32 or better; its leading directions are A and B.
    Norms, biases and heads that changed are carried whole. What can be carried neither way is
    refused by name, unless `leave_out` names it.

    Args:
        base: the model before.
        tuned: the same architecture afterwards.
        rank: of every matrix at most.
        energy: or the share of each difference's squared norm that is kept, above 0 and at most 1.
        size_bytes: or what all tensors of the adapter may take: what is carried whole comes first,
            then directions where they hold most energy per byte; a matrix that gets none is left
            out, which is said.
        leave_out: names or name patterns of modules and parameters of which the difference is not
            wanted.
        heads: modules that the base has with random weights, or that should be carried whole.
        dtype: of the adapter's tensors.

    Returns:
        Outcome: `residual` and `energy` count the matrices alone; `at_best` is a lower bound for
            any factors of these ranks
        (large matrices are decomposed by a randomised SVD).

    Raises:
        SpecError: none or several sizes, or one out of its range.
        AdapterMismatch: the models differ in names or shapes (new tokens), in buffers, or in
            nothing; all are named.

    Cost: a matrix at a time is in float64 with its decomposition; both models are in memory.
    Source: Halko, Martinsson and Tropp, arXiv 0909.4061 (the decomposition of large matrices).

    >>> one, two = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    >>> _ = two.load_state_dict(one.state_dict())
    >>> _ = two[0].weight.data.add_(1.0)
    >>> told = extract(one, two, rank=1)
    >>> round(told.energy, 6), (told.adapter.deltas["0"].matrix() - 1).abs().max().item() < 1e-6
    (1.0, True)
    """
    faults = size_faults(rank=rank, energy=energy, size_bytes=size_bytes)
    if rank is None and energy is None and size_bytes is None:
        faults.append("no size is given: a rank, an energy, or a number of bytes is needed")
    if faults:
        raise SpecError("This size cannot be meant.", faults, "Nothing was extracted.")
    plan = plan_extraction(base, tuned, tuple(leave_out), tuple(heads))
    if plan.faults:
        what = f"What was tuned cannot be written as a change of this base: {plural(len(plan.faults), 'fault')}."
        advice = "Name what is not wanted with leave_out (--leave-out). Nothing was extracted."
        raise AdapterMismatch(what, plan.faults, advice)
    if not plan.matrices and not plan.whole:
        raise AdapterMismatch(
            "The two models are equal: there is nothing to extract.",
            advice="Nothing was extracted.",
        )
    element = torch.empty((), dtype=dtype).element_size()
    costs = {
        name: element * sum(old.shape) * old.site.read(old.layer).shape[:-2].numel()
        for name, (old, _) in plan.matrices.items()
    }
    room, cheapest = None, min(costs.values(), default=0)
    if size_bytes is not None:
        taken = sum(t.numel() * element for t in plan.whole.values())
        room = size_bytes - taken
        if room < cheapest:
            raise SpecError(
                f"{size_bytes:,} bytes are too few: what is carried whole takes {taken:,}, one direction at least "
                f"{cheapest:,}.",
                advice="Nothing was extracted.",
            )
    ranks = _under(room, plan, costs) if room is not None and costs else {}
    ledger, notes, empty = Ledger(), [], []
    for name, pair in plan.matrices.items():
        dense = weight_difference(*pair)
        wanted = ranks[name] if ranks else min(rank, *dense.shape) if rank else None
        if wanted == 0:
            empty.append(name)
            lost = float(dense.double().square().sum())
            ledger.book(name, lost, lost, lost, None)
        else:
            truncate_dense(
                ledger,
                name,
                dense,
                leading_directions(dense, wanted, energy),
                wanted,
                energy,
                dtype,
            )
    if plan.whole:
        notes.append(f"carried whole: {', '.join(plan.whole)}")
    if plan.left_out:
        notes.append(f"left out as asked, though it changed: {', '.join(plan.left_out)}")
    if empty:
        notes.append(f"left out, no direction of theirs fits: {', '.join(empty)}")
    made = _made(base, plan, ledger, dtype)
    return ledger.close(made, tuple(notes))


def _under(room: int, plan: ExtractionPlan, costs: dict[str, int]) -> dict[str, int]:
    # Spectra alone are kept: all decompositions together would take more than the models.
    spectra = {
        n: pool_spectra(
            leading_directions(weight_difference(*pair), max(1, room // costs[n]), None)[1]
        )
        for n, pair in plan.matrices.items()
    }
    return choose_ranks(spectra, costs, parameters=room)


def weight_difference(old: Place, new: Place) -> Tensor:
    """Return what was added to a base's matrix: (out, in), float32, or float64 where the weights
    are.
    """
    M, N = old.site.read(old.layer), new.site.read(new.layer)
    wide = torch.promote_types(torch.promote_types(M.dtype, N.dtype), torch.float32)
    return N.to(M.device, wide) - M.to(wide)


def leading_directions(
    dense: Tensor, rank: int | None, energy: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the directions that a rank asks for; without one as many as an energy needs: more are
    drawn until it is met.
    """
    small = min(dense.shape[-2:])
    if rank is not None:
        return randomised_svd(dense, min(rank, small))
    total, count = float(dense.double().square().sum()), 32
    while True:
        found = randomised_svd(dense, min(count, small))
        if found[1].shape[-1] >= small or float(found[1].square().sum()) >= (energy or 1.0) * total:
            return found
        count *= 2


def plan_extraction(
    base: nn.Module, tuned: nn.Module, leave_out: tuple[str, ...], heads: tuple[str, ...]
) -> ExtractionPlan:
    """Sort the difference of two models: matrices, what is carried whole, what is left out, what
    cannot be carried.
    """
    plan, old, new = ExtractionPlan(), _tensors(base), _tensors(tuned)
    unwanted = {path for path in {**old, **new} if _named(path, leave_out)}
    unused = [p for p in leave_out if not any(_named(path, (p,)) for path in {**old, **new})]
    plan.faults += [f"{pattern!r}   is to be left out, but names nothing" for pattern in unused]
    for path in (path for path in {**old, **new} if path not in unwanted):
        if path not in old or path not in new:
            plan.faults.append(
                f"{path}   is in the {'tuned model' if path in new else 'base'} alone"
            )
        elif old[path].shape != new[path].shape:
            more = new[path].shape[0] - old[path].shape[0]
            hint = (
                f": {plural(more, 'new row')}; with tokens, resize the base first (resize_token_embeddings)"
                if more > 0 and old[path].shape[1:] == new[path].shape[1:]
                else ""
            )
            plan.faults.append(
                f"{path}   is {tuple(new[path].shape)}, the base's {tuple(old[path].shape)}{hint}"
            )
    if plan.faults:
        return plan
    known, there = find_places(base), find_places(tuned)
    weights = {
        place.weight_name: name
        for name, place in known.items()
        if name in there and not place.is_part
    }
    changed = [path for path in old if path in new and not _equal(old[path], new[path])]
    plan.left_out = [path for path in changed if path in unwanted]
    parameters = dict(tuned.named_parameters(remove_duplicate=False))
    whole_of: dict[str, None] = dict.fromkeys(heads)
    for path in (path for path in changed if path not in unwanted):
        layer = path.rpartition(".")[0]
        if any(f"{path}.".startswith(f"{head}.") for head in heads):
            continue
        if path in weights:
            plan.matrices[weights[path]] = (known[weights[path]], there[weights[path]])
        elif path not in parameters:
            plan.faults.append(f"{path}   changed, and is a buffer: an adapter holds none")
        elif path.rpartition(".")[2] == "bias" and any(
            place.layer_name == layer for place in known.values()
        ):
            plan.whole[path] = new[path]
        elif not layer or any(
            f"{place.layer_name}.".startswith(f"{layer}.") for place in known.values()
        ):
            plan.faults.append(
                f"{path}   changed, and stands beside layers that are adapted: it cannot be carried whole"
            )
        else:
            whole_of[layer] = None
    adapted = {pair[0].layer_name for pair in plan.matrices.values()}
    lone = [path for path in plan.whole if path.rpartition(".")[0] not in adapted]
    plan.bias = "all" if lone else "adapted" if plan.whole else "none"
    plan.modules = list(whole_of)
    inside = tuple(f"{module}." for module in plan.modules)
    plan.whole |= {
        path: tensor
        for path, tensor in new.items()
        if path.startswith(inside) and path in parameters
    }
    return plan


def _named(path: str, patterns: tuple[str, ...]) -> bool:
    parts = path.split(".")
    return any(matches(p, ".".join(parts[:i])) for p in patterns for i in range(1, len(parts) + 1))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and stored buffers by name, those that two layers share under both
    names.
    """
    found = {}
    for name, module in base_modules(model):
        own: Any = {
            **module._parameters,
            **{
                k: b
                for k, b in module._buffers.items()
                if k not in module._non_persistent_buffers_set
            },
        }
        found |= {
            full_name(name, key): tensor.detach()
            for key, tensor in own.items()
            if tensor is not None
        }
    return found


def _equal(one: Tensor, two: Tensor) -> bool:
    wide = torch.promote_types(one.dtype, two.dtype)
    return torch.equal(one.to(wide), two.to(one.device, wide))


def _made(base: nn.Module, plan: ExtractionPlan, ledger: Ledger, dtype: torch.dtype) -> Adapter:
    like = {}
    for name, (place, _) in plan.matrices.items():
        out, inputs = place.shape
        kernel = place.site.kernel(place.layer)
        like[name] = LowRank(
            torch.zeros(1, inputs),
            torch.zeros(out, 1),
            alpha=1.0,
            kind=place.site.kind,
            kernel=kernel,
        )
    spec = Spec(
        targets=tuple(plan.matrices) or "none", full_modules=tuple(plan.modules), bias=plan.bias
    )
    origin: dict[str, Any] = {
        "base_fingerprint": fingerprint(
            base, without=find_full_modules(base, tuple(plan.modules), require_match=False)
        )
    }
    if name := getattr(base, "name_or_path", ""):  # of transformers
        origin["base_model"] = name
    whole = {path: tensor.to(dtype) for path, tensor in plan.whole.items()}
    return build_adapter(like, spec, ledger.factors, whole, {**origin, "extracted": True}, dtype)
