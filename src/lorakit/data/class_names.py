"""Names of classes, where a file holds their numbers: ClassLabel of the `datasets` library."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from lorakit.data.layouts.layout import RowFault
from lorakit.data.records import Block, Found, make_block

Names = tuple[str, ...]  # in the order of the numbers
NamesByColumn = Mapping[str, Names]
SCHEMA_KEY = b"huggingface"  # of a schema's metadata
NO_LABEL = -1  # the number of a row without a label


def read_names(metadata: Mapping[bytes, bytes] | None) -> NamesByColumn:
    """Return the names of classes in the metadata of a schema, by column.

    >>> features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    >>> read_names({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    {'label': ('bad', 'good')}
    """
    try:
        stored = json.loads((metadata or {}).get(SCHEMA_KEY, b"{}"))
        return find_names(stored["info"]["features"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def find_names(features: object) -> NamesByColumn:
    """Return the names of classes by column.

    Args:
        features: by column, as the `datasets` library describes them; of a list, its values.
    """
    if not isinstance(features, Mapping):
        return {}
    found: dict[str, Names] = {}
    for column, feature in features.items():
        if isinstance(feature, Mapping) and "feature" in feature:
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, Mapping) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[str(column)] = tuple(names)
    return found


def put_names(blocks: Iterable[Block], names: NamesByColumn) -> Iterator[Block]:
    """Yield records with the names of classes for their numbers; None for a row without a label."""
    for block in blocks:
        yield make_block(block.name, [_put_names(found, names) for found in block.found()])


def _put_names(found: Found, names: NamesByColumn) -> Found:
    number, values, _ = found
    if values is None:
        return found
    columns = names.keys() & values.keys()
    try:
        named = {column: _put_name(column, values[column], names[column]) for column in columns}
    except RowFault as fault:
        return Found(number, None, str(fault))
    return Found(number, {**values, **named})


def _put_name(column: str, value: Any, names: Names) -> Any:  # noqa: ANN401  any value of a table
    """Return the name of a class, or those of a list.

    Raises:
        RowFault: there is no class of this number.
    """
    if isinstance(value, list):
        return [_put_name(column, one, names) for one in value]
    if not isinstance(value, int) or value == NO_LABEL:
        return None if value == NO_LABEL else value
    if not 0 <= value < len(names):
        raise RowFault(f"{column!r} is {value}, but its classes are 0 to {len(names) - 1}")
    return names[value]


def join_classes(parts: Sequence[Names]) -> Names:
    """Return the names of classes of several data sets; none if one of them has no order.

    >>> join_classes([("bad", "good"), ("bad", "good", "odd")]), join_classes([("bad",), ()])
    (('bad', 'good', 'odd'), ())
    """
    return tuple(dict.fromkeys(chain.from_iterable(parts))) if all(parts) else ()
