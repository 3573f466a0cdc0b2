"""Sums and differences of adapters against the dense float64 sums, and the requests refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorakit import Adapter, LorakitError, LowRank, Spec, attach, detach, enable, fingerprint
from lorakit.algebra import METHODS, add, combine, negate, scale, subtract
from lorakit.algebra.sparse import SPARSE_METHODS, WeightedFactors, keep_largest
from lorakit.algebra.truncation import truncate_product
from lorakit.deltas.dora import DoRA

from ..analysis.test_spectra import randn

SHAPE = (9, 12)


def lowrank(rank: int, seed: int, **more: Any) -> LowRank:
    out, inputs = more.pop("shape", SHAPE)
    return LowRank(
        randn(rank, inputs, seed=seed), randn(out, rank, seed=seed + 1), **{"alpha": 6.0, **more}
    )


def pair() -> tuple[Adapter, Adapter]:
    """Two adapters of different ranks, targets and scale rules; they share one module."""
    one = Adapter(Spec(rank=3, alpha=6), {"q": lowrank(3, 1), "v": lowrank(2, 3)})
    two = Adapter(
        Spec(rank=4, alpha=5, scale_rule="alpha/sqrt(rank)"),
        {"q": lowrank(4, 5, alpha=5.0, scale_rule="alpha/sqrt(rank)"), "k": lowrank(1, 7)},
    )
    return one, two


def dense(*weighted: tuple[Adapter, float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for adapter, weight in weighted:
        for name, delta in adapter.deltas.items():
            total[name] = (
                total.get(name, torch.zeros(delta.shape)) + weight * delta.matrix().detach()
            )
    return total


def weighted_factors(adapter: Adapter, weight: float) -> WeightedFactors:
    delta = adapter.deltas["q"]
    return WeightedFactors(delta.A.detach(), delta.B.detach() * delta.scale, weight)


def gap(adapter: Adapter, wanted: dict[str, Tensor]) -> float:
    assert adapter.deltas.keys() == wanted.keys()
    off = sum(
        float((adapter.deltas[n].matrix().detach() - M).square().sum()) for n, M in wanted.items()
    )
    return (off / sum(float(M.square().sum()) for M in wanted.values())) ** 0.5


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -2.0), (0.0, 1.0)])
def test_the_sum_is_exact_at_rank_sum(weights: tuple[float, float]) -> None:
    weighted = list(zip(pair(), weights, strict=True))
    outcome = combine(weighted)
    assert gap(outcome.adapter, dense(*weighted)) < 1e-14
    assert (
        outcome.ranks == {"q": 7, "v": 2, "k": 1}
        and outcome.residual < 1e-14
        and outcome.energy == pytest.approx(1.0)
    )


def test_a_smaller_rank_is_the_best_and_its_residual_is_measured() -> None:
    weighted = list(zip(pair(), (0.7, -0.4), strict=True))
    wanted = dense(*weighted)
    for rank in (1, 2, 5):
        outcome = combine(weighted, rank=rank)
        assert outcome.ranks == {"q": rank, "v": min(2, rank), "k": 1}
        tails = sum(float(torch.linalg.svdvals(M)[rank:].square().sum()) for M in wanted.values())
        total = sum(float(M.square().sum()) for M in wanted.values())
        assert gap(outcome.adapter, wanted) == pytest.approx((tails / total) ** 0.5, abs=1e-12)
        assert outcome.residual == pytest.approx(
            gap(outcome.adapter, wanted)
        ) and outcome.at_best == pytest.approx(outcome.residual)
        assert outcome.energy == pytest.approx(1 - tails / total)
    outcome = combine(weighted, energy=0.9)
    for name, M in wanted.items():
        shares = torch.linalg.svdvals(M).square().cumsum(0) / M.square().sum()
        assert outcome.ranks[name] == int((shares < 0.9).sum()) + 1


def test_the_residual_of_float32_factors_includes_their_rounding() -> None:
    one, two = pair()
    outcome = combine([(one.to(torch.float32), 0.5), (two.to(torch.float32), 0.5)])
    assert 0 < outcome.residual < 1e-7
    outcome = combine([(one, 0.5), (two, 0.5)], dtype=torch.bfloat16)
    assert 1e-4 < outcome.residual < 1e-2 and outcome.adapter.dtype == torch.bfloat16


def test_scale_negate_add_and_subtract_are_those_of_the_changes() -> None:
    one, two = pair()
    assert gap(scale(one, 0.3), dense((one, 0.3))) < 1e-14
    assert gap(negate(one), dense((one, -1.0))) < 1e-14
    assert gap(add(one, two, one), dense((one, 2.0), (two, 1.0))) < 1e-14
    assert gap(subtract(one, two), dense((one, 1.0), (two, -1.0))) < 1e-14
    assert all(not delta.matrix().any() for delta in scale(one, 0.0).deltas.values())


def test_a_rank_sum_above_the_matrix_is_cut_to_it_without_loss() -> None:
    many = [(Adapter(Spec(rank=4), {"q": lowrank(4, seed)}), 1.0) for seed in range(0, 8, 2)]
    outcome = combine(many)
    assert outcome.ranks == {"q": 9} and gap(outcome.adapter, dense(*many)) < 1e-13


def test_the_sum_can_be_written_read_and_attached(tmp_path: Any) -> None:
    summed = combine(list(zip(pair(), (0.5, 2.0), strict=True))).adapter
    assert all(delta.scale == 1.0 for delta in summed.deltas.values())
    summed.save(tmp_path / "sum")
    assert Adapter.load(tmp_path / "sum").content_hash() == summed.content_hash()
    model = nn.ModuleDict({name: nn.Linear(12, 9, dtype=torch.float64) for name in "qvk"})
    x = randn(5, 12, seed=9)
    base = {name: layer(x) for name, layer in model.items()}
    wanted = dense(*zip(pair(), (0.5, 2.0), strict=True))
    attach(model, summed)
    assert all(
        torch.allclose(layer(x), base[n] + x @ wanted[n].T, atol=1e-12)
        for n, layer in model.items()
    )


def test_sums_of_embeddings_and_convolutions_equal_both_adapters_enabled() -> None:
    """Two adapters switched on together, and their sum alone, give the same outputs."""

    def trained(seed: int, rule: str) -> tuple[nn.Sequential, Adapter]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Embedding(11, 6), nn.Conv1d(6, 8, 3, padding=2, dilation=2, groups=2)
            ).double()
        adapter = attach(
            model,
            Spec(rank=2, alpha=3, targets=["0", "1"], scale_rule=rule),
            name=str(seed),
            seed=seed,
        )
        for i, delta in enumerate(adapter.deltas.values()):
            delta.B.data.copy_(randn(*delta.B.shape, seed=seed + i))
        return model, adapter

    (model, one), (_, two) = trained(1, "alpha/rank"), trained(2, "alpha/sqrt(rank)")
    attach(model, two.copy(), name="2")
    enable(model, ["1", "2"])
    ids = torch.arange(10).reshape(2, 5)
    wanted = model[1](model[0](ids).mT)
    detach(model)
    attach(model, add(one, two))
    assert torch.allclose(model[1](model[0](ids).mT), wanted, atol=1e-12)


def test_stacks_are_summed_matrix_by_matrix() -> None:
    A, B = randn(4, 6, 12), randn(4, 9, 6, seed=1)
    truncated = truncate_product(A, B, 2, None, torch.float64)
    assert truncated.factors is not None
    A2, B2 = truncated.factors
    assert A2.shape == (4, 2, 12)
    for a, b, a2, b2 in zip(A, B, A2, B2, strict=True):
        assert float((b @ a - b2 @ a2).norm()) == pytest.approx(
            float(torch.linalg.svdvals(b @ a)[2:].norm())
        )
    error = float((B @ A - B2 @ A2).square().sum())
    assert truncated.squared_error == pytest.approx(error)


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    """The paper's algorithm 1, written out: weights 1/2 and lambda = 1."""
    one, two = pair()
    D = [keep_largest(a.deltas["q"].matrix().detach(), 0.3) for a in (one, two)]
    elected = (D[0] + D[1]).sign()
    expected = torch.zeros(SHAPE, dtype=torch.float64)
    for i in range(SHAPE[0]):
        for j in range(SHAPE[1]):
            agreeing = [
                float(M[i, j]) for M in D if M[i, j] != 0 and M[i, j].sign() == elected[i, j]
            ]
            expected[i, j] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    outcome = combine([(one, 0.5), (two, 0.5)], method="ties", density=0.3, rank=7)
    parts = [weighted_factors(adapter, 0.5) for adapter in (one, two)]
    found = SPARSE_METHODS["ties"](parts, 0.3, 0, "q")
    assert torch.allclose(found, expected, atol=1e-12)
    best = float(torch.linalg.svdvals(expected)[7:].norm() / expected.norm())
    assert outcome.residuals["q"] == pytest.approx(best)
    # Where nothing is trimmed and no sign differs it is the plain sum.
    assert (
        gap(
            combine([(one, 0.5), (one, 1.5)], method="ties", density=1.0).adapter, dense((one, 2.0))
        )
        < 1e-12
    )


def test_dare_keeps_the_mean_and_its_share_of_the_weights() -> None:
    one, _ = pair()
    delta = one.deltas["q"]
    parts = [weighted_factors(one, 0.5)]
    drawn = torch.stack([SPARSE_METHODS["dare"](parts, 0.4, seed, "q") for seed in range(400)])
    assert float((drawn != 0).double().mean()) == pytest.approx(0.4, abs=0.01)
    assert (
        float(
            (drawn.mean(0) - 0.5 * delta.matrix()).detach().norm() / delta.matrix().detach().norm()
        )
        < 0.06
    )
    assert torch.equal(
        SPARSE_METHODS["dare"](parts, 0.4, 3, "q"), SPARSE_METHODS["dare"](parts, 0.4, 3, "q")
    )
    assert not torch.equal(
        SPARSE_METHODS["dare"](parts, 0.4, 3, "q"), SPARSE_METHODS["dare"](parts, 0.4, 3, "k")
    )


def test_magnitude_keeps_the_largest() -> None:
    one, two = pair()
    D = [0.5 * keep_largest(a.deltas["q"].matrix().detach(), 0.25) for a in (one, two)]
    assert all(int((M != 0).sum()) == round(0.25 * M.numel()) for M in D)
    outcome = combine([(one, 0.5), (two, 0.5)], method="magnitude", density=0.25, energy=1.0)
    assert float((outcome.adapter.deltas["q"].matrix().detach() - D[0] - D[1]).norm()) < 1e-12


def dora(W: Tensor) -> Adapter:
    delta = DoRA.start(randn(2, 12, seed=1), W, alpha=2.0)
    delta.B.data.copy_(randn(9, 2, seed=2))
    delta.magnitude.data.mul_(1.3)
    return Adapter(Spec(rank=2, delta="dora"), {"q": delta})


def test_dora_is_converted_with_its_base_and_refused_by_name_without() -> None:
    model = nn.ModuleDict({"q": nn.Linear(12, 9, dtype=torch.float64)})
    adapter = dora(model["q"].weight.detach())
    change = adapter.deltas["q"].matrix(model["q"].weight.detach()).detach()
    outcome = combine([(adapter, 0.5)], base=model)
    assert gap(outcome.adapter, {"q": 0.5 * change}) < 1e-12
    assert (
        outcome.notes == ("1 module of dora converted to plain low rank",)
        and outcome.adapter.spec.delta == "lora"
    )
    with pytest.raises(LorakitError) as caught:
        combine([(adapter, 0.5)])
    assert str(caught.value) == (
        "The change of 1 module depends on the base's matrix, so it is not a product of factors.\n"
        "  q   is a DoRA\n"
        "Give the base (base=, --model) to convert it to plain low rank. Nothing was made."
    )


def with_head(value: float, labels: list[str] | None = None, **deltas: LowRank) -> Adapter:
    facts: dict[str, Any] = {"labels": labels} if labels else {}
    head = {"head.weight": nn.Parameter(torch.full((2, 3), value))}
    return Adapter(
        Spec(rank=2, full_modules=("head",)), deltas or {"q": lowrank(2, 1)}, head, facts
    )


def test_full_parameters_need_no_base_if_the_weights_add_up_to_one() -> None:
    outcome = combine([(with_head(1.0), 0.25), (with_head(3.0), 0.75)])
    assert torch.equal(outcome.adapter.full_parameters["head.weight"], torch.full((2, 3), 2.5))
    assert outcome.notes == ("summed with the weights: head.weight",)
    # Held by one alone, at weight 1: what the others do to the rest does not touch it.
    outcome = combine([(with_head(1.0), 1.0), (Adapter(Spec(rank=2), {"q": lowrank(2, 3)}), -0.5)])
    assert torch.equal(outcome.adapter.full_parameters["head.weight"], torch.full((2, 3), 1.0))


def test_full_parameters_at_other_weights_need_the_base_or_a_rule() -> None:
    weighted = [(with_head(1.0), 0.5), (with_head(3.0), 1.0)]
    with pytest.raises(
        LorakitError,
        match=r"its weights add up to 1\.5, not 1, so the base's own value counts: give the base",
    ):
        combine(weighted)
    base = nn.ModuleDict({"q": nn.Linear(12, 9), "head": nn.Linear(3, 2)})
    old = base["head"].weight.detach()
    found = combine(weighted, base=base).adapter.full_parameters["head.weight"].detach()
    assert torch.allclose(found, old + 0.5 * (1 - old) + (3 - old))
    assert (
        combine(weighted, whole="first")
        .adapter.full_parameters["head.weight"]
        .detach()
        .eq(1.0)
        .all()
    )
    dropped = combine(weighted, whole="drop")
    assert dropped.adapter.full_parameters == {} and dropped.notes == (
        "left out, though trained in full: head.weight",
    )
    with pytest.raises(LorakitError, match=r"different labels: \['a', 'b'\] and \['a', 'c'\]"):
        combine([(with_head(1.0, ["a", "b"]), 0.5), (with_head(3.0, ["a", "c"]), 0.5)])


def test_all_faults_of_adapters_that_do_not_fit_are_named_at_once() -> None:
    one = Adapter(
        Spec(rank=2), {"q": lowrank(2, 1), "v": lowrank(2, 1)}, {}, {"base_fingerprint": "aa"}
    )
    two = Adapter(
        Spec(rank=2),
        {"q": lowrank(2, 1, shape=(9, 11)), "v": lowrank(2, 1, kind="embedding")},
        {},
        {"base_fingerprint": "bb"},
    )
    with pytest.raises(LorakitError) as caught:
        combine([(one, 1.0), (two, 1.0)])
    assert str(caught.value) == (
        "These adapters cannot be combined: 3 faults.\n"
        "  q   is (9, 11) in adapter 2, (9, 12) before\n"
        "  v   is of kind embedding in adapter 2, linear before\n"
        "  adapter 2   was trained on other base weights (bb) than an adapter before it (aa); "
        "any_base (--any-base) accepts it\n"
        "Nothing was made."
    )
    model = nn.ModuleDict({"q": nn.Linear(12, 9), "v": nn.Linear(12, 9)})
    with pytest.raises(LorakitError, match=rf"\(aa\) than the model's \({fingerprint(model)}\)"):
        combine([(one, 1.0)], base=model)
    combine([(one, 1.0)], base=model, any_base=True)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"rank": 0}, "rank 0: a whole number of at least 1 is needed"),
    "rank too high": (
        {"rank": 8},
        "rank 8 is too high: no change here has more than 7 directions",
    ),
    "energy": ({"energy": 1.5}, "energy 1.5: a share above 0 and at most 1 is needed"),
    "both": (
        {"rank": 1, "energy": 0.5},
        "rank and energy are given: each sets the size, so give only one",
    ),
    "method": (
        {"method": "tise"},
        "method 'tise' is none of exact, ties, dare, magnitude; did you mean 'ties'?",
    ),
    "no density": (
        {"method": "dare"},
        "method 'dare' needs a density above 0 and at most 1, got None",
    ),
    "idle density": ({"density": 0.5}, "density 0.5: method 'exact' keeps every weight"),
    "whole": ({"whole": "all"}, "whole 'all' is none of sum, first, drop"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_refused(case: str) -> None:
    settings, says = WRONG[case]
    with pytest.raises(LorakitError) as caught:
        combine([(a, 1.0) for a in pair()], **settings)
    assert says in str(caught.value) and "Nothing was made." in str(caught.value)
    with pytest.raises(LorakitError, match="weight nan is not a finite number"):
        combine([(pair()[0], float("nan"))])
    with pytest.raises(LorakitError, match="no adapter is given"):
        combine([])
    assert METHODS == ("exact", "ties", "dare", "magnitude")


def test_provenance_is_kept_if_all_agree() -> None:
    one, two = pair()
    for adapter, steps in ((one, 1), (two, 2)):
        adapter.provenance |= {
            "base_fingerprint": "aa",
            "base_model": "m",
            "task": "causal-lm",
            "steps": steps,
        }
    provenance = combine([(one, 0.5), (two, 1.0)]).adapter.provenance
    assert {k: provenance[k] for k in ("base_fingerprint", "base_model", "task")} == {
        "base_fingerprint": "aa",
        "base_model": "m",
        "task": "causal-lm",
    }
    assert "steps" not in provenance
    assert [part["weight"] for part in provenance["combined"]["of"]] == [0.5, 1.0]


def test_parts_of_a_fused_layer_and_stacks_of_experts_keep_their_form() -> None:
    def adapter(seed: int, rows: tuple[int, ...] = (1, 27, 0, 9)) -> Adapter:
        experts = LowRank(
            randn(3, 2, 12, seed=seed), randn(3, 9, 2, seed=seed + 1), alpha=4.0, kind="experts"
        )
        parts = {"qkv": {"q": 9, "k": 9, "v": 9}}
        return Adapter(
            Spec(rank=2, parts=parts),
            {"qkv.q": lowrank(2, seed, output_slice=rows), "experts": experts},
        )

    outcome = combine([(adapter(1), 0.5), (adapter(5), -1.0)])
    q = outcome.adapter.deltas["qkv.q"]
    assert q.output_slice == (1, 27, 0, 9) and outcome.adapter.spec.parts == {
        "qkv": {"q": 9, "k": 9, "v": 9}
    }
    expected = [
        0.5 * adapter(1).deltas[n].matrix() - adapter(5).deltas[n].matrix()
        for n in ("qkv.q", "experts")
    ]
    assert torch.allclose(q.matrix(), expected[0]) and torch.allclose(
        outcome.adapter.deltas["experts"].matrix(), expected[1]
    )
    assert combine([(adapter(1), 0.5), (adapter(5), -1.0)], rank=3).ranks == {
        "qkv.q": 3,
        "experts": 3,
    }
    dared = combine([(adapter(1), 1.0), (adapter(5), 1.0)], method="dare", density=0.5)
    assert dared.adapter.deltas["experts"].A.shape == (3, 4, 12)
    with pytest.raises(
        LorakitError, match=r"qkv\.q   is another slice of its fused layer in adapter 2 than before"
    ):
        combine([(adapter(1), 0.5), (adapter(5, (1, 27, 9, 9)), -1.0)])


def test_pruning_keeps_the_largest_by_size() -> None:
    M = torch.tensor([[1.0, -5.0, 2.0], [-3.0, 0.5, 4.0]])
    assert keep_largest(M, 0.5).tolist() == [[0.0, -5.0, 0.0], [-3.0, 0.0, 4.0]]
    assert torch.equal(keep_largest(M, 1.0), M) and int((keep_largest(M, 1e-9) != 0).sum()) == 1


def test_an_adapter_of_views_has_a_hash() -> None:
    wide = torch.eye(3)
    views, copies = (
        Adapter(Spec(rank=1), {"0": LowRank(wide[:1], B, alpha=1.0)})
        for B in (wide[:, :1], wide[:, :1].clone())
    )
    assert views.content_hash() == copies.content_hash()
