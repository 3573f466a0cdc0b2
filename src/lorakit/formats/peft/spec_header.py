"""The spec as the header of an adapter file holds it: its fields, some under their first names."""

from collections.abc import Mapping

from lorakit.spec import Spec

FIRST_NAMES = {"full_modules": "whole_modules"}
FIELDS = {first: name for name, first in FIRST_NAMES.items()}


def spec_to_header(spec: Spec) -> dict[str, object]:
    """Return the fields of a spec under the names that files use."""
    return {FIRST_NAMES.get(name, name): value for name, value in spec.to_dict().items()}


def use_present_names(values: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a spec in a file under the names that they have today."""
    return {FIELDS.get(name, name): value for name, value in values.items()}


def spec_from_header(values: Mapping[str, object]) -> Spec:
    """Return the spec of a header.

    Raises:
        SpecError: an unknown field, or a value that a spec refuses.
    """
    return Spec.from_dict(use_present_names(values))
