"""The chunked loss equals the cross-entropy of the model's own logits; other heads are refused."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import lorakit
from lorakit import Spec
from lorakit.evaluate.score import batch_loss
from lorakit.models import chunked_loss as heads
from lorakit.models.chunked_loss import chunking_obstacle, cross_entropy, find_head
from lorakit.tasks import causal_lm

from ..laws.law import within
from ..laws.table import fill, randn

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gpt2, tied": lambda: transformers.GPT2Config(**SMALL),
    "gemma2, soft-capped": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, final_logit_softcapping=3.0
    ),
    "granite, divided": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere, multiplied": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.5),
    "phi, with a bias": lambda: transformers.PhiConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
}


def build(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(FAMILIES[name]()).double()
        for p in model.parameters():  # also biases, which start at zero
            if p.ndim == 1:
                nn.init.normal_(p, 1.0, 0.1)
    return model.eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 97, (3, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, -4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """Return the loss and all gradients, computed in chunks and in the plain way."""
    out = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(causal_lm, "find_head", lambda *args: None)
            patch.setattr(heads, "CHUNK_BYTES", 1)  # several chunks
            loss, logits = batch_loss(model, batch(), "causal-lm")
            assert (logits is None) is not plain
            trained = [p for p in model.parameters() if p.requires_grad]
            out.append([loss.detach(), *torch.autograd.grad(loss, trained)])
    return out[0], out[1]


def close(got: list[Tensor], want: list[Tensor]) -> bool:
    # The plain way sums its loss in float32.
    return all(
        float((g - w).abs().max()) <= 1e-5 * float(w.abs().max())
        for g, w in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_are_those_of_the_plain_expression(
    dtype: torch.dtype, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", 1)  # chunks of 16 rows, the last one shorter
    labels = torch.randint(0, 50, (70,), generator=torch.Generator().manual_seed(2))
    parts = [
        randn(70, 12, seed=1).to(dtype),
        randn(50, 12, seed=2).to(dtype),
        randn(50, seed=3).to(dtype),
    ]

    def chunked(x: Tensor, W: Tensor, b: Tensor) -> list[Tensor]:
        layer = nn.Linear(12, 50)
        layer.weight, layer.bias = nn.Parameter(W), nn.Parameter(b)
        loss = cross_entropy(x, labels, layer, smoothing=smoothing) / 70
        return [loss.detach(), *torch.autograd.grad(loss, [x, layer.weight, layer.bias])]

    def plain(x: Tensor, W: Tensor, b: Tensor) -> list[Tensor]:
        loss = F.cross_entropy(
            F.linear(x, W, b).to(torch.promote_types(x.dtype, torch.float32)),
            labels,
            label_smoothing=smoothing,
        )
        return [loss.detach(), *torch.autograd.grad(loss, [x, W, b])]

    def fresh(double: bool = False) -> list[Tensor]:
        return [(t.double() if double else t.clone()).requires_grad_() for t in parts]

    for got, want, simple in zip(
        chunked(*fresh()), plain(*fresh(double=True)), plain(*fresh()), strict=True
    ):
        assert within(got, want, simple, dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_known_head_gives_the_models_own_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    fill(lorakit.attach(model, Spec(rank=3, dtype="float64")))
    got, want = losses(model, monkeypatch)
    assert close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {"targets": ["lm_head", "q_proj"]},
        {"targets": ["lm_head"], "delta": "dora"},
        {"targets": ["q_proj"], "full_modules": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped"])
def test_a_head_that_trains_counts_and_learns(
    name: str, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama" if name == "llama" else name)
    if name != "llama":
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # Gemma ties it
    before = batch_loss(model, batch(), "causal-lm")[0].detach()
    fill(lorakit.attach(model, Spec(rank=3, dtype="float64", **spec)))
    got, want = losses(model, monkeypatch)
    assert close(got, want) and all(float(g.abs().max()) > 0 for g in got)
    if "lm_head" in spec["targets"]:
        lorakit.detach(model)
        assert abs(float(before) - float(got[0])) > 0.1  # or the change would not have counted


def test_full_fine_tuning_of_a_tied_head(monkeypatch: pytest.MonkeyPatch) -> None:
    got, want = losses(build("tied"), monkeypatch)
    assert close(got, want)


class Odd(transformers.LlamaForCausalLM):
    """A model that scales its logits without saying so in its config."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out


class Late(transformers.LlamaForCausalLM):
    """A model that scales the hidden state before its head."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits = self.lm_head(2 * self.model(*args, **kwargs)[0])
        return out


@pytest.mark.parametrize("kind", [Odd, Late])
def test_a_model_with_unknown_logits_keeps_the_plain_way(kind: Any) -> None:
    plain, model = build("llama"), kind(FAMILIES["llama"]()).double().eval()
    model.load_state_dict(plain.state_dict())
    loss, logits = batch_loss(model, batch(), "causal-lm")
    assert logits is not None
    assert (
        chunking_obstacle(model, batch()["input_ids"])
        == "its logits are not those of its head on the last hidden state"
    )
    want = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch()["labels"][:, 1:].flatten(), reduction="sum"
    )
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-6)


def test_a_head_that_borrows_a_parameter_from_elsewhere_is_not_taken() -> None:
    model, other = build("llama"), nn.Parameter(torch.ones(97, dtype=torch.float64))
    model.lm_head.register_forward_hook(lambda layer, args, y: y * other)
    assert find_head(model, batch()["input_ids"]) is None


def test_a_hook_on_the_model_itself_is_not_skipped() -> None:
    model = build("llama")
    model.register_forward_hook(lambda module, args, out: None)
    assert find_head(model, batch()["input_ids"]) is None
    assert (
        chunking_obstacle(model, batch()["input_ids"])
        == "a hook on the model itself would be skipped"
    )


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (None, "it has no output layer"),
        (nn.Bilinear(1, 1, 1), "its head is a Bilinear, not a Linear"),
        (nn.Linear(32, 97), "its body and its head are not both its children"),
    ],
    ids=str,
)
def test_a_head_of_another_form_has_its_reason(
    head: nn.Module | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: head)
    assert chunking_obstacle(model, batch()["input_ids"]) == why


def test_finding_the_head_leaves_no_trace() -> None:
    model = build("llama")
    lorakit.attach(model, Spec(rank=3, dropout=0.5))
    state, hooks = torch.get_rng_state(), len(model.lm_head._forward_hooks)
    model.train()
    assert find_head(model, batch()["input_ids"]) is not None
    assert torch.equal(torch.get_rng_state(), state) and len(model.lm_head._forward_hooks) == hooks
    assert all(p.grad is None for p in model.parameters())


def peak(run: Any) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    now = most = 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, now)
    return most


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_is_a_fifth_of_the_plain_one(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 65536, bias=False).to(dtype).requires_grad_(False)
    x, labels = randn(1024, 8, seed=1).to(dtype).requires_grad_(), torch.arange(1024)
    plain = peak(lambda: F.cross_entropy(layer(x).float(), labels).backward())
    assert 0 < peak(lambda: cross_entropy(x, labels, layer).backward()) <= 0.2 * plain


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_losses_of_rows_add_up_to_that_of_the_batch(
    name: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    monkeypatch.setattr(heads, "CHUNK_BYTES", 1)

    def loss(by_row: bool) -> Tensor:
        return batch_loss(model, batch(), "causal-lm", by_row=by_row, label_smoothing=smoothing)[0]

    with torch.no_grad():
        rows, whole = loss(by_row=True), loss(by_row=False)
        monkeypatch.setattr(causal_lm, "find_head", lambda *args: None)
        plain = loss(by_row=True)
    assert rows.shape == (3,)
    torch.testing.assert_close(rows.sum(), whole, rtol=1e-5, atol=0, check_dtype=False)
    torch.testing.assert_close(rows, plain, rtol=1e-5, atol=0, check_dtype=False)


def test_a_base_whose_parameters_train_is_measured_in_inference_mode() -> None:
    model = build("llama")
    assert all(p.requires_grad for p in model.parameters())
    want = batch_loss(model, batch(), "causal-lm")[0].detach()
    model = build("llama")
    with torch.inference_mode():
        got = batch_loss(model, batch(), "causal-lm", by_row=True)[0].sum()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0, check_dtype=False)
