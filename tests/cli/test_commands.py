"""Each command does what its help says, on stdout for people or as one JSON object, and the
commands fit together.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lorakit
from lorakit import Adapter
from lorakit.cli.__main__ import COMMANDS, help_pages, main

from ..conftest import sentences
from ..train.test_run import stop_after


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    pairs = [{"prompt": s[: len(s) // 2], "completion": s[len(s) // 2 :]} for s in sentences(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    labelled = [f"{s}\t{'yes' if 'cat' in s else 'no'}\n" for s in sentences(80, seed=1)]
    (folder / "labelled.tsv").write_text("sentence\tkind\n" + "".join(labelled))
    (folder / "story.txt").write_text(
        "\n\n".join(" ".join(sentences(5, seed=i)) for i in range(60))
    )
    chat = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "on a mat."}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    return folder


@pytest.fixture(scope="module")
def writer(tiny_llama: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny causal model."""
    out = tmp_path_factory.mktemp("runs") / "writer"
    data = str(files / "pairs.jsonl")
    assert (
        main(
            [
                "train",
                "--model",
                str(tiny_llama),
                "--data",
                data,
                "--output",
                str(out),
                "--rank",
                "4",
                "--steps",
                "15",
                "--batch-size",
                "8",
                "--lr",
                "0.01",
            ]
        )
        == 0
    )
    return out


@pytest.fixture(scope="module")
def judge(tiny_bert: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny encoder, with a head of its own."""
    out = tmp_path_factory.mktemp("runs") / "judge"
    data = str(files / "labelled.tsv")
    assert (
        main(
            [
                "train",
                "--model",
                str(tiny_bert),
                "--data",
                data,
                "--columns",
                "text=sentence",
                "label=kind",
                "--output",
                str(out),
                "--rank",
                "4",
                "--steps",
                "30",
                "--lr",
                "0.01",
                "--targets",
                "qv",
            ]
        )
        == 0
    )
    return out


def ask(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """Run a command with --json; stdout is one JSON object and nothing else."""
    capsys.readouterr()
    code = main([*map(str, argv), "--json"])
    out, errors = capsys.readouterr()
    assert code == 0, errors
    assert out.count("\n") == 1
    return json.loads(out)


def tell(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    code = main([*map(str, argv)])
    out, errors = capsys.readouterr()
    assert code == 0, errors
    return out


@pytest.mark.slow
def test_train_tells_before_and_after_and_what_to_type_next(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, files: Path, tmp_path: Path
) -> None:
    out = tell(
        capsys,
        "train",
        "--model",
        tiny_llama,
        "--data",
        files / "story.txt",
        "--output",
        tmp_path / "o",
        "--steps",
        3,
    )
    next_one = f"lorakit eval --model {tiny_llama} --adapter {tmp_path}/o"
    for text in (
        "held-out data",
        "before",
        "after",
        "perplexity",
        "loss: ⠒ training, o held out",
        "adapter_model.safetensors",
        "report.json",
        next_one,
    ):
        assert text in out


@pytest.mark.slow
def test_train_draws_the_losses_where_a_picture_is_wanted(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, files: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    run = ["train", "--model", tiny_llama, "--data", files / "pairs.jsonl", "--steps", 3]
    run += ["--output", tmp_path / "out", "--plot"]
    assert main([*map(str, run), str(tmp_path / "curve.sgv")]) == 2
    assert "curve.sgv: .sgv is no kind of picture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    picture = tmp_path / "curve.svg"
    assert f"Picture: {picture}" in tell(capsys, *run, picture)
    assert picture.read_text().startswith("<?xml")


@pytest.mark.slow
def test_train_takes_ids_of_tokens_whose_rows_train(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, files: Path, tmp_path: Path
) -> None:
    ask(
        capsys,
        "train",
        "--model",
        tiny_llama,
        "--data",
        files / "story.txt",
        "--output",
        tmp_path / "o",
        "--steps",
        2,
        "--targets",
        "qv",
        "--token-rows",
        7,
        9,
    )
    adapter = Adapter.load(tmp_path / "o")
    rows = adapter.deltas["model.embed_tokens"]
    assert rows.tokens.tolist() == [7, 9] and adapter.spec.token_rows == (7, 9)
    assert rows.new.shape == (2, 32) and len(adapter.deltas) == 5


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint_to_the_same_adapter(
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def command(name: str, *more: str) -> list[str]:
        return [
            "train",
            "--model",
            str(tiny_llama),
            "--data",
            str(files / "story.txt"),
            "--output",
            str(tmp_path / name),
            "--steps",
            "4",
            "--rank",
            "2",
            "--checkpoint-every",
            "2",
            *more,
        ]

    assert main(command("straight")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3, RuntimeError("the power went out"))
        assert main(command("stopped")) == 1
    assert not (tmp_path / "stopped" / "adapter_model.safetensors").exists()
    told = tell(capsys, *command("stopped", "--resume"))
    assert "after" in told and Adapter.load(tmp_path / "stopped") == Adapter.load(
        tmp_path / "straight"
    )


@pytest.mark.slow
def test_a_users_own_text_lowers_its_perplexity(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, files: Path, tmp_path: Path
) -> None:
    report = ask(
        capsys,
        "train",
        "--model",
        tiny_llama,
        "--data",
        files / "story.txt",
        "--output",
        tmp_path / "o",
        "--steps",
        30,
        "--rank",
        4,
        "--batch-size",
        8,
    )
    assert report["after"]["perplexity"] < 0.8 * report["before"]["perplexity"]


@pytest.mark.slow
def test_the_commands_that_train_prints_work_as_they_stand(
    capsys: pytest.CaptureFixture[str], judge: Path, tiny_bert: Path, files: Path, tmp_path: Path
) -> None:
    data = ("--data", files / "labelled.tsv", "--columns", "text=sentence", "label=kind")
    out = tell(
        capsys, "train", "--model", tiny_bert, *data, "--output", tmp_path / "my run", "--steps", 3
    )
    commands = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  lorakit ")]
    assert [c[0] for c in commands] == ["eval", "inspect", "merge"]
    for command in commands:
        tell(capsys, *command)


@pytest.mark.slow
def test_a_config_file_gives_settings_and_flags_win(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, files: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny_llama}\ndata: {files / 'story.txt'}\n"
        "steps: 2\nrank: 8\nlr: 1e-3\nbatch-size: 4\n"
        "targets: [q_proj, up_proj]\noverrides: {up_proj: {rank: 2}}\n"
    )
    report = ask(capsys, "train", "--config", config, "--output", tmp_path / "o", "--rank", 4)
    assert (report["spec"]["rank"], report["lr"], report["settings"]["batch_size"]) == (4, 1e-3, 4)
    ranks = {
        m["name"].split(".")[-1]: m["adapters"]["default"]["rank"]
        for m in report["coverage"]["modules"]
    }
    assert ranks == {"q_proj": 4, "up_proj": 2}


@pytest.mark.slow
def test_several_data_sets_have_their_weights_from_flags_and_yaml(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    sources = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for source, count in zip(sources, (40, 10), strict=True):
        source.write_text("".join(f'{{"text": "{source.stem} {i}"}}\n' for i in range(count)))
    config = tmp_path / "run.yaml"
    config.write_text(f"data: [{sources[0]}, {sources[1]}]\ndata-weights: [1, 1]\n")
    given = ["--data", *sources, "--data-weights", 1, 1]
    reports = []
    for number, flags in enumerate((given, ["--config", config])):
        output = tmp_path / f"o{number}"
        basic = ["--model", tiny_llama, "--steps", 1, "--eval-fraction", 0, "--output", output]
        reports.append(ask(capsys, "train", *basic, *flags))
    for report in reports:
        assert (report["rows"], report["rows_repeated"]) == (80, 0)
        assert report["settings"]["data"] == [str(source) for source in sources]
        assert report["settings"]["data_weights"] == [1, 1]
    assert reports[0]["data_hash"] == reports[1]["data_hash"]


@pytest.mark.slow
def test_eval_agrees_with_what_training_measured(
    capsys: pytest.CaptureFixture[str],
    judge: Path,
    writer: Path,
    tiny_bert: Path,
    tiny_llama: Path,
    files: Path,
) -> None:
    found = ask(
        capsys,
        "eval",
        "--model",
        tiny_bert,
        "--adapter",
        judge,
        "--data",
        files / "labelled.tsv",
        "--columns",
        "text=sentence",
        "label=kind",
    )
    assert {"accuracy", "f1", "matthews", "loss", "rows"} <= found.keys()
    assert found["rows"] == 80
    base = ask(capsys, "eval", "--model", tiny_llama, "--data", files / "pairs.jsonl")
    tuned = ask(
        capsys, "eval", "--model", tiny_llama, "--adapter", writer, "--data", files / "pairs.jsonl"
    )
    assert tuned["perplexity"] < base["perplexity"]
    assert tuned["tokens"] == base["tokens"]
    assert "perplexity" in tell(
        capsys, "eval", "--model", tiny_llama, "--adapter", writer, "--data", files / "pairs.jsonl"
    )


@pytest.mark.slow
def test_text_metrics_gather_all_references_of_a_prompt(
    capsys: pytest.CaptureFixture[str], writer: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": "the cat", "completion": c}) + "\n" for c in (" sat.", " ran.")
        )
    )
    found = ask(
        capsys,
        "eval",
        "--model",
        tiny_llama,
        "--adapter",
        writer,
        "--data",
        data,
        "--text-metrics",
        "--max-new-tokens",
        4,
    )
    assert found["prompts"] == 1
    assert {"bleu", "chrf", "rouge_l"} <= found.keys()


@pytest.mark.slow
def test_generate_is_greedy_unless_told_and_sampling_follows_its_seed(
    capsys: pytest.CaptureFixture[str], writer: Path, tiny_llama: Path
) -> None:
    def texts(*more: object) -> list[str]:
        found = ask(
            capsys,
            "generate",
            "--model",
            tiny_llama,
            "--adapter",
            writer,
            "--prompt",
            "the cat",
            "a dog saw the",
            "--max-new-tokens",
            12,
            *more,
        )
        assert [a["prompt"] for a in found["answers"]] == ["the cat", "a dog saw the"]
        return [a["text"] for a in found["answers"]]

    greedy = texts()
    assert greedy == texts("--seed", 3) == texts("--batch-size", 1)
    warm = texts("--temperature", 2.0, "--seed", 1)
    assert (
        warm == texts("--temperature", 2.0, "--seed", 1) != texts("--temperature", 2.0, "--seed", 2)
    )
    assert texts("--beams", 3)
    assert tell(
        capsys, "generate", "--model", tiny_llama, "--prompt", "the cat", "--max-new-tokens", 3
    ).strip()


@pytest.mark.slow
def test_generate_writes_answers_to_a_file_once_a_prompt(
    capsys: pytest.CaptureFixture[str], writer: Path, tiny_llama: Path, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    ask(
        capsys,
        "generate",
        "--model",
        tiny_llama,
        "--adapter",
        writer,
        "--data",
        files / "pairs.jsonl",
        "--limit",
        5,
        "--output",
        out,
        "--max-new-tokens",
        4,
    )
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == 5 and all(a.keys() == {"prompt", "text"} for a in answers)
    assert (
        main(["generate", "--model", str(tiny_llama), "--prompt", "x", "--output", str(out)]) == 2
    )
    chat = ask(
        capsys,
        "generate",
        "--model",
        tiny_llama,
        "--data",
        files / "chat.jsonl",
        "--max-new-tokens",
        3,
    )
    assert chat["answers"][0]["prompt"] == [{"role": "user", "content": "the cat?"}]
    assert ask(
        capsys, "generate", "--model", tiny_llama, "--prompt", "hi", "--chat", "--max-new-tokens", 3
    )["answers"]


@pytest.mark.slow
def test_preview_marks_what_is_trained(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tiny_bert: Path, files: Path
) -> None:
    first = json.loads((files / "pairs.jsonl").read_text().splitlines()[0])
    found = ask(
        capsys, "preview", "--model", tiny_llama, "--data", files / "pairs.jsonl", "--show", 2
    )
    trained = "".join(piece for piece, on in found["shown"][0]["pieces"] if on)
    assert trained == first["completion"] + "</s>"
    assert (found["eos_trained"], found["sequences"], found["rows_cut"]) == (60, 60, 0)
    assert sum(h["count"] for h in found["histogram"]) == 60
    short = ask(
        capsys,
        "preview",
        "--model",
        tiny_llama,
        "--data",
        files / "pairs.jsonl",
        "--max-length",
        12,
    )
    assert short["rows_cut"] > 0 and short["tokens"] + short["tokens_cut"] == found["tokens"]
    out = tell(capsys, "preview", "--model", tiny_llama, "--data", files / "pairs.jsonl")
    assert "</s>]\n" in out and "Trained tokens are in [brackets]." in out and "█" in out
    assert "sequences whose EOS is trained   60 (</s>)" in out
    out = tell(
        capsys,
        "preview",
        "--model",
        tiny_bert,
        "--data",
        files / "labelled.tsv",
        "--columns",
        "text=sentence",
        "label=kind",
    )
    assert "-> yes" in out or "-> no" in out
    assert "label" in out and "rows" in out


@pytest.mark.slow
def test_inspect_tells_what_is_in_an_adapter(
    capsys: pytest.CaptureFixture[str], judge: Path, tiny_bert: Path
) -> None:
    found = ask(capsys, "inspect", judge, "--model", tiny_bert)
    assert len(found["modules"]) == 4
    fields = {
        "name",
        "kind",
        "shape",
        "rank",
        "alpha",
        "scale",
        "norm",
        "relative_norm",
        "singular_values",
        "effective_rank",
    }
    for module in found["modules"]:
        assert fields <= module.keys()
        assert len(module["singular_values"]) == module["rank"] == 4
        assert module["relative_norm"] > 0
    assert found["trainable_parameters"] == 4 * 4 * 64 + 2 * 32 + 2
    assert "Trained in full: classifier.bias" in tell(capsys, "inspect", judge)
    targets = ask(capsys, "inspect", tiny_bert, "--targets")["targets"]
    assert {
        "name": "encoder.layer.0.attention.self.query",
        "kind": "linear",
        "shape": [32, 32],
        "role": "q",
    } in targets


def test_inspect_says_that_an_adapter_was_never_trained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from torch import nn

    import lorakit

    lorakit.attach(nn.Sequential(nn.Linear(8, 8)), lorakit.Spec(rank=2)).save(tmp_path / "fresh")
    assert "This adapter was never trained: every B is zero" in tell(
        capsys, "inspect", tmp_path / "fresh"
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_merge_writes_a_plain_model_that_gives_what_the_adapter_gave(
    dtype: str, capsys: pytest.CaptureFixture[str], writer: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorakit.adapter import Adapter
    from lorakit.models.open import open_model

    found = ask(
        capsys,
        "merge",
        "--model",
        tiny_llama,
        "--adapter",
        writer,
        "--output",
        tmp_path / "merged",
        "--dtype",
        dtype,
    )
    assert found["dtype"] == ("float32" if dtype == "auto" else dtype)
    assert found["differs_from_base"] > 0 and found["top1_agreement"] > 0.9
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert str(merged.dtype) == f"torch.{found['dtype']}"
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")(
        "the cat sat on", return_tensors="pt"
    ).input_ids
    both = open_model(str(tiny_llama), Adapter.load(writer), "causal-lm")
    with torch.inference_mode():
        difference = (merged(ids).logits.float() - both.model(ids).logits).abs().max()
    assert difference < (1e-4 if dtype == "auto" else 0.5)
    assert not [p for p in tmp_path.rglob("*") if "lorakit" in p.name]
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "merged").iterdir()} == {0o666 & ~umask()}


def umask() -> int:
    import os

    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.slow
def test_a_classifier_with_a_new_head_is_merged_in_half_the_bits(
    capsys: pytest.CaptureFixture[str], judge: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    from lorakit.adapter import Adapter

    # What the base's own head loses to rounding says nothing of a trained one, whose logits are
    # many times as large.
    loud = Adapter.load(judge)
    loud.full_parameters["classifier.weight"].data *= 1000
    loud.save(tmp_path / "loud")
    found = ask(
        capsys,
        "merge",
        "--model",
        tiny_bert,
        "--adapter",
        tmp_path / "loud",
        "--output",
        tmp_path / "m",
        "--dtype",
        "bfloat16",
    )
    assert 0 < found["max_logit_difference"] < found["adapter_moves"]


@pytest.mark.slow
def test_merge_of_a_classifier_keeps_its_labels(
    capsys: pytest.CaptureFixture[str], judge: Path, tiny_bert: Path, files: Path, tmp_path: Path
) -> None:
    data = ("--data", files / "labelled.tsv", "--columns", "text=sentence", "label=kind")
    ask(
        capsys,
        "merge",
        "--model",
        tiny_bert,
        "--adapter",
        judge,
        "--output",
        tmp_path / "merged",
        *data[:2],
        "--columns",
        "text=sentence",
        "label=kind",
    )
    merged = ask(capsys, "eval", "--model", tmp_path / "merged", *data)
    both = ask(capsys, "eval", "--model", tiny_bert, "--adapter", judge, *data)
    assert merged["accuracy"] == both["accuracy"]
    assert merged["loss"] == pytest.approx(both["loss"], abs=1e-5)


@pytest.mark.slow
def test_merge_that_equals_the_base_is_refused_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], writer: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    from lorakit.adapter import Adapter

    fresh = Adapter.load(writer)
    for delta in fresh.deltas.values():
        delta.B.data.zero_()
    fresh.save(tmp_path / "fresh")
    assert (
        main(
            [
                "merge",
                "--model",
                str(tiny_llama),
                "--adapter",
                str(tmp_path / "fresh"),
                "--output",
                str(tmp_path / "m"),
            ]
        )
        == 2
    )
    assert (
        "MergeError: The merged model equals the base in float32: no weight changes."
        in capsys.readouterr().err
    )
    for delta in fresh.deltas.values():
        delta.B.data.fill_(1e-5)
    fresh.save(tmp_path / "faint")
    faint = [
        "merge",
        "--model",
        str(tiny_llama),
        "--adapter",
        str(tmp_path / "faint"),
        "--output",
        str(tmp_path / "m"),
        "--dtype",
        "bfloat16",
    ]
    assert main(faint) == 2
    errors = capsys.readouterr().err
    assert "equals the base in bfloat16" in errors or "more than the adapter itself does" in errors
    assert not (tmp_path / "m").exists() and not list(tmp_path.glob(".m*"))


@pytest.mark.slow
def test_merge_that_came_back_otherwise_from_disk_is_refused(
    capsys: pytest.CaptureFixture[str],
    writer: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorakit.models.own_class import Candidate

    real = Candidate.load
    monkeypatch.setattr(
        Candidate, "load", lambda self, name, *rest: real(self, str(tiny_llama), *rest)
    )

    assert (
        main(
            [
                "merge",
                "--model",
                str(tiny_llama),
                "--adapter",
                str(writer),
                "--output",
                str(tmp_path / "m"),
            ]
        )
        == 2
    )
    errors = capsys.readouterr().err
    assert (
        "MergeError: 14 tensors of the merged model came back from disk changed." in errors
        and "q_proj.weight" in errors
    )
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_python_m_lorakit_is_the_command() -> None:
    for words in (["--help"], ["merge", "--help"]):
        run = [sys.executable, "-m", "lorakit", *words]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: lorakit")


def test_lines_of_help_fit_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, page in help_pages().items():
        long_lines = [line for line in page.splitlines() if len(line) > 80]
        assert long_lines == [], name


def test_help_breaks_no_name_at_a_hyphen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, page in help_pages().items():
        broken = [line for line in page.splitlines() if line.rstrip().endswith("-")]
        assert broken == [], name


def test_required_flags_are_marked_in_the_help() -> None:
    pages = {name: " ".join(page.split()) for name, page in help_pages().items()}
    assert pages["merge"].count("(required)") == 3
    assert pages["generate"].count("(required)") == 1
    assert pages["explain"].count("(required)") == 0


def test_help_of_every_command_names_every_flag_with_a_word() -> None:
    pages = help_pages()
    assert pages.keys() == {"", *COMMANDS}
    for name in COMMANDS:
        assert f"  {name}" in pages[""]
        assert "--json" in pages[name]


@pytest.mark.slow
def test_inspect_lays_two_adapters_beside_each_other_and_draws_them(
    capsys: pytest.CaptureFixture[str], writer: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "p.png"
    found = ask(
        capsys,
        "inspect",
        writer,
        "--with",
        writer,
        "--model",
        tiny_llama,
        "--intruders",
        "--plot",
        picture,
    )
    assert found["plot"] == str(picture) and picture.stat().st_size > 10_000
    assert {"norm", "effective_rank", "stable_rank", "rank_90", "dead_modules"} <= found.keys()
    assert all(
        {"energy", "amplification", "intruders", "dead"} <= m.keys() for m in found["modules"]
    )
    assert [p["name"] for p in found["pairs"]] == [m["name"] for m in found["modules"]]
    assert all(p["cosine"] == pytest.approx(1) for p in found["pairs"])
    out = tell(capsys, "inspect", writer, "--with", writer)
    assert "opposite signs" in out and "0 of 14 modules dead" in out


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorakit", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"lorakit {lorakit.__version__}\n")
