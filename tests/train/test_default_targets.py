"""What the default targets cannot train is left out with a reason; who names it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn
from transformers import AutoTokenizer

import lorakit
from lorakit.errors import ModelError, PlanError, SpecError, TrainingError
from lorakit.inject.coverage import coverage
from lorakit.models.load import find_positions, load
from lorakit.plan import meter
from lorakit.plan.meta_model import load_meta_model
from lorakit.plan.reach import leave_out_unreached
from lorakit.plan.trace import Step, trace_step
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import sentences

Make = Callable[..., Path]
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
PICTURE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
GEMMA = {
    "text_config": {**TEXT, "num_key_value_heads": 2, "head_dim": 8},
    "vision_config": PICTURE,
    "mm_tokens_per_image": 1,
    "image_token_index": 300,
    "boi_token_index": 301,
    "eoi_token_index": 302,
}
SHARED_EXPERT = {
    **TEXT,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
JAMBA = {
    **TEXT,
    "num_key_value_heads": 2,
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_dt_rank": 16,
    "use_mamba_kernels": False,
}
UNREACHED = "left out of 'all-linear': no row of text reaches it"
SINGLE = "left out of 'all-linear': rank 16 is above min(in, out) = 1"
LEFT_OUT = {
    "Gemma3ForConditionalGeneration": (GEMMA, {"model.vision_tower": UNREACHED}),
    "GitForCausalLM": (
        {**TEXT, "vision_config": PICTURE},
        {"git.image_encoder": UNREACHED, "git.visual_projection": UNREACHED},
    ),
    "Qwen2MoeForCausalLM": (
        SHARED_EXPERT,
        {f"model.layers.{i}.mlp.shared_expert_gate": SINGLE for i in (0, 1)},
    ),
}


@pytest.fixture
def make(tiny_llama: Path, tmp_path: Path) -> Make:
    """A function that writes a tiny model of a class, with a tokenizer."""

    def write(kind: str, options: dict[str, Any]) -> Path:
        config = getattr(transformers, f"{kind.partition('For')[0]}Config")(**options)
        folder = tmp_path / kind
        getattr(transformers, kind)(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
        return folder

    return write


def settings(model: Path) -> TrainSpec:
    data = model.parent / "text.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(24)))
    return TrainSpec(
        model=str(model), data=str(data), output=f"{model}-out", steps=2, batch_size=8, threads=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_default_run_leaves_out_what_text_cannot_train(kind: str, make: Make) -> None:
    options, left_out = LEFT_OUT[kind]
    said: list[str] = []
    report = train_adapter(settings(make(kind, options)), Spec(), said.append)
    assert report["coverage"]["left_out"] == left_out
    names, reason = ", ".join(left_out), next(iter(left_out.values()))
    assert f"  note: {names} {reason}" in "\n".join(said).splitlines()
    adapted = [module["name"] for module in report["coverage"]["modules"]]
    assert adapted and not any(name.startswith(tuple(left_out)) for name in adapted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEFT_OUT)
def test_who_names_it_is_refused(kind: str, make: Make) -> None:
    options, left_out = LEFT_OUT[kind]
    name = next(iter(left_out))
    pattern = name if name.endswith("gate") else f"{name}.*fc1"
    with pytest.raises((TrainingError, SpecError)) as caught:
        train_adapter(settings(make(kind, options)), Spec(targets=(pattern,)))
    fault = "rank 16 is above min(in, out) = 1" if name.endswith("gate") else "no gradient arrives"
    assert name in str(caught.value) and fault in str(caught.value)


def test_a_model_of_single_outputs_keeps_them() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    adapter = lorakit.attach(model, Spec(rank=2))
    assert list(adapter.deltas) == ["0"] and list(adapter.left_out) == ["2"]
    lorakit.detach(model)
    assert list(lorakit.attach(model, Spec(rank=1)).deltas) == ["0", "2"]
    with pytest.raises(SpecError, match=r"rank 2 is above min\(in, out\) = 1"):
        lorakit.attach(nn.Sequential(nn.Linear(4, 1)), Spec(rank=2))


def test_gates_below_the_rank_are_left_out_and_wide_layers_below_it_refused() -> None:
    blocks = [nn.Linear(64, 64) for _ in range(4)]
    gated = nn.Sequential(*blocks, nn.Linear(64, 8))  # 3 % of all values
    adapter = lorakit.attach(gated, Spec())
    reason = "left out of 'all-linear': rank 16 is above min(in, out) = 8"
    assert adapter.left_out == {"4": reason} and f"  note: 4 {reason}" in str(coverage(gated))
    lorakit.detach(gated)
    with pytest.raises(SpecError, match=r"4   rank 16 is above min\(in, out\) = 8 \(64 -> 8\)"):
        lorakit.attach(gated, Spec(targets=["0", "4"]))
    lorakit.attach(gated, Spec(overrides={"4": {"rank": 8}}))
    wide = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))  # 11 %
    with pytest.raises(SpecError, match=r"1   rank 16 is above min\(in, out\) = 8 \(64 -> 8\)"):
        lorakit.attach(wide, Spec())


@pytest.mark.slow
def test_what_the_user_excludes_stays_excluded(make: Make) -> None:
    base = load_meta_model(str(make("Gemma3ForConditionalGeneration", GEMMA)), "causal-lm")
    spec, _ = leave_out_unreached(base, Spec(exclude=("fc1",)))
    assert spec.exclude == ("fc1", "model.vision_tower.*")
    spec, _ = leave_out_unreached(base, Spec(exclude="q"))
    assert spec.exclude[-1] == "model.vision_tower.*"
    assert "model.language_model.layers.0.self_attn.q_proj" in spec.exclude
    chosen = Spec(targets=("q_proj",))
    assert leave_out_unreached(base, chosen) == (chosen, {})


@pytest.mark.parametrize("read", [load, load_meta_model])
def test_half_of_an_encoder_decoder_is_no_language_model(read: Any, tmp_path: Path) -> None:
    kind = "WhisperForConditionalGeneration"
    transformers.WhisperConfig(architectures=[kind]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {kind}, which lorakit cannot load for causal-lm"):
        read(str(tmp_path), "causal-lm")


def test_a_config_without_a_limit_of_positions() -> None:
    assert find_positions(transformers.XLNetConfig()) == 0


@pytest.mark.slow
def test_the_plan_of_a_loop_over_tokens_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("JambaForCausalLM", JAMBA)
    monkeypatch.setattr(meter, "MOST_CALLS", 500)
    with pytest.raises(PlanError, match="one step takes more than 500 operations"):
        model = load_meta_model(str(folder), "causal-lm").transformer
        trace_step(model.requires_grad_(True), Step(batch=1, length=64))
    said: list[str] = []
    report = train_adapter(settings(folder), Spec(), said.append)
    assert report["plan"] is None and report["steps"] == 2
    assert "note: rows are padded, not packed: it hands a state from token to token" in said
