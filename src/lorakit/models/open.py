"""What is evaluated, asked or merged: a base model, with or without an adapter on it."""

from lorakit.adapter import Adapter
from lorakit.data.encode import Example, encode_causal, encode_labelled
from lorakit.data.rows import Rows
from lorakit.errors import DataError, ModelError
from lorakit.inject.attach import attach
from lorakit.models.load import Loaded, load, load_config
from lorakit.models.tasks import task_of_peft_type


def resolve_task(adapter: Adapter | None, asked: str = "auto", rows: Rows | None = None) -> str:
    """Return the task: as asked, else as the adapter was trained for, else as the rows tell."""
    if asked != "auto":
        return asked
    if adapter is not None:
        known = adapter.provenance.get("task") or task_of_peft_type(
            adapter.provenance.get("task_type")
        )
        if known:
            return known
    return "classify" if rows is not None and rows.kind in ("labelled", "pair") else "causal-lm"


def open_model(
    model: str,
    adapter: Adapter | None,
    task: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    any_base: bool = False,
) -> Loaded:
    """Load a base for a task, and put the adapter on it.

    Raises:
        ModelError: the base cannot be loaded, or would answer with a head of random weights.
        AdapterMismatch: the adapter does not fit it.
    """
    labels = _labels(model, adapter) if task == "classify" else []
    loaded = load(
        model,
        task,
        labels=labels,
        dtype=dtype,
        trains_base=bool(adapter and adapter.full_parameters),
        device=device,
    )
    held = tuple(adapter.full_parameters) if adapter else ()
    random = [m for m in loaded.new_modules if not any(path.startswith(m + ".") for path in held)]
    if random:
        raise ModelError(
            f"{model} has no trained weights for {', '.join(random)}: it would answer at random.",
            advice="Name an adapter that holds them (--adapter), or train one.",
        )
    if adapter is not None:
        attach(loaded.model, adapter, trainable=False, any_base=any_base)
        loaded.model.eval()
    return loaded


def _labels(model: str, adapter: Adapter | None) -> list[str]:
    """Return the class names: those the adapter was trained with, else those of the model's own
    config.
    """
    if adapter is not None:
        if named := adapter.provenance.get("labels"):
            return list(named)
        heads = [
            t.shape[0]
            for path, t in adapter.full_parameters.items()
            if path.endswith("weight") and t.ndim == 2
        ]
        return [str(i) for i in range(heads[-1])] if heads else _own_labels(model)
    return _own_labels(model)


def _own_labels(model: str) -> list[str]:
    named = load_config(model).id2label or {}
    return [name for _, name in sorted(named.items())]


def encode_rows(
    rows: Rows, loaded: Loaded, max_length: int | None = None, loss_on: str = "completion"
) -> list[Example]:
    """Tokenise rows for the task that the model was loaded for.

    Raises:
        DataError: the rows do not suit the task, or `max_length` is more than the model takes.
    """
    longest = min(512, loaded.max_length) if max_length is None else max_length
    if longest > loaded.max_length:
        raise DataError(
            f"max_length: {longest} tokens asked, the model takes at most {loaded.max_length}."
        )
    if loaded.task == "causal-lm":
        return encode_causal(rows, loaded.tokenizer, longest, loss_on)
    return encode_labelled(
        rows, loaded.tokenizer, longest, loaded.labels if loaded.task == "classify" else None
    )
