"""AdaLoRA's rank budget: it falls during training, and its ranks move between layers."""

from collections.abc import Iterator, Mapping
from typing import Protocol, TypedDict

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.deltas.adalora import AdaLoRA
from lorakit.errors import NOT_STARTED, SpecError
from lorakit.train.config import TrainSpec


class Steps(Protocol):
    """An optimizer, or what stands in for one: anything with a `step`."""

    def step(self) -> object: ...


class BudgetState(TypedDict):
    """State of a budget, as checkpoints store it."""

    done: int
    mean: dict[str, Tensor]
    spread: dict[str, Tensor]
    kept: dict[str, Tensor]


class Budget:
    """A rank budget that takes an optimizer's steps and keeps the best directions of all layers.

    A direction's score is the sensitivity of the loss to its parameters, times how much that
    varies; both are smoothed over steps. Directions that are not kept have their singular value set
    to zero, and may come back until the schedule has ended. `prune` then removes them.

    Args:
        adapter: an attached adapter with delta "adalora".
        steps: steps of the whole training.
        rank: the average rank of a layer at the end; half of the initial rank where None.
        warmup: share of the steps before the budget begins to fall.
        final: share of the steps, at the end, in which no rank moves.
        every: steps between two decisions.
        orthogonality: weight of the mean of |A A^T - 1| and |B^T B - 1|, whose gradient is added.
        smoothing: smoothing factor of the sensitivity and of its variation.

    Raises:
        SpecError: the adapter has other deltas, or a number is out of its range; all are named.

    Source: Zhang et al., AdaLoRA, arXiv 2303.10512: equations 7 to 9 for the score, section 3.3 for
        the schedule. E is the diagonal of singular values, between B and A.

    >>> import lorakit
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    >>> adapter = lorakit.attach(model, lorakit.Spec(delta="adalora", rank=4))
    >>> budget = Budget(adapter, steps=100, rank=2)
    >>> [budget.size(step) for step in (0, 10, 20, 40, 70, 100)]
    [8, 8, 6, 4, 4, 4]
    """

    def __init__(
        self,
        adapter: Adapter,
        steps: int,
        *,
        rank: int | None = None,
        warmup: float = 0.1,
        final: float = 0.3,
        every: int = 10,
        orthogonality: float = 0.1,
        smoothing: float = 0.85,
    ):
        self.deltas = _adalora_deltas(adapter)
        ranks = [delta.rank for delta in self.deltas.values()]
        initial = max(ranks, default=1)
        final_rank = max(1, initial // 2) if rank is None else rank
        faults = _foreign_deltas(adapter)
        if not 1 <= final_rank <= initial:
            faults.append(
                f"rank {final_rank}: a number from 1 to the initial rank, {initial}, is needed"
            )
        if warmup < 0 or final < 0 or warmup + final >= 1:
            faults.append(
                f"warmup {warmup:g} and final {final:g}: "
                "shares that leave some steps between them are needed"
            )
        if every < 1 or orthogonality < 0 or not 0 <= smoothing < 1:
            faults.append(
                f"every {every}, orthogonality {orthogonality:g}, smoothing {smoothing:g}: "
                "out of range"
            )
        if faults:
            raise SpecError("This budget cannot be kept.", faults, NOT_STARTED)
        self.most = sum(ranks)
        self.least = final_rank * len(self.deltas)
        self.begin = round(warmup * steps)
        self.end = round((1 - final) * steps)
        self.every = every
        self.orthogonality = orthogonality
        self.smoothing = smoothing
        self.done = 0
        self.kept: dict[str, Tensor] = {}  # by layer: directions of the last decision
        self.mean: dict[str, Tensor] = {}  # by parameter: smoothed sensitivity
        self.spread: dict[str, Tensor] = {}  # by parameter: smoothed variation of it

    def size(self, step: int) -> int:
        """Return the number of directions that all layers together may have after a step."""
        if step <= self.begin:
            return self.most
        left = max(0.0, 1 - (step - self.begin) / max(1, self.end - self.begin))
        return self.least + int((self.most - self.least) * left**3)

    @property
    def is_settled(self) -> bool:
        """True once the schedule has ended, so that no rank moves any more."""
        return self.done >= self.end and bool(self.kept)

    def ranks(self) -> dict[str, int]:
        """Return the number of directions that each layer has now."""
        return {name: int((delta.E != 0).sum()) for name, delta in self.deltas.items()}

    def step(self, optimizer: Steps) -> None:
        """Take the optimizer's step, then score the directions and choose among them."""
        is_finite = self._gradients_are_finite()
        if is_finite:
            self._add_orthogonality_gradients()
        optimizer.step()
        self.done += 1
        with torch.no_grad():
            is_fixed = self.done > self.end and bool(self.kept)
            if is_finite and not is_fixed:
                self._update_scores()
            if is_fixed:
                self._zero_all_but(self.kept)
            elif self._decision_is_due():
                self.kept = self._best_directions(self.size(self.done))
                self._zero_all_but(self.kept)

    def prune(self) -> None:
        """Remove the directions that are not kept from the adapter; its parameters are new ones."""
        for delta in self.deltas.values():
            delta.prune()

    def state_dict(self) -> BudgetState:
        """Return the state that the next step depends on."""
        return {"done": self.done, "mean": self.mean, "spread": self.spread, "kept": self.kept}

    def load_state_dict(self, state: BudgetState) -> None:
        """Continue from a state that `state_dict` returned."""
        devices = {key: parameter.device for key, parameter in self._parameters()}
        self.done, self.kept = state["done"], state["kept"]
        self.mean = {key: mean.to(devices[key]) for key, mean in state["mean"].items()}
        self.spread = {key: spread.to(devices[key]) for key, spread in state["spread"].items()}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, delta in self.deltas.items():
            for key, parameter in delta.named_parameters():
                yield f"{name}.{key}", parameter

    def _gradients_are_finite(self) -> bool:
        """Return False for a step that fp16's scaler will skip."""
        gradients = [parameter.grad for _, parameter in self._parameters()]
        present = [gradient for gradient in gradients if gradient is not None]
        return all(bool(torch.isfinite(gradient).all()) for gradient in present)

    def _decision_is_due(self) -> bool:
        since = self.done - self.begin
        return since > 0 and (self.done >= self.end or since % self.every == 0)

    @torch.no_grad()
    def _add_orthogonality_gradients(self) -> None:
        """Add the gradient of the mean distance of A A^T and B^T B from the identity."""
        if not self.orthogonality:
            return
        weight = self.orthogonality / (2 * len(self.deltas))
        for delta in self.deltas.values():
            A, B = delta.A, delta.B
            if A.grad is not None:
                A.grad += _orthogonality_gradient(A, weight)
            if B.grad is not None:
                B.grad += _orthogonality_gradient(B.T, weight).T

    def _update_scores(self) -> None:
        for key, parameter in self._parameters():
            if parameter.grad is None:
                sensitivity = torch.zeros_like(parameter)
            else:
                sensitivity = (parameter * parameter.grad).abs()
            mean = self.mean.setdefault(key, torch.zeros_like(parameter))
            spread = self.spread.setdefault(key, torch.zeros_like(parameter))
            new = 1 - self.smoothing
            mean.mul_(self.smoothing).add_(sensitivity, alpha=new)
            spread.mul_(self.smoothing).add_((sensitivity - mean).abs(), alpha=new)

    def _best_directions(self, size: int) -> dict[str, Tensor]:
        """Return (rank,) masks, by layer, of the directions with the highest scores."""
        scores = [self._direction_scores(name) for name in self.deltas]
        order = torch.sort(torch.cat(scores), descending=True, stable=True).indices
        best = torch.zeros(self.most, dtype=torch.bool)
        best[order[:size]] = True
        masks = best.split([len(score) for score in scores])
        return dict(zip(self.deltas, masks, strict=True))

    def _direction_scores(self, name: str) -> Tensor:
        """Return the score of each direction of a layer, (rank,), on the CPU."""
        E, A, B = (self.mean[f"{name}.{key}"] * self.spread[f"{name}.{key}"] for key in "EAB")
        return (E.squeeze(1) + A.mean(1) + B.mean(0)).cpu()

    def _zero_all_but(self, kept: Mapping[str, Tensor]) -> None:
        for name, mask in kept.items():
            E = self.deltas[name].E
            E.mul_(mask.to(E.device).unsqueeze(1))


def make_budget(adapter: Adapter, settings: TrainSpec, steps: int) -> Budget | None:
    """Return the rank budget that these settings describe; None for other deltas than AdaLoRA.

    An adapter that a run goes on from keeps the ranks that its own budget has left.

    Raises:
        SpecError: a budget that cannot be kept.
    """
    if adapter.spec.delta != "adalora" or not adapter.deltas or settings.adapter is not None:
        return None
    return Budget(
        adapter,
        steps,
        rank=settings.target_rank,
        warmup=settings.budget_warmup,
        final=settings.budget_final,
        every=settings.budget_every,
        orthogonality=settings.orthogonality,
    )


def _adalora_deltas(adapter: Adapter) -> dict[str, AdaLoRA]:
    deltas = adapter.deltas.items()
    return {name: delta for name, delta in deltas if isinstance(delta, AdaLoRA)}


def _foreign_deltas(adapter: Adapter) -> list[str]:
    return [
        f"{name}   has delta {delta.name!r}, not 'adalora'"
        for name, delta in adapter.deltas.items()
        if not isinstance(delta, AdaLoRA)
    ]


def _orthogonality_gradient(rows: Tensor, weight: float) -> Tensor:
    """Return the gradient of weight |R R^T - 1|, for the rows R of a matrix."""
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    off = rows @ rows.T - identity
    return 2 * off @ rows / off.norm().clamp_min(1e-12) * weight
