"""Every error that lrfc raises on purpose, each with the exit code of the command line."""

from __future__ import annotations

from typing import Any


class LrfcError(Exception):
    """Base of all errors of lrfc.

    The message is one line: the thing, its value, and the way out.
    """

    exit_code = 1


class UsageError(LrfcError):
    """An option, a data file or an output folder that cannot be used as given."""

    exit_code = 2


class ModelError(LrfcError):
    """A model file that cannot be read, or a model that cannot be compressed or emitted."""

    exit_code = 3


class GraphError(LrfcError):
    """A graph that breaks an invariant: a bug in the pass that returned it."""

    exit_code = 3


class BudgetError(LrfcError):
    """A budget that cannot be met. When a best effort was saved, ``result`` holds it."""

    exit_code = 4

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class DeviceError(LrfcError):
    """A device that cannot be reached, or a measurement that failed.

    ``measured`` holds what was measured of each file before.
    """

    exit_code = 5

    def __init__(self, message: str, measured: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.measured = measured


class DependencyError(LrfcError):
    """A package that this job needs and that is not installed."""

    exit_code = 6


class ParityError(LrfcError):
    """An emitted file that does not compute what the model computes."""

    exit_code = 7


class NoGainError(LrfcError):
    """A result that is not smaller or not faster than the original, which is kept.

    ``result`` holds the build.
    """

    exit_code = 8

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result
