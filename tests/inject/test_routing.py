"""Rows of one batch go to different adapters: in whole models, and what is refused."""

import copy
import gc
import pickle
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Spec
from lorakit.errors import AdapterMismatch, AdapterNameError, MergeError, RowsError
from lorakit.inject import mixed_batch

from ..laws.models import FAMILIES, bert, gpt2, llama
from ..laws.table import fill

ROWS = ["style", None, {"style": 0.5, "facts": 2}, "facts", ["style", "facts"]]


def routed_model(make=llama, **more: object) -> nn.Module:
    model = make()
    for at, name in enumerate(("style", "facts")):
        fill(lorakit.attach(model, Spec(rank=2 + at, alpha=4, **more), name=name, seed=at), seed=at)
    lorakit.enable(model, None)
    return model


def ids(rows: int = 5, length: int = 7) -> Tensor:
    return torch.arange(rows * length).reshape(rows, length) * 7 % 50


def out(model: nn.Module, tokens: Tensor) -> Tensor:
    more = {"decoder_input_ids": tokens.flip(1)} if "T5" in type(model).__name__ else {}
    return model(input_ids=tokens, **more).logits


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_of_a_model_equals_it_alone(family: str) -> None:
    model = routed_model(FAMILIES[family])
    with torch.no_grad():
        with lorakit.route(model, ROWS):
            got = out(model, ids())
        for at, which in enumerate(ROWS):
            lorakit.enable(model, which)
            alone = out(model, ids()[at : at + 1])[0]
            assert (got[at] - alone).abs().max() < 1e-5 * alone.abs().max()
        assert len({tuple(row.flatten()[:8].tolist()) for row in got}) == len(ROWS)


@pytest.mark.parametrize("targets", [["c_attn.q", "c_attn.v"], ["c_attn.k", "c_attn"]], ids=str)
@pytest.mark.parametrize("waste", [1 << 40, -1])
def test_parts_of_a_fused_layer_are_routed(
    targets: list[str], waste: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mixed_batch.MAX_WASTE, torch.float32, waste)
    model = routed_model(gpt2, targets=targets)
    with lorakit.route(model, ROWS):
        got = out(model, ids())
    for at, which in enumerate(ROWS):
        lorakit.enable(model, which)
        assert torch.allclose(got[at], out(model, ids()[at : at + 1])[0], atol=2e-5)


@pytest.mark.slow
def test_adapters_of_different_layers_and_ranks_train_in_one_batch() -> None:
    model = llama().double()
    specs = {
        "shared": Spec(rank=4, targets="mlp"),
        "a": Spec(rank=2, targets="qv"),
        "b": Spec(rank=3, targets=["layers.0.*"]),
    }
    specs = {name: replace(spec, dtype="float64") for name, spec in specs.items()}
    adapters = {name: fill(lorakit.attach(model, spec, name=name)) for name, spec in specs.items()}
    factors = [p for a in adapters.values() for p in a.parameters()]
    rows = [["shared", "a"], ["shared", "b"], ["shared", "a"]]
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(3, 1, 1)
    with lorakit.route(model, rows):
        together = torch.autograd.grad((out(model, ids(3)) * weight).square().mean(), factors)
    apart = [torch.zeros_like(p) for p in factors]
    for at, which in enumerate(rows):
        lorakit.enable(model, which)
        part = torch.autograd.grad(
            (out(model, ids(3)[at : at + 1]) * weight[at]).square().mean() / 3,
            factors,
            allow_unused=True,
        )
        apart = [sum_ if new is None else sum_ + new for sum_, new in zip(apart, part, strict=True)]
    for got, want in zip(together, apart, strict=True):
        assert want.any() and (got - want).abs().max() < 1e-9 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_computes_the_same_rows_again(reentrant: bool) -> None:
    grads = []
    for checkpoint in (False, True):
        model = routed_model().train()
        if checkpoint:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with lorakit.route(model, ROWS):
            out(model, ids()).square().mean().backward()
        grads.append([p.grad for p in lorakit.attached(model)["style"].parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
def test_steps_within_one_block_use_the_new_factors() -> None:
    model, twin = routed_model(), routed_model()
    rows = ["style", "facts", None]
    optimizers = [
        torch.optim.SGD([p for a in lorakit.attached(m).values() for p in a.parameters()], lr=0.1)
        for m in (model, twin)
    ]
    with lorakit.route(model, rows):
        for _ in range(3):
            with torch.no_grad():
                seen = out(model, ids(3))
            with lorakit.route(twin, rows):
                loss = out(twin, ids(3)).square().mean()
                assert torch.equal(seen, out(twin, ids(3)))
            out(model, ids(3)).square().mean().backward()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("waste", [1 << 40, -1])
def test_generation_gives_each_row_what_it_gives_alone(
    beams: int, waste: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mixed_batch.MAX_WASTE, torch.float32, waste)
    model, rows = routed_model(), ["style", None, "facts"]
    options = {
        "max_new_tokens": 5,
        "do_sample": False,
        "num_beams": beams,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    with lorakit.route(model, [row for row in rows for _ in range(beams)]):
        got = model.generate(input_ids=ids(3), **options)
    for at, which in enumerate(rows):
        lorakit.enable(model, which)
        assert torch.equal(got[at], model.generate(input_ids=ids(3)[at : at + 1], **options)[0])


def test_rows_repeated_by_beam_search_are_refused() -> None:
    model = routed_model()
    with (
        pytest.raises(RowsError, match=r"got an input of shape \(6, 7, 16\)") as caught,
        lorakit.route(model, ["style", None, "facts"]),
    ):
        model.generate(input_ids=ids(3), num_beams=2, max_new_tokens=2, pad_token_id=0)
    assert str(caught.value) == (
        "3 rows routed, but model.layers.0.self_attn.q_proj (Linear) got an input of shape (6, "
        "7, 16).\n"
        "That is 2 times as many: beam search repeats each row (name each 2 times, one after the "
        "other), and some layers get "
        "all tokens of all rows in one axis (these cannot be routed)."
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_computes_the_same_rows(precision: torch.dtype) -> None:
    model = routed_model(bert)
    with torch.no_grad(), torch.autocast("cpu", precision):
        with lorakit.route(model, ROWS):
            got = out(model, ids())
        for at, which in enumerate(ROWS):
            lorakit.enable(model, which)
            alone = out(model, ids()[at : at + 1])[0]
            assert (got[at] - alone).abs().max() <= 0.03 * alone.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_without_a_graph_break(grad: bool) -> None:
    torch._dynamo.reset()
    model = routed_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        base = compiled(input_ids=ids(), use_cache=False).logits
        for rows in (ROWS, ROWS[::-1]):
            with lorakit.route(model, rows):
                assert torch.allclose(
                    compiled(input_ids=ids(), use_cache=False).logits,
                    model(input_ids=ids(), use_cache=False).logits,
                    atol=1e-5,
                )
        assert torch.equal(compiled(input_ids=ids(), use_cache=False).logits, base)


@pytest.mark.slow
def test_nothing_is_left_behind() -> None:
    model = routed_model(bert, bias="none")
    fill(lorakit.attach(model, Spec(targets="none", full_modules=["classifier"]), name="head"))
    lorakit.enable(model, {"style": 0.5, "head": 1.0})

    def trace() -> list[object]:
        return [
            {
                n: (sorted(m.__dict__), [*m._forward_pre_hooks], [*m._forward_hooks])
                for n, m in model.named_modules()
            },
            {n: id(p) for n, p in model.named_parameters()},
            lorakit.enabled(model),
        ]

    before, want = trace(), out(model, ids())
    routes = []
    with pytest.raises(ZeroDivisionError), lorakit.route(model, ROWS):
        out(model, ids())
        routes.append(weakref.ref(model.bert.encoder.layer[0].output.dense.lorakit.state.route))
        raise ZeroDivisionError
    assert trace() == before and torch.equal(out(model, ids()), want)
    gc.collect()
    assert routes[0]() is None  # with the factors that it joined


def test_the_base_is_the_base_while_an_adapter_trains_its_head() -> None:
    model = routed_model(bert)
    base = out(model, ids())
    fill(lorakit.attach(model, Spec(targets="none", full_modules=["classifier"]), name="head"))
    assert not torch.equal(out(model, ids()), base)
    with lorakit.route(model, [None, "style", None, None, None]):
        assert torch.equal(out(model, ids())[[0, 2, 3, 4]], base[[0, 2, 3, 4]])
    assert lorakit.enabled(model) == {"head": 1.0}


def test_the_inner_of_two_blocks_counts() -> None:
    model = routed_model()
    with torch.no_grad(), lorakit.route(model, ROWS):
        outer = out(model, ids())
        with lorakit.route(model, ["facts", None]):
            inner = out(model, ids(2))
        assert torch.equal(out(model, ids()), outer)
        lorakit_alone = inner[1]
    assert torch.equal(lorakit_alone, out(model, ids(2))[1])


def test_a_diverged_adapter_reaches_no_other_row() -> None:
    model = routed_model()
    with torch.no_grad():
        with lorakit.route(model, ["style", None, "facts"]):
            want = out(model, ids(3))
        lorakit.attached(model)["facts"].deltas["model.layers.0.self_attn.q_proj"].B[0, 0] = (
            torch.inf
        )
        with lorakit.route(model, ["style", None, "facts"]):
            got = out(model, ids(3))
    assert torch.allclose(got[:2], want[:2], atol=1e-5) and got[2].isnan().any()


def test_dropout_drops_for_each_row() -> None:
    model = routed_model(dropout=1.0).train()
    with lorakit.route(model, ROWS):
        got = out(model, ids())
    lorakit.enable(model, None)
    assert torch.equal(got, out(model, ids()))


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.embed(tokens).transpose(0, 1)).transpose(0, 1)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 16), nn.Embedding(64, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.embed(tokens).flatten(0, 1)).view(*tokens.shape, -1)


@pytest.mark.parametrize(
    ("make", "target", "tokens", "said"),
    [
        (
            SequenceFirst,
            "linear",
            ids(3, 7),
            "3 rows routed, but linear (Linear) got an input of shape (7, 3, 16).\nIts rows "
            "seem to be axis 1; only layers with rows first can be routed.",
        ),
        (
            SequenceFirst,
            "linear",
            ids(3, 3),
            "3 rows routed, and sequences are as long: linear (Linear) got an input of shape "
            "(3, 3, 16), and its shape does not show which axis the rows are.\n"
            "Pad to another length, or pass batch_first=True if rows "
            "come first in every adapted layer.",
        ),
        (
            Positions,
            "place",
            ids(3, 7),
            "3 rows routed, but place (Embedding) got an input of shape (7,).\nGive an entry for "
            "each row. A layer that gets no rows (positions, chosen tokens) cannot be routed.",
        ),
        (
            Positions,
            "place",
            ids(3, 3),
            "3 rows routed, and sequences are as long: place (Embedding) got an input of shape "
            "(3,), and its shape does not show which axis the rows are.\n"
            "Pad to another length, or pass batch_first=True if rows come "
            "first in every adapted layer.",
        ),
        (
            Flat,
            "linear",
            ids(3, 7),
            "3 rows routed, but linear (Linear) got an input of shape (21, 16).\n"
            "That is 7 times as "
            "many: beam search repeats each row (name each 7 times, one after the other), and "
            "some layers get all tokens of all "
            "rows in one axis (these cannot be routed).",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 16)),
            "0",
            torch.ones(3),
            "3 rows routed, but 0 (Linear) got an input of shape (3,).\nThat is no batch.",
        ),
    ],
)
def test_an_unclear_batch_axis_is_refused(make, target: str, tokens: Tensor, said: str) -> None:
    model = make()
    fill(lorakit.attach(model, Spec(rank=2, targets=[target]), name="a"))
    with pytest.raises(RowsError) as caught, lorakit.route(model, ["a", None, "a"]):
        model(tokens)
    assert str(caught.value) == said


@pytest.mark.slow
def test_as_many_rows_as_tokens_are_routed_once_the_axis_is_known() -> None:
    model = routed_model()
    with lorakit.route(model, ["style", None, "facts"], batch_first=True):
        want = out(model, ids(3, 3))
    with lorakit.route(model, ["style", None, "facts"]):
        with pytest.raises(RowsError):
            out(model, ids(3, 3))
        out(model, ids(3, 4))
        assert torch.equal(out(model, ids(3, 3)), want)
    with lorakit.route(model, ["style", None, "facts"]):
        assert torch.equal(out(model, ids(3, 3)), want)
    with lorakit.route(model, ["style"] * 3):  # alike
        out(routed_model(), ids(3, 3))


@pytest.mark.parametrize("rows", [4, 6])
def test_another_number_of_rows_is_refused(rows: int) -> None:
    model = routed_model()
    with pytest.raises(RowsError) as caught, lorakit.route(model, ROWS):
        out(model, ids(rows))
    assert str(caught.value) == (
        "5 rows routed, but model.layers.0.self_attn.q_proj (Linear) got an input of shape "
        f"({rows}, 7, 16).\n"
        "Give an entry for each row. A layer that gets no rows (positions, chosen tokens) cannot "
        "be routed."
    )


def test_invalid_rows_are_refused_before_the_block() -> None:
    model = routed_model()
    with (
        pytest.raises(AdapterNameError) as caught,
        lorakit.route(model, ["stlye", None, {"facts": float("nan")}, ["stlye", 3]]),
    ):
        pass
    assert str(caught.value) == (
        "These rows cannot be routed.\n"
        "  rows 0, 3   'stlye' is not attached   did you mean 'style'?\n"
        "  row 2   'facts' has weight nan, which is no finite float32 number\n"
        "  row 3   3 is not attached\n"
        "Attached: 'style', 'facts'. Nothing was routed."
    )
    for rows in ("style", {"style": 1.0}, 3):
        with pytest.raises(AdapterNameError) as caught, lorakit.route(model, rows):
            pass
        assert str(caught.value) == (
            f"rows must hold one entry for each row of the batch, got {rows!r}.\n"
            "enable(model, ...) switches adapters for all rows."
        )
    with (
        pytest.raises(AdapterNameError, match="There is no row to route"),
        lorakit.route(model, []),
    ):
        pass
    with (
        pytest.raises(AdapterNameError, match="No adapter is attached"),
        lorakit.route(llama(), [None]),
    ):
        pass
    lorakit.enable(model, "style")
    undo = lorakit.merge(model)
    with pytest.raises(MergeError) as caught, lorakit.route(model, ROWS):
        pass
    assert (
        str(caught.value)
        == "The model is merged: its weights hold adapters that every row would get.\n"
        "Call unmerge first."
    )
    lorakit.unmerge(model, undo)


def test_adapters_that_change_all_rows_are_refused_by_name() -> None:
    model = bert()
    lorakit.attach(model, Spec(rank=2, bias="adapted", targets=["classifier"]), name="biased")
    with pytest.raises(AdapterMismatch) as caught, lorakit.route(model, ["biased", None]):
        pass
    assert str(caught.value) == (
        "Full parameters (biases, modules) change all rows alike.\n"
        "  'biased'   trains 1 full parameter: classifier.bias\n"
        "Route adapters without them, or run these rows alone. Nothing was routed."
    )
    attention = nn.Sequential(nn.MultiheadAttention(16, 2, batch_first=True))
    lorakit.attach(attention, Spec(rank=2, targets=["0.q", "0.out_proj"]), name="swapped")
    with pytest.raises(AdapterMismatch) as caught, lorakit.route(attention, ["swapped", None]):
        pass
    assert str(caught.value) == (
        "Some weights cannot be changed for single rows.\n"
        "  0.q   MultiheadAttention reads this weight itself, for all rows\n"
        "  0.out_proj   MultiheadAttention reads this weight itself, for all rows\n"
        "Route adapters without them, or run these rows alone. Nothing was routed."
    )


def test_swapped_weights_of_enabled_adapters_do_not_reach_routed_rows() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.linear = (
                nn.MultiheadAttention(16, 2, batch_first=True),
                nn.Linear(16, 16),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.attention(x, x, x, need_weights=False)[0])

    model, x = Block().eval(), torch.randn(2, 5, 16)
    fill(lorakit.attach(model, Spec(rank=2, targets=["linear"]), name="a"))
    fill(lorakit.attach(model, Spec(rank=2, targets=["attention.q"]), name="swapped"))
    lorakit.enable(model, None)
    base = model(x)
    lorakit.enable(model, ["a", "swapped"])
    assert not torch.allclose(model(x), base)
    with lorakit.route(model, [None, "a"]):
        assert torch.equal(model(x)[0], base[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: lorakit.enable(m, "style"),
        lambda m: lorakit.detach(m),
        lambda m: lorakit.attach(m, Spec(rank=1), name="new"),
        lambda m: lorakit.merge(m),
    ],
)
def test_changes_of_the_adapters_are_refused_in_a_block(change) -> None:
    model = routed_model()
    lorakit.enable(model, "facts")
    keys = list(model.state_dict())
    with lorakit.route(model, ROWS):
        want = out(model, ids())
        with pytest.raises(RowsError) as caught:
            change(model)
        assert torch.equal(out(model, ids()), want)
    assert str(caught.value) == (
        "The rows of this model are routed: adapters cannot be attached, detached, enabled or "
        "merged "
        "until the block of route ends.\n"
        "Do it before or after the block. Nothing was changed."
    )
    assert lorakit.enabled(model) == {"facts": 1.0} and list(model.state_dict()) == keys


@pytest.mark.parametrize("take", [copy.deepcopy, pickle.dumps])
def test_a_routed_model_is_not_copied(take) -> None:
    model = routed_model()
    with pytest.raises(RowsError) as caught, lorakit.route(model, ROWS):
        take(model)
    assert str(caught.value) == (
        "A model whose rows are routed cannot be copied or pickled.\n"
        "Do it before or after the block."
    )
    assert torch.equal(out(copy.deepcopy(model), ids()), out(model, ids()))


def test_another_thread_neither_routes_nor_is_routed() -> None:
    model, said = routed_model(), []

    def other() -> None:
        for act in (lambda: lorakit.route(model, ROWS).__enter__(), lambda: out(model, ids())):
            try:
                act()
            except RowsError as error:
                said.append(str(error))

    with lorakit.route(model, ROWS):
        (thread := threading.Thread(target=other)).start()
        thread.join()
        out(model, ids())
    assert said == [
        "Another thread routes the rows of this model.\n"
        "One at a time: hold a lock around the block, or give each thread a copy of the model.",
        "model.layers.0.self_attn.q_proj was called by another thread than the one that routes "
        "its rows.\n"
        "One at a time: hold a lock around the block, or give each thread a copy of the model.",
    ]


def test_many_adapters_share_one_base() -> None:
    def storages(model: nn.Module) -> int:
        found = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers()]
        }
        return sum(found.values())

    model = llama()
    base, sizes = storages(model), []
    for at in range(5):
        adapter = lorakit.attach(model, Spec(rank=2), name=f"a{at}", seed=at)
        sizes.append(storages(model) - base)
    each = adapter.parameters_count * 4
    assert sizes == [each * (at + 1) for at in range(5)]
    with torch.no_grad(), lorakit.route(model, [f"a{at}" for at in range(5)]):
        out(model, ids())
    assert storages(model) == base + 5 * each


@pytest.mark.slow
def test_switching_there_and_back_gives_the_same_bits() -> None:
    model = routed_model()
    found = {}
    for which in ("style", "facts", "style", "facts", "style"):
        lorakit.enable(model, which)
        assert torch.equal(out(model, ids()), found.setdefault(which, out(model, ids())))
        undo = lorakit.merge(model)
        weights = {k: t.clone() for k, t in model.state_dict().items()}
        assert all(
            torch.equal(t, weights[k])
            for k, t in found.setdefault((which, "merged"), weights).items()
        )
        lorakit.unmerge(model, undo)
