"""The model card says how a run was made and loads it, and names no folder of the machine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorakit import Adapter, attached
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import sentences

LABELLED = "".join(f"{s},{'yes' if 'cat' in s else 'no'}\n" for s in sentences(40))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["causal-lm", "classify"])
def test_its_snippet_loads_what_was_trained(
    task: str, tiny_llama: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama if task == "causal-lm" else tiny_bert
    (tmp_path / model.name).symlink_to(model)
    rows = tmp_path / "rows.csv"
    rows.write_text(f"text,label\n{LABELLED}")
    if task == "causal-lm":
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(40)))
    train_adapter(
        TrainSpec(
            model=str(model),
            data=str(rows),
            output=str(tmp_path / "mine"),
            steps=5,
            batch_size=4,
            accumulate=2,
            lr=0.0125,
        ),
        Spec(rank=2),
    )
    card = (tmp_path / "mine" / "README.md").read_text()
    for told in (
        f"base_model: {model.name}\n",
        f"- data: `{rows.name}` (",
        "- 5 steps of 8 sequences, ",
        "- peak learning rate 0.0125, cosine schedule",
        "loss: ⠒ training, o held out",
    ):
        assert told in card
    assert not re.search(r"(?<![\w.])/\w+/\w", card.replace("alpha/", "")), card
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], space)
    (adapter,) = attached(space["model"]).values()
    assert adapter.content_hash() == Adapter.load("mine").content_hash()
    assert len(space["tokenizer"]) == space["model"].config.vocab_size
