"""Starts that look at data: the inputs that a layer really gets, or the gradient of its matrix.

Batches are run through the model in eval mode; its modes, its `requires_grad` and its weights are
left as they were.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.errors import SpecError
from lorakit.inits.spectral import wide
from lorakit.sites.slot import base_parameters
from lorakit.spec import Settings
from lorakit.text import plural

KEPT, LEAST = (
    4,
    64,
)  # directions of the inputs that are kept from batch to batch: times the rank, and at least
GAMMA = 16.0  # of LoRA-GA's scale, its paper's choice


def eva(seen: "InputDirections", settings: Settings) -> Tensor:
    """Return A: the right singular vectors of the layer's inputs, those along which they vary most.
    B is zero.

    Args:
        seen: what `observe_inputs` gave for the layer.
        settings: rank.

    Returns:
        (rank, in), float64, with orthonormal rows.

    Source: Paischer et al., EVA, arXiv 2410.07170, section 3.2 and algorithm 1.
    """
    return seen.leading[: settings.rank] / seen.leading[: settings.rank].norm(dim=1, keepdim=True)


def lora_ga(G: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return A and B whose first step of gradient descent changes the matrix along its full
    gradient G, as far as rank 2r can.

    A has the right singular vectors 1 … r of G, B the left ones r + 1 … 2r.

    Args:
        G: (out, in), the gradient of the loss by the matrix.
        settings: rank.

    Returns:
        A (rank, in) and B (out, rank), both times out^(1/4) / sqrt(gamma) with gamma = 16.

    Source: Wang, Yu, Li, LoRA-GA, arXiv 2407.05000, theorem 3.1 and section 3.3.
    """
    U, _, Vh = torch.linalg.svd(wide(G), full_matrices=False)
    rank, size = settings.rank, G.shape[-2] ** 0.25 / GAMMA**0.5
    return Vh[..., :rank, :] * size, U[..., rank : 2 * rank] * size


class InputDirections:
    """The directions along which the inputs of a layer vary most, from batches of them.

    Args:
        most: directions that are kept; while there are no more of them, nothing is lost.

    Attributes:
        leading: (at most `most`, in), float64: singular values times right singular vectors,
            descending.
        total: sum of squares of all inputs.

    Source: incremental SVD as in Ross et al., IJCV 2008, without the mean, as EVA (arXiv
        2410.07170, section 3.2) uses it.

    >>> seen = InputDirections(most=2)
    >>> seen.add(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> seen.leading.norm(dim=1).tolist(), seen.total
    ([4.0, 3.0], 25.0)
    """

    def __init__(self, most: int):
        self.most, self.total, self.leading = most, 0.0, torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Take in inputs, (count, in)."""
        rows = rows.double()
        self.total += float(rows.square().sum())
        if self.leading.numel():
            rows = torch.cat([self.leading, rows])
        if len(rows) >= rows.shape[1]:
            values, V = torch.linalg.eigh(rows.T @ rows)
            self.leading = (
                values.clamp_min(0).sqrt().flip(0)[: self.most, None] * V.T.flip(0)[: self.most]
            )
        else:
            self.leading = torch.linalg.eigh(rows @ rows.T)[1].T.flip(0)[: self.most] @ rows

    def count(self, ids: Tensor, size: int) -> None:
        """Take in the one-hot inputs of an embedding: their singular vectors are the tokens, by how
        often they came.
        """
        counts = torch.bincount(ids.flatten(), minlength=size).double()
        if self.leading.numel():
            counts = counts + self.leading.square().sum(0)
        self.total = float(counts.sum())
        kept = counts.argsort(descending=True, stable=True)[: self.most]
        self.leading = counts.new_zeros(len(kept), size)
        self.leading[torch.arange(len(kept)), kept] = counts[kept].sqrt()

    @property
    def direction_count(self) -> int:
        """How many directions the inputs have, at most as many as were kept."""
        sizes = self.leading.norm(dim=-1)
        return int((sizes > sizes.max() * 1e-7).sum()) if self.leading.numel() else 0


def observe_inputs(
    model: nn.Module, places: Mapping[str, Any], ranks: Mapping[str, int], batches: Iterable[Any]
) -> dict[str, InputDirections]:
    """Run batches through the model and return the leading directions of each layer's inputs.

    Inputs at positions that a batch's `attention_mask` leaves out are left out here.

    Args:
        model: any module.
        places: what is looked at, by name.
        ranks: directions that each needs.
        batches: see `attach`.

    Raises:
        SpecError: fewer directions than asked for; all layers are named.

    Cost: a forward pass a batch, and for each layer one eigendecomposition of min(inputs seen, in)
        a batch.
    """
    found = {n: InputDirections(max(KEPT * ranks[n], LEAST)) for n in places}
    mask: list[Tensor | None] = [None]

    def look(name: str, place: Any) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
            if mask[0] is not None and mask[0].shape == x.shape[: mask[0].ndim]:
                x = x[mask[0].bool()]
            if place.site.kind == "embedding":
                pad = cast(nn.Embedding, layer).padding_idx
                found[name].count(x if pad is None else x[x != pad], place.shape[1])
            elif x.numel():
                found[name].add(_rows(place, x.detach()))

        return hook

    hooks = [
        p.layer.register_forward_pre_hook(look(n, p), with_kwargs=True) for n, p in places.items()
    ]
    try:
        with eval_mode(model), torch.no_grad():
            for batch in batches:
                mask[0] = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                run_batch(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    faults = [
        f"{n}   its inputs have {plural(seen.direction_count, 'direction')}, rank is {ranks[n]}"
        for n, seen in found.items()
        if seen.direction_count < ranks[n]
    ]
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'layer')} saw too little of the data.",
            faults,
            "Give more batches. Nothing was attached.",
        )
    return found


def _rows(place: Any, x: Tensor) -> Tensor:
    """Return the inputs that a row of A is multiplied with, (count, in): of a convolution, the
    patches of every group.
    """
    if place.layer.weight.ndim == 2:
        return x.reshape(-1, x.shape[-1])
    size = place.shape[1]
    h = place.site.project(place.layer, torch.eye(size, dtype=x.dtype, device=x.device), x)
    return h.movedim(h.ndim - place.layer.weight.ndim + 1, -1).reshape(-1, size)


def observe_gradients(
    model: nn.Module, places: Mapping[str, Any], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Return the gradient of the loss by each place's matrix, (out, in), summed over batches,
    float32 or better.

    Args:
        model: any module.
        places: what is looked at, by name.
        batches: see `attach`; the model must give a loss for each.

    Raises:
        SpecError: a batch gives no loss, or no gradient arrives at a matrix; all are named.

    Cost: a forward and a full backward pass a batch, and memory of all the matrices once more.
    """
    own = dict(base_parameters(model))
    weights = {p.weight_name: own[p.weight_name] for p in places.values() if p.weight_name in own}
    asked, sums = {path: w.requires_grad for path, w in weights.items()}, {}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with eval_mode(model), torch.enable_grad():
            for batch in batches:
                found = torch.autograd.grad(
                    loss_of(model, batch), list(weights.values()), allow_unused=True
                )
                for path, G in zip(weights, found, strict=True):
                    if G is not None:
                        sums[path] = wide(G) + sums[path] if path in sums else wide(G)
    finally:
        for path, weight in weights.items():
            weight.requires_grad_(asked[path])
    faults = [
        f"{n}   {'no gradient arrives' if p.weight_name not in sums else 'its gradient is zero throughout'}"
        for n, p in places.items()
        if p.weight_name not in sums or not sums[p.weight_name].any()
    ]
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'layer')} got no gradient from the batches.",
            faults,
            "Leave them out with exclude, or give other batches. Nothing was attached.",
        )
    return {n: _as_matrix(p, sums[p.weight_name]) for n, p in places.items()}


def _as_matrix(place: Any, G: Tensor) -> Tensor:
    """Return a gradient of the stored weight as one of the place's matrix, whatever the site's way
    from one to the other.
    """
    M = torch.zeros_like(
        place.site.read(place.layer), dtype=G.dtype, memory_format=torch.contiguous_format
    ).requires_grad_(True)
    with torch.enable_grad():
        stored = place.site.full_site.to_weight(place.layer, place.site.widen(M))
    return torch.autograd.grad(stored, M, G)[0]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    out = run_batch(model, batch)
    loss = out if isinstance(out, Tensor) else getattr(out, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise SpecError(
            f"A loss is needed, {type(model).__name__} gave {type(out).__name__}"
            f"{'' if not isinstance(out, Tensor) else f' of shape {tuple(out.shape)}'}.",
            advice="Put labels into the batch, or give a function of the model that returns the loss. "
            "Nothing was attached.",
        )
    return loss


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Return what the model gives for a batch: keyword arguments, positional ones, one input, or a
    function of the model.
    """
    if isinstance(batch, Mapping):
        return model(**cast(Mapping[str, Any], batch))
    if isinstance(batch, Tensor):
        return model(batch)
    return model(*cast(tuple[Any, ...], batch)) if isinstance(batch, tuple | list) else batch(model)


def as_batch_list(batches: Iterable[Any]) -> list[Any]:
    """Return batches as a list, or refuse what are none."""
    several = isinstance(batches, Iterable) and not isinstance(batches, Mapping | Tensor | str)
    found: list[Any] = list(batches) if several else []
    wrong = [
        b for b in found if not (isinstance(b, Mapping | Tensor | tuple | list) or callable(b))
    ]
    if not found or wrong:
        got = (
            type(wrong[0]).__name__
            if wrong
            else "none"
            if several
            else f"one {type(batches).__name__}"
        )
        raise SpecError(
            f"batches: several batches of model inputs are needed, got {got}.",
            advice="Give a list: of dicts, tensors or tuples that the model is called with, or of functions of the "
            "model. Nothing was attached.",
        )
    return found


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, so that nothing is drawn and no statistics move; then back,
    each into its own.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
