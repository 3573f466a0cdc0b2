"""resize, combine and extract from the command line: what they write, what they tell, what they
refuse.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, LlamaForCausalLM

import lorakit
from lorakit import Adapter, Spec
from lorakit.cli.__main__ import main
from lorakit.cli.combine import parse_weight
from lorakit.errors import LorakitError

from .test_commands import ask, tell


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two adapters of different ranks and targets, and a DoRA, all filled."""
    folder, found = tmp_path_factory.mktemp("adapters"), []
    asked = {
        "one": {},
        "two": {"rank": 6, "targets": "qv", "scale_rule": "alpha/sqrt(rank)"},
        "dora": {"delta": "dora"},
    }
    for name, more in asked.items():
        model = LlamaForCausalLM.from_pretrained(tiny_llama)
        adapter = lorakit.attach(model, Spec(**{"rank": 4, **more}), seed=len(found))
        for i, delta in enumerate(adapter.deltas.values()):
            torch.nn.init.normal_(delta.B, std=0.1, generator=torch.Generator().manual_seed(i))
        found.append(adapter.save(folder / name))
    return found[0], found[1], found[2]


@pytest.fixture(scope="module")
def tuned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after every weight of it moved."""
    folder = tmp_path_factory.mktemp("tuned") / "llama"
    shutil.copytree(tiny_llama, folder)
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            )
    model.save_pretrained(folder)
    return folder


def change(folder: Any) -> dict[str, torch.Tensor]:
    return {name: delta.matrix().detach() for name, delta in Adapter.load(folder).deltas.items()}


FIELDS = {"ranks", "energy", "residual", "bytes", "output"}


@pytest.mark.slow
def test_combine_writes_the_weighted_sum(
    capsys: Any, adapters: tuple[Path, ...], tmp_path: Path
) -> None:
    told = ask(
        capsys, "combine", f"{adapters[0]}:0.5", f"{adapters[1]}:-2", "--output", tmp_path / "sum"
    )
    assert told.keys() >= FIELDS and told["residual"] < 1e-7 and "rank" not in told
    assert told["bytes"] == sum(p.stat().st_size for p in (tmp_path / "sum").iterdir())
    one, two, both = change(adapters[0]), change(adapters[1]), change(tmp_path / "sum")
    assert both.keys() == one.keys() > two.keys()
    for name, M in both.items():
        assert torch.allclose(
            M, 0.5 * one[name] - 2 * two.get(name, torch.zeros_like(M)), atol=1e-6
        )
    out = tell(capsys, "combine", adapters[0], "--rank", 2, "--output", tmp_path / "half")
    assert "rank 2" in out and "residual, relative in ΔW" in out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare", "magnitude"])
def test_each_method_changes_the_result(
    capsys: Any, adapters: tuple[Path, ...], tmp_path: Path, method: str
) -> None:
    pair = [f"{adapters[0]}:0.5", f"{adapters[1]}:0.5"]
    told = ask(
        capsys, "combine", *pair, "--method", method, "--density", 0.3, "--output", tmp_path / "m"
    )
    assert told["method"] == method and told.keys() >= FIELDS
    ask(capsys, "combine", *pair, "--output", tmp_path / "exact")
    assert any(
        not torch.allclose(M, change(tmp_path / "exact")[n], atol=1e-3)
        for n, M in change(tmp_path / "m").items()
    )
    if method == "dare":
        ask(
            capsys,
            "combine",
            *pair,
            "--method",
            method,
            "--density",
            0.3,
            "--seed",
            1,
            "--output",
            tmp_path / "other",
        )
        assert (
            Adapter.load(tmp_path / "other").content_hash()
            != Adapter.load(tmp_path / "m").content_hash()
        )


@pytest.mark.slow
def test_resize_writes_a_smaller_one(
    capsys: Any, adapters: tuple[Path, ...], tmp_path: Path
) -> None:
    told = ask(capsys, "resize", adapters[0], "--rank", 2, "--output", tmp_path / "r")
    assert told.keys() >= FIELDS and told["rank"] == 2 and set(told["ranks_before"].values()) == {4}
    own, small = change(adapters[0]), change(tmp_path / "r")
    off = sum(float((own[n] - M).square().sum()) for n, M in small.items()) / sum(
        float(M.square().sum()) for M in own.values()
    )
    assert told["residual"] == pytest.approx(off**0.5, rel=1e-4) and told[
        "energy"
    ] == pytest.approx(1 - off, rel=1e-4)
    told = ask(capsys, "resize", adapters[0], "--parameters", 2000, "--output", tmp_path / "p")
    assert told["trainable_parameters"] <= 2000 < told["parameters_before"]
    told = ask(capsys, "resize", adapters[0], "--energy", 0.8, "--output", tmp_path / "e")
    assert told["energy"] >= 0.8


@pytest.mark.slow
def test_a_dora_is_made_plain_with_its_base(
    capsys: Any, adapters: tuple[Path, ...], tiny_llama: Path, tmp_path: Path
) -> None:
    told = ask(
        capsys, "combine", f"{adapters[2]}:1", "--model", tiny_llama, "--output", tmp_path / "plain"
    )
    assert told["notes"] == ["14 modules of dora converted to plain low rank"]
    ids = torch.tensor([[2, 40, 50, 60, 70]])
    logits = []
    for folder in (adapters[2], tmp_path / "plain"):
        model = LlamaForCausalLM.from_pretrained(tiny_llama)
        lorakit.attach(model, Adapter.load(folder))
        logits.append(model(ids).logits.detach())
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_extract_takes_the_base_to_the_tuned_model(
    capsys: Any, tiny_llama: Path, tuned: Path, tmp_path: Path
) -> None:
    told = ask(
        capsys,
        "extract",
        "--base",
        tiny_llama,
        "--tuned",
        tuned,
        "--rank",
        32,
        "--output",
        tmp_path / "a",
    )
    assert told.keys() >= FIELDS | {"kl", "top1_agreement", "base_kl"}
    assert (
        told["kl"] < 1e-6 < told["base_kl"]
        and told["residual"] < 1e-6
        and told["top1_agreement"] == 1.0
    )
    assert any(note.startswith("stored in full: ") and "norm" in note for note in told["notes"])
    small = ask(
        capsys,
        "extract",
        "--base",
        tiny_llama,
        "--tuned",
        tuned,
        "--rank",
        2,
        "--output",
        tmp_path / "b",
    )
    assert told["kl"] < small["kl"] < small["base_kl"]
    budget = ask(
        capsys,
        "extract",
        "--base",
        tiny_llama,
        "--tuned",
        tuned,
        "--size-bytes",
        small["bytes"],
        "--output",
        tmp_path / "c",
        "--leave-out",
        "embed_tokens",
        "lm_head",
        "--dtype",
        "bfloat16",
    )
    assert Adapter.load(tmp_path / "c").dtype == torch.bfloat16
    assert any(
        note.startswith("left out as requested") and "lm_head.weight" in note
        for note in budget["notes"]
    )


@pytest.mark.slow
def test_extract_carries_a_new_head_with_its_labels(
    capsys: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "tuned")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        named = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
        model = BertForSequenceClassification.from_pretrained(tiny_bert, **named)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query.weight"):
                parameter.add_(torch.ones_like(parameter) / 10)
    model.save_pretrained(tmp_path / "tuned")
    told = ask(
        capsys,
        "extract",
        "--base",
        tiny_bert,
        "--tuned",
        tmp_path / "tuned",
        "--rank",
        1,
        "--output",
        tmp_path / "a",
    )
    assert (
        told["rank"] == 1
        and len(told["ranks"]) == 2
        and told["kl"] < 1e-6
        and told["whole"].keys() >= {"classifier.weight"}
    )
    again = Adapter.load(tmp_path / "a")
    assert again.provenance["labels"] == ["no", "yes"] and again.provenance["task"] == "classify"
    out = tell(capsys, "inspect", tmp_path / "a", "--model", tiny_bert)
    assert "Trained in full: classifier" in out


WRONG = {
    "no output": (["resize", "{one}", "--rank", "2"], "--output is needed"),
    "no size": (["resize", "{one}", "--output", "{out}"], "no size is given"),
    "nothing smaller": (
        ["resize", "{one}", "--rank", "4", "--output", "{out}"],
        "rank 4 makes no module smaller",
    ),
    "no adapter": (
        ["resize", "nope", "--rank", "1", "--output", "{out}"],
        "nope is not an adapter",
    ),
    "a full folder": (["resize", "{one}", "--rank", "1", "--output", "{one}"], "is not empty"),
    "a weight of letters": (["combine", "{one}:o.5", "--output", "{out}"], "'o.5' is no number"),
    "an idle density": (
        ["combine", "{one}", "--density", "0.5", "--output", "{out}"],
        "method 'exact' keeps every weight",
    ),
    "no density": (
        ["combine", "{one}", "--method", "ties", "--output", "{out}"],
        "method 'ties' needs a density",
    ),
    "a DoRA without its base": (["combine", "{dora}", "--output", "{out}"], "is a DoRA\n"),
    "no models": (
        ["extract", "--output", "{out}"],
        "2 flags missing.\n  --base is needed\n  --tuned is needed",
    ),
    "equal models": (
        ["extract", "--base", "{llama}", "--tuned", "{llama}", "--rank", "1", "--output", "{out}"],
        "The two models are equal",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_write_nothing(
    capsys: Any, adapters: tuple[Path, ...], tiny_llama: Path, tmp_path: Path, case: str
) -> None:
    argv, says = WRONG[case]
    names = {"one": adapters[0], "dora": adapters[2], "llama": tiny_llama, "out": tmp_path / "out"}
    code = main([word.format(**names) for word in argv] + ["--json"])
    out, errors = capsys.readouterr()
    assert code == 2 and says in errors and not (tmp_path / "out").exists()
    assert {"error", "message", "faults"} <= json.loads(out).keys()


def test_a_weight_follows_the_last_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd:1").mkdir()
    assert [parse_weight(w) for w in ("odd:1", "odd:1:2", "a:1e-3", "a")] == [
        ("odd:1", 1.0),
        ("odd:1", 2.0),
        ("a", 1e-3),
        ("a", 1.0),
    ]
    with pytest.raises(LorakitError, match=r"a weight follows the last colon, as in a:0\.5"):
        parse_weight("a:x")
