"""Numbers about a change from its factors equal those of its dense float64 matrix."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorakit import Adapter, LorakitError, LowRank, Spec
from lorakit.analysis.overlap import (
    amplification,
    cosine,
    intruder_dimensions,
    principal_angles,
    random_similarity,
    sign_conflict,
    subspace_similarity,
)
from lorakit.analysis.report import (
    compare_adapters,
    describe_modules,
    grid_by_layer,
    summarise_modules,
)
from lorakit.analysis.spectra import (
    cumulative_energy,
    effective_rank,
    factors_of,
    rank_for_energy,
    stable_rank,
)
from lorakit.deltas.dora import DoRA
from lorakit.linalg import randomised_svd, singular_values, svd_of_product


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = [(3, 9, 12), (9, 9, 12), (14, 9, 12), (4, 1, 7)]


@pytest.mark.parametrize(("rank", "out", "inputs"), SHAPES)
@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_svd_from_the_factors_is_that_of_the_dense_product(
    rank: int, out: int, inputs: int, scale: float
) -> None:
    A, B = randn(rank, inputs), randn(out, rank, seed=1)
    dense, (U, S, Vh) = scale * B @ A, svd_of_product(A, B, scale)
    assert (U * S @ Vh - dense).norm() < 1e-12 * dense.norm()
    assert torch.allclose(S, torch.linalg.svdvals(dense)[: len(S)], atol=1e-12)
    assert torch.allclose(S, singular_values(A, B, scale), atol=1e-12)
    assert torch.allclose(U.T @ U, torch.eye(len(S), dtype=U.dtype), atol=1e-12)


def test_a_stack_has_one_spectrum_for_each_matrix() -> None:
    A, B = randn(5, 3, 12), randn(5, 9, 3, seed=1)
    values = singular_values(A, B, 2.0)
    assert torch.allclose(
        values, torch.stack([singular_values(a, b, 2.0) for a, b in zip(A, B, strict=True)])
    )
    assert effective_rank(values) == pytest.approx(sum(effective_rank(v) for v in values) / 5)
    assert stable_rank(values) == pytest.approx(sum(stable_rank(v) for v in values) / 5)
    U, S, Vh = svd_of_product(A, B)
    assert torch.allclose(U * S.unsqueeze(-2) @ Vh, B @ A, atol=1e-12)
    with pytest.raises(LorakitError, match=r"A is \(5, 3, 12\), B is \(4, 9, 3\)"):
        singular_values(A, B[:4])


def test_energy_and_the_rank_that_holds_it() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 1.0])
    assert torch.allclose(
        cumulative_energy(values), torch.tensor([0.64, 0.8, 0.96, 1.0], dtype=torch.float64)
    )
    assert [rank_for_energy(values, share) for share in (0.1, 0.64, 0.65, 0.96, 1.0)] == [
        1,
        1,
        2,
        3,
        4,
    ]
    assert (
        cumulative_energy(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
        and rank_for_energy(torch.zeros(3), 0.9) == 0
    )
    assert (effective_rank(torch.zeros(3)), stable_rank(torch.zeros(3))) == (0.0, 0.0)
    assert effective_rank(torch.ones(5)) == pytest.approx(5.0)


@pytest.mark.slow
def test_a_randomised_svd_keeps_its_two_bounds() -> None:
    """|M|^2 - sum of the first r squares is our error; the squares after r are less than any rank-r
    product leaves.
    """
    left, right = (torch.linalg.qr(randn(700, 600, seed=s)).Q for s in (0, 1))
    true = torch.arange(1, 601, dtype=torch.float64).rsqrt()
    M = left * true @ right.T
    U, S, Vh = randomised_svd(M, 20)
    assert len(S) == 30 < 600
    ours = float((M - U[:, :20] * S[:20] @ Vh[:20]).norm())
    assert ours**2 == pytest.approx(float(M.norm() ** 2 - S[:20].square().sum()), rel=1e-9)
    best = float(true[20:].norm())
    assert float(S[20:].norm()) <= best <= ours <= 1.01 * best


def test_the_change_of_a_dora_is_described_with_its_base_or_refused() -> None:
    W = randn(6, 8)
    delta = DoRA.start(randn(2, 8, seed=1), W, alpha=2.0)
    delta.B.data.copy_(randn(6, 2, seed=2))
    delta.magnitude.data.mul_(1.5)
    A, B = factors_of("q", delta, W)
    assert torch.allclose(B @ A, delta.matrix(W).detach(), atol=1e-12)
    with pytest.raises(
        LorakitError,
        match=r"^q: the change of a DoRA depends on the base's matrix.*\n"
        r"Give the base \(--model\)\.",
    ):
        factors_of("q", delta)
    adapter = Adapter(Spec(rank=2, delta="dora"), {"0": delta})
    assert describe_modules(adapter)[0]["partial"] is True
    model = nn.Sequential(nn.Linear(8, 6, dtype=torch.float64))
    model[0].weight.data.copy_(W)  # type: ignore[union-attr]
    whole = describe_modules(adapter, model)[0]
    assert "partial" not in whole and whole["norm"] == pytest.approx(
        float(delta.matrix(W).detach().norm())
    )


def test_similarity_is_one_of_equal_zero_of_orthogonal_and_chance_of_random_spaces() -> None:
    A = randn(8, 64)
    assert torch.allclose(subspace_similarity(A, A).diagonal(), torch.ones(8, dtype=torch.float64))
    basis = torch.linalg.qr(randn(64, 16)).Q.T
    assert float(subspace_similarity(basis[:8], basis[8:]).max()) < 1e-12
    phi = subspace_similarity(A, randn(4, 64, seed=1))
    assert phi.shape == (8, 4) and float(phi.min()) >= 0 and float(phi.max()) <= 1
    V1, V2 = (torch.linalg.svd(x, full_matrices=False).Vh for x in (A, randn(4, 64, seed=1)))
    assert float(phi[4, 1]) == pytest.approx(float((V1[:5] @ V2[:2].T).square().sum()) / 2)
    drawn = [float(random_similarity(8, 8, 1024, seed=s)[-1, -1]) for s in range(20)]
    assert sum(drawn) / 20 == pytest.approx(8 / 1024, rel=0.1)
    with pytest.raises(
        LorakitError,
        match=r"Two matrices of the same width are needed: they are \(8, 64\) and \(8, 32\)",
    ):
        subspace_similarity(A, A[:, :32])


def test_angles_cosine_and_signs_equal_those_of_the_dense_changes() -> None:
    turn = torch.tensor(0.3)
    first, second = (
        torch.eye(4)[:1],
        torch.stack([turn.cos(), turn.sin(), torch.tensor(0.0), torch.tensor(0.0)]).unsqueeze(0),
    )
    assert float(principal_angles(first, second)) == pytest.approx(float(turn.rad2deg()), abs=1e-5)
    one, two = (randn(3, 12), randn(9, 3, seed=1)), (randn(2, 12, seed=2), randn(9, 2, seed=3))
    D1, D2 = one[1] @ one[0], two[1] @ two[0]
    assert cosine(one, two) == pytest.approx(float((D1 * D2).sum() / D1.norm() / D2.norm()))
    assert sign_conflict(one, two) == pytest.approx(float((D1 * D2 < 0).double().mean()))
    assert sign_conflict(one, (one[0], -one[1])) == 1.0


def test_amplification_has_the_layout_of_table_7() -> None:
    W, A, B = randn(30, 20), randn(3, 20, seed=1), randn(30, 3, seed=2)
    found = amplification(W, A, B, 0.5, rank=2)
    U, S, Vh = torch.linalg.svd(0.5 * B @ A, full_matrices=False)
    own = torch.linalg.svd(W, full_matrices=False)
    assert found.along_delta == pytest.approx(float((U[:, :2].T @ W @ Vh[:2].T).norm()))
    assert found.along_W == pytest.approx(float(own.S[:2].norm()))
    assert found.along_random < found.along_W
    assert (found.delta_norm, found.W_norm) == pytest.approx((float(S.norm()), float(W.norm())))
    assert found.factor == pytest.approx(found.delta_norm / found.along_delta)
    with pytest.raises(
        LorakitError,
        match=r"W is \(30, 20\), the change is \(30, 20\) with 3 directions; 4 are needed",
    ):
        amplification(W, A, B, rank=4)


def test_intruders_are_counted_by_their_definition() -> None:
    W = torch.diag(torch.arange(8.0, 0.0, -1.0)).double()
    strange = torch.ones(8, 1, dtype=torch.float64) / 8**0.5
    assert intruder_dimensions(W, randn(1, 8), 1e-9 * strange) == 0
    assert (
        intruder_dimensions(
            W, torch.eye(8, dtype=torch.float64)[:1], 100 * torch.eye(8, dtype=torch.float64)[:, :1]
        )
        == 0
    )
    A, B = randn(1, 8), 50 * strange
    left, own = torch.linalg.svd(W + B @ A)[0][:, :3], torch.linalg.svd(W)[0]
    for threshold in (0.36, 0.6, 0.9):
        expected = sum(int((own.T @ left[:, j]).abs().max() < threshold) for j in range(3))
        assert intruder_dimensions(W, A, B, top=3, threshold=threshold) == expected
    assert intruder_dimensions(W, A, B, top=1, threshold=0.6) == 1


def pair(seed: int, layers: int = 2) -> Adapter:
    deltas = {
        f"h.{i}.{kind}": LowRank(
            randn(3, 12, seed=seed + i), randn(9, 3, seed=seed + 7 * i + 1), alpha=6.0
        )
        for i in range(layers)
        for kind in ("q", "v")
    }
    return Adapter(Spec(rank=3, alpha=6, targets=("q", "v")), deltas)


def test_an_adapter_is_described_by_module_and_as_a_whole() -> None:
    adapter = pair(0)
    adapter.deltas["h.0.v"].B.data.zero_()
    adapter.deltas["h.1.q"].B.data.mul_(1e-4)
    rows = describe_modules(adapter)
    dense = {name: delta.matrix().detach() for name, delta in adapter.deltas.items()}
    assert [row["norm"] for row in rows] == pytest.approx([float(M.norm()) for M in dense.values()])
    assert [row["name"] for row in rows if row["dead"]] == ["h.0.v", "h.1.q"]
    summary = summarise_modules(rows)
    assert summary["norm"] == pytest.approx(
        float(torch.cat([M.flatten() for M in dense.values()]).norm())
    )
    assert summary["dead_modules"] == 2
    json.dumps(rows, allow_nan=False)
    layers, kinds, grid = grid_by_layer(rows, "norm")
    assert (layers, kinds) == (["0", "1"], ["q", "v"]) and grid[1][1] == rows[3]["norm"]


def test_two_adapters_are_compared_module_by_module() -> None:
    rows = compare_adapters(pair(0), pair(100))
    assert [row["name"] for row in rows] == ["h.0.q", "h.0.v", "h.1.q", "h.1.v"]
    assert all(
        row["random"] == pytest.approx(3 / 12, rel=0.25) for row in rows
    )  # max(i, j) / width
    own = compare_adapters(pair(0), pair(0))
    assert all(row["cosine"] == pytest.approx(1) and row["sign_conflict"] == 0 for row in own)
    assert all(max(row["angles"]) < 1e-4 for row in own)
    other = Adapter(Spec(rank=1), {"h.0.q": LowRank(torch.ones(1, 5), torch.ones(9, 1), alpha=1.0)})
    with pytest.raises(LorakitError, match=r"h\.0\.q   is \(9, 12\) in one, \(9, 5\) in the other"):
        compare_adapters(pair(0), other)
    with pytest.raises(LorakitError, match="The two adapters share no module"):
        compare_adapters(
            pair(0),
            Adapter(Spec(rank=1), {"x": LowRank(torch.ones(1, 5), torch.ones(9, 1), alpha=1.0)}),
        )


def test_another_base_is_refused() -> None:
    model = nn.ModuleDict(
        {"h": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(12, 9), "v": nn.Linear(12, 8)})])}
    )
    with pytest.raises(LorakitError) as caught:
        describe_modules(pair(0), model)
    assert caught.value.faults == [
        "h.0.v   is (9, 12), the model's is (8, 12)",
        "h.1.q   is not in the model",
        "h.1.v   is not in the model",
    ]


@pytest.mark.shared
def test_the_published_adapter_is_as_rank_deficient_as_the_paper_says(shared: Path) -> None:
    """Hu et al., arXiv 2106.09685, section 7: on MNLI the query's change lies in a few directions,
    the value's in more.
    """
    path = shared / "models" / "real-adapters" / "roberta_base_lora_mnli.bin"
    held = torch.load(path, map_location="cpu", weights_only=True)
    names = [key.removesuffix(".lora_A") for key in held if key.endswith(".lora_A")]
    deltas = {n: LowRank(held[f"{n}.lora_A"], held[f"{n}.lora_B"], alpha=16.0) for n in names}
    rows = {row["name"]: row for row in describe_modules(Adapter(Spec(rank=8, alpha=16), deltas))}
    top, needed = (
        {
            kind: sum(value(row) for n, row in rows.items() if n.endswith(kind)) / 12
            for kind in ("query", "value")
        }
        for value in (lambda row: row["energy"][0], lambda row: row["rank_90"])
    )
    assert len(rows) == 24
    assert [
        round(100 * rows[f"roberta.encoder.layer.{i}.attention.self.query"]["energy"][0])
        for i in (10, 11)
    ] == [94, 99]
    assert {kind: round(100 * share) for kind, share in top.items()} == {"query": 58, "value": 39}
    assert {kind: round(rank, 1) for kind, rank in needed.items()} == {"query": 3.7, "value": 4.9}
