"""What commands that write an adapter have in common: where it goes, and what is told of it."""

from pathlib import Path
from typing import Any

from lorakit.errors import ModelError, OutputError
from lorakit.text import format_bytes, plural


def fresh(output: str) -> Path:
    """Return the folder to write, which must not hold anything yet.

    Raises:
        OutputError: it is a file, or not empty.
    """
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise OutputError(
            f"{path} is a file; an adapter is a folder.", advice="Nothing was written."
        )
    if path.exists() and any(path.iterdir()):
        raise OutputError(f"{path} is not empty.", advice="Name a new folder. Nothing was written.")
    return path


def written(outcome: Any, path: Path) -> dict[str, Any]:
    """Save the adapter of an outcome; return the outcome's fields, the bytes on disk and the
    folder.
    """
    outcome.adapter.save(path)
    return {
        **outcome.to_dict(),
        "bytes": sum(p.stat().st_size for p in path.iterdir()),
        "output": str(path),
    }


def base_of(model: str, adapter: Any) -> Any:
    """Return the base model by itself, for what depends on its weights."""
    from lorakit.models.load import load
    from lorakit.models.open import resolve_task

    task = resolve_task(adapter)
    labels = list(adapter.provenance.get("labels") or ())
    loaded = load(model, task, labels=labels, dtype="float32")
    unknown = [
        m
        for m in loaded.new_modules
        if not any(path.startswith(f"{m}.") for path in adapter.full_parameters)
    ]
    if unknown:
        raise ModelError(
            f"{model} has no trained weights for {', '.join(unknown)}.", advice="Nothing was made."
        )
    return loaded


def show(result: dict[str, Any], what: str) -> None:
    """Print an outcome for people: ranks, what is left, what was decided."""
    from lorakit.cli import show as shown

    ranks = sorted(result["ranks"].values())
    rank = (
        f"rank {ranks[0]}"
        if ranks and ranks[0] == ranks[-1]
        else f"ranks {ranks[0]} to {ranks[-1]}"
        if ranks
        else "no matrix"
    )
    rows = [
        ["modules", result["modules"]],
        ["parameters", result["trainable_parameters"]],
        ["on disk", format_bytes(result["bytes"])],
        [what, f"{100 * result['energy']:.4g} %"],
        ["residual, relative in ΔW", f"{result['residual']:.3g}"],
        ["best possible residual", f"{result['at_best']:.3g}"],
    ]
    for key, text in (
        ("kl", "KL to the tuned model, nats"),
        ("base_kl", "KL of the base itself"),
        ("top1_agreement", "same first choice as the tuned model"),
    ):
        if key in result:
            rows.append([text, f"{result[key]:.4g}"])
    shown.table(["the adapter", ""], rows, title=f"{result['output']}: {rank}")
    worst = sorted(result["residuals"].items(), key=lambda item: -item[1])[:3]
    if worst and worst[0][1] > 1e-6:
        print(
            f"worst of {plural(len(result['residuals']), 'module')}: "
            + ", ".join(f"{n} {r:.3g}" for n, r in worst)
        )
    for note in result["notes"]:
        print(note if len(note) < 400 else f"{note[:400]} … (--json has all)")
