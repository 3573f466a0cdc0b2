"""Encoder-decoders: their loss is the model's own, and one command trains, scores and writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    MarianConfig,
    MBartConfig,
    PretrainedConfig,
)

from lorakit.cli.__main__ import main
from lorakit.data.batches import collate
from lorakit.data.encode import Encoding
from lorakit.data.rows import Rows
from lorakit.data.seq2seq import encode_pairs
from lorakit.errors import DataError
from lorakit.evaluate.score import batch_loss, evaluate

SHAPE: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
}
CONFIGS = {"bart": BartConfig, "mbart": MBartConfig, "marian": MarianConfig}


def pairs(*texts: tuple[str, str]) -> Rows:
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in texts]
    return Rows("completion", rows, [f"d:{i}" for i in range(len(rows))], "d.jsonl")


PAIRS = pairs(("the cat", "sat"), ("a dog on the mat ran", "the old cat sat on a mat"))


def build(family: str, tiny_t5: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    if family == "t5":
        return AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval(), tokenizer
    config: PretrainedConfig = CONFIGS[family](vocab_size=len(tokenizer), **SHAPE)
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config).eval(), tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", *CONFIGS])
def test_the_loss_is_that_of_the_model(family: str, tiny_t5: Path) -> None:
    model, tokenizer = build(family, tiny_t5)
    examples = encode_pairs(PAIRS, Encoding(tokenizer=tokenizer, max_length=32))
    batch = collate(examples, pad=1)
    with torch.no_grad():
        own = model(**batch).loss * sum(example.trained for example in examples)
        loss = batch_loss(model, batch, "seq2seq")[0]
        rows = batch_loss(model, batch, "seq2seq", by_row=True)[0]
    torch.testing.assert_close(loss, own)
    torch.testing.assert_close(rows.sum(), own)
    alone = [batch_loss(model, collate([one], 1), "seq2seq")[0].item() for one in examples]
    assert rows.tolist() == pytest.approx(alone, rel=1e-4)
    scores = evaluate(model, examples, "seq2seq", pad=1)
    assert scores.losses == pytest.approx(alone, rel=1e-4)
    assert scores.metrics["tokens"] == sum(len(example.answer) for example in examples)


def test_prompts_and_answers_end_in_eos_also_when_they_are_cut(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    rows = pairs(("the cat sat on the mat", "a dog ran"), ("the", "cat</s>"))
    first, second = encode_pairs(rows, Encoding(tokenizer=tokenizer, max_length=4))
    assert len(first.ids) == 4
    assert first.ids[-1] == first.answer[-1] == 3
    assert first.cut > 0
    assert second.cut == 0
    assert tokenizer.decode(second.answer) == "cat</s>"
    assert second.size == len(second.ids) + len(second.answer)


def test_rows_without_answers_are_refused(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    rows = Rows("text", [{"text": "the cat"}], ["d:1"], "d.txt", layout="text")
    with pytest.raises(DataError, match="seq2seq needs a prompt and a completion"):
        encode_pairs(rows, Encoding(tokenizer=tokenizer, max_length=8))


@pytest.mark.slow
def test_one_command_trains_scores_writes_and_merges(
    tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "d.jsonl", tmp_path / "run"
    rows = [{"prompt": f"the cat {i % 7}", "completion": "sat on a mat"} for i in range(20)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    base = ["--model", str(tiny_t5)]
    common = ["--data", str(data), "--output", str(run)]
    assert main(["train", *base, *common, "--steps", "25", "--lr", "0.02", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "seq2seq"
    assert report["after"]["loss"] < 0.1 * report["before"]["loss"]
    tuned = [*base, "--adapter", str(run)]
    assert main(["eval", *tuned, "--data", str(data), "--text-metrics", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["task"] == "seq2seq"
    assert scores["bleu"] == pytest.approx(100)
    prompts = ["--prompt", "the cat 3", "a dog"]
    for beams in ("1", "3"):
        assert main(["generate", *tuned, *prompts, "--beams", beams, "--json"]) == 0
        answers = json.loads(capsys.readouterr().out)["answers"]
        assert answers[0]["text"] == "sat on a mat"
    merged = tmp_path / "merged"
    assert main(["merge", *tuned, "--output", str(merged), "--json"]) == 0
    capsys.readouterr()
    assert main(["eval", "--model", str(merged), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(scores["loss"], rel=1e-3)
    whole = ["--energy", "1", "--json"]
    models = ["--base", str(tiny_t5), "--tuned", str(merged)]
    assert main(["extract", *models, "--output", str(tmp_path / "found"), *whole]) == 0
    assert json.loads(capsys.readouterr().out)["top1_agreement"] == 1.0
    assert main(["inspect", str(run), *base, "--attention", "the cat"]) == 2
    assert "T5ForConditionalGeneration returns no attention maps" in capsys.readouterr().err


@pytest.mark.slow
def test_preview_shows_what_is_read_and_what_is_written(
    tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "the cat", "completion": "sat"}\n')
    assert main(["preview", "--model", str(tiny_t5), "--data", str(data), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (row,) = shown["shown"]
    assert "".join(piece for piece, trained in row["pieces"] if trained) == "sat</s>"
    assert "".join(piece for piece, trained in row["pieces"] if not trained) == "the cat</s>"
    assert shown["eos_trained"] == 1
