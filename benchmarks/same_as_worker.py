"""Worker of same_as.py: run the battery with the lorakit that PYTHONPATH names.

    python same_as_worker.py SOURCE FOLDER

Libraries are imported once; every case then runs in a fork of this process, as if it were the
first thing that the process does. A case that fails is recorded as failed, and the next one runs.
"""

import importlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from same_as import RENAMES
from same_as_battery import COMMANDS, CONFIGS, SETTINGS, SHOWN
from same_as_files import sections_of
from same_as_refusals import REFUSED

COMMAND = "import sys; from lorakit.cli.__main__ import main; sys.exit(main())"
LIBRARIES = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.mixtral.modeling_mixtral",
    "accelerate",
    "scipy.stats",
    "sklearn.metrics",
)
LIMIT = 240  # seconds that one case may take
FAILED = 70  # exit code of a call that raised what it should not
NUMBER = re.compile(r"\d[\d,.]*")


class Recorder:
    """Folder of one recording: runs cases and writes each as it is done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.flags: dict[str, set[str]] = {}
        self.failed: list[str] = []
        for name in ("cases", "logs", "work"):
            (folder / name).mkdir()
        os.chdir(folder / "work")

    def run(self, kind: str, name: str, task: Callable[[], Any]) -> tuple[int, str]:
        """Run a function in a fork and return its exit code and what it printed."""
        log = self.folder / "logs" / name
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            in_child(task, log)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code and kind != "refused":
            self.failed.append(f"{name} ({code})")
        return code, log.with_suffix(".out").read_text(errors="replace")

    def write(self, kind: str, name: str, told: Any, place: Path | None) -> None:
        """Write one case, with the files it left at a place."""
        sections = {"told": told}
        try:
            sections |= sections_of(place) if place and kind != "refused" else {}
        except Exception as error:
            sections["files"] = {"cannot be read": type(error).__name__}
        case = {"kind": kind, "name": name, "sections": sections}
        path = self.folder / "cases" / f"{name}.json"
        path.write_text(json.dumps(case, indent=1) + "\n")

    def command(self, kind: str, name: str, text: str) -> None:
        """Run one command line and record it."""
        begun = time.perf_counter()
        words, place = self.words(kind, name, text)
        prepare = PREPARED.get(name)
        if prepare is not None:
            prepare()
        code, printed = self.run(kind, name, lambda: run_command(words))
        if kind == "shown":
            told = {"exit": code, "numbers": NUMBER.findall(printed)}
        else:
            told = outcome(code, printed)
        if kind == "refused":
            told["wrote"] = bool(place and place.name == name and place.exists())
        self.write(kind, name, told, place)
        print(f"{time.perf_counter() - begun:6.2f} s  {name}", flush=True)

    def call(self, kind: str, name: str, task: Callable[[], Any], place: Path) -> None:
        """Run a function that prints JSON and record it."""
        begun = time.perf_counter()
        code, printed = self.run(kind, name, task)
        self.write(kind, name, outcome(code, printed), place)
        print(f"{time.perf_counter() - begun:6.2f} s  {name}", flush=True)

    def words(self, kind: str, name: str, text: str) -> tuple[list[str], Path | None]:
        """Return the words of a command line in the names of this tree, and its output."""
        if kind == "train" and "{out}" not in text:
            text += " {out}"
        out = f"--output out/{name}"
        filled = text.format(**SETTINGS, out=out).format(**SETTINGS)
        words = shlex.split(filled)
        known = self.flags_of(words[0])
        named = [current(word, "flags", known) for word in words]
        place = words[words.index("--output") + 1] if "--output" in words else None
        if kind != "shown":
            named.append("--json")
        return named, Path(place) if place else None

    def flags_of(self, command: str) -> set[str]:
        """Return the flags that the help of a command names, asked of a process of its own."""
        if command not in self.flags:
            run = [sys.executable, "-c", COMMAND, command, "--help"]
            done = subprocess.run(run, capture_output=True, text=True, check=False)
            self.flags[command] = set(re.findall(r"--[a-z][\w-]*", done.stdout))
        return self.flags[command]


def in_child(task: Callable[[], Any], log: Path) -> None:
    """Run a function with its output in files, and end the process."""
    signal.alarm(LIMIT)
    for number, ending in ((1, ".out"), (2, ".err")):
        target = os.open(log.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
    code = FAILED
    try:
        seed_all()
        task()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException as error:
        traceback.print_exc()
        print(json.dumps({"error": type(error).__name__}))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def seed_all() -> None:
    """Seed what a process would begin with at random, for what no seed is asked."""
    random.seed(0)
    sys.modules["numpy"].random.seed(0)
    sys.modules["torch"].manual_seed(0)


def run_command(words: list[str]) -> None:
    """Run a command line as `python -c COMMAND words` does."""
    sys.path[0] = ""
    sys.argv = ["-c", *words]
    exec(COMMAND, {"__name__": "__main__"})


def outcome(code: int, printed: str) -> dict[str, Any]:
    """Return what is recorded of a case that prints JSON: of a refusal its kind alone."""
    try:
        told = json.loads(printed)
    except ValueError:
        return {"exit": code, "printed": "not one JSON object"}
    if not code:
        return {"exit": code, "json": told}
    faults = told.get("faults", ())
    return {"exit": code, "error": told.get("error"), "faults": len(faults)}


def current(name: str, table: str, known: Any) -> str:
    """Return the new name of something where the tree knows it, else the old one."""
    new = RENAMES[table].get(name, name)
    return new if new in known else name


def renamed(value: Any, known: Any) -> Any:
    """Return settings under the names that the tree knows, at every depth."""
    if not isinstance(value, dict):
        return value
    return {current(key, "fields", known): renamed(inner, known) for key, inner in value.items()}


def write_configs(recorder: Recorder) -> None:
    """Write the YAML files of the battery."""
    import lorakit

    known = {field.name for field in fields(lorakit.Spec)}
    for flag in recorder.flags_of("train"):
        known.add(flag.removeprefix("--").replace("-", "_"))
    Path("configs").mkdir()
    for name, text in CONFIGS.items():
        settings = renamed(yaml.safe_load(text), known)
        Path("configs", f"{name}.yaml").write_text(yaml.safe_dump(settings))


def write_inputs() -> None:
    """Write models and rows."""
    inputs = importlib.import_module("same_as_inputs")
    inputs.write_models(Path("models"))
    inputs.write_rows(Path("rows"))


def halve() -> None:
    """Lay out a run that was stopped after its first checkpoint."""
    here = Path("out/train-resumed")
    shutil.copytree("out/train-straight", here)
    shutil.rmtree(here / "checkpoints" / "step-000004")
    for name in ("report.json", "README.md", "adapter_config.json", "adapter_model.safetensors"):
        (here / name).unlink()


PREPARED = {"train-resumed": halve}


def run_call(name: str, place: Path) -> None:
    """Run one call of the library part and print what it gives."""
    library = importlib.import_module("same_as_library")
    told = library.CASES[name](place)
    print(json.dumps(library.plain(told)))


def run_library(recorder: Recorder) -> None:
    """Record every case of the library part; their names are asked of a fork."""

    def tell_names() -> None:
        library = importlib.import_module("same_as_library")
        print(json.dumps(list(library.CASES)))

    _, printed = recorder.run("call", "names-of-calls", tell_names)
    for name in json.loads(printed):
        place = Path("calls", name)
        task = partial(run_call, name, place)
        recorder.call(name.partition("-")[0], name, task, place)


def run_commands(recorder: Recorder) -> None:
    """Record every command line."""
    for command, cases in COMMANDS.items():
        for name, text in cases.items():
            recorder.command(command, f"{command}-{name}", f"{command} {text}")
    for name, text in SHOWN.items():
        recorder.command("shown", f"shown-{name}", text)
    for name, text in REFUSED.items():
        recorder.command("refused", f"refused-{name.replace(' ', '-')}", text)


def cpu_name() -> str:
    """Return the name of the processor."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.processor()


def write_about(folder: Path, source: str, begun: float) -> None:
    """Write what the recording was made with."""
    about = {
        "source": source,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": sys.modules["torch"].__version__,
        "transformers": sys.modules["transformers"].__version__,
        "seconds": time.perf_counter() - begun,
        "processor_seconds": sum(os.times()[:4]),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> int:
    """Record the battery; the exit code is 1 where a case failed that should not."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 0
    source, folder = sys.argv[1], Path(sys.argv[2])
    begun = time.perf_counter()
    import lorakit

    if not str(lorakit.__file__).startswith(source):
        sys.exit(f"lorakit comes from {lorakit.__file__}, not from {source}.")
    for name in LIBRARIES:
        importlib.import_module(name)
    # Compiled modules of the tree go to the recording, not into the tree.
    sys.pycache_prefix, sys.dont_write_bytecode = str(folder / "compiled"), False
    recorder = Recorder(folder)
    recorder.run("inputs", "inputs", write_inputs)
    write_configs(recorder)
    run_commands(recorder)
    run_library(recorder)
    write_about(folder, source, begun)
    print("failed: " + (", ".join(recorder.failed) or "nothing"))
    return 1 if recorder.failed else 0


if __name__ == "__main__":
    sys.exit(main())
