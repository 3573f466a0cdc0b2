"""A run goes on from an adapter: with its weights and spec, and a new head for another task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorakit
from lorakit.adapter import Adapter
from lorakit.cli.__main__ import main
from lorakit.deltas.adalora import AdaLoRA
from lorakit.errors import AdapterMismatch, OutputError, SpecError
from lorakit.models.load import load
from lorakit.models.open import open_model
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.dry_run import try_run
from lorakit.train.prepare import prepare_run
from lorakit.train.run import train_adapter

from ..conftest import sentences

NO_STEPS: dict[str, Any] = {"steps": 1, "lr": 1e-30, "final": "last", "warmup": 0.0}


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    def write(*labels: str) -> str:
        path = tmp_path / f"{'-'.join(labels) or 'text'}.jsonl"
        rows = []
        for i, text in enumerate(sentences(36)):
            rows.append({"text": text, **({"label": labels[i % len(labels)]} if labels else {})})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 2,
        "threads": 1,
        "lr": 1e-2,
        "warmup": 0.0,
    }


def numeric(path: str, tmp_path: Path) -> str:
    """Return rows for a regression, of the same texts."""
    values = tmp_path / "values.jsonl"
    texts = [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]
    rows = [{"text": text, "label": len(text) / 10} for text in texts]
    values.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(values)


def make_adapter(model: Path, folder: Path, spec: Spec, task: str, labels: list[str]) -> Adapter:
    """Return an adapter with nonzero B, saved into a folder as after a run."""
    base = load(str(model), task, labels=labels)
    whole = Spec(**{**spec.to_dict(), "full_modules": (*spec.full_modules, *base.new_modules)})
    adapter = lorakit.attach(base.model, whole)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.05)
    adapter.provenance |= {"task": task, "labels": labels} if labels else {"task": task}
    adapter.save(folder)
    return Adapter.load(folder)


def low_rank(adapter: Adapter) -> dict[str, torch.Tensor]:
    own = adapter.named_parameters()
    return {name: one.detach() for name, one in own if name not in adapter.full_parameters}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


DELTAS = {
    "lora": Spec(rank=4, alpha=6, targets="qv", overrides={"v_proj": {"rank": 2}}),
    "dora": Spec(rank=2, delta="dora"),
    "vera": Spec(rank=4, delta="vera"),
    "loha": Spec(rank=2, delta="loha"),
    "lokr": Spec(rank=2, delta="lokr"),
    "adalora": Spec(rank=2, delta="adalora"),
    "pissa": Spec(rank=2, init="pissa"),
    "biases and rows": Spec(rank=2, bias="all", token_rows=(5, 6), full_modules=("model.norm",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DELTAS)
def test_it_starts_with_the_weights_the_spec_and_the_metrics_of_the_adapter(
    name: str,
    tiny_llama: Path,
    write_rows: Callable[..., str],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    made = make_adapter(tiny_llama, tmp_path / "first", DELTAS[name], "causal-lm", [])
    settings |= {"model": str(tiny_llama), "data": write_rows(), "adapter": str(tmp_path / "first")}
    prepared = prepare_run(TrainSpec(**settings), Spec())
    job = prepared.job
    assert job.adapter == made and prepared.facts["plan"] is not None
    assert prepared.facts["plan"]["trainable_parameters"] == made.parameters_count
    before = job.evaluate(job.held_out).metrics
    report = train_adapter(TrainSpec(**settings), Spec())
    assert report["before"] == before
    assert report["spec"] == made.spec.to_dict()
    trained = Adapter.load(tmp_path / "out")
    assert trained.spec == made.spec and not same(low_rank(trained), low_rank(made))
    origin = {
        "path": str(tmp_path / "first"),
        "content_hash": made.content_hash(),
        "task": "causal-lm",
        "labels": [],
        "files": [],
    }
    assert report["started_from"] == trained.provenance["started_from"] == origin
    assert trained.provenance["base_fingerprint"] == made.provenance["base_fingerprint"]
    card = (tmp_path / "out" / "README.md").read_text()
    digest = made.content_hash()[:16]
    assert f"- went on from the adapter `first` for causal-lm (SHA-256 `{digest}`)" in card


@pytest.mark.slow
def test_ranks_that_a_budget_has_left_stay(
    tiny_llama: Path, write_rows: Callable[..., str], settings: dict[str, Any], tmp_path: Path
) -> None:
    made = make_adapter(
        tiny_llama, tmp_path / "first", Spec(rank=2, delta="adalora"), "causal-lm", []
    )
    for i, delta in enumerate(made.deltas.values()):
        assert isinstance(delta, AdaLoRA)
        delta.E.data[: i % 3] = 0
        delta.prune()
    ranks = [delta.rank for delta in made.deltas.values()]
    assert set(ranks) == {0, 1, 2}
    made.save(tmp_path / "first")
    settings |= {"model": str(tiny_llama), "data": write_rows(), "adapter": str(tmp_path / "first")}
    train_adapter(TrainSpec(**settings), Spec())
    train_adapter(TrainSpec(**{**settings, "steps": 3}, resume=True), Spec())
    assert [delta.rank for delta in Adapter.load(tmp_path / "out").deltas.values()] == ranks


@pytest.mark.slow
def test_a_head_that_the_adapter_lacks_is_new(
    tiny_bert: Path, write_rows: Callable[..., str], settings: dict[str, Any], tmp_path: Path
) -> None:
    made = make_adapter(tiny_bert, tmp_path / "first", Spec(rank=2), "classify", ["a", "b"])
    made.full_parameters.clear()
    made.spec = Spec(rank=2)
    made.save(tmp_path / "first")
    settings |= {"model": str(tiny_bert), "data": write_rows("a", "b")}
    said: list[str] = []
    job = prepare_run(
        TrainSpec(**settings, adapter=str(tmp_path / "first")), Spec(), said.append
    ).job
    assert (
        "note: the head (classifier) is made anew and trained in full: the adapter holds no "
        in (" ".join(said))
    )
    assert set(job.adapter.full_parameters) == {"classifier.weight", "classifier.bias"}


THREE = ["contradiction", "entailment", "neutral"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "labels", "told"),
    [
        ("classify", ["entailment", "not"], "classify with 2 classes (entailment, not)"),
        ("classify", ["a", "b", "c"], "classify with 3 classes (a, b, c)"),
        ("regress", [], "regress"),
        ("classify", THREE, ""),
    ],
)
def test_a_head_is_kept_for_the_same_classes_and_made_anew_for_others(
    task: str,
    labels: list[str],
    told: str,
    tiny_bert: Path,
    write_rows: Callable[..., str],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    # The outputs of the adapter may have another order than the names in the rows.
    made = make_adapter(tiny_bert, tmp_path / "first", Spec(rank=2), "classify", THREE[::-1])
    data = write_rows(*labels) if labels else numeric(write_rows(), tmp_path)
    settings |= {"model": str(tiny_bert), "data": data, "adapter": str(tmp_path / "first")}
    said: list[str] = []
    job = prepare_run(TrainSpec(**settings), Spec(), said.append).job
    notes = [line for line in said if "made anew" in line]
    assert same(low_rank(job.adapter), low_rank(made))
    assert job.adapter.spec == made.spec
    head = job.adapter.full_parameters["classifier.weight"]
    if not told:
        assert not notes and job.adapter == made and job.labels == THREE[::-1]
    else:
        assert notes == [
            "note: the head (classifier) is made anew and trained in full: the adapter was trained "
            "for classify with 3 classes (neutral, entailment, contradiction), this run is for "
            f"{told}; the rest of the adapter is kept"
        ]
        assert head.shape == (len(labels) or 1, 32) and head.requires_grad
        fresh = load(str(tiny_bert), task, labels=labels).model
        assert torch.equal(head, fresh.get_parameter("classifier.weight"))
    report = train_adapter(TrainSpec(**settings), Spec())
    assert report["started_from"] and report["started_from"]["task"] == "classify"
    trained = Adapter.load(tmp_path / "out")
    opened = open_model(str(tiny_bert), trained, task)
    assert opened.labels == (list(job.labels) if labels else [])
    assert trained.count_outputs() == (len(labels) or 1)


@pytest.mark.slow
def test_a_language_models_adapter_starts_a_classifier_of_the_same_layers(
    tiny_llama: Path, write_rows: Callable[..., str], settings: dict[str, Any], tmp_path: Path
) -> None:
    made = make_adapter(tiny_llama, tmp_path / "first", Spec(rank=2), "causal-lm", [])
    settings |= {
        "model": str(tiny_llama),
        "data": write_rows("a", "b"),
        "adapter": str(tmp_path / "first"),
    }
    job = prepare_run(TrainSpec(**settings), Spec()).job
    assert same(low_rank(job.adapter), low_rank(made))
    assert job.adapter.spec.full_modules == ("score",)
    # The same layers with other weights.
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    other.model.norm.weight.data.mul_(2)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "other")
    settings["model"] = str(tmp_path / "other")
    with pytest.raises(AdapterMismatch, match=r"trained on other base weights(?s:.*)--any-base"):
        prepare_run(TrainSpec(**settings), Spec())
    job = prepare_run(TrainSpec(**settings, any_base=True), Spec()).job
    assert same(low_rank(job.adapter), low_rank(made))
    provenance = made.provenance["base_fingerprint"], job.adapter.provenance["base_fingerprint"]
    assert provenance[0] != provenance[1]


@pytest.mark.slow
def test_an_adapter_of_other_layers_or_another_base_is_refused(
    tiny_llama: Path,
    tiny_bert: Path,
    write_rows: Callable[..., str],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    make_adapter(tiny_llama, tmp_path / "first", Spec(rank=2), "causal-lm", [])
    settings |= {"data": write_rows("a", "b"), "adapter": str(tmp_path / "first")}
    with pytest.raises(AdapterMismatch, match=r"layers.0.self_attn.q_proj +is not in the model"):
        prepare_run(TrainSpec(**settings, model=str(tiny_bert)), Spec())
    assert not (tmp_path / "out").exists()


def test_settings_that_contradict_the_adapter_are_refused_all_at_once(
    tiny_llama: Path,
    write_rows: Callable[..., str],
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_adapter(tiny_llama, tmp_path / "first", Spec(rank=2, targets="qv"), "causal-lm", [])
    words = ["train", "--model", str(tiny_llama), "--data", write_rows()]
    words += ["--output", settings["output"], "--adapter", str(tmp_path / "first")]
    asked = ["--rank", "16", "--alpha", "32", "--targets", "mlp", "--init", "pissa"]
    assert main([*words, *asked]) == 2
    told = capsys.readouterr().err
    assert "3 settings of this one cannot be used with" in told.replace("\n", " ")
    assert "rank: 16 is asked, the adapter has 2" in told
    assert "targets: 'mlp' is asked, the adapter has 'qv'" in told
    assert "init: is for the start of a new adapter" in told
    with pytest.raises(SpecError, match="rank: 3 is asked, the adapter has 2"):
        prepare_run(
            TrainSpec(
                **settings,
                model=str(tiny_llama),
                data=write_rows(),
                adapter=str(tmp_path / "first"),
            ),
            Spec(rank=3),
        )


def test_settings_of_ranks_and_the_own_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        TrainSpec(
            model="m",
            data="d",
            output=str(tmp_path),
            adapter=str(tmp_path / "checkpoints" / "step-000010"),
            ranks="linear",
            rank_budget=10,
            target_rank=2,
            overwrite=True,
        )
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "ranks",
        "rank_budget",
        "target_rank",
        "output",
    ]
    with pytest.raises(SpecError, match="any_base: is about the base of an --adapter"):
        TrainSpec(model="m", data="d", output=str(tmp_path), any_base=True)


@pytest.mark.slow
def test_stopped_and_resumed_equals_straight_and_another_adapter_is_refused(
    tiny_bert: Path, write_rows: Callable[..., str], settings: dict[str, Any], tmp_path: Path
) -> None:
    make_adapter(tiny_bert, tmp_path / "first", Spec(rank=2, dropout=0.1), "classify", THREE)
    settings |= {
        "model": str(tiny_bert),
        "data": write_rows("a", "b"),
        "adapter": str(tmp_path / "first"),
        "schedule": "constant",
        "eval_every": 2,
    }
    whole = {**settings, "steps": 4, "output": str(tmp_path / "whole")}
    train_adapter(TrainSpec(**whole), Spec())
    train_adapter(TrainSpec(**settings), Spec())
    assert try_run(TrainSpec(**settings, resume=True), Spec())["first_step"] == 2
    train_adapter(TrainSpec(**{**settings, "steps": 4}, resume=True), Spec())
    assert Adapter.load(tmp_path / "out") == Adapter.load(tmp_path / "whole")
    other = Adapter.load(tmp_path / "first")
    next(other.parameters()).data.add_(1)
    other.save(tmp_path / "first")
    with pytest.raises(OutputError, match="the adapter to go on from: was"):
        train_adapter(TrainSpec(**settings, resume=True), Spec())


@pytest.mark.slow
def test_the_tokenizer_of_the_adapters_folder_is_used_and_handed_on(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    first = tmp_path / "first"
    make_adapter(tiny_llama, first, Spec(rank=2), "causal-lm", [])
    base = load(str(tiny_llama), "causal-lm")
    base.tokenizer.chat_template = str(base.tokenizer.chat_template) + "{# of its own #}"
    base.tokenizer.save_pretrained(first)
    rows = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog"}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    settings |= {"model": str(tiny_llama), "data": str(rows), "adapter": str(first)}
    said: list[str] = []
    report = train_adapter(TrainSpec(**settings), Spec(), said.append)
    assert any("the tokenizer and the chat template of" in line for line in said)
    copied = (report["started_from"] or {"files": []})["files"]
    assert "tokenizer.json" in copied
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (first / name).read_bytes()
    settings.pop("adapter")
    train_adapter(TrainSpec(**settings, overwrite=True), Spec(rank=2))
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "tokenizer.json").write_text("mine")
    with pytest.raises(OutputError, match=r"no run of lorakit wrote them: tokenizer.json"):
        train_adapter(
            TrainSpec(**{**settings, "output": str(foreign), "adapter": str(first)}), Spec()
        )


@pytest.mark.slow
def test_half_precision_is_trained_in_float32(
    tiny_llama: Path, write_rows: Callable[..., str], settings: dict[str, Any], tmp_path: Path
) -> None:
    make_adapter(tiny_llama, tmp_path / "first", Spec(rank=2, dtype="float16"), "causal-lm", [])
    settings |= {"model": str(tiny_llama), "data": write_rows(), "adapter": str(tmp_path / "first")}
    assert train_adapter(TrainSpec(**settings), Spec())["spec"]["dtype"] == "float32"
    assert Adapter.load(tmp_path / "out").dtype == torch.float32
