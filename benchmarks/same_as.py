"""Prove that a refactoring changes no behaviour: record a battery with two trees and compare.

    python benchmarks/same_as.py record --src PATH/TO/src --into FOLDER
    python benchmarks/same_as.py compare FOLDER_A FOLDER_B [--all]

The battery is same_as_battery.py (commands), same_as_refusals.py (wrong requests) and
same_as_library.py (calls); same_as_worker.py runs it. Numbers are compared as they are printed,
tensors by their bits, headers of safetensors and configs by their text. Both recordings have to be
made on one machine, because another CPU rounds differently. FOLDER/work keeps the files that were
written, FOLDER/logs the output.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# Old name -> new name. The worker asks a tree which of the two it has; `compare` turns old JSON
# keys and error classes into new ones. Names in headers and adapter_config.json never change.
RENAMES: dict[str, dict[str, str]] = {
    "modules": {},
    "names": {
        "schedule": "allocate_ranks",
        "suggest": "select_layers",
        "whole": "full_parameters",
        "rows": "trained_tokens",
        "placed": "deltas_by_place",
    },
    "fields": {
        "whole_modules": "full_modules",
    },
    "flags": {
        "--whole-modules": "--full-modules",
    },
    "keys": {
        "whole_modules": "full_modules",
    },
    "errors": {},
}
# Keys that are left out wherever they stand in JSON, and why. Headers and configs keep them.
VOLATILE = {
    "seconds": "wall time",
    "wall_seconds": "wall time",
    "tokens_per_second": "wall time",
    "peak_memory_bytes": "measured memory",
    "versions": "of libraries",
    "output": "a path; that of a search without --output is a temporary folder",
}
# Keys that are volatile in some cases only: pattern of their names -> keys.
VOLATILE_IN = {
    "train-*": ("usable_bytes",),  # free memory of this machine, in the plan of the run
    "rank-*": ("cost", "seconds_of_one_run"),  # wall time
    "plan-here": (
        "usable",  # free memory
        "usable_bytes",
        "flops_per_second",  # measured on the spot
        "seconds_per_step",
        "seconds_per_epoch",
        "summary",  # a sentence with these times
    ),
}
# Keys whose values are prose.
TEXTS = ("message", "reason", "reasons", "advice")
# The same, where their values are text: a key may hold numbers in another case.
PROSE = ("coverage", "coverage text", "is", "logits", "notes", "title")
# Sections of a case in which nothing is renamed or left out.
EXACT = ("tensors", "headers", "configs", "files")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LORAKIT_TRACEBACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "NO_COLOR": "1",
    "COLUMNS": "100",
    "MPLBACKEND": "agg",
}
HERE = Path(__file__).resolve().parent
SHOWN = 5  # differences of one case that are printed
WIDTH = 60  # characters of a value that are printed
Values = dict[str, Any]
Difference = tuple[str, str, Any, Any]


def record(source: Path, into: Path) -> int:
    """Run the battery with one source tree and return the exit code of the worker."""
    if not (source / "lorakit" / "__init__.py").is_file():
        sys.exit(f"{source} holds no package lorakit.")
    if into.exists():
        sys.exit(f"{into} exists already; name a new folder.")
    into.mkdir(parents=True)
    worker = HERE / "same_as_worker.py"
    command = [sys.executable, str(worker), str(source.resolve()), str(into.resolve())]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(source.resolve())}
    return subprocess.run(command, env=environment, check=False).returncode


def is_text(value: Any) -> bool:
    """Return True for a text or a list of texts."""
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts)


def clean(value: Any, left_out: set[str]) -> Any:
    """Return JSON under its new names, without what is volatile."""
    if isinstance(value, list):
        return [clean(inner, left_out) for inner in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        if key in left_out or (key in PROSE and is_text(inner)):
            continue
        if key == "error":
            inner = RENAMES["errors"].get(str(inner), inner)
        kept[RENAMES["keys"].get(key, key)] = clean(inner, left_out)
    return kept


def list_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every leaf of some JSON; what is empty is a leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from list_leaves(inner, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from list_leaves(inner, f"{path}/{i}")
    else:
        yield path, value


def read_case(folder: Path, name: str) -> dict[tuple[str, str], Values]:
    """Return the values of one recorded case by kind and section."""
    path = folder / "cases" / f"{name}.json"
    if not path.is_file():
        return {}
    case = json.loads(path.read_text())
    left_out = {*VOLATILE, *TEXTS}
    for pattern, keys in VOLATILE_IN.items():
        if fnmatchcase(name, pattern):
            left_out.update(keys)
    found = {}
    for section, value in case["sections"].items():
        used = value if section in EXACT else clean(value, left_out)
        found[case["kind"], section] = dict(list_leaves(used))
    return found


def list_cases(folder: Path) -> set[str]:
    """Return the names of the cases of a recording."""
    return {path.stem for path in (folder / "cases").glob("*.json")}


def find_differences(name: str, before: Values, after: Values) -> list[Difference]:
    """Return the paths at which two sections of a case differ, with both values."""
    found = []
    for path in {**before, **after}:
        old, new = before.get(path, "(not there)"), after.get(path, "(not there)")
        if repr(old) != repr(new):
            found.append((name, path, old, new))
    return found


def shorten(old: Any, new: Any) -> tuple[str, str]:
    """Return two values as text, each from where they begin to differ."""
    old, new = str(old), str(new)
    length = min(len(old), len(new))
    same = next((i for i in range(length) if old[i] != new[i]), length)
    start = max(0, same - WIDTH // 3)
    mark = "…" if start else ""
    return mark + old[start : start + WIDTH], mark + new[start : start + WIDTH]


def print_differences(found: list[Difference], limit: int) -> None:
    """Print the first differences of each case, an entry each."""
    counts = Counter(name for name, *_ in found)
    printed: Counter[str] = Counter()
    for name, path, old, new in found:
        printed[name] += 1
        if printed[name] <= limit:
            before, after = shorten(old, new)
            print(f"{name}{path}\n    {before!r}\n    {after!r}")
        elif printed[name] == counts[name]:
            print(f"{name}: {counts[name] - limit} more")


def print_machines(first: Path, second: Path) -> None:
    """Print what the two recordings were made with, and where that differs."""
    before, after = (json.loads((folder / "about.json").read_text()) for folder in (first, second))
    print(f"A: {before['source']}, {before['seconds']:.0f} s")
    print(f"B: {after['source']}, {after['seconds']:.0f} s")
    for key in ("cpu", "python", "torch", "transformers"):
        if before[key] != after[key]:
            print(f"warning: another {key}: {before[key]}, {after[key]}; values may differ by that")


def compare(first: Path, second: Path, limit: int) -> int:
    """Print which values of two recordings are the same; return 1 where some are not."""
    print_machines(first, second)
    names = list_cases(first) | list_cases(second)
    table: dict[tuple[str, str], list[int]] = {}
    found: list[Difference] = []
    for name in sorted(names):
        before, after = read_case(first, name), read_case(second, name)
        for key in {**before, **after}:
            old, new = before.get(key, {}), after.get(key, {})
            here = find_differences(name, old, new)
            row = table.setdefault(key, [0, 0, 0])
            row[0] += 1
            row[1] += len({**old, **new})
            row[2] += len(here)
            found += here
    print_table(table, len(names))
    print_differences(found, limit)
    return 1 if found or not names else 0


def print_table(table: dict[tuple[str, str], list[int]], count: int) -> None:
    """Print a line for each kind and section: cases, values, and how many differ."""
    line = "{:<10} {:<9} {:>6} {:>8}  {}"
    print(line.format("what", "section", "cases", "values", "same"))
    values = differing = 0
    for (kind, section), row in sorted(table.items()):
        same = "yes" if not row[2] else f"NO: {row[2]} differ"
        print(line.format(kind, section, row[0], row[1], same))
        values += row[1]
        differing += row[2]
    same = "yes" if not differing else f"NO: {differing} differ"
    print(line.format("all", "", count, values, same))


def main() -> int:
    """Run `record` or `compare`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command")
    recording = commands.add_parser("record", help="run the battery with a source tree")
    recording.add_argument("--src", type=Path, required=True, help="folder that holds lorakit")
    recording.add_argument("--into", type=Path, required=True, help="a new folder")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    comparing.add_argument("--all", action="store_true", help="print every difference")
    given = parser.parse_args()
    if given.command == "record":
        return record(given.src, given.into)
    if given.command == "compare":
        return compare(given.first, given.second, sys.maxsize if given.all else SHOWN)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
