"""The callback of the Trainer saves the adapter alone, when and as often as the Trainer would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import SpecError
from lorakit.train.callback import SaveAdapter

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 8


def train(tiny_llama: Path, folder: Path, **options: Any) -> Adapter:
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    adapter = lorakit.attach(model, Spec(rank=2))
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    callbacks = [SaveAdapter(adapter)]
    Trainer(model=model, args=settings, train_dataset=ROWS, callbacks=callbacks).train()
    return adapter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"save_steps": 2, "max_steps": 5}, [2, 4, 5]),
        ({"save_steps": 1, "max_steps": 4, "save_total_limit": 2}, [3, 4]),
        ({"save_strategy": "epoch", "num_train_epochs": 2}, [4, 8]),
        ({"save_strategy": "no", "max_steps": 2}, []),
    ],
)
def test_checkpoints_are_the_adapter_alone(
    options: dict[str, Any], steps: list[int], tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = train(tiny_llama, tmp_path, **options)
    folders = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert folders == [f"checkpoint-{step}" for step in steps]
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    saved = Adapter.load(tmp_path)
    pairs = zip(saved.parameters(), adapter.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    if steps[:1] == [2]:
        assert Adapter.load(tmp_path / "checkpoint-2").content_hash() != saved.content_hash()


@pytest.mark.slow
def test_arguments_that_need_whole_checkpoints_are_refused(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "save_strategy": "best", "metric_for_best_model": "loss"}
    callback = SaveAdapter(lorakit.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), Spec(rank=2)))
    settings = TrainingArguments(
        output_dir=str(tmp_path), load_best_model_at_end=True, **options, use_cpu=True
    )
    with pytest.raises(SpecError) as refused:
        callback.on_train_begin(settings, None, None)  # type: ignore[arg-type]
    assert [fault.partition(":")[0] for fault in refused.value.faults] == [
        "load_best_model_at_end",
        "save_strategy",
    ]
