"""WebNLG has texts in several languages: one is used, and the others are counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorakit.data.rows import read_rows

TRIPLE = {"subject": "A", "property": "is", "object": "B"}
TEXTS = {"en": "A is B.", "ru": "A – это B.", "": "It is B."}


def released(*languages: str) -> dict[str, Any]:
    texts = [{"lang": language, "lex": TEXTS[language]} for language in languages]
    return {"category": "City", "modifiedtripleset": [TRIPLE], "lexicalisations": texts}


def of_hub(*languages: str) -> dict[str, Any]:
    texts = {"lang": [*languages], "text": [TEXTS[language] for language in languages]}
    sets = {"mtriple_set": [["A | is | B"]]}
    return {"category": "City", "modified_triple_sets": sets, "lex": texts}


# The languages of each entry; the texts that are used, and what is told.
CASES: dict[str, tuple[list[tuple[str, ...]], list[str], tuple[str, ...]]] = {
    "English": ([("en", "en")], ["A is B.", "A is B."], ()),
    "not named": ([("",), ("en",)], ["It is B.", "A is B."], ()),
    "two": (
        [("en", "ru", "ru"), ("ru", "en")],
        ["A is B.", "A is B."],
        ("its texts in en are used, 3 texts in ru left out",),
    ),
    "an entry of the other": (
        [("en", "ru"), ("ru",)],
        ["A is B."],
        (
            "1 row without a reference left out",
            "its texts in en are used, 2 texts in ru left out",
        ),
    ),
    "Russian": ([("ru",), ("ru",)], ["A – это B."] * 2, ("its texts in ru are used",)),
}


@pytest.mark.parametrize("make", [released, of_hub])
@pytest.mark.parametrize("case", CASES)
def test_one_language_is_used(case: str, make: Any, tmp_path: Path) -> None:
    entries, texts, notes = CASES[case]
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(make(*entry)) + "\n" for entry in entries))
    rows = read_rows(str(source))
    assert rows.rows == [{"prompt": "A : is : B", "completion": text} for text in texts]
    assert rows.notes == notes
