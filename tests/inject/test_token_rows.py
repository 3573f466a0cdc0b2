"""Single rows of an embedding train, and nothing else; a tied head has the same rows."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit
from lorakit import Adapter, Spec
from lorakit.algebra.combination import combine
from lorakit.errors import AdapterFileError, AdapterMismatch, SpecError, TargetError
from lorakit.inject.check import check
from lorakit.train.checkpoints import restore
from lorakit.train.checks import check_gradients

from ..laws.table import bits, error, fill, state
from ..models.tied import FAMILIES, IDS, SIZES, logits, tied_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOKENS = (5, 3, 39)  # in no order, the last row too


def untied() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)
        ).eval()


MODELS: dict[str, Callable[[], Any]] = {
    **{family: lambda family=family: tied_model(family) for family in FAMILIES},
    "untied": untied,
}
models = pytest.mark.parametrize("name", MODELS)


def attached(
    name: str, rows: Any = TOKENS, targets: Any = "none", **more: Any
) -> tuple[Any, Adapter]:
    model = MODELS[name]().double()
    spec = Spec(rank=2, alpha=2.0, targets=targets, token_rows=rows, dtype="float64", **more)
    return model, fill(lorakit.attach(model, spec))


def rows_of(adapter: Adapter) -> Tensor:
    return next(d.new for d in adapter.deltas.values() if d.name == "token-rows")


def replaced(name: str, changes: Mapping[str, Tensor], rows: Any = TOKENS) -> Any:
    """Return the plain model with rows put into its weights: what the definition says."""
    model = MODELS[name]().double()
    with torch.no_grad():
        for key, new in changes.items():
            model.get_submodule(key).weight[list(rows)] = new.detach().double()
    return model


def rows_equal_dense() -> None:
    for name in MODELS:
        model, adapter = attached(name)
        (where,) = adapter.deltas
        want = logits(replaced(name, {where: rows_of(adapter)}))
        assert error(logits(MODELS[name]().double()), want) > 0.01
        assert error(logits(model), want) < 1e-12, name


@pytest.mark.slow
def test_equals_the_rows_written_into_the_weight() -> None:
    rows_equal_dense()


def rows_merge_as_attached() -> None:
    model, _ = attached("llama")
    on = logits(model)
    lorakit.merge(model)
    assert error(logits(model), on) < 1e-12


def test_merged_equals_attached() -> None:
    rows_merge_as_attached()


@models
def test_fresh_equals_base_and_detach_leaves_no_trace(name: str) -> None:
    model, plain = MODELS[name](), MODELS[name]()
    base, before = logits(plain), state(model)
    lorakit.attach(model, Spec(targets="none", token_rows=TOKENS))
    assert torch.equal(logits(model), base)
    lorakit.detach(model)
    assert torch.equal(logits(model), base)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert all(torch.equal(bits(t), bits(before[key])) for key, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@models
def test_gradients_are_those_of_these_rows_in_the_weight(name: str) -> None:
    model, adapter = attached(name)
    (where,) = adapter.deltas
    dense = replaced(name, {where: rows_of(adapter)})
    more = {"decoder_input_ids": IDS} if name == "t5" else {}
    for each in (model, dense):
        each(input_ids=IDS, **more).logits.square().sum().backward()
    got, want = rows_of(adapter).grad, dense.get_submodule(where).weight.grad[list(TOKENS)]
    assert got is not None and want.any() and error(got, want) < 1e-9 * float(want.abs().max())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"{where}.lorakit.default.new"
    ]


@models
def test_merges_to_the_bit_and_back(name: str) -> None:
    model = MODELS[name]()
    adapter = fill(lorakit.attach(model, Spec(targets="none", token_rows=TOKENS)))
    before, on = state(model), logits(model)
    (where,) = adapter.deltas
    undo = lorakit.merge(model)
    weight = model.get_submodule(where).weight
    assert torch.equal(weight[list(TOKENS)], rows_of(adapter))
    rest = [i for i in range(40) if i not in TOKENS]
    assert torch.equal(bits(weight[rest]), bits(before[f"{where}.weight"][rest]))
    tied = MODELS[name]().config.tie_word_embeddings
    assert model.config.tie_word_embeddings is tied
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    assert error(logits(model), on.double()) < 1e-4
    lorakit.unmerge(model, undo)
    assert torch.equal(logits(model), on)
    assert all(torch.equal(bits(t), bits(before[key])) for key, t in model.state_dict().items())
    lorakit.enable(model, None)
    assert torch.equal(logits(model), logits(MODELS[name]()))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_merged_rows_are_rounded_once(precision: str) -> None:
    model = tied_model("llama").to(getattr(torch, precision))
    adapter = fill(lorakit.attach(model, Spec(targets="none", token_rows=TOKENS)))
    lorakit.merge(model)
    assert torch.equal(
        model.lm_head.weight[list(TOKENS)], rows_of(adapter).to(model.lm_head.weight.dtype)
    )


def test_other_changes_of_the_adapter_stay_beside() -> None:
    model, adapter = attached("llama", targets=["q_proj"])
    assert (
        next(iter(adapter.deltas)) == "model.embed_tokens" and len(adapter.deltas) == 3
    )  # the model's order
    merged = copy.deepcopy(model)
    lorakit.merge(merged)
    assert error(logits(merged), logits(model)) < 1e-12


@pytest.mark.slow
@models
def test_two_adapters_with_rows_of_their_own(name: str) -> None:
    model, one = attached(name, (5, 3))
    two = lorakit.attach(
        model, Spec(targets="none", token_rows=(7, 5), dtype="float64"), name="two"
    )
    fill(two, seed=3)
    (where,) = one.deltas
    W = MODELS[name]().double().get_submodule(where).weight.detach()
    want = W.clone()
    want[[5, 3]] += rows_of(one).detach() - W[[5, 3]]
    want[[7, 5]] += 0.5 * (rows_of(two).detach() - W[[7, 5]])
    lorakit.enable(model, {"default": 1.0, "two": 0.5})
    assert error(logits(model), logits(replaced(name, {where: want}, range(40)))) < 1e-11
    lorakit.enable(model, "two")
    assert error(logits(model), logits(replaced(name, {where: rows_of(two)}, (7, 5)))) < 1e-12
    lorakit.detach(model, "two")
    lorakit.enable(model, "default")
    assert error(logits(model), logits(replaced(name, {where: rows_of(one)}, (5, 3)))) < 1e-12


def test_rows_of_a_batch_go_to_adapters_of_their_own() -> None:
    model, _ = attached("llama")
    fill(
        lorakit.attach(model, Spec(targets="none", token_rows=(7, 8), dtype="float64"), name="two"),
        seed=3,
    )
    both = []
    for which in ("default", "two"):
        lorakit.enable(model, which)
        both.append(logits(model))
    with lorakit.route(model, ["default", {"two": 1.0}]):
        routed = logits(model)
    assert error(routed[0], both[0][0]) < 1e-12 and error(routed[1], both[1][1]) < 1e-12


def test_every_layer_that_shares_the_weight_runs() -> None:
    model, _ = attached("llama")
    assert check(model, input_ids=IDS) == ["model.embed_tokens", "lm_head"]


def test_coverage_counts_them() -> None:
    model = tied_model("llama")
    lorakit.attach(model, Spec(rank=2, targets=["q_proj"], token_rows=TOKENS))
    told = lorakit.coverage(model)
    assert told.trainable_parameters == 3 * 16 + 2 * 2 * 2 * 16
    assert (
        told.total_parameters
        == sum(p.numel() for p in tied_model("llama").parameters()) + told.trainable_parameters
    )
    assert [m["name"] for m in told.modules if "tokens" in m["adapters"]["default"]] == [
        "model.embed_tokens",
        "lm_head",
    ]
    assert "model.embed_tokens" in str(told) and "default: 3 rows" in str(told)


def test_head_and_embedding_may_have_rows_of_their_own() -> None:
    asked = {"embed_tokens": [5, 3], "lm_head": [7]}
    for name in ("untied", "llama"):  # where they are tied, merging unties
        model, adapter = attached(name, asked)
        assert {n: d.tokens.tolist() for n, d in adapter.deltas.items()} == {
            "model.embed_tokens": [5, 3],
            "lm_head": [7],
        }
        assert adapter.tied_deltas == {}
        on = logits(model)
        lorakit.merge(model)
        assert error(logits(model), on) < 1e-12 and model.config.tie_word_embeddings is False
    _, adapter = attached("llama", {"lm_head": TOKENS, "embed_tokens": TOKENS})
    assert [*adapter.deltas] == ["model.embed_tokens"] and [*adapter.tied_deltas] == ["lm_head"]


def test_a_vocabulary_that_was_enlarged(tmp_path: Path) -> None:
    def resized(seed: int) -> Any:
        model = tied_model("llama")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(44)
        return model

    model = resized(1)
    ids = torch.tensor([[1, 40, 41, 42, 43, 2]])
    adapter = fill(
        lorakit.attach(model, Spec(rank=2, targets=["q_proj"], token_rows=range(40, 44)))
    )
    want = model(input_ids=ids).logits
    again = resized(2)
    assert not torch.equal(again.lm_head.weight[40:], resized(1).lm_head.weight[40:])
    lorakit.attach(
        again, Adapter.load(adapter.save(tmp_path / "out"))
    )  # the random rows count for nothing
    assert error(again(input_ids=ids).logits, want.detach().double()) < 1e-5
    other = resized(2)
    other.lm_head.weight.data[0] += 1
    with pytest.raises(AdapterMismatch):
        lorakit.attach(other, Adapter.load(tmp_path / "out"), any_base=False)
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) < 4000


@pytest.mark.slow
def test_training_goes_on_from_a_file(tmp_path: Path) -> None:
    def steps(model: Any, adapter: Adapter, optimizer: Any, count: int) -> None:
        for _ in range(count):
            loss = (model(input_ids=IDS).logits - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            check_gradients(adapter)
            optimizer.step()

    def begin() -> tuple[Any, Adapter, Any]:
        model = tied_model("llama")
        adapter = lorakit.attach(model, Spec(rank=2, targets=["q_proj"], token_rows=TOKENS))
        return model, adapter, torch.optim.Adam(adapter.parameters(), lr=1e-2)

    model, adapter, optimizer = begin()
    steps(model, adapter, optimizer, 3)
    kept = copy.deepcopy(optimizer.state_dict())
    adapter.save(tmp_path)
    steps(model, adapter, optimizer, 3)
    again, other, second = begin()
    restore(other, tmp_path)
    second.load_state_dict(kept)
    steps(again, other, second, 3)
    assert other == adapter and torch.equal(logits(again), logits(model))


def test_a_batch_without_these_tokens_stops_no_run() -> None:
    model = untied()
    adapter = lorakit.attach(model, Spec(targets="none", token_rows=(39,)))
    model(input_ids=IDS).logits.sum().backward()
    check_gradients(adapter)


REFUSED = [
    ({"token_rows": (-1, 3)}, SpecError, "token_rows: whole numbers from 0 on are needed, got -1"),
    (
        {"token_rows": (True,)},
        SpecError,
        "token_rows: whole numbers from 0 on are needed, got True",
    ),
    ({"token_rows": (3, 4, 3)}, SpecError, "token_rows: 3 is given more than once"),
    (
        {"token_rows": 3},
        SpecError,
        "token_rows: ids of tokens, or {module: ids}, are needed, got 3",
    ),
    (
        {"token_rows": {"embed_tokens": ()}},
        SpecError,
        "token_rows['embed_tokens']: ids of tokens, or {module: ids}, are",
    ),
    (
        {"token_rows": (3,), "delta": "vera"},
        SpecError,
        "a file of delta 'vera' cannot hold token rows; use delta 'lora' or 'dora'",
    ),
    (
        {"token_rows": (3, 40, 77)},
        TargetError,
        "model.embed_tokens   has no row for token 40, 77: they go from 0 to 39 (is",
    ),
    (
        {"token_rows": (3,), "targets": ("embed_tokens",)},
        TargetError,
        "model.embed_tokens   is trained in another way by this adapter: "
        "leave one out, or attach two adapters",
    ),
    (
        {"token_rows": (3,), "targets": ("lm_head",)},
        TargetError,
        "lm_head   shares the weight of model.embed_tokens and is trained in another way by this "
        "adapter: leave one out, or attach two adapters",
    ),
    (
        {"token_rows": (3,), "full_modules": ("embed_tokens",)},
        TargetError,
        "embed_tokens   is trained in another way by this",
    ),
    (
        {"token_rows": {"embed": (3,)}},
        TargetError,
        "'embed'   names 0 modules of a known kind; one is needed. Embeddings",
    ),
    (
        {"token_rows": {"*_proj": (3,)}},
        TargetError,
        "'*_proj'   names 14 modules of a known kind; one is needed.",
    ),
]


@pytest.mark.parametrize(("fields", "kind", "text"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_request_is_refused(fields: dict[str, Any], kind: type, text: str) -> None:
    model = tied_model("llama")
    with pytest.raises(kind) as caught:
        lorakit.attach(model, Spec(**{"targets": "none", **fields}))
    assert text in str(caught.value) and str(caught.value).endswith("Nothing was attached.")
    assert not lorakit.attached(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            nn.Embedding(9, 4, max_norm=1.0),
            "max_norm: the layer rescales its rows as it reads them, so a change of them cannot be",
        ),
        (nn.Embedding(9, 4, padding_idx=3), "0   never trains the row of token 3, its padding"),
        (
            nn.Conv1d(2, 2, 1),
            "the input embedding   is 0 modules of a known kind; one is needed. Embeddings here: "
            "none",
        ),
    ],
)
def test_a_layer_that_cannot_is_refused(layer: nn.Module, text: str) -> None:
    with pytest.raises(TargetError) as caught:
        lorakit.attach(nn.Sequential(layer), Spec(targets="none", token_rows=(3,)))
    assert text in str(caught.value)


def test_a_padded_table_keeps_its_other_rows() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=3)).double()
    adapter = fill(lorakit.attach(model, Spec(targets="none", token_rows=(8, 0), dtype="float64")))
    want = model[0].weight.detach().clone()
    want[[8, 0]] = rows_of(adapter).detach()
    got = model(torch.arange(9))
    assert torch.equal(got[1:8], want[1:8]) and error(got, want) < 1e-12


def test_two_adapters_that_are_on_cannot_both_have_the_weight() -> None:
    model, _ = attached("llama")
    with pytest.raises(AdapterMismatch) as caught:
        lorakit.attach(model, Spec(targets="none", full_modules=("lm_head",)), name="two")
    assert "lm_head.weight   is trained in full by 'two' and adapted by 'default'" in str(
        caught.value
    )


def test_a_smaller_vocabulary_is_told(tmp_path: Path) -> None:
    _, adapter = attached("llama")
    small = tied_model("llama")
    small.resize_token_embeddings(30)
    with pytest.raises(AdapterMismatch) as caught:
        lorakit.attach(small, Adapter.load(adapter.save(tmp_path)))
    assert (
        "model.embed_tokens   trains the row of token 39, the layer has 30 (is the vocabulary to "
        "be resized first?)" in str(caught.value)
    )


def test_what_a_file_does_not_say_is_refused(tmp_path: Path) -> None:
    _, adapter = attached("llama")
    config = adapter.save(tmp_path) / "adapter_config.json"
    text = config.read_text()
    for old, new, said in [
        ("39", "5", "has rows (3, 16), but trainable_token_indices names 2 different tokens"),
        (
            "39",
            "-1",
            "has token rows, but trainable_token_indices is [5, 3, -1] for it: "
            "a list of ids is needed",
        ),
        (
            '"model.embed_tokens"',
            '"other"',
            "has token rows, but trainable_token_indices is None for it",
        ),
        (
            '"model.embed_tokens": [',
            '"other": [1], "model.embed_tokens": [',
            "other   has no rows in the file",
        ),
    ]:
        assert text.count(old) == 1
        config.write_text(text.replace(old, new))
        with pytest.raises(AdapterFileError) as caught:
            Adapter.load(tmp_path)
        assert said in str(caught.value)


def test_a_base_makes_them_plain() -> None:
    model, adapter = attached("untied")
    made = combine([(adapter, 1.0)], base=untied().double()).adapter
    assert made.spec.token_rows == () and made.deltas["model.embed_tokens"].rank == 3
    other = untied().double()
    lorakit.attach(other, made, any_base=True)
    assert error(logits(other), logits(model)) < 1e-9
    with pytest.raises(SpecError) as caught:
        combine([(adapter, 1.0)])
    assert "model.embed_tokens   is a TokenRows" in str(caught.value)
