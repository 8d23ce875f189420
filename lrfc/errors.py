"""The errors that lrfc raises on purpose, each with its exit code of the command line."""

from __future__ import annotations

from typing import Any


class LrfcError(Exception):
    """Base of all errors of lrfc.

    The message is one line: the option or file, its value, and the remedy.
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
    """A budget that cannot be met. ``result``: the best effort, where one was saved."""

    exit_code = 4

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class UnreachableError(BudgetError):
    """A budget below the least that the candidates reach.

    ``quantity``: 'macs', 'params', 'latency', 'size' or 'ram'. ``limit``: the amount that the
    budget allows. ``least``: the least amount that can be reached. Both are in MACs, parameters,
    bytes or, for a latency, the unit of the cost profile.
    """

    def __init__(
        self, quantity: str, budget: object, limit: float, least: float, reason: str
    ) -> None:
        super().__init__(f"--max-{quantity} {budget} cannot be reached: {reason}")
        self.quantity, self.limit, self.least = quantity, limit, least


class DeviceError(LrfcError):
    """A device that cannot be reached, or a measurement that failed.

    ``measured``: the timings of each file before the failure.
    """

    exit_code = 5

    def __init__(self, message: str, measured: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.measured = measured


class DependencyError(LrfcError):
    """A package that is needed and not installed."""

    exit_code = 6


class ParityError(LrfcError):
    """An emitted file whose outputs are not those of the model."""

    exit_code = 7


class NoGainError(LrfcError):
    """A result that is not smaller or not faster than the original, which ships instead.

    ``result``: the build.
    """

    exit_code = 8

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result
