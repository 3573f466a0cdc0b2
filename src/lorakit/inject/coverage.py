"""What of a model is adapted, what of the same kind is not, and how much trains."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lorakit.inject.state import get_places
from lorakit.sites.slot import State, base_modules, base_parameters, find_state
from lorakit.text import plural


@dataclass(frozen=True)
class Coverage:
    """Counts of one model; `print` shows them as a table, `to_dict` gives them as JSON holds them.

    Attributes:
        modules: adapted layers: name, kind, shape (out, in), and rank and scale by adapter (and
            tokens, where single rows train: how many).
        whole: names of the parameters that are trained whole (biases, heads).
        skipped: layers of a kind that can be adapted, and are neither adapted nor trained whole:
            name, kind, shape.
        unreachable: modules with a matrix that no site holds, by class name: how many, and how many
            values.
        trainable_parameters: values that require a gradient.
        total_parameters: all values, those of adapters included.
    """

    model: str
    modules: list[dict[str, Any]]
    whole: list[str]
    skipped: list[dict[str, Any]]
    unreachable: dict[str, tuple[int, int]]
    trainable_parameters: int
    total_parameters: int

    @property
    def percent(self) -> float:
        return 100 * self.trainable_parameters / max(self.total_parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return lists, numbers and strings, as JSON holds them."""
        return {**asdict(self), "percent": self.percent}

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {len(self.modules)} of {len(self.modules) + len(self.skipped)} layers adapted"
        ]
        for kind, names, what in _groups(self.modules):
            lines.append(f"  adapted      {names:<44} {kind}   {what}")
        if self.whole:
            shown = ", ".join(self.whole[:4]) + (
                f" and {len(self.whole) - 4} more" if len(self.whole) > 4 else ""
            )
            lines.append(f"  trained whole {shown}")
        for kind, names, _ in _groups(self.skipped):
            lines.append(f"  not adapted  {names:<44} {kind}")
        for name, (count, values) in self.unreachable.items():
            lines.append(
                f"  out of reach {f'{name} ({count} modules)':<44} {values:,} values in a form no site holds"
            )
        large = [
            (m, told["rank"])
            for m in self.modules
            for told in m["adapters"].values()
            if "tokens" not in told
            and told["rank"] * sum(m["shape"]) >= m["shape"][0] * m["shape"][1]
        ]
        for m, rank in large[:1]:
            (out, inputs), more = (
                m["shape"],
                f", and {len(large) - 1} more," if len(large) > 1 else "",
            )
            lines.append(
                f"  note: rank {rank} of {m['name']}{more} has no fewer values than the matrix itself "
                f"({out} x {inputs}; break-even is rank {out * inputs / (out + inputs):.1f})"
            )
        scales = [told["scale"] for m in self.modules for told in m["adapters"].values()]
        if scales and (min(scales) < 0.25 or max(scales) > 16):
            lines.append(
                f"  note: scales from {min(scales):g} to {max(scales):g}; 0.25 to 16 is what usually trains well"
            )
        lines.append(
            f"trainable parameters: {self.trainable_parameters:,} of {self.total_parameters:,} = {self.percent:.4f} %"
        )
        return "\n".join(lines)


def _groups(modules: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Group layers by the end of their name and shape: (kind and shape, name and count, ranks)."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for m in modules:
        ranks = tuple(
            f"{a}: {plural(t['tokens'], 'row')}"
            if "tokens" in t
            else f"{a}: rank {t['rank']}, scale {t['scale']:g}"
            for a, t in m.get("adapters", {}).items()
        )
        groups.setdefault(
            (m["name"].split(".")[-1], m["kind"], tuple(m["shape"]), ranks), []
        ).append(m)
    return [
        (
            f"{kind} {inputs} -> {out}",
            f"{end} ({len(f)} layers)" if len(f) > 1 else f[0]["name"],
            "; ".join(ranks),
        )
        for (end, kind, (out, inputs), ranks), f in groups.items()
    ]


def coverage(model: nn.Module) -> Coverage:
    """Return what is adapted, what of the same kind is not, and how many parameters train.

    >>> print(coverage(nn.Sequential(nn.Linear(4, 3))))
    Sequential: 0 of 1 layers adapted
      not adapted  0                                            linear 4 -> 3
    trainable parameters: 15 of 15 = 100.0000 %
    """
    state = find_state(model)
    modules, skipped, known = [], [], get_places(model, state or State())
    reached = {
        p.weight_name
        for n, p in known.items()
        if state and any(n in a.deltas_by_place for a in state.adapters.values())
    }
    whole = (
        sorted({path for a in state.adapters.values() for path in a.full_parameters})
        if state
        else []
    )
    for name, place in known.items():
        told = {"name": name, "kind": place.site.kind, "shape": list(place.shape)}
        deltas = (
            {
                n: a.deltas_by_place[name]
                for n, a in state.adapters.items()
                if name in a.deltas_by_place
            }
            if state
            else {}
        )
        if deltas:
            adapters = {
                n: {
                    "rank": d.rank,
                    "alpha": d.alpha,
                    "scale": d.scale,
                    **({"tokens": d.rank} if d.by_token else {}),
                }
                for n, d in deltas.items()
            }
            modules.append({**told, "adapters": adapters})
        elif place.weight_name not in (*whole, *reached) and not place.is_part:
            skipped.append(told)
    unreachable: dict[str, tuple[int, int]] = {}
    held = {p.weight_name.rpartition(".")[0] for p in known.values()}
    for name, module in base_modules(model):
        values = sum(p.numel() for p in module._parameters.values() if p is not None and p.ndim > 1)
        if values and name not in held:
            count, before = unreachable.get(type(module).__name__, (0, 0))
            unreachable[type(module).__name__] = (count + 1, before + values)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # A parameter that waits in a slot takes the place of one that is counted already.
    base = sum(p.numel() for p in {id(p): p for _, p in base_parameters(model)}.values())
    added = sum(
        p.numel()
        for a in (state.adapters.values() if state else ())
        for d in a.deltas.values()
        for p in d.parameters()
    )
    return Coverage(
        type(model).__name__, modules, whole, skipped, unreachable, trainable, base + added
    )
