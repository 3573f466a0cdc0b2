"""Loops and tools written for bare models, on models whose adapters enter by hooks, by parts and by
lent weights.
"""

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Adapter, Spec

from ..laws.table import fill, same_bits, state
from ..models.families import FAMILIES, WORDS, Family, logits
from .test_check import READERS

WAYS = {
    "hooks": ("llama", "all-linear"),
    "parts": ("gpt2", "qv"),
    "swapped": ("mamba", "all-linear"),
    "experts": ("mixtral", "mlp"),
    "both sides": ("t5", "qkvo"),
}
ways = pytest.mark.parametrize(("name", "targets"), WAYS.values(), ids=WAYS)


def trained(name: str, targets: str) -> tuple[Family, Any, Adapter]:
    family = FAMILIES[name] if name in FAMILIES else READERS[name][0]
    model = family.build().train()
    return family, model, fill(lorakit.attach(model, Spec(rank=2, alpha=0.5, targets=targets)))


def gradients(model: Any, adapter: Adapter, *batches: dict[str, Any]) -> list[Tensor]:
    """Return the gradients summed over batches of one size, each with its share of the loss."""
    for parameter in adapter.parameters():
        parameter.grad = None
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    return [p.grad.clone() for p in adapter.parameters()]


def close(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-5) -> bool:
    scale = max(float(w.abs().max()) for w in want)
    return scale > 1e-3 and all(
        float((g - w).abs().max()) <= tolerance * scale for g, w in zip(got, want, strict=True)
    )


@pytest.mark.slow
@ways
def test_accumulated_gradients_are_those_of_one_batch(name: str, targets: str) -> None:
    family, model, adapter = trained(name, targets)
    halves = [{key: value[i : i + 1] for key, value in family.inputs.items()} for i in (0, 1)]
    assert close(gradients(model, adapter, *halves), gradients(model, adapter, family.inputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@ways
def test_checkpointing_gives_the_same_gradients(name: str, targets: str, reentrant: bool) -> None:
    family, model, adapter = trained(name, targets)
    want = gradients(model, adapter, family.inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        # without it this kind gives no gradient to what stands behind a frozen input
        model.enable_input_require_grads()
    assert close(gradients(model, adapter, family.inputs), want)


@pytest.mark.slow
@ways
def test_autocast_trains_the_same_tensors(name: str, targets: str) -> None:
    family, model, adapter = trained(name, targets)
    want = torch.cat([g.flatten() for g in gradients(model, adapter, family.inputs)])
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(model, adapter, family.inputs)
    assert {g.dtype for g in got} == {torch.float32}
    assert (
        nn.functional.cosine_similarity(torch.cat([g.flatten() for g in got]), want, dim=0) > 0.98
    )


@pytest.mark.slow
@ways
def test_copies_are_independent(name: str, targets: str) -> None:
    family, model, adapter = trained(name, targets)
    want, file = logits(model, family.inputs), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for twin in copies:
        assert torch.equal(logits(twin, family.inputs), want)
        assert lorakit.attached(twin)["default"] == adapter
        lorakit.detach(twin)
        assert torch.equal(
            logits(twin, family.inputs), logits(family.build().train(), family.inputs)
        )
    assert torch.equal(logits(model, family.inputs), want)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "targets"),
    [WAYS["parts"], ("bert", "all-linear"), ("vit", "all-linear"), ("lfm2", ".*conv")],
)
def test_compiled_without_a_graph_break(name: str, targets: str, compiler: None) -> None:
    # Mamba's own forward cannot be compiled whole; another family stands for swapped weights.
    family, model, adapter = trained(name, targets)
    inputs = {
        key: value for key, value in family.inputs.items() if key != "labels"
    }  # transformers logs where it takes a loss

    def pull(module: Any) -> list[Tensor]:
        return list(
            torch.autograd.grad(module(**inputs).logits.square().mean(), list(adapter.parameters()))
        )

    assert close(pull(torch.compile(model, fullgraph=True, backend="aot_eager")), pull(model), 1e-4)


def moved(start: Adapter, adapter: Adapter) -> bool:
    return all(
        not torch.equal(a, b) for a, b in zip(start.parameters(), adapter.parameters(), strict=True)
    )


def base_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state(model).items() if "lorakit" not in key.split(".")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_trainer_of_trl(tiny_llama: Path, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        AutoTokenizer.from_pretrained(tiny_llama),
    )
    values, adapter = base_of(model), lorakit.attach(model, Spec(rank=4))
    start = adapter.copy()
    rows = Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": "the cat"},
                    {"role": "assistant", "content": "sat on"},
                ]
            }
        ]
        * 8
    )
    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        bf16=False,
        dataloader_pin_memory=False,
    )
    trl.SFTTrainer(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer
    ).train()
    assert moved(start, adapter) and same_bits(base_of(model), values)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_trainer_of_lightning(tmp_path: Path) -> None:
    import pytorch_lightning as lightning

    model = FAMILIES["llama"].build()
    values, adapter = state(model), lorakit.attach(model, Spec(rank=4))
    start = adapter.copy()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        accumulate_grad_batches=2,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(list(WORDS["input_ids"]) * 4, batch_size=2))
    assert moved(start, adapter) and same_bits(
        {k: v for k, v in state(model).items() if k in values}, values
    )
    other = FAMILIES["llama"].build()
    lorakit.attach(other, Adapter.load(adapter.save(tmp_path / "adapter")))
    assert torch.equal(logits(other, WORDS), logits(model.eval(), WORDS))
