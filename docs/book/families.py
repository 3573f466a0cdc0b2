"""Write docs/families.md: what a default training run does with each family of models.

Run: `python docs/book/families.py`. It trains a tiny model of each family, which takes minutes.
"""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "families.md"
sys.path.insert(0, str(ROOT))

from tests.train.families import FAMILIES, Family, train_default  # noqa: E402

from lorakit.errors import LorakitError  # noqa: E402  of this repository, as are the tests
from lorakit.text import plural  # noqa: E402

if TYPE_CHECKING:
    from lorakit.train.report import RunReport

OPENING = """# Families of models

This table shows what `lorakit train` does by default with one tiny model of each family: random
weights, two steps, and no flag that selects layers. The rows are texts; for encoders, texts with
labels; for encoder-decoders, prompts with completions. A run that is refused is refused before any
weight is read. The table is written by `docs/book/families.py`, which trains each model;
`tests/train/test_families.py` trains them too.

*Adapted* names the layers by the last part of their names, and counts them. *Left out* names what
`all-linear` leaves out, with the reason. Rows are *packed* where attention keeps them apart, and
*padded* elsewhere.

| family | class | result | adapted | left out |
| --- | --- | --- | --- | --- |
"""


def describe_adapted(report: "RunReport") -> str:
    """Return the last parts of the names of the adapted layers, and their number."""
    modules = report["coverage"]["modules"]
    last_parts = dict.fromkeys(module["name"].rpartition(".")[2] for module in modules)
    names = ", ".join(f"`{name}`" for name in last_parts)
    return f"{plural(len(modules), 'layer')}: {names}"


def describe_left_out(report: "RunReport") -> str:
    """Return the modules that are left out, with the reason."""
    names: dict[str, list[str]] = {}
    for name, reason in report["coverage"]["left_out"].items():
        short = reason.removeprefix("left out of 'all-linear': ")
        names.setdefault(short, []).append(f"`{name}`")
    return "; ".join(f"{', '.join(group)}: {reason}" for reason, group in names.items())


def make_row(name: str, family: Family) -> str:
    """Train a model of a family, and return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = train_default(family, Path(folder))
        except LorakitError as error:
            reason = error.message.replace(f"{folder}/model", "it")
            return f"| {name} | `{family.kind}` | refused: {reason} | | |"
    kind = report["coverage"]["model"]
    result = "trained, packed" if report["packed"] else "trained, padded"
    left_out = f"{describe_left_out(report)} ".lstrip()
    return f"| {name} | `{kind}` | {result} | {describe_adapted(report)} | {left_out}|"


def make_page() -> str:
    """Return the whole page."""
    lines = [make_row(name, family) for name, family in FAMILIES.items()]
    return OPENING + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), "utf-8")
