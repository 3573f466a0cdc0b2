"""nn.MultiheadAttention: its weights are swapped, whichever way it is called."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lorakit
from lorakit import Spec

from ..laws.table import error, fill, randn, same_bits, state

SAME = {"embed_dim": 16, "num_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "plain": SAME,
    "last": {**SAME, "batch_first": False},
    "biased": {**SAME, "add_bias_kv": True, "add_zero_attn": True},
    "bare": {**SAME, "bias": False},
    "widths": {**SAME, "kdim": 6, "vdim": 10},
}
TARGETS = {
    "wholes": ["in_proj", "out_proj"],
    "parts": ["q", "k", "v", "out_proj"],
    "key": ["k"],
    "out": ["out_proj"],
}


class Model(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(**{"batch_first": True, **settings})

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        keys, values = x[..., : self.attention.kdim] + 1, x[..., : self.attention.vdim].flip(0)
        return self.attention(x, keys, values, **more)[0]


def model(kind: str = "plain", dtype: torch.dtype = torch.float64) -> Model:
    made = Model(**KINDS[kind])
    for seed, parameter in enumerate(made.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed) / 3
    return made.to(dtype)


def spec(targets: str = "parts", **more: Any) -> Spec:
    ranks = {"k": {"rank": 2}, "out_proj": {"rank": 5, "alpha": 1.0}}
    own = {n: c for n, c in ranks.items() if n in TARGETS[targets]}
    return Spec(
        **{
            "rank": 3,
            "alpha": 4.5,
            "targets": TARGETS[targets],
            "dtype": "float64",
            "overrides": own,
            **more,
        }
    )


def dense(kind: str, adapter: lorakit.Adapter) -> Model:
    """Return the model whose weights have the changes added by hand."""
    made, size = model(kind), 16
    for name, delta in adapter.deltas.items():
        change, at = delta.scale * delta.B.detach() @ delta.A.detach(), made.attention
        part = name.rpartition(".")[2]
        if part == "out_proj":
            at.out_proj.weight.data += change
        elif part == "in_proj":
            at.in_proj_weight.data += change
        elif at.in_proj_weight is None:
            getattr(at, f"{part}_proj_weight").data += change
        else:
            first = size * ["q", "k", "v"].index(part)
            at.in_proj_weight.data[first : first + size] += change
    return made


X = randn(3, 5, 16, seed=9)
ASKED = [
    (kind, targets)
    for kind in KINDS
    for targets in TARGETS
    if (kind, targets) != ("widths", "wholes")
]


@pytest.mark.parametrize(("kind", "targets"), ASKED)
def test_attached_is_dense_in_every_call_and_merges(kind: str, targets: str) -> None:
    made = model(kind)
    adapter = fill(lorakit.attach(made, spec(targets)))
    want = dense(kind, adapter)
    assert error(model(kind)(X).detach(), want(X).detach()) > 0.1
    for training in (True, False):
        made.train(training), want.train(training)
        for graded in (True, False):  # without gradients and in eval torch takes a path of its own
            with torch.set_grad_enabled(graded):
                for weights in (True, False):
                    assert (
                        error(made(X, need_weights=weights), want(X, need_weights=weights).detach())
                        < 1e-12
                    )
    before = state(made)
    undo = lorakit.merge(made)
    assert error(made(X), want(X).detach()) < 1e-12
    lorakit.unmerge(made, undo)
    assert same_bits(state(made), before)


@pytest.mark.slow
@pytest.mark.parametrize("targets", TARGETS)
def test_every_factor_gets_its_gradient(targets: str) -> None:
    made = model()
    factors = tuple(fill(lorakit.attach(made, spec(targets))).parameters())
    names = [n for n, p in made.named_parameters() if p.requires_grad]
    by_id = {id(p): n for n, p in made.named_parameters()}

    def output(*values: Tensor) -> Tensor:
        named = {by_id[id(p)]: v for p, v in zip(factors, values, strict=True)}
        return torch.func.functional_call(made, named, (X[:1, :2],))

    assert len(names) == len(factors)
    assert torch.autograd.gradcheck(output, factors)


def test_an_error_restores_the_weights_of_the_attention() -> None:
    made = model()
    fill(lorakit.attach(made, spec("wholes")))
    before = [sorted(module.__dict__) for module in made.modules()]
    with pytest.raises(AssertionError):
        made.attention(X, X, X[:, :3])
    assert [sorted(module.__dict__) for module in made.modules()] == before
    assert made.attention.in_proj_weight is made.attention._parameters["in_proj_weight"]


def test_used_twice_and_copied() -> None:
    made = model()
    adapter = fill(lorakit.attach(made, spec()))
    want = dense("plain", adapter)
    assert error(made(made(X)).detach(), want(want(X)).detach()) < 1e-12
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(X), made(X))
        lorakit.detach(twin)
        assert torch.equal(twin(X), model()(X)) and not torch.equal(made(X), twin(X))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    made = model()
    adapter = fill(lorakit.attach(made, spec()))
    made(X).square().sum().backward()
    want = [p.grad.clone() for p in adapter.parameters()]
    made.zero_grad()
    checkpoint(made, X.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    assert all(error(p.grad, g) < 1e-9 for p, g in zip(adapter.parameters(), want, strict=True))


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_autocast(base: torch.dtype) -> None:
    made, plain = model("plain", base), None
    adapter = fill(lorakit.attach(made, spec(dtype="float32")))
    exact = dense("plain", adapter.copy().to(torch.float64))
    plain = copy.deepcopy(exact).to(base)
    with torch.autocast("cpu", torch.bfloat16):
        got, low = made(X.to(base)), plain(X.to(base))
    assert got.dtype == low.dtype
    assert error(got, exact(X).detach()) <= 2 * error(low, exact(X).detach())
    got.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in adapter.parameters())


@pytest.mark.slow
def test_no_graph_break() -> None:
    made = model("plain", torch.float32)
    adapter = fill(lorakit.attach(made, spec(dtype="float32")))
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    x = X.float()
    for which in ("default", None, {"default": 0.5}):
        lorakit.enable(made, which)
        assert error(compiled(x).detach(), made(x).detach().double()) < 1e-5
    lorakit.enable(made, "default")
    made(x).square().sum().backward()
    want = [p.grad.clone() for p in adapter.parameters()]
    made.zero_grad()
    compiled(x).square().sum().backward()
    assert all(
        error(p.grad, g.double()) < 1e-3 * float(g.abs().max())
        for p, g in zip(adapter.parameters(), want, strict=True)
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_encoders_of_torch_do_not_bypass_the_adapter() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).double().eval()
    lost = torch.tensor([[False] * 5, [False, False, False, True, True], [False] * 5])
    base = encoder(X).detach()
    names = [f"layers.{i}.self_attn.{part}" for i in (0, 1) for part in ("q", "v", "out_proj")]
    fill(lorakit.attach(encoder, Spec(rank=3, targets=names, dtype="float64")))
    merged = copy.deepcopy(encoder)
    lorakit.merge(merged)
    with torch.no_grad():
        assert error(encoder(X), merged(X)) < 1e-12 < error(encoder(X), base)
        padded = [found(X, src_key_padding_mask=lost)[~lost] for found in (encoder, merged)]
    assert error(*padded) < 1e-12
    assert error(encoder(X), merged(X).detach()) < 1e-12
    # In eval torch packs padded rows for a path that knows no gradients: it says so, and nothing is
    # left lent.
    with pytest.raises(AssertionError, match="NestedTensor outside of its fast path"):
        encoder(X, src_key_padding_mask=lost)
    assert "in_proj_weight" not in encoder.layers[0].self_attn.__dict__


def test_names_and_roles() -> None:
    assert [*lorakit.select(model(), "qkvo")] == [
        f"attention.{part}" for part in ("q", "k", "v", "out_proj")
    ]
    assert [*lorakit.select(model())] == ["attention.in_proj", "attention.out_proj"]
    assert [*lorakit.select(model("widths"))] == [
        f"attention.{part}" for part in ("q", "k", "v", "out_proj")
    ]
    assert [p.shape for p in lorakit.select(model("widths"), "qkv").values()] == [
        (16, 16),
        (16, 6),
        (16, 10),
    ]
