"""Adapters that a command has computed: their folder, and what is printed about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.tables import print_table
from lorakit.errors import ModelError
from lorakit.files import folder_bytes
from lorakit.text import format_bytes, plural

if TYPE_CHECKING:
    from lorakit.adapter import Adapter
    from lorakit.algebra import Outcome
    from lorakit.cli.results import AdapterResult
    from lorakit.models.load import Loaded

WORST = 3  # modules whose residual is printed
NEGLIGIBLE = 1e-6  # residual of rounding
LONGEST_NOTE = 400


def save_outcome(outcome: "Outcome", path: Path) -> "AdapterResult":
    """Save the adapter of an outcome, and return its fields, the bytes on disk and the folder."""
    outcome.adapter.save(path)
    return {**outcome.to_dict(), "bytes": folder_bytes(path), "output": str(path)}


def load_base(model: str, adapter: "Adapter", *, trust_remote_code: bool = False) -> "Loaded":
    """Return the base model in float32, without the adapter, for what depends on its weights.

    Raises:
        ModelError: it has no weights for a module that the adapter does not hold either.
    """
    from lorakit.models.load import load
    from lorakit.models.open import find_labels, untrained_modules
    from lorakit.tasks.rows import resolve_task

    task = resolve_task(adapter, model, trust_remote_code=trust_remote_code)
    labels = find_labels(model, adapter, task, trust_remote_code=trust_remote_code)
    loaded = load(model, task, labels=labels, dtype="float32", trust_remote_code=trust_remote_code)
    unknown = untrained_modules(loaded.new_modules, adapter.full_parameters)
    if unknown:
        raise ModelError(
            f"{model} has no trained weights for {', '.join(unknown)}.", advice="Nothing was made."
        )
    return loaded


def show_outcome(
    result: "AdapterResult", energy: str, more: Sequence[Sequence[object]] = ()
) -> None:
    """Print an outcome: ranks, sizes, residuals and notes.

    Args:
        result: result of `save_outcome`, with the fields that the command added.
        energy: label of the energy.
        more: further rows of the table.
    """
    rows = [
        ["modules", result["modules"]],
        ["parameters", result["trainable_parameters"]],
        ["on disk", format_bytes(result["bytes"])],
        [energy, f"{100 * result['energy']:.4g} %"],
        ["residual, relative in ΔW", f"{result['residual']:.3g}"],
        ["best possible residual", f"{result['at_best']:.3g}"],
        *more,
    ]
    title = f"{result['output']}: {_describe_ranks(result['ranks'])}"
    print_table(["the adapter", ""], rows, title=title)
    _print_worst(result["residuals"])
    for note in result["notes"]:
        is_long = len(note) >= LONGEST_NOTE
        print(f"{note[:LONGEST_NOTE]} … (--json has all)" if is_long else note)


def _describe_ranks(ranks: Mapping[str, int]) -> str:
    if not ranks:
        return "no matrix"
    low, high = min(ranks.values()), max(ranks.values())
    return f"rank {low}" if low == high else f"ranks {low} to {high}"


def _print_worst(residuals: Mapping[str, float]) -> None:
    worst = sorted(residuals.items(), key=lambda item: -item[1])[:WORST]
    if worst and worst[0][1] > NEGLIGIBLE:
        shown = ", ".join(f"{name} {residual:.3g}" for name, residual in worst)
        print(f"worst of {plural(len(residuals), 'module')}: {shown}")
