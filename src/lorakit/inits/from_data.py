"""Starts from data: from the inputs of a layer, or from the gradient of its matrix.

Batches are run through the model in eval mode; its modes, its `requires_grad` and its weights do
not change.

Source: Golub and Van Loan, Matrix Computations, 4th ed., section 2.4, for the singular vectors U
    and V.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lorakit.errors import SpecError
from lorakit.inits.place import PlaceLike
from lorakit.linalg import widen
from lorakit.sites.slot import base_parameters
from lorakit.spec import Settings
from lorakit.text import plural

DIRECTIONS_PER_RANK, LEAST_DIRECTIONS = 4, 64  # kept from batch to batch
RELATIVE_ZERO = 1e-7  # of the largest singular value
GAMMA = 16.0  # of LoRA-GA's scale, its paper's choice


def eva(inputs: "InputDirections", settings: Settings) -> Tensor:
    """Return A: the right singular vectors of the layer's inputs, the largest first. B is zero.

    Args:
        inputs: of the layer, as `observe_inputs` returns them.
        settings: rank.

    Returns:
        (rank, in), float64, with orthonormal rows.

    Source: Paischer et al., EVA, arXiv 2410.07170, section 3.2 and algorithm 1.
    """
    leading = inputs.leading[: settings.rank]
    return leading / leading.norm(dim=1, keepdim=True)


def lora_ga(G: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return A and B whose first step of gradient descent is nearest to a step of the full matrix.

    The first step changes the matrix along its full gradient G, as far as rank 2r can. A has the
    right singular vectors 1 … r of G, B the left ones r + 1 … 2r.

    Args:
        G: (out, in), the gradient of the loss by the matrix.
        settings: rank.

    Returns:
        A (rank, in) and B (out, rank), both times out^(1/4) / sqrt(gamma) with gamma = 16.

    Source: Wang, Yu, Li, LoRA-GA, arXiv 2407.05000, theorem 3.1 and section 3.3.
    """
    U, _, Vh = torch.linalg.svd(widen(G), full_matrices=False)
    rank = settings.rank
    size = G.shape[-2] ** 0.25 / GAMMA**0.5
    A = Vh[..., :rank, :]
    B = U[..., rank : 2 * rank]
    return A * size, B * size


class InputDirections:
    """The directions in which the inputs of a layer vary most, computed batch by batch.

    Args:
        most: number of directions to keep; the result is exact if the inputs have no more.

    Attributes:
        leading: (at most `most`, in), float64: singular values times right singular vectors,
            descending.
        total: sum of squares of all inputs.

    Source: incremental SVD as in Ross et al., IJCV 2008, without the mean, as EVA (arXiv
        2410.07170, section 3.2) uses it.

    >>> inputs = InputDirections(most=2)
    >>> inputs.add(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> inputs.leading.norm(dim=1).tolist(), inputs.total
    ([4.0, 3.0], 25.0)
    """

    def __init__(self, most: int):
        self.most = most
        self.total = 0.0
        self.leading = torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Add inputs (count, in)."""
        rows = rows.double()
        self.total += float(rows.square().sum())
        if self.leading.numel():
            rows = torch.cat([self.leading, rows])
        if len(rows) >= rows.shape[1]:
            squares, V = torch.linalg.eigh(rows.T @ rows)
            values = squares.clamp_min(0).sqrt().flip(0)
            vectors = V.T.flip(0)
            self.leading = values[: self.most, None] * vectors[: self.most]
        else:
            _, U = torch.linalg.eigh(rows @ rows.T)
            vectors = U.T.flip(0)
            self.leading = vectors[: self.most] @ rows

    def add_tokens(self, ids: Tensor, size: int) -> None:
        """Add the one-hot inputs of an embedding.

        Their singular vectors are the tokens, ordered by their counts.
        """
        counts = torch.bincount(ids.flatten(), minlength=size).double()
        if self.leading.numel():
            counts = counts + self.leading.square().sum(0)
        self.total = float(counts.sum())
        kept = counts.argsort(descending=True, stable=True)[: self.most]
        places = torch.arange(len(kept))
        self.leading = counts.new_zeros(len(kept), size)
        self.leading[places, kept] = counts[kept].sqrt()

    @property
    def direction_count(self) -> int:
        """The number of directions that the inputs have, at most as many as were kept."""
        if not self.leading.numel():
            return 0
        values = self.leading.norm(dim=-1)
        return int((values > values.max() * RELATIVE_ZERO).sum())


class _InputHook:
    """A forward pre-hook that adds the inputs of one layer, without those that are padding."""

    def __init__(self, place: PlaceLike, inputs: InputDirections):
        self.place = place
        self.inputs = inputs
        self.mask: Tensor | None = None  # of the current batch

    def __call__(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        x = _first_tensor([*args[:1], *kwargs.values()])
        mask = self.mask
        if mask is not None and mask.shape == x.shape[: mask.ndim]:
            x = x[mask.bool()]
        if isinstance(layer, nn.Embedding) and self.place.site.kind == "embedding":
            if layer.padding_idx is not None:
                x = x[x != layer.padding_idx]
            self.inputs.add_tokens(x, self.place.shape[1])
        elif x.numel():
            self.inputs.add(_input_rows(self.place, x.detach()))


def _first_tensor(values: Sequence[object]) -> Tensor:
    return next(value for value in values if isinstance(value, Tensor))


def observe_inputs(
    model: nn.Module,
    places: Mapping[str, PlaceLike],
    ranks: Mapping[str, int],
    batches: Iterable[object],
) -> dict[str, InputDirections]:
    """Run batches through the model and return the leading directions of each layer's inputs.

    Inputs at positions that a batch's `attention_mask` excludes are excluded here.

    Args:
        model: any module.
        places: the layers to observe, by name.
        ranks: number of directions that each of them needs.
        batches: see `attach`.

    Raises:
        SpecError: the inputs have fewer directions than needed; all layers are named.

    Cost: one forward pass per batch, and for each layer one eigendecomposition of
        min(inputs of the batch, in) per batch.
    """
    observed: dict[str, InputDirections] = {}
    hooks: list[_InputHook] = []
    for name, place in places.items():
        most = max(DIRECTIONS_PER_RANK * ranks[name], LEAST_DIRECTIONS)
        observed[name] = InputDirections(most)
        hooks.append(_InputHook(place, observed[name]))
    handles = [hook.place.layer.register_forward_pre_hook(hook, with_kwargs=True) for hook in hooks]
    try:
        with eval_mode(model), torch.no_grad():
            for batch in batches:
                for hook in hooks:
                    hook.mask = _attention_mask(batch)
                run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    _check_directions(observed, ranks)
    return observed


def _attention_mask(batch: object) -> Tensor | None:
    if not isinstance(batch, Mapping):
        return None
    return cast(Mapping[str, Tensor], batch).get("attention_mask")


def _check_directions(observed: Mapping[str, InputDirections], ranks: Mapping[str, int]) -> None:
    faults: list[str] = []
    for name, inputs in observed.items():
        count = inputs.direction_count
        if count < ranks[name]:
            directions = plural(count, "direction")
            faults.append(f"{name}   its inputs have {directions}, rank is {ranks[name]}")
    if faults:
        raise SpecError(
            f"The batches are too few for {plural(len(faults), 'layer')}.",
            faults,
            "Give more batches. Nothing was attached.",
        )


def _input_rows(place: PlaceLike, x: Tensor) -> Tensor:
    """Return the vectors that a row of A is multiplied with: (count, in).

    For a convolution these are the patches of every group.
    """
    weight = cast(Tensor, place.layer.weight)
    if weight.ndim == 2:
        return x.reshape(-1, x.shape[-1])
    size = place.shape[1]
    identity = torch.eye(size, dtype=x.dtype, device=x.device)
    patches = place.site.project(place.layer, identity, x)
    channel_axis = patches.ndim - weight.ndim + 1
    return patches.movedim(channel_axis, -1).reshape(-1, size)


def observe_gradients(
    model: nn.Module, places: Mapping[str, PlaceLike], batches: Iterable[object]
) -> dict[str, Tensor]:
    """Return the gradient of the loss by each matrix, (out, in), summed over batches.

    Args:
        model: any module.
        places: the layers to observe, by name.
        batches: see `attach`; the model must return a loss for each.

    Returns:
        Gradients in float32 or better, by name.

    Raises:
        SpecError: a batch gives no loss, or a matrix gets no gradient; all are named.

    Cost: one forward and one full backward pass per batch, and the memory of all the matrices once
        more.
    """
    own = dict(base_parameters(model))
    weights: dict[str, Tensor] = {}
    for place in places.values():
        if place.weight_name in own:
            weights[place.weight_name] = own[place.weight_name]
    sums: dict[str, Tensor] = {}
    with eval_mode(model), _requiring_grad(weights.values()), torch.enable_grad():
        for batch in batches:
            _add_gradients(sums, loss_of(model, batch), weights)
    _check_gradients(places, sums)
    matrices: dict[str, Tensor] = {}
    for name, place in places.items():
        matrices[name] = _as_matrix(place, sums[place.weight_name])
    return matrices


@contextmanager
def _requiring_grad(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Set requires_grad of tensors, and restore it after the block."""
    before = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in before:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor, required in before:
            tensor.requires_grad_(required)


def _add_gradients(sums: dict[str, Tensor], loss: Tensor, weights: Mapping[str, Tensor]) -> None:
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            wide = widen(gradient)
            sums[name] = wide + sums[name] if name in sums else wide


def _check_gradients(places: Mapping[str, PlaceLike], sums: Mapping[str, Tensor]) -> None:
    faults: list[str] = []
    for name, place in places.items():
        gradient = sums.get(place.weight_name)
        if gradient is None:
            faults.append(f"{name}   it gets no gradient")
        elif not gradient.any():
            faults.append(f"{name}   its gradient is zero everywhere")
    if faults:
        raise SpecError(
            f"The batches give {plural(len(faults), 'layer')} no gradient.",
            faults,
            "Exclude them, or give other batches. Nothing was attached.",
        )


def _as_matrix(place: PlaceLike, gradient: Tensor) -> Tensor:
    """Return the gradient of a stored weight as the gradient of the place's matrix.

    It is computed through the site's own way from the matrix to the stored weight.
    """
    M = torch.zeros_like(
        place.matrix,
        dtype=gradient.dtype,
        memory_format=torch.contiguous_format,
    ).requires_grad_(True)
    with torch.enable_grad():
        weight = place.site.full_site.to_weight(place.layer, place.site.widen(M))
    return torch.autograd.grad(weight, M, gradient)[0]


def loss_of(model: nn.Module, batch: object) -> Tensor:
    """Return the model's loss for a batch.

    Raises:
        SpecError: neither the output nor its `loss` is one value with a gradient.
    """
    out = run_batch(model, batch)
    loss = out if isinstance(out, Tensor) else getattr(out, "loss", None)
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    shape = f" of shape {tuple(out.shape)}" if isinstance(out, Tensor) else ""
    raise SpecError(
        f"A loss is needed, {type(model).__name__} returned {type(out).__name__}{shape}.",
        advice="Put labels into the batch, or give a function of the model that returns the loss. "
        "Nothing was attached.",
    )


def run_batch(model: nn.Module, batch: object) -> object:
    """Return the model's output for a batch.

    Args:
        model: any module.
        batch: keyword arguments, positional arguments, one input, or a function of the model.
    """
    if isinstance(batch, Mapping):
        return model(**cast(Mapping[str, object], batch))
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, tuple | list):
        return model(*cast(Sequence[object], batch))
    if callable(batch):
        return batch(model)
    raise TypeError(f"A batch is needed, got {type(batch).__name__}.")


def as_batch_list(batches: object) -> list[object]:
    """Return batches as a list.

    Raises:
        SpecError: it is one batch, empty, or contains a value that is no batch.
    """
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise _batches_needed(f"one {type(batches).__name__}")
    batch_list = list(cast(Iterable[object], batches))
    if not batch_list:
        raise _batches_needed("none")
    for batch in batch_list:
        if not isinstance(batch, Mapping | Tensor | tuple | list) and not callable(batch):
            raise _batches_needed(type(batch).__name__)
    return batch_list


def _batches_needed(found: str) -> SpecError:
    return SpecError(
        f"batches: several batches of model inputs are needed, got {found}.",
        advice="Give a list of dicts, tensors or tuples, with which the model is called, or of "
        "functions of the model. Nothing was attached.",
    )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and restore the mode of each after the block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
