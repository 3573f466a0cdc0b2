"""Every exception of lorakit. Each is a LorakitError and also the stdlib class it stands for.

    LorakitError
    ├── SpecError (ValueError)          a field of Spec or TrainSpec, or a flag, that cannot be
    meant ├── TargetError (LookupError)       a name or pattern that selects nothing, or what cannot
    be adapted ├── AdapterNameError (LookupError)  an adapter name that is taken, unknown or
    unusable ├── AdapterMismatch (ValueError)    an adapter that does not fit this model
    ├── AdapterFileError (ValueError)   an adapter folder that cannot be trusted
    ├── MergeError (RuntimeError)       a merge that would not give what was asked
    ├── RowsError (RuntimeError)        rows of a batch that cannot go to adapters of their own
    ├── ModelError (OSError)            a model that cannot be found, read or used for the task
    ├── DataError (ValueError)          rows that cannot be trained or evaluated on
    ├── OutputError (FileExistsError)   an output that would be overwritten or cannot be made, or a
    run that is not there ├── MissingExtra (ImportError)      an optional library that is not
    installed ├── PlanError (RuntimeError)        a step that cannot be run on shapes alone
    └── TrainingError (RuntimeError)    a run that was stopped while running

A new one: add a line above, derive from LorakitError and a stdlib class, and test its text.
"""

from collections.abc import Iterable

SHOWN = 12  # faults printed before the rest is only counted


class LorakitError(Exception):
    """What was asked, what was found, and what to do.

    Args:
        message: one or two sentences: what was asked and what was found.
        faults: every single fault, one line each; all are kept, the first 12 are printed.
        advice: what to do, and what was (not) changed.
    """

    exit_code = 2

    def __init__(self, message: str, faults: Iterable[str] = (), advice: str = ""):
        super().__init__(message, tuple(faults), advice)
        self.message, self.faults, self.advice = message, list(faults := self.args[1]), advice

    def __str__(self) -> str:
        lines = [self.message, *(f"  {fault}" for fault in self.faults[:SHOWN])]
        if len(self.faults) > SHOWN:
            lines.append(
                f"  … and {len(self.faults) - SHOWN} more (--json, or .faults, lists them all)"
            )
        return "\n".join([*lines, self.advice] if self.advice else lines)


class SpecError(LorakitError, ValueError): ...


class TargetError(LorakitError, LookupError): ...


class AdapterNameError(LorakitError, LookupError): ...


class AdapterMismatch(LorakitError, ValueError): ...


class AdapterFileError(LorakitError, ValueError): ...


class MergeError(LorakitError, RuntimeError): ...


class RowsError(LorakitError, RuntimeError): ...


class ModelError(LorakitError, OSError): ...


class DataError(LorakitError, ValueError): ...


class OutputError(LorakitError, FileExistsError): ...


class MissingExtra(LorakitError, ImportError): ...


class PlanError(LorakitError, RuntimeError): ...


class TrainingError(LorakitError, RuntimeError):
    exit_code = 1
