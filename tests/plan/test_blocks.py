"""A step of a model with many blocks, told from a few of them, beside the trace of all."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    BertConfig,
    DebertaV2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
)

from lorakit import Spec
from lorakit.plan.blocks import SHORTEST_RUN, find_repeated_blocks, trace_by_blocks
from lorakit.plan.meta_adapter import attach_on_meta
from lorakit.plan.trace import Step, trace_step

from .models import build

BLOCKS = SHORTEST_RUN + 2
CONFIGS = {
    "llama": lambda: LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=300, n_embd=32, n_layer=BLOCKS, n_head=4, bos_token_id=0, eos_token_id=0
    ),
    "opt": lambda: OPTConfig(
        vocab_size=300,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    ),
    "bert": lambda: BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
    ),
    "deberta": lambda: DebertaV2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=8,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
    ),
    "gemma3": lambda: Gemma3TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
    ),
}
LM, STEP = "causal-lm", Step(batch=2, length=24)
CASES = {
    "as it is": ("llama", Spec(rank=4, dropout=0.1), STEP),
    "checkpointing": ("llama", Spec(rank=4), replace(STEP, checkpointing="full")),
    "accumulated": ("opt", Spec(rank=2, targets="qv"), replace(STEP, again=True)),
    "autocast": ("gpt2", Spec(rank=4), replace(STEP, mixed="bf16")),
    "dora and norms": ("gpt2", Spec(rank=4, delta="dora", full_modules=("norms",)), STEP),
    "every parameter": ("llama", None, STEP),
    "a loss in many pieces": (
        "opt",
        Spec(rank=4, targets="qv"),
        Step(batch=8, length=8192, padded=False),
    ),
    "an encoder": ("bert", Spec(rank=4), replace(STEP, task="classify")),
    "disentangled attention": ("deberta", Spec(rank=4), replace(STEP, task="classify")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_few_blocks_tell_the_trace_of_all(case: str) -> None:
    name, spec, step = CASES[case]
    with torch.device("meta"):
        model = build(CONFIGS[name](), step.task)
    if spec is not None:
        attach_on_meta(model, spec)
    assert find_repeated_blocks(model) is not None
    few, whole = trace_by_blocks(model, step), trace_step(model, step)
    assert len(few.timeline) < len(whole.timeline)  # not the whole traced after all
    assert few.peak == whole.peak
    for key in ("activations", "logits", "flops", "moved", "calls"):
        assert getattr(few, key) == getattr(whole, key), key


@pytest.mark.slow
def test_blocks_that_differ_are_traced_one_by_one() -> None:
    with torch.device("meta"):
        kinds, even = build(CONFIGS["gemma3"](), LM), build(CONFIGS["llama"](), LM)
    assert find_repeated_blocks(kinds) is None  # every sixth sees all tokens
    attach_on_meta(even, Spec(rank=4, overrides={f"model.layers.{BLOCKS // 2}.*": {"rank": 2}}))
    assert find_repeated_blocks(even) is None
    assert len(even.model.layers) == BLOCKS
