"""The configurations of PEFT's own tests: PEFT writes each, and the outputs are PEFT's, or the file
is refused in words that name what it holds.

`python -m tests.formats.peft.test_configurations` prints the counts.
"""

import tempfile
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Adapter
from lorakit.errors import LorakitError

from ...sources import sample
from ..models import randn
from .configurations import CASES, REFUSED, build, compute

CHECKS = ("load", "save", "merge")


def make_theirs(case: str) -> nn.Module:
    """Return PEFT's model of a case, whose adapter moves the output."""
    name, config, options = CASES[case]
    kind = getattr(peft, f"{config}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = peft.get_peft_model(build(name), kind(**options)).eval()
    for seed, parameter in enumerate(theirs.parameters()):
        if parameter.requires_grad:
            parameter.data.add_(randn(*parameter.shape, seed=seed) / 4)
    return theirs


def is_same(got: Tensor, want: Tensor) -> bool:
    return float((got - want).abs().max()) <= 2e-5 * max(1.0, float(want.abs().max()))


def check(case: str, what: str, folder: Path) -> tuple[str, str]:
    """Return "right", "refused" or "wrong", and the reason."""
    name = CASES[case][0]
    theirs = make_theirs(case)
    theirs.save_pretrained(folder / "theirs")
    ours = build(name)
    try:
        adapter = Adapter.load(folder / "theirs")
        lorakit.attach(ours, adapter)
        if what == "save":
            adapter.save(folder / "ours")
    except LorakitError as error:
        return "refused", str(error)
    want = compute(name, theirs)
    if is_same(want, compute(name, build(name))):
        return "wrong", "PEFT's adapter changes nothing"
    if what == "save":
        ours = peft.PeftModel.from_pretrained(build(name), folder / "ours").eval()
    if what == "merge":
        lorakit.merge(ours)
    got = compute(name, ours)
    if is_same(got, want):
        return "right", ""
    return "wrong", f"{float((got - want).abs().max()):g} of {float(want.abs().max()):g}"


READ = [case for case in CASES if case not in REFUSED]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "what"), sample(product(READ, CHECKS), every=4))
def test_outputs_are_those_of_peft(case: str, what: str, tmp_path: Path) -> None:
    assert check(case, what, tmp_path) == ("right", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_what_the_file_holds(case: str, tmp_path: Path) -> None:
    result, reason = check(case, "load", tmp_path)
    assert result == "refused"
    assert REFUSED[case] in reason


def count() -> Counter[str]:
    """Run all checks, print those that are not right, and count the results."""
    counts: Counter[str] = Counter()
    for case in CASES:
        for what in CHECKS:
            with tempfile.TemporaryDirectory() as folder:
                result, reason = check(case, what, Path(folder))
            counts[result] += 1
            if result != "right" and what == CHECKS[0]:
                print(f"{result}   {case}\n    {reason}".replace("\n", "\n    "))
            elif result == "wrong":
                print(f"wrong   {case}, {what}   {reason}")
    return counts


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = count()
    print(f"{len(CASES)} configurations, {found.total()} checks: {dict(found)}")
