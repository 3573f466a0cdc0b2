"""Data to text: E2E, WebNLG and DART, one row for each reference of an entry.

The data of an entry become one line, as microsoft/LoRA writes it: `subject : property : object`,
with ` | ` between triples.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from lorakit.data.layouts.layout import (
    Layout,
    Row,
    RowFault,
    Values,
    as_list,
    as_objects,
    need_list,
)

ENGLISH = "en"
# Categories of WebNLG 2017 that its training data have (Gardent et al. 2017, section 3).
SEEN = (
    "Airport",
    "Astronaut",
    "Building",
    "City",
    "ComicsCharacter",
    "Food",
    "Monument",
    "SportsTeam",
    "University",
    "WrittenWork",
)


def convert_webnlg(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row for each text of an entry of `{category, triples, lex}`."""
    triples = need_list(values, "triples")
    prompt = _join(_split(triple, "triples") for triple in triples)
    texts = values.get("lex")
    for text in [texts] if isinstance(texts, str) else need_list(values, "lex"):
        yield {"prompt": prompt, "completion": text}


def convert_webnlg_release(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row for each text, in the language of the layout, of WebNLG's published JSON."""
    parts = ("subject", "property", "object")
    triples = need_list(values, "modifiedtripleset")
    prompt = _join([_value(triple, part) for part in parts] for triple in triples)
    for text in need_list(values, "lexicalisations"):
        if read_language(text) == layout.language:
            yield {"prompt": prompt, "completion": _value(text, "lex")}


def convert_webnlg_of_hub(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row for each text, in the language of the layout, of WebNLG on the hub."""
    sets = need_list(values, "modified_triple_sets")
    triples = need_list(sets[0], "mtriple_set") if sets else []
    prompt = _join(_split(triple, "mtriple_set") for triple in triples)
    for text in need_list(values, "lex"):
        if read_language(text) == layout.language:
            yield {"prompt": prompt, "completion": _value(text, "text")}


def read_language(text: object) -> str:
    """Return the language of a text; one without a language is English.

    >>> read_language({"lex": "Rome is in Italy.", "lang": ""})
    'en'
    """
    language = text.get("lang") if isinstance(text, Mapping) else None
    return str(language or ENGLISH)


def _languages_in(column: str) -> Callable[[Values], Counter[str]]:
    """Return a function that counts the texts of an entry by their language."""

    def count(values: Values) -> Counter[str]:
        return Counter(map(read_language, as_objects(values.get(column)) or ()))

    return count


def convert_dart(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row for each annotation of an entry of DART."""
    triples = need_list(values, "tripleset")
    parts = [_split(triple, "tripleset") for triple in triples]
    prompt = _join((head, str(relation).lower(), tail) for head, relation, tail in parts)
    for annotation in need_list(values, "annotations"):
        yield {"prompt": prompt, "completion": _value(annotation, "text")}


def _split(triple: object, column: str) -> Sequence[object]:
    """Return the three parts of a triple, which may be written as `s | p | o`."""
    parts = triple.split(" | ") if isinstance(triple, str) else as_list(triple)
    if parts is None or len(parts) != 3:
        raise RowFault(f"{column!r} has {triple!r}, which is no triple")
    return parts


def _join(triples: Iterator[Sequence[object]]) -> str:
    return " | ".join(" : ".join(str(part) for part in triple) for triple in triples)


def _value(entry: object, key: str) -> object:
    if not isinstance(entry, Mapping) or key not in entry:
        raise RowFault(f"has an entry without {key!r}")
    return entry[key]


LAYOUTS = [
    Layout(
        "WebNLG",
        "completion",
        ("triples", "lex"),
        ("category",),
        convert=convert_webnlg,
        categories="category",
    ),
    Layout(
        "WebNLG, as released",
        "completion",
        ("modifiedtripleset", "lexicalisations"),
        ("category",),
        convert=convert_webnlg_release,
        categories="category",
        languages=_languages_in("lexicalisations"),
    ),
    Layout(
        "WebNLG of the hub",
        "completion",
        ("modified_triple_sets", "lex"),
        ("category",),
        convert=convert_webnlg_of_hub,
        categories="category",
        languages=_languages_in("lex"),
    ),
    Layout("DART", "completion", ("tripleset", "annotations"), convert=convert_dart),
    Layout("E2E", "completion", ("mr", "ref")),
    Layout("E2E", "completion", ("meaning_representation", "human_reference")),
    Layout("E2E without references", "prompt", ("MR",)),
    Layout("E2E without references", "prompt", ("mr",)),
]
