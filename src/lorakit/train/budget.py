"""The budget of ranks that AdaLoRA moves between layers while it trains."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lorakit.adapter import Adapter
from lorakit.deltas.adalora import AdaLoRA
from lorakit.errors import SpecError


class Budget:
    """Takes an optimizer's steps, scores every direction of every layer, and keeps as many as the
    schedule allows.

    A direction's score is the sensitivity of the loss to its parameters times how much that varies,
    each smoothed over steps. What is not kept has its singular value set to zero, and may come back
    until the schedule has ended. `prune` then takes the rest out.

    Args:
        adapter: with delta "adalora", attached.
        steps: of the whole training.
        rank: the average rank of a layer at the end; half of the initial where None.
        warmup: share of the steps before the budget begins to fall.
        final: share of the steps, at the end, in which nothing moves any more.
        every: steps between two decisions.
        orthogonality: weight of the mean of |A A^T - 1| and |B^T B - 1|, whose gradient is added.
        smoothing: of the sensitivity and of its variation, from one step to the next.

    Raises:
        SpecError: the adapter has other deltas, or a number is out of its range; all are named.

    Source: Zhang et al., AdaLoRA, arXiv 2303.10512: equations 7 to 9 for the score, section 3.3 for
        the schedule.

    >>> import lorakit
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    >>> budget = Budget(lorakit.attach(model, lorakit.Spec(delta="adalora", rank=4)), steps=100, rank=2)
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
        self.deltas = {
            n: delta for n, delta in adapter.deltas.items() if isinstance(delta, AdaLoRA)
        }
        self.most = sum(delta.rank for delta in self.deltas.values())
        initial = max((delta.rank for delta in self.deltas.values()), default=1)
        wanted = max(1, initial // 2) if rank is None else rank
        faults = [
            f"{n}   has delta {d.name!r}, not 'adalora'"
            for n, d in adapter.deltas.items()
            if n not in self.deltas
        ]
        if not 1 <= wanted <= initial:
            faults.append(
                f"rank {wanted}: a number from 1 to the initial rank, {initial}, is needed"
            )
        if warmup < 0 or final < 0 or warmup + final >= 1:
            faults.append(
                f"warmup {warmup:g} and final {final:g}: shares that leave some steps between them are needed"
            )
        if every < 1 or orthogonality < 0 or not 0 <= smoothing < 1:
            faults.append(
                f"every {every}, orthogonality {orthogonality:g}, smoothing {smoothing:g}: out of range"
            )
        if faults:
            raise SpecError("This budget cannot be kept.", faults, "Nothing was started.")
        self.least, self.begin, self.end = (
            wanted * len(self.deltas),
            round(warmup * steps),
            round((1 - final) * steps),
        )
        self.every, self.orthogonality, self.smoothing = every, orthogonality, smoothing
        self.done = 0
        self.kept: dict[str, Tensor] = {}  # of the last decision, by layer
        self.mean: dict[str, Tensor] = {}
        self.spread: dict[str, Tensor] = {}

    def size(self, step: int) -> int:
        """Return how many directions all layers together may have after so many steps."""
        if step <= self.begin:
            return self.most
        left = max(0.0, 1 - (step - self.begin) / max(1, self.end - self.begin))
        return self.least + int((self.most - self.least) * left**3)

    @property
    def settled(self) -> bool:
        """Whether the schedule has ended, so that nothing moves any more."""
        return self.done >= self.end

    def ranks(self) -> dict[str, int]:
        """Return how many directions each layer has now."""
        return {n: int((delta.E != 0).sum()) for n, delta in self.deltas.items()}

    def step(self, optimizer: Any) -> None:
        """Do the optimizer's step, with the gradients that the backward pass left, and what falls
        due after it.
        """
        grads = [p.grad for _, p in self._parameters() if p.grad is not None]
        finite = all(
            bool(torch.isfinite(grad).all()) for grad in grads
        )  # fp16's scaler skips a step that is not
        if finite:
            self._straighten()
        optimizer.step()
        self.done += 1
        with torch.no_grad():
            if finite and self.done <= self.end:
                self._score()
            if self.done > self.end:
                self._keep({n: self.kept[n].to(delta.E.device) for n, delta in self.deltas.items()})
            elif self.done > self.begin and (
                self.done == self.end or (self.done - self.begin) % self.every == 0
            ):
                self._choose(self.size(self.done))

    def prune(self) -> None:
        """Take the directions that the budget has not kept out of the adapter; its parameters are
        new ones afterwards.
        """
        for delta in self.deltas.values():
            delta.prune()

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on."""
        return {"done": self.done, "mean": self.mean, "spread": self.spread, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        devices = {key: p.device for key, p in self._parameters()}
        self.done, self.kept = state["done"], state["kept"]
        self.mean, self.spread = (
            {k: t.to(devices[k]) for k, t in state[key].items()} for key in ("mean", "spread")
        )

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        for n, delta in self.deltas.items():
            yield from ((f"{n}.{key}", p) for key, p in delta.named_parameters())

    def _straighten(self) -> None:
        """Add the gradient of the mean distance of A A^T and B^T B from the identity."""
        with torch.no_grad():
            for delta in self.deltas.values() if self.orthogonality else ():
                for p, rows in ((delta.A, delta.A), (delta.B, delta.B.T)):
                    off = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
                    pull = (
                        2
                        * off
                        @ rows
                        / off.norm().clamp_min(1e-12)
                        * (self.orthogonality / (2 * len(self.deltas)))
                    )
                    if p.grad is not None:
                        p.grad += pull if rows is p else pull.T

    def _score(self) -> None:
        for key, p in self._parameters():
            now = (p * p.grad).abs() if p.grad is not None else torch.zeros_like(p)
            mean, spread = (
                self.mean.setdefault(key, torch.zeros_like(p)),
                self.spread.setdefault(key, torch.zeros_like(p)),
            )
            mean.mul_(self.smoothing).add_(now, alpha=1 - self.smoothing)
            spread.mul_(self.smoothing).add_((now - mean).abs(), alpha=1 - self.smoothing)

    def _choose(self, size: int) -> None:
        scores = []
        for n in self.deltas:
            E, A, B = (self.mean[f"{n}.{key}"] * self.spread[f"{n}.{key}"] for key in "EAB")
            scores.append((E.squeeze(1) + A.mean(1) + B.mean(0)).cpu())
        best = torch.zeros(self.most, dtype=torch.bool)
        best[torch.sort(torch.cat(scores), descending=True, stable=True).indices[:size]] = True
        self.kept = dict(zip(self.deltas, best.split([len(s) for s in scores]), strict=True))
        self._keep({n: kept.to(self.deltas[n].E.device) for n, kept in self.kept.items()})

    def _keep(self, kept: dict[str, Tensor]) -> None:
        for n, chosen in kept.items():
            self.deltas[n].E.mul_(chosen.unsqueeze(1))
