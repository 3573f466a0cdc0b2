"""Prompts and answers for encoder-decoders: one is read, the other is written."""

from collections.abc import Sequence

from lorakit.data.encode import Encoding, Example, check_text, with_eos, without_added
from lorakit.data.prompts import ANSWERED
from lorakit.data.rows import Rows
from lorakit.errors import NOT_STARTED, DataError


def encode_pairs(rows: Rows, how: Encoding) -> list[Example]:
    """Tokenise prompts for an encoder, and their completions for the decoder.

    Args:
        rows: of a kind in ANSWERED; of an instruction, its prompt as a text.
        how: tokenizer, which says which special tokens a prompt and an answer end in, and length of
            a prompt and of an answer; what is longer is cut at its end.

    Raises:
        DataError: rows of another kind, or the tokenizer has no EOS token.
    """
    if rows.kind not in ANSWERED:
        raise DataError(
            f"Rows of {rows.source} are in the layout {rows.layout or rows.kind}; seq2seq needs a "
            "prompt and a completion.",
            advice=f"Name their columns: --columns prompt=… completion=…. {NOT_STARTED}",
        )
    tokenizer, max_length = how.tokenizer, how.max_length
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no EOS token, so no answer could learn to end.")
    check_text(rows.where, rows.rows)
    prompts = [without_added(tokenizer, row["prompt"]) for row in rows.rows]
    answers = [without_added(tokenizer, row["completion"]) for row in rows.rows]
    read = tokenizer(prompts, verbose=False).input_ids
    written = tokenizer(text_target=answers, verbose=False).input_ids
    examples: list[Example] = []
    for number, (ids, answer) in enumerate(zip(read, written, strict=True)):
        complete = with_eos(tokenizer, answer, answers[number])
        example = Example(cut(ids, max_length), row=number)
        example.answer = cut(complete, max_length)
        example.cut = len(ids) + len(complete) - example.size
        examples.append(example)
    return examples


def cut(ids: Sequence[int], max_length: int) -> list[int]:
    """Return the first ids and the last one, which ends the sequence.

    >>> cut([5, 6, 7, 1], 3)
    [5, 6, 1]
    """
    return list(ids) if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]
