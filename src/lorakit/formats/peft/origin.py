"""The origin of an adapter's files: whether lorakit wrote them, and whether they changed since.

Config and weights both say that lorakit wrote them. The header of the weights holds a copy of the
config, and a hash of everything in the file.
"""

import json
from collections.abc import Iterator, Mapping

from lorakit.formats.checked_json import format_value
from lorakit.formats.peft.header import FORMAT, Header
from lorakit.formats.peft.weights import SIGNATURE, Weights, sign

LOST_ENTRY = (
    "the config says that lorakit wrote the adapter, but the header of the weights has no lorakit "
    "entry: it was lost, or another program wrote the weights"
)
MARK = {"lorakit": FORMAT}  # the config's `auto_mapping`, which PEFT reads only if asked to


def is_marked(config: Mapping[str, object]) -> bool:
    """Return True if a config says that lorakit wrote it.

    PEFT keeps the mark of an adapter that it loads and saves again, and adds all of its own keys,
    of which lorakit never writes `revision`.

    Args:
        config: all values of the file, nulls included.
    """
    mapping = config.get("auto_mapping")
    return isinstance(mapping, dict) and "lorakit" in mapping and "revision" not in config


def find_origin_faults(config: Mapping[str, object], header: Header, weights: Weights) -> list[str]:
    """Return the differences between the files of a folder and what lorakit wrote.

    Files of other tools have neither a mark nor a hash, and no faults.

    Args:
        config: all values of adapter_config.json, nulls included.
        header: of the weights.
        weights: as they are in the file.
    """
    if weights.entry is None:
        return [LOST_ENTRY] if is_marked(config) else []
    if header.version < FORMAT:
        return [f"the file is of format {header.version}, which holds no hash of its content"]
    return [*_find_hash_faults(weights), *_find_config_differences(config, header.config)]


def _find_hash_faults(weights: Weights) -> Iterator[str]:
    signature = weights.metadata.get(SIGNATURE)
    if signature is None:
        yield f"the header has no {SIGNATURE} entry: the hash of the content was lost"
    elif signature != sign(weights.metadata, weights.tensors):
        yield "the tensors or the header are not those that lorakit wrote: their hash is another"


def _find_config_differences(
    config: Mapping[str, object], written: Mapping[str, object]
) -> Iterator[str]:
    for key, value in written.items():
        if key not in config:
            yield f"adapter_config.json: {key} is missing: lorakit wrote {format_value(value)}"
        elif not is_same_json(config[key], value):
            found, expected = format_value(config[key]), format_value(value)
            yield f"adapter_config.json: {key} = {found}, lorakit wrote {expected}"
    for key in config.keys() - written.keys():
        if not _is_harmless_addition(key, config[key]):
            found = format_value(config[key])
            yield f"adapter_config.json: {key} = {found}, lorakit did not write it"


def _is_harmless_addition(key: str, value: object) -> bool:
    is_off = value is None or value in (False, 0, "", {}, [])
    return is_off or key in ("revision", "peft_version")


def is_same_json(first: object, second: object) -> bool:
    """Return True if two values are written as the same JSON; 1, 1.0 and true are different."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
