"""Layers that the presets select in four families, and the number of trained values."""

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, RobertaConfig, RobertaModel

import lorakit
from lorakit import Spec
from lorakit.errors import TargetError

from ..laws.models import FAMILIES, bert, gpt2, llama

# Layers, or parts of them, that each preset takes.
COUNTS: dict[str, dict[str, int]] = {
    #                                q     k     v     o    qv   qkv  qkvo  attention mlp
    "llama": {
        "all-linear": 14,
        "q": 2,
        "k": 2,
        "v": 2,
        "o": 2,
        "qv": 4,
        "qkv": 6,
        "qkvo": 8,
        "attention": 8,
        "mlp": 6,
    },
    "gpt2": {
        "all-linear": 8,
        "q": 2,
        "k": 2,
        "v": 2,
        "o": 2,
        "qv": 4,
        "qkv": 6,
        "qkvo": 8,
        "attention": 4,
        "mlp": 4,
    },
    "bert": {
        "all-linear": 13,
        "q": 2,
        "k": 2,
        "v": 2,
        "o": 2,
        "qv": 4,
        "qkv": 6,
        "qkvo": 8,
        "attention": 8,
        "mlp": 4,
    },
    "t5": {
        "all-linear": 32,
        "q": 6,
        "k": 6,
        "v": 6,
        "o": 6,
        "qv": 12,
        "qkv": 18,
        "qkvo": 24,
        "attention": 24,
        "mlp": 8,
    },
}


@pytest.mark.parametrize("family", COUNTS)
def test_preset_takes_just_these(family: str) -> None:
    model = FAMILIES[family]()
    for preset, count in COUNTS[family].items():
        assert len(lorakit.select(model, preset)) == count, preset
    assert lorakit.select(model, "none") == {}


def test_presets_name_the_right_layers() -> None:
    names = lambda *request: list(lorakit.select(*request))  # noqa: E731
    assert names(llama(), "qv") == [
        f"model.layers.{i}.self_attn.{p}" for i in (0, 1) for p in ("q_proj", "v_proj")
    ]
    assert names(gpt2(), "attention") == [
        f"transformer.h.{i}.attn.{p}" for i in (0, 1) for p in ("c_attn", "c_proj")
    ]
    assert names(gpt2(), "mlp") == [
        f"transformer.h.{i}.mlp.{p}" for i in (0, 1) for p in ("c_fc", "c_proj")
    ]
    assert names(bert(), "o") == [f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1)]
    assert "lm_head" not in names(llama(), "all-linear") and "lm_head" in names(
        llama(), ["lm_head"]
    )


def test_ways_to_name_a_layer() -> None:
    model = llama()
    q = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    for targets, names in [
        (["q_proj"], q),
        ("q_proj", q),
        (["self_attn.q_proj"], q),
        (q[:1], q[:1]),
        (["*.0.*.q_proj"], q[:1]),
        (r".*layers\.[1-9]\.self_attn\.q_proj", q[1:]),
        (r"layers\.1\.self_attn\.[qx]_proj", q[1:]),
        (["layers.?.*.q_proj"], q),
    ]:
        assert list(lorakit.select(model, targets)) == names
    assert list(lorakit.select(model, "q", exclude=["layers.0.*"])) == q[1:]
    assert list(lorakit.select(model, "q", exclude=r".*layers\.0\..*")) == q[1:]
    assert list(lorakit.select(model, "qkvo", exclude="qkv")) == [
        n.replace("q_proj", "o_proj") for n in q
    ]


def test_a_layer_that_is_not_selected_may_be_excluded() -> None:
    model = llama()
    for name in ("lm_head", "embed_tokens"):
        assert lorakit.select(model, exclude=[name]) == lorakit.select(model)


def test_names_with_characters_of_a_pattern() -> None:
    model = nn.ModuleDict(
        {
            "a[0]": nn.Linear(4, 4),
            "a0": nn.Linear(4, 4),
            "b+": nn.Linear(4, 4),
            "(c)*": nn.Linear(4, 4),
        }
    )
    assert list(lorakit.select(model, ["a[0]"])) == [
        "a[0]",
        "a0",
    ]  # the second by the pattern's own meaning
    assert list(lorakit.select(model, ["b+", "(c)*"])) == ["b+", "(c)*"]


@pytest.mark.parametrize(
    ("shape", "rank", "values"),
    [
        ((1000, 1000), 10, 20_000),
        ((100, 100), 5, 1_000),
        ((1024, 1024), 4, 8_192),
        ((7, 300), 3, 3 * 307),
    ],
)
def test_count_is_rank_times_in_plus_out(shape: tuple[int, int], rank: int, values: int) -> None:
    model = nn.Sequential(nn.Linear(*shape))
    adapter = lorakit.attach(model, Spec(rank=rank))
    covered = lorakit.coverage(model)
    assert adapter.parameters_count == covered.trainable_parameters == values
    assert covered.total_parameters == values + shape[0] * shape[1] + shape[1]


def test_a_head_is_left_alone_by_a_preset_and_can_be_named() -> None:
    model = FAMILIES["bert"]()
    assert "classifier" not in lorakit.select(model)
    assert list(lorakit.select(model, ["classifier"])) == ["classifier"]
    # The default rank is above the head's few classes: the default spec would be refused if it took
    # the head.
    lorakit.attach(model, Spec())


@pytest.mark.parametrize("family", COUNTS)
def test_coverage_counts_by_the_formula(family: str) -> None:
    model = FAMILIES[family]()
    total = sum(p.numel() for p in model.parameters())
    spec = Spec(rank=3, overrides={"*0*": {"rank": 2}})
    want = sum((2 if "0" in n else 3) * sum(p.shape) for n, p in lorakit.select(model).items())
    lorakit.attach(model, spec)
    covered = lorakit.coverage(model)
    assert (covered.trainable_parameters, covered.total_parameters) == (want, total + want)
    assert len(covered.modules) == COUNTS[family]["all-linear"]
    assert (
        f"trainable parameters: {want:,} of {total + want:,} = {100 * want / (total + want):.4f} %"
        in str(covered)
    )
    assert covered.to_dict()["percent"] == covered.percent


def test_coverage_counts_what_is_exchanged_once() -> None:
    model = bert()
    total = sum(p.numel() for p in model.parameters())
    adapter = lorakit.attach(
        model, Spec(rank=2, targets="qv", bias="adapted", full_modules=["classifier"])
    )
    for which in ("default", None):
        lorakit.enable(model, which)
        covered = lorakit.coverage(model)
        assert covered.trainable_parameters == adapter.parameters_count == 4 * 2 * 32 + 4 * 16 + 51
        assert covered.total_parameters == total + 4 * 2 * 32


def test_bloom_1b7_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = BloomForCausalLM(
            BloomConfig(hidden_size=2048, n_layer=24, n_head=16, vocab_size=250_880)
        )
    lorakit.attach(model, Spec(rank=8, targets=["query_key_value"]))
    covered = lorakit.coverage(model)
    assert covered.trainable_parameters == 1_572_864
    assert covered.total_parameters == 1_723_981_824
    assert f"{covered.percent:.4f}" == "0.0912"
    assert lorakit.fingerprint(model) == ""


def test_roberta_base_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = RobertaModel(RobertaConfig())
    assert lorakit.attach(model, Spec(rank=8, targets="qv")).parameters_count == 294_912


def test_coverage_says_when_low_rank_saves_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    lorakit.attach(model, Spec(rank=2))
    covered = lorakit.coverage(model)
    assert covered.trainable_parameters == 12
    assert (
        "  note: rank 2 of 0 has no fewer values than the matrix itself (3 x 3; break-even is rank "
        "1.5)" in str(covered).splitlines()
    )


def test_coverage_names_what_is_left_out() -> None:
    odd = nn.Module()
    odd.table = nn.Parameter(torch.zeros(4, 6))
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Bilinear(2, 3, 4), nn.MultiheadAttention(8, 2), nn.Linear(8, 40), odd
    )
    lorakit.attach(model, Spec(rank=1, alpha=40, targets=["0"]))
    lines = [" ".join(line.split()) for line in str(lorakit.coverage(model)).splitlines()]
    assert lines[:-1] == [
        "Sequential: 1 of 5 layers adapted",
        "adapted 0 linear 8 -> 8 default: rank 1, scale 40",
        "not adapted 1 bilinear 6 -> 4",
        "not adapted 2.in_proj in_proj 8 -> 24",
        "not adapted 2.out_proj out_proj 8 -> 8",
        "not adapted 3 linear 8 -> 40",
        "out of reach Module (1 modules) 24 values in a form that no site supports",
        "note: scales from 40 to 40; 0.25 to 16 is what usually trains well",
    ]


def test_fingerprint_sees_a_change_and_survives_a_cast() -> None:
    model, other = llama(), llama()
    assert lorakit.fingerprint(model) == lorakit.fingerprint(other.to(torch.bfloat16))
    lorakit.attach(model, Spec(rank=2, bias="all" if model.config.attention_bias else "none"))
    assert lorakit.fingerprint(model) == lorakit.fingerprint(other)
    other = llama()
    other.model.norm.weight.data[-1] += 1
    assert lorakit.fingerprint(model) != lorakit.fingerprint(other)


def test_fingerprint_reaches_the_last_value_of_a_large_tensor() -> None:
    # float32 cannot count beyond 2**24: a sample taken there would lie beside or behind the tensor.
    size = 2**24 + 3
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(
        torch.zeros((), dtype=torch.bfloat16).expand(size, 1), requires_grad=False
    )
    before = lorakit.fingerprint(layer)
    weight = torch.zeros(size, 1, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert lorakit.fingerprint(layer) == before
    weight[-1] = 1
    assert lorakit.fingerprint(layer) != before


def test_what_trains_is_told_by_the_layer_and_never_by_its_name() -> None:
    model = nn.ModuleDict(
        {"explora_layer": nn.Linear(4, 4), "lora_A": nn.Linear(4, 4), "chosen": nn.Linear(4, 4)}
    )
    lorakit.attach(model, Spec(rank=2, targets=["chosen"]))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "chosen.lorakit.default.A",
        "chosen.lorakit.default.B",
    }


PRESETS_OF_TORCH = {"q": 6, "o": 6, "qv": 12, "qkv": 18, "qkvo": 24, "attention": 12, "mlp": 8}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("preset", PRESETS_OF_TORCH)
def test_presets_know_the_layers_of_torch_by_their_kind(preset: str) -> None:
    model = nn.Transformer(32, 4, 2, 2, 64)
    chosen = lorakit.select(model, preset)
    assert len(chosen) == PRESETS_OF_TORCH[preset]


@pytest.mark.parametrize("widths", [{}, {"kdim": 4, "vdim": 6}], ids=["fused", "apart"])
def test_an_attention_of_any_name_has_all_four_projections(widths: dict[str, int]) -> None:
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(8, 2, **widths)})
    names = [f"mha.{end}" for end in ("q", "k", "v", "out_proj")]
    assert list(lorakit.select(model, "qkvo")) == names


def test_a_missing_mlp_is_not_explained_by_fused_attention() -> None:
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(8, 2)})
    with pytest.raises(TargetError) as caught:
        lorakit.select(model, "mlp")
    assert str(caught.value) == (
        "The preset 'mlp' does not fit ModuleDict.\n  'mlp'   0 layers\nNothing was attached. "
        "`lorakit inspect MODEL --targets` lists what can be named."
    )
