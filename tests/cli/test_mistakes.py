"""What users get wrong most often: told in words, exit code 2, nothing written."""

import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.cli.request import ModelRequest
from lorakit.errors import SpecError
from lorakit.evaluate.decoding import Decoding
from lorakit.spec import Spec
from lorakit.text import SWITCHES, SYNONYMS
from lorakit.train.config import TrainSpec


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "d.jsonl"
    path.write_text('{"text": "the cat sat on a mat."}\n' * 30)
    return str(path)


CASES = {
    "no such command": (
        ["trian"],
        "SpecError: There is no command 'trian'. Did you mean 'train' or 'rank'?",
    ),
    "a mistyped flag": (
        ["train", "--rnak", "8"],
        "unrecognized arguments: --rnak 8.\n  --rnak: did you mean '--rank'",
    ),
    "a word for a number": (
        ["train", "--rank", "eight"],
        "argument --rank: invalid int value: 'eight'",
    ),
    "an unknown choice": (["train", "--init", "pisa"], "argument --init: invalid choice: 'pisa'"),
    "nothing given": (
        ["train"],
        "3 faults in the settings of the run.\n  model: is needed\n  data: is needed\n"
        "  output: is needed",
    ),
    "a target that is not there": (
        ["train", "{llama}", "{rows}", "{out}", "--targets", "q_porj"],
        "did you mean 'q_proj' (2 layers",
    ),
    "half of the targets": (
        ["train", "{llama}", "{rows}", "{out}", "--targets", "q_proj,k_porj"],
        "1 of 2 targets matches nothing",
    ),
    "a rank too high": (
        ["train", "{llama}", "{rows}", "{out}", "--rank", "64"],
        "rank 64 is above min(in, out) = 16 (32 -> 16)",
    ),
    "a negative rank": (
        ["train", "{llama}", "{rows}", "{out}", "--rank", "-1"],
        "rank: a whole number of at least 1 is needed",
    ),
    "a model that is not there": (
        ["train", "--model", "no/such", "{rows}", "{out}"],
        "ModelError: The config of no/such cannot be read",
    ),
    "data that is not there": (
        ["train", "{llama}", "--data", "nope.jsonl", "{out}"],
        "DataError: There is no file nope.jsonl.",
    ),
    "a length too long": (
        ["train", "{llama}", "{rows}", "{out}", "--max-length", "999"],
        "the model takes at most 64",
    ),
    "a config that is not there": (
        ["train", "--config", "no.yaml"],
        "SpecError: no.yaml cannot be read",
    ),
    "nothing to resume": (
        ["train", "{llama}", "{rows}", "{out}", "--resume"],
        "There is no run in",
    ),
    "eval without data": (["eval", "{llama}"], "1 flag missing.\n  --data is needed"),
    "an adapter that is none": (
        ["eval", "{llama}", "{rows}", "--adapter", "{empty}"],
        "is not an adapter: there is no",
    ),
    "an adapter that is not there": (
        ["eval", "{llama}", "{rows}", "--adapter", "nope"],
        "nope is not an adapter: there is no",
    ),
    "an encoder without a head": (
        ["eval", "{bert}", "{labelled}"],
        "has no trained weights for classifier",
    ),
    "labels for a language model": (
        ["eval", "{llama}", "{labelled}", "--task", "causal-lm"],
        "have labels",
    ),
    "limit of nothing": (
        ["eval", "{llama}", "{rows}", "--limit", "0"],
        "--limit: at least 1 is needed, got 0",
    ),
    "an adapter as a model": (
        ["generate", "--model", "{adapter}", "--prompt", "a"],
        "It holds an adapter: name its base model",
    ),
    "no prompt": (["generate", "{llama}"], "Give either --prompt or --data."),
    "sampling without temperature": (
        ["generate", "{llama}", "--prompt", "a", "--top-p", "0.5"],
        "top_p: only sampling uses it",
    ),
    "a prompt too long": (
        ["generate", "{llama}", "--prompt", "cat " * 99],
        "too long to leave room for an answer (64 tokens)",
    ),
    "columns that are not there": (
        ["preview", "{llama}", "{rows}", "--columns", "text=body"],
        "No such column in",
    ),
    "a column that is no key": (
        ["preview", "{llama}", "{rows}", "--columns", "txt=text"],
        "did you mean 'text' or",
    ),
    "a task the rows do not suit": (
        ["preview", "{llama}", "{rows}", "--task", "classify"],
        "have no label",
    ),
    "inspect of nothing": (["inspect", "nope"], "nope is not an adapter"),
    "inspect of a model": (["inspect", "{model}"], "is not an adapter"),
    "inspect without a subject": (["inspect"], "the following arguments are required: SUBJECT"),
    "targets and a model": (
        ["inspect", "{model}", "--targets", "--model", "x"],
        "give only the model",
    ),
    "intruders without a base": (
        ["inspect", "x", "--intruders"],
        "--intruders compares with the base's own directions",
    ),
    "a picture of no kind": (["inspect", "x", "--plot", "p.txt"], ".txt is no kind of picture"),
    "merge into what is there": (
        ["merge", "{llama}", "--adapter", "{adapter}", "--output", "{full}"],
        "is not empty",
    ),
    "merge without an adapter": (["merge", "{llama}", "--output", "m"], "--adapter is needed"),
    "merge with what does not fit": (
        ["merge", "{llama}", "--adapter", "{adapter}", "--output", "m"],
        "AdapterMismatch: The adapter",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_and_nothing_is_written(
    case: str,
    rows: str,
    tiny_llama: Path,
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torch import nn

    import lorakit

    folder = tmp_path / "work"
    (folder / "full").mkdir(parents=True)
    (folder / "full" / "x").write_text("")
    (folder / "empty").mkdir()
    (folder / "labelled.jsonl").write_text(
        '{"text": "a", "label": "0"}\n{"text": "b", "label": "1"}\n'
    )
    lorakit.attach(nn.Sequential(nn.Linear(8, 8)), lorakit.Spec(rank=2)).save(folder / "adapter")
    words = {
        "{llama}": ["--model", str(tiny_llama)],
        "{bert}": ["--model", str(tiny_bert)],
        "{rows}": ["--data", rows],
        "{labelled}": ["--data", "labelled.jsonl"],
        "{out}": ["--output", "out"],
        "{model}": [str(tiny_llama)],
        "{adapter}": ["adapter"],
        "{empty}": ["empty"],
        "{full}": ["full"],
    }
    argv, text = CASES[case]
    argv = [word for part in argv for word in words.get(part, [part])]
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(argv) == 2
    out, errors = capsys.readouterr()
    assert text in errors
    assert "Traceback" not in errors and out == ""
    assert main([*argv, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert {"error", "message", "faults"} <= told.keys()
    assert sorted(folder.rglob("*")) == before


def test_a_failure_nobody_foresaw_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: str, tiny_llama: Path
) -> None:
    from lorakit.evaluate import preview

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(preview, "preview", broken)
    assert main(["preview", "--model", str(tiny_llama), "--data", rows]) == 1
    errors = capsys.readouterr().err
    assert "error: ZeroDivisionError: by nought" in errors and "LORAKIT_TRACEBACK=1" in errors


@pytest.mark.slow
def test_help_answers_at_once_and_imports_no_torch() -> None:
    code = (
        "import sys; from lorakit.cli.__main__ import help_pages; help_pages(); "
        "print('torch' in sys.modules)"
    )
    begun = time.process_time()
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "False\n"
    )
    assert time.process_time() - begun < 5


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tiny_llama: Path) -> None:
    command = f"{sys.executable} -m lorakit.cli inspect {tiny_llama} --targets | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


WRONG_ROWS = {  # what a file holds -> what is said of it
    "deep.jsonl": (b"[" * 100_000, "is not JSON"),
    "binary.jsonl": (b"\xc3\xa9\x00\xff", "is not UTF-8: byte 3 cannot be read"),
    "twice.csv": (b"text,text,label\na,b,1\n", "more than one column called 'text'"),
    "semicolons.csv": (b"head;kind\na;1\n", "its fields seem to be separated by ';', not by ','"),
    "open.csv": (b'"text,label\na,1\n', "The first line of open.csv cannot be read"),
    "nan.jsonl": (
        b'{"text": "a", "label": NaN}\n{"text": "b", "label": 0.5}\n',
        "'label' is nan, a word or a number is needed",
    ),
    "rows.JSON": (b'{"text": "a"}', "holds a dict, a list of rows is needed"),
    "rows.jsonl.gz": (b"\x1f\x8b", "cannot be unpacked"),
    "blank.txt": (b"\n \n", "'text' is empty"),
    "table.parquet": (b"PAR1 and no more", "cannot be read as a table"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_file_that_is_no_table_of_rows_is_told(
    name: str,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content, text = WRONG_ROWS[name]
    Path(name).write_bytes(content)
    assert main(["preview", "--model", str(tiny_llama), "--data", name]) == 2
    errors = capsys.readouterr().err
    assert text in errors and errors.startswith("DataError: ")


WRONG_SETTINGS = {  # what a YAML file says -> what is said of it
    "overwrite: 'no'": "overwrite: yes or no is needed, got 'no'",
    "model: [a, b]": "model: text is needed, got ['a', 'b']",
    "output: 3": "output: text is needed, got 3",
    "eval_fraction: 2": "eval_fraction: a share from 0 to below 1 is needed, got 2",
    'rank: "8"': "rank: a whole number of at least 1 is needed, got '8'",
    "steps: 1e2": "steps: a whole number of at least 1 is needed, got 100.0",
    "columns: {txt: review}": "did you mean 'text'",
    "dtype: float16": "dtype: Adam's steps are not finite in float16",
    "a: b: c": "cannot be read: mapping values are not allowed in this context",
    "schedule: cosin": "did you mean 'cosine'?",
    "delta: lor": "did you mean 'lora'?",
    "bias: al": "did you mean 'all'?",
}


@pytest.mark.parametrize("line", WRONG_SETTINGS)
def test_a_setting_of_the_wrong_type_is_told(
    line: str, rows: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    own = "" if ": " not in line or line.startswith("a:") else line.split(":")[0]
    given = {"model": tiny_llama, "data": rows, "output": tmp_path / "out"}
    config.write_text(
        "".join(f"{key}: {value}\n" for key, value in given.items() if key != own) + line + "\n"
    )
    assert main(["train", "--config", str(config)]) == 2
    assert WRONG_SETTINGS[line] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


ALIASES = ["a0: &a0 {rank: 8}"]
for level in range(1, 30):
    inside = ", ".join([f"*a{level - 1}"] * 10)
    ALIASES.append(f"a{level}: &a{level} [{inside}]")
UNBOUNDED = {  # what a YAML file says -> what is said of it
    "\n".join(ALIASES): "with its aliases written out it exceeds 512.0 KiB",
    "\n".join(ALIASES).replace("[", "{<<: [").replace("]", "]}"): "its aliases written out",
    "a: &a [*a]": "*a contains itself",
    "a: " + "[" * 5000: "it is nested more than 50 levels deep",
    "- " * 5000: "it is nested more than 50 levels deep",
    "a: " + "x" * 600_000: "it has more than 512.0 KiB",
    "a: " + "é" * 300_000: "it has more than 512.0 KiB",
    "a: 2020-13-45": "month must be in 1..12",
    "a: !!timestamp x": "cannot be read",
    "a: " + "9" * 5000: "cannot be read",
    "rank: 1" + ":20" * 150_000: "a value has 450,001 characters, 2,000 are the limit",
    "lr: 0x" + "f" * 3600: "a value has 3,602 characters, 2,000 are the limit",
    "lr: 1" + ":20" * 500 + ".5": "cannot be read: int too large to convert to float",
    "\n".join(f"k{i}: 1" for i in range(40_000)): "has 40,000 keys; no command has 1,000",
    "1: 1": "has a key that is no text",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", UNBOUNDED, ids=[text[:12] for text in UNBOUNDED])
def test_a_config_is_read_in_bounded_time(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    begun = time.process_time()
    assert main(["train", "--config", str(config)]) == 2
    assert time.process_time() - begun < 5
    assert UNBOUNDED[text] in capsys.readouterr().err


FOREIGN = {  # a setting of another library -> ours, on the command line and in YAML
    "learning_rate": ("--lr", "lr"),
    "lora_r": ("--rank", "rank"),
    "r": ("--rank", "rank"),
    "lora_alpha": ("--alpha", "alpha"),
    "target_modules": ("--targets", "targets"),
    "modules_to_save": ("--full-modules", "full_modules"),
    "per_device_train_batch_size": ("--batch-size", "batch_size"),
    "num_train_epochs": ("--epochs", "epochs"),
    "output_dir": ("--output", "output"),
    "cutoff_len": ("--max-length", "max_length"),
    "use_dora": ("--delta dora", "delta: dora"),
    "bf16": ("--mixed-precision bf16", "mixed_precision: bf16"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_setting_of_another_library_is_translated(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag, field = FOREIGN[name]
    for word in (f"--{name}", f"--{name.replace('_', '-')}", f"--{name}=8", f"{name}=8"):
        assert main(["train", word]) == 2
        assert f": did you mean '{flag}'?" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(f"{name}: 8\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert f"'{name}' is no setting; did you mean '{field}'?" in capsys.readouterr().err
    for cls in (Spec, TrainSpec):
        own = field.partition(":")[0]
        if own in {one.name for one in fields(cls)}:
            with pytest.raises(
                SpecError, match=f"'{name}' is no field of .*; did you mean .*{own}"
            ):
                cls(**{name: 8})


def test_every_synonym_is_of_a_setting_and_names_no_setting() -> None:
    classes = (Spec, TrainSpec, Decoding, ModelRequest)
    names = {one.name for cls in classes for one in fields(cls)}
    values = {one.name: one.metadata.get("choices") for cls in classes for one in fields(cls)}
    assert set(SYNONYMS) <= names
    words = [word for others in SYNONYMS.values() for word in others.split()]
    assert len(words) == len(set(words)) and not {*words, *SWITCHES} & names
    assert all(value in values[name] for name, value in SWITCHES.values())


def test_faults_of_the_run_and_of_the_adapter_are_told_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--model", "m", "--data", "d", "--rank", "0"]) == 2
    assert capsys.readouterr().err.startswith(
        "SpecError: 2 faults in the settings.\n  output: is needed\n  rank: a whole number"
    )


def test_a_config_that_is_no_text_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "run.yaml cannot be read" in capsys.readouterr().err


NUMBERS = {
    "eval": (
        ["--max-length", "1"],
        ["--batch-size", "0"],
        ["--batch-size", "-4"],
        ["--threads", "-1"],
        ["--limit", "-1"],
    ),
    "preview": (["--max-length", "0"], ["--show", "-1"]),
    "generate": (["--batch-size", "0"], ["--seed", "-1"], ["--temperature", "nan"]),
}


@pytest.mark.parametrize(
    ("command", "words"), [(c, w) for c, cases in NUMBERS.items() for w in cases]
)
def test_a_number_too_small_is_told(
    command: str, words: list[str], rows: str, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--model", str(tiny_llama), "--data", rows, *words]) == 2
    assert f"{words[0].removeprefix('--').replace('-', '_')[:3]}" in (
        errors := capsys.readouterr().err.replace("-", "_")
    )
    assert " is needed, got " in errors


@pytest.mark.parametrize("command", ["train", "merge", "generate"])
def test_an_output_below_a_file_is_told_at_once(
    command: str, rows: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    more = ["--adapter", "none"] if command == "merge" else ["--data", rows]
    assert (
        main(
            [command, "--model", str(tiny_llama), *more, "--output", str(tmp_path / "file" / "out")]
        )
        == 2
    )
    assert f"cannot be made: {tmp_path / 'file'} is a file." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/no/such/folder", "There is no folder /no/such/folder."),
        ("{model}/config.json", "is a file; a model is a folder."),
    ],
)
def test_a_model_path_that_is_no_folder_is_told(
    name: str, text: str, rows: str, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", name.format(model=tiny_llama), "--data", rows]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(
    rows: str, tiny_llama: Path, tmp_path: Path
) -> None:
    argv = [
        "train",
        "--model",
        str(tiny_llama),
        "--data",
        rows,
        "--output",
        str(tmp_path / "out"),
        "--steps",
        "2",
        "--rank",
        "4",
    ]
    # A limit on the size of files stands for a disk without room.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "from lorakit.cli.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 1
    told = " ".join(done.stderr.split())  # The line breaks depend on the length of the path.
    assert "step-000001 cannot be written" in told
    assert "Is there room on the disk" in told
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []
