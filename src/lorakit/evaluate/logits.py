"""Comparison of two models by their logits on the same texts: KL divergence and agreement."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.errors import ModelError
from lorakit.models.load import find_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The texts that are compared where no data is named.
TEXTS = (
    "Once upon a time, there was a little girl who lived near the sea with her grandmother.",
    "The committee will meet on Tuesday to discuss the budget, which has grown by 12 percent since "
    "last year.",
    "def mean(values):\n    return sum(values) / len(values)",
    "What is the capital of France, and how far is it from Berlin?",
)
LONGEST = 256  # tokens of a text


def make_inputs(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", texts: Sequence[str]
) -> list[Mapping[str, Tensor]]:
    """Return inputs of any model: texts where it reads tokens, else random pictures or sound.

    Args:
        model: a model of transformers.
        tokenizer: that of the texts; without one their ids are arbitrary.
        texts: texts; empty ones are left out.
    """
    main = model.main_input_name
    if main != "input_ids":
        return [_make_random_input(model, main)]
    config = model.config.get_text_config()
    longest = min(LONGEST, find_positions(config, model) or LONGEST)
    batches: list[Mapping[str, Tensor]] = []
    for text in texts:
        if not text.strip():
            continue
        if tokenizer is None:
            ids = torch.arange(1, min(longest, len(text))) % config.vocab_size
        else:
            encoded = tokenizer(text, truncation=True, max_length=longest)
            ids = torch.tensor(encoded.input_ids)
        batch = {"input_ids": ids[None].to(model.device)}
        if model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = batch["input_ids"]
        batches.append(batch)
    return batches


def _make_random_input(model: "PreTrainedModel", name: str) -> dict[str, Tensor]:
    """Return one picture, spectrogram or wave of random numbers."""
    config = model.config
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    shapes = {
        "pixel_values": (1, getattr(config, "num_channels", 3), height, width),
        "input_features": (
            1,
            getattr(config, "num_mel_bins", 80),
            2 * getattr(config, "max_source_positions", 1500),
        ),
        "input_values": (1, 16000),
    }
    if name not in shapes:
        raise ModelError(
            f"{type(model).__name__} reads {name}, of which lorakit can make no sample.",
            advice="Merge in memory, with lorakit.merge. Nothing was written.",
        )
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shapes[name], generator=generator)
    batch = {name: values.to(model.device, model.dtype)}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.ones(1, 4, dtype=torch.int64, device=model.device)
    return batch


def compute_logits(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return the float32 logits of every batch; of a model without a head its first output."""
    with torch.inference_mode():
        return [_first_output(model(**batch)).float() for batch in batches]


def _first_output(outputs: Mapping[str, Tensor]) -> Tensor:
    return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))


def compare_logits(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean KL(expected, actual) in nats, and the share of equal first choices.

    Both are over all positions of all batches.

    >>> compare_logits([torch.zeros(2, 4)], [torch.zeros(2, 4)])
    (0.0, 1.0)
    """
    divergences: list[Tensor] = []
    agreements: list[Tensor] = []
    for reference, logits in zip(expected, actual, strict=True):
        pointwise = F.kl_div(
            logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
        )
        divergences.append(pointwise.sum(-1).flatten())
        agrees = reference.argmax(-1) == logits.argmax(-1)
        agreements.append(agrees.float().flatten())
    # Rounding may give a mean just below 0.
    mean_divergence = max(0.0, float(torch.cat(divergences).mean()))
    return mean_divergence, float(torch.cat(agreements).mean())
