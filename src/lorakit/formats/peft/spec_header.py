"""The spec in the header of an adapter file, whose field names stay those of the first version."""

from collections.abc import Mapping

from lorakit.spec import Spec

FILE_NAMES = {"full_modules": "whole_modules"}  # of renamed fields, by their name in Spec
FIELD_NAMES = {in_file: field for field, in_file in FILE_NAMES.items()}


def spec_to_header(spec: Spec) -> dict[str, object]:
    """Return the fields of a spec under their names in files."""
    fields = spec.to_dict()
    return {FILE_NAMES.get(name, name): value for name, value in fields.items()}


def use_present_names(values: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a spec in a file under their names in `Spec`."""
    return {FIELD_NAMES.get(name, name): value for name, value in values.items()}


def spec_from_header(values: Mapping[str, object]) -> Spec:
    """Return the spec of a header.

    Args:
        values: the fields under their names in files.

    Raises:
        SpecError: an unknown field, or a value that a spec refuses.
    """
    return Spec.from_dict(use_present_names(values))
