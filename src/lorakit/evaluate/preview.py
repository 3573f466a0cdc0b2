"""What training would see of a data set: its tokens, which of them are trained, what is cut, how
long rows are.
"""

from collections import Counter
from typing import Any

from lorakit.data.encode import (
    IGNORED,
    encode_causal,
    encode_labelled,
    infer_task,
    label_text,
    list_labels,
)
from lorakit.data.rows import Rows
from lorakit.errors import DataError
from lorakit.models.load import load_config, load_tokenizer


def preview(
    rows: Rows, model: str, task: str, loss_on: str, max_length: int | None, show: int
) -> dict[str, Any]:
    """Tokenise rows as training does, and count; no weights are loaded.

    Args:
        rows: checked rows.
        model: whose tokenizer and longest sequence count.
        task: causal-lm, classify, regress or auto.
        loss_on: completion or all.
        max_length: tokens of a sequence; None for training's own default.
        show: rows to give token by token.

    Returns:
        Counts, a histogram of lengths, labels where there are, and `shown`: (piece of text,
        trained) pairs a row.

    Raises:
        DataError: what training would refuse.
    """
    tokenizer = load_tokenizer(model)
    config = load_config(model).get_text_config()
    limit = int(
        min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 1 << 30)
    )
    longest = min(512, limit) if max_length is None else max_length
    if longest > limit:
        raise DataError(f"max_length: {longest} tokens asked, the model takes at most {limit}.")
    task = infer_task(rows, task)
    names = list_labels(rows) if task == "classify" else None
    examples = (
        encode_causal(rows, tokenizer, longest, loss_on)
        if task == "causal-lm"
        else encode_labelled(rows, tokenizer, longest, names)
    )
    shown = []
    for e in examples[:show]:
        marks = [label != IGNORED and i > 0 for i, label in enumerate(e.labels)] or [False] * len(
            e.ids
        )
        target = None if task == "causal-lm" else names[int(e.target)] if names else e.target
        shown.append(
            {
                "where": rows.where[e.row],
                "pieces": list(zip(_pieces(tokenizer, e.ids), marks, strict=True)),
                "target": target,
            }
        )
    eos = tokenizer.eos_token_id
    return {
        "task": task,
        "kind": rows.kind,
        "rows": len(rows),
        "sequences": len(examples),
        "max_length": longest,
        "tokens": sum(len(e.ids) for e in examples),
        "trained_tokens": sum(e.trained for e in examples),
        "rows_cut": sum(e.cut > 0 for e in examples),
        "tokens_cut": sum(e.cut for e in examples),
        "rows_repeated": rows.repeated,
        "eos": tokenizer.eos_token if task == "causal-lm" else None,
        "eos_trained": sum(e.labels[-1] == eos for e in examples) if task == "causal-lm" else None,
        "labels": dict(Counter(label_text(r["label"]) for r in rows.rows).most_common())
        if names
        else {},
        "histogram": _histogram([len(e.ids) for e in examples]),
        "shown": shown,
    }


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the text that each token adds, so that the pieces together read as the sequence does."""
    out, before = [], ""
    for i in range(len(ids)):
        now = tokenizer.decode(ids[: i + 1], clean_up_tokenization_spaces=False)
        out.append(
            now[len(before) :]
            if now.startswith(before)
            else tokenizer.convert_ids_to_tokens(ids[i])
        )
        before = now
    return out


def _histogram(lengths: list[int], bins: int = 10) -> list[dict[str, int]]:
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // bins))
    counts = Counter((n - low) // width for n in lengths)
    return [
        {"from": low + i * width, "to": low + (i + 1) * width - 1, "count": counts[i]}
        for i in range(max(counts) + 1)
    ]
