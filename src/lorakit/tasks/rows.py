"""The task that rows are for, and the rows encoded for the task of a model."""

from collections.abc import Sequence

from lorakit.adapter import Adapter
from lorakit.data.encode import Encoding, Example
from lorakit.data.labels import LABELLED, TASK_OF_KIND, infer_task
from lorakit.data.on_demand import encode_labelled_on_demand, encode_on_demand
from lorakit.data.packed_rows import PackedRows
from lorakit.data.prompts import ANSWERED
from lorakit.data.rows import Rows
from lorakit.models.load import Loaded, count_embeddings
from lorakit.models.open import check_ids, choose_max_length
from lorakit.models.read import load_config
from lorakit.models.tasks import task_of_config, task_of_peft_type
from lorakit.tasks.find import find_task


def choose_task(rows: Rows, task: str, model: str, *, trust_remote_code: bool = False) -> str:
    """Return the task that rows are for, where the given one is "auto".

    Prompts with completions are for seq2seq if the model is an encoder-decoder.

    Raises:
        DataError: nothing tells whether numbers are classes.
        ModelError: the model's config cannot be read.
    """
    inferred = infer_task(rows, task)
    if task != "auto" or inferred != "causal-lm" or rows.kind not in ANSWERED:
        return inferred
    config = load_config(model, trust_remote_code=trust_remote_code)
    return "seq2seq" if config.is_encoder_decoder else inferred


def resolve_task(
    adapter: Adapter | None,
    model: str,
    task: str = "auto",
    rows: Rows | None = None,
    *,
    trust_remote_code: bool = False,
) -> str:
    """Return the task to load a model for.

    It is the given one, else that of the adapter's training, else that of the rows, else that of
    the model's own class.
    """
    if task != "auto":
        return task
    trained_for = _trained_task(adapter) if adapter is not None else None
    if trained_for == "classify" and adapter is not None and adapter.count_outputs() == 1:
        return "regress"
    if trained_for:
        return trained_for
    own = task_of_config(load_config(model, trust_remote_code=trust_remote_code))
    if rows is None:
        return own
    if rows.kind in LABELLED:
        return own if own == "regress" else "classify"
    return TASK_OF_KIND.get(rows.kind, own)


def _trained_task(adapter: Adapter) -> str | None:
    """Return the task that an adapter was trained for, if its file says so."""
    provenance = adapter.provenance
    return provenance.get("task") or task_of_peft_type(provenance.get("task_type"))


def encode_for_training(
    rows: Rows, loaded: Loaded, max_length: int | None = None, loss_on: str = "completion"
) -> Sequence[Example]:
    """Tokenise rows as `encode_rows` does; many rows of some tasks on demand.

    They are tokenised at once all the same if the tokenizer has ids that the model has no
    embedding for, because each row has to be checked then.
    """
    known = count_embeddings(loaded.model)
    fits = known is None or len(loaded.tokenizer) <= known
    if not fits or not isinstance(rows.rows, PackedRows):
        return encode_rows(rows, loaded, max_length, loss_on)
    longest = choose_max_length(max_length, loaded.max_length)
    if loaded.task == "causal-lm":
        return encode_on_demand(rows, loaded.tokenizer, longest, loss_on)
    if loaded.task in ("classify", "regress"):
        labels = loaded.labels or None
        return encode_labelled_on_demand(rows, loaded.tokenizer, longest, labels)
    return encode_rows(rows, loaded, max_length, loss_on)


def encode_rows(
    rows: Rows,
    loaded: Loaded,
    max_length: int | None = None,
    loss_on: str = "completion",
    *,
    to_predict: bool = False,
) -> list[Example]:
    """Tokenise rows for the task of a loaded model.

    Args:
        rows: checked rows.
        loaded: the model with its tokenizer and task.
        max_length: tokens of a sequence; None for 512, or fewer if the model can read fewer.
        loss_on: "completion" or "all", as in `encode_causal`.
        to_predict: True to take rows whose labels are to be predicted.

    Raises:
        DataError: the rows do not suit the task, or `max_length` is more than the model can read.
    """
    how = Encoding(
        tokenizer=loaded.tokenizer,
        max_length=choose_max_length(max_length, loaded.max_length),
        labels=loaded.labels,
        loss_on=loss_on,
        to_predict=to_predict,
    )
    examples = find_task(loaded.task).encode(rows, how)
    where = [rows.where[example.row] for example in examples]
    check_ids(loaded, where, [[*example.ids, *example.answer] for example in examples])
    return examples
