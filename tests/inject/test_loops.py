"""Loops written for the bare model train an adapter unchanged, and change no bit of the base."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorakit
from lorakit import Adapter, Spec

from ..laws.models import gpt2, llama, logits
from ..laws.table import fill, randn

IDS = torch.arange(24).reshape(2, 12) * 7 % 50


def base_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "lorakit" not in name.split("."):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("build", [llama, gpt2])
def test_plain_loop(build: type) -> None:
    model = build().train()
    adapter = lorakit.attach(
        model, Spec(rank=4, alpha=16, targets=r".*(_proj|c_attn|c_fc|lm_head)")
    )
    before = base_hash(model)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert base_hash(model) == before == base_hash(build())
    assert all(p.grad is None for n, p in model.named_parameters() if not p.requires_grad)


def test_optimizer_over_parameters_that_require_gradients() -> None:
    model = llama().train()
    adapter = lorakit.attach(model, Spec(rank=4))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in adapter.parameters()
    }


@pytest.mark.slow
def test_trainer_of_transformers(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = llama()
    adapter = lorakit.attach(model, Spec(rank=4))
    start, before = adapter.copy(), base_hash(model)
    rows = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)]
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        learning_rate=1e-2,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    moved = [
        not torch.equal(a, b) for a, b in zip(start.parameters(), adapter.parameters(), strict=True)
    ]
    assert all(moved) and base_hash(model) == before
    read = Adapter.load(adapter.save(tmp_path / "adapter"))
    other = llama()
    lorakit.attach(other, read)
    assert torch.equal(logits(other), logits(model.eval()))


def gradients(model: nn.Module, adapter: Adapter) -> list[Tensor]:
    for parameter in adapter.parameters():
        parameter.grad = None
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [p.grad.clone() for p in adapter.parameters()]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = llama().train()
    adapter = fill(lorakit.attach(model, Spec(rank=2)))
    want = gradients(model, adapter)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got = gradients(model, adapter)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["linear", "conv1d", "embedding", "convolution2d-circular", "transposed2d"]
)
def test_compiled_layer_agrees(kind: str, compiler: None) -> None:
    from ..laws.table import Row

    row = Row("lowrank", kind, "float32")
    model, adapter = row.attached(dropout=0.0)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for which in ("default", None):
        lorakit.enable(model, which)
        assert torch.allclose(compiled(row.x()), model(row.x()), atol=1e-6)
    lorakit.enable(model, "default")
    compiled(row.x()).square().sum().backward()
    got = [p.grad.clone() for p in adapter.parameters()]
    model.zero_grad()
    model(row.x()).square().sum().backward()
    assert all(
        torch.allclose(a, p.grad, atol=1e-4) for a, p in zip(got, adapter.parameters(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("attached_later", [False, True])
def test_a_graph_compiled_without_adapters_is_not_reused_with_them(
    attached_later: bool, compiler: None
) -> None:
    """torch.compile does not guard on hooks: two frozen models of one class, one of them adapted,
    must not share a graph.
    """
    plain, other = (llama().eval().requires_grad_(False) for _ in range(2))
    run = torch.compile(plain, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        base = run(input_ids=IDS).logits
        model = plain if attached_later else other
        fill(lorakit.attach(model, Spec(rank=2), trainable=False))
        compiled = (
            run if attached_later else torch.compile(other, fullgraph=True, backend="aot_eager")
        )
        got, want = compiled(input_ids=IDS).logits, model(input_ids=IDS).logits
        assert torch.allclose(got, want, atol=1e-5) and not torch.allclose(got, base, atol=1e-2)
        lorakit.detach(model)
        assert torch.allclose(compiled(input_ids=IDS).logits, base, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model_agrees(backend: str, compiler: None) -> None:
    model = llama().train()
    adapter = fill(lorakit.attach(model, Spec(rank=2)))
    want, loss = gradients(model, adapter), model(input_ids=IDS, labels=IDS).loss
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.allclose(compiled(input_ids=IDS, labels=IDS).loss, loss, atol=1e-5)
    got = gradients(compiled, adapter)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(got, want, strict=True))


def test_autocast_trains_the_same_tensors() -> None:
    model = llama().train()
    adapter = fill(lorakit.attach(model, Spec(rank=2)))
    want = gradients(model, adapter)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(model, adapter)
    assert {g.dtype for g in got} == {torch.float32}
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in (got, want)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_any_change_of_a_matrix_can_be_learned_and_a_lower_rank_leaves_its_tail(rank: int) -> None:
    """At rank min(in, out) the adapter fits linear regression on any target (LoRA, section 4.2, in
    the exact case).
    """
    base = nn.Sequential(nn.Linear(6, 4, bias=False)).double()
    base[0].weight.data.copy_(randn(4, 6, seed=1))
    change = randn(4, 6, seed=3)
    x = torch.linalg.qr(
        randn(64, 6, seed=2)
    ).Q  # orthonormal: the squared error is that of the matrix
    goal = x @ (base[0].weight.detach() + change).T
    adapter = lorakit.attach(base, Spec(rank=rank, alpha=4, dtype="float64"))
    optimizer = torch.optim.LBFGS(
        adapter.parameters(),
        max_iter=400,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.mse_loss(base(x), goal, reduction="sum")
        value.backward()
        return value

    optimizer.step(loss)
    assert loss().item() == pytest.approx(
        float(torch.linalg.svdvals(change)[rank:].square().sum()), rel=1e-6, abs=1e-6
    )


def test_transformer_encoder_layer_takes_no_shortcut() -> None:
    """In eval mode PyTorch's encoder layer can skip its linear layers' forward; with adapters on it
    must not.
    """
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = randn(2, 5, 8).float()
    with torch.no_grad():
        base = layer(x)
        adapter = fill(lorakit.attach(layer, Spec(rank=2)))
        assert sorted(adapter.deltas) == [
            "linear1",
            "linear2",
            "self_attn.in_proj",
            "self_attn.out_proj",
        ]
        on = layer(x)
        lorakit.merge(layer)
        lorakit.detach(layer)
        assert torch.allclose(layer(x), on, atol=1e-5) and not torch.allclose(on, base, atol=1e-2)


def test_a_model_that_is_itself_a_layer(tmp_path: Path) -> None:
    layer, x = nn.Linear(6, 5), randn(3, 6).float()
    keys, base = list(layer.state_dict()), layer(x)
    adapter = fill(lorakit.attach(layer, Spec(rank=2, bias="all")))
    on = layer(x)
    assert not torch.equal(on, base)
    assert sorted(n for n, _ in adapter.named_parameters()) == ["A", "B", "bias"]
    read = Adapter.load(adapter.save(tmp_path))
    assert read == adapter
    undo = lorakit.merge(layer)
    assert torch.allclose(layer(x), on, atol=1e-6)
    lorakit.unmerge(layer, undo)
    lorakit.detach(layer)
    assert torch.equal(layer(x), base) and list(layer.state_dict()) == keys
    lorakit.attach(layer, read)
    assert torch.equal(layer(x), on)


def test_a_module_called_lorakit_is_the_models_own() -> None:
    model = nn.ModuleDict({"lorakit": nn.ModuleDict({"q": nn.Linear(4, 4)}), "v": nn.Linear(4, 4)})
    adapter = lorakit.attach(model, Spec(rank=1))
    assert list(adapter.deltas) == ["lorakit.q", "v"]
    lorakit.detach(model)
    assert [n for n, _ in model.named_modules()] == ["", "lorakit", "lorakit.q", "v"]


def test_a_layer_under_two_names_is_adapted_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    adapter = fill(lorakit.attach(model, Spec(rank=1)))
    assert list(adapter.deltas) == ["a"]
    x = randn(2, 4).float()
    on = model["b"](x)
    undo = lorakit.merge(model)
    assert torch.allclose(model["b"](x), on, atol=1e-6)
    lorakit.unmerge(model, undo)
    lorakit.detach(model)
    assert not shared._forward_hooks


def test_merge_rounds_a_large_matrix_once() -> None:
    layer = nn.Linear(256, 256, bias=False)
    layer.weight.data.copy_(randn(256, 256) / 16)
    model = nn.Sequential(layer).to(torch.bfloat16)
    delta = fill(lorakit.attach(model, Spec(rank=8, alpha=4))).deltas["0"]
    delta.A.data.mul_(0.05)
    exact = (
        layer.weight.detach().double() + 0.5 * delta.B.detach().double() @ delta.A.detach().double()
    )
    lorakit.merge(model)
    wrong = (layer.weight.detach() != exact.to(torch.bfloat16)).float().mean()
    assert wrong < 5e-4  # the sum is float32: a tie of bfloat16 can fall the other way
