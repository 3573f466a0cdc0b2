"""Patterns of a config: PEFT's rule, thousands of names in little time, and no expression hangs."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.utils.other import get_pattern_key
from torch import nn

import lorakit
from lorakit import Adapter, LowRank, Spec
from lorakit.errors import AdapterFileError
from lorakit.formats.peft.patterns import LONGEST, MOST_EXPRESSIONS, ValuesByPattern

from ..models import fill
from ..rewrite import CONFIG, make_foreign

NAMES = ["q", "h.0.q", "h.10.q", "model.h.0.q", "h.0.qq", "hx0.q", "a-b.c_d", "x.a-b.c_d", "h.0.v"]
PATTERNS = [
    "q",
    "^q",
    "^q$",
    "q$",
    "h.0.q",
    r"h\.0\.q",
    r"^h\.0\.q$",
    "h.0",
    ".*q",
    "q|v",
    "(q)",
    "h.*",
    r"h\.\d+\.q",
    "0.q",
    "h..0",
    "a-b.c_d",
    r"a\-b\.c_d",
    "",
    ".",
    "[qv]",
    "q+",
    "^$",
    "$",
    "h.0.q?",
]


@pytest.mark.parametrize("name", NAMES)
def test_each_pattern_matches_as_in_peft(name: str) -> None:
    for pattern in PATTERNS:
        table = ValuesByPattern({pattern: "found"})
        is_match = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert (table.find(name, "none") == "found") == is_match, pattern


@pytest.mark.parametrize("start", range(len(PATTERNS)))
def test_the_first_pattern_counts_as_in_peft(start: int) -> None:
    patterns = PATTERNS[start:] + PATTERNS[:start]
    table = ValuesByPattern({pattern: pattern for pattern in patterns})
    for name in NAMES:
        assert table.find(name, name) == get_pattern_key(patterns, name)


def ended(folder: Path, **changes: object) -> AdapterFileError:
    """Return the refusal of an adapter of PEFT with these values in its config."""
    model = nn.ModuleDict({"a" * 40: nn.Linear(4, 4)})
    fill(lorakit.attach(model, Spec(rank=2))).save(folder)
    make_foreign(folder)
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(folder)
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_an_expression_that_hangs_is_stopped(key: str, tmp_path: Path) -> None:
    pattern = "(a|aa)+(a|aa)+X|(.*a){20}Y"
    started = time.process_time()
    error = ended(tmp_path, **{key: {pattern: 2}})
    assert time.process_time() - started < 5
    assert str(error) == (
        f"The patterns of the config take more than 2 s: comparing {pattern!r} with the module "
        f"{'a' * 40} was stopped.\n"
        "Write them as names of modules. Nothing was loaded."
    )


def test_too_many_expressions_are_refused(tmp_path: Path) -> None:
    patterns = {f"x|{number}": 1 for number in range(MOST_EXPRESSIONS + 1)}
    assert ended(tmp_path, rank_pattern=patterns).faults == [
        "adapter_config.json: rank_pattern holds 2,001 regular expressions, 2,000 are the limit; "
        "use names"
    ]


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("(", "missing ), unterminated subpattern at position 0"),
        ("(" * 1500 + ")" * 1500, "it has 3,000 characters, 2,000 are the limit"),
        ("x{99999999999999999999}", "the repetition number is too large"),
        ("(?<=a*)b", "look-behind requires fixed-width pattern"),
    ],
)
def test_what_is_no_expression_is_refused(pattern: str, fault: str, tmp_path: Path) -> None:
    assert LONGEST == 2000
    (message,) = ended(tmp_path, alpha_pattern={pattern: 2}).faults
    assert message.endswith(f"which is not a regular expression: {fault}")


FORMS: dict[str, Callable[[str], str]] = {
    "anchored": lambda name: f"^{re.escape(name)}$",
    "escaped": re.escape,
    "plain": str,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ours", *FORMS])
def test_3000_modules_with_a_rank_each_are_read_in_two_seconds(form: str, tmp_path: Path) -> None:
    deltas = {
        f"model.layers.{number // 7}.proj_{number % 7}": LowRank(
            torch.ones(1 + number % 5, 4),
            torch.ones(4, 1 + number % 5),
            alpha=1.0 + number,
            kind="linear",
        )
        for number in range(3000)
    }
    adapter = Adapter(Spec(rank=9), deltas)
    adapter.save(tmp_path)
    if form != "ours":
        make_foreign(tmp_path)
        path = tmp_path / CONFIG
        values = json.loads(path.read_text())
        write = FORMS[form]
        values["rank_pattern"] = {write(name): delta.rank for name, delta in deltas.items()}
        values["alpha_pattern"] = {write(name): delta.alpha for name, delta in deltas.items()}
        path.write_text(json.dumps(values))
    started = time.process_time()
    read = Adapter.load(tmp_path)
    assert time.process_time() - started < 2
    assert read.content_hash() == adapter.content_hash()
