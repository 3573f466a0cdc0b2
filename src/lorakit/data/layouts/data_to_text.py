"""Data to text: E2E, WebNLG and DART, one row for each reference of an entry.

The data of an entry become one line, as microsoft/LoRA writes it: `subject : property : object`,
with ` | ` between triples.
"""

from collections.abc import Iterator, Mapping, Sequence

from lorakit.data.layouts.layout import Layout, Row, RowFault, Values, as_list, need_list

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
    """Yield a row for each text of an entry of the JSON that WebNLG publishes."""
    parts = ("subject", "property", "object")
    triples = need_list(values, "modifiedtripleset")
    prompt = _join([_value(triple, part) for part in parts] for triple in triples)
    for text in need_list(values, "lexicalisations"):
        yield {"prompt": prompt, "completion": _value(text, "lex")}


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
    ),
    Layout("DART", "completion", ("tripleset", "annotations"), convert=convert_dart),
    Layout("E2E", "completion", ("mr", "ref")),
    Layout("E2E", "completion", ("meaning_representation", "human_reference")),
    Layout("E2E without references", "prompt", ("MR",)),
    Layout("E2E without references", "prompt", ("mr",)),
]
