"""The outcome of a build: drop of the score, speedup, changed quantities, limits of the device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lrfc.metrics.source import MEASURED, Source

#: Bounds of counts and of other figures, so that computations do not overflow (squares of float32
#: reach 1e77).
MOST, GREATEST = 10**18, 1e100

Count = Annotated[int, Field(ge=0, le=MOST)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-GREATEST, le=GREATEST, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=1e-12, le=GREATEST, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of manifest.json: immutable, without unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_serialization_defaults_required=True
    )


def short(unit: str) -> str:
    """The unit of a drop without its reference: '%' of '% of the variance of the labels'."""
    return unit.partition(" ")[0]


class Part(Record):
    """A part of a drop, in its unit; negative where the score rose.

    ``step``: 'compression' of the float network (factorization, pruning, reconstruction,
    fine-tuning), 'emission' of the file (rounding), or 'kernels' (the reference kernels in the
    place of the optimised ones).
    """

    step: Literal["compression", "emission", "kernels"]
    drop: Number


class Kept(Record):
    """The drop of the emitted file's score against the original on the same test samples.

    ``low`` and ``high``: its two-sided interval. All are fractions of 1, and every page shows this
    drop. ``unit``: of these times 100, 'pp' or '% of' a reference; null from an older lrfc.
    ``allowed``: the limit of --max-drop, null without one. ``met``: whether the drop is within it,
    at the demanded confidence if there is one. ``margin``: ``allowed`` less the drop, or less the
    end of its interval if a confidence is demanded; negative where the limit is exceeded.
    ``parts``: of the drop by step, which add up to it; empty where they are unknown.
    """

    allowed: Number | None
    drop: Number
    low: Number
    high: Number
    confidence: Fraction
    samples: Annotated[int, Field(ge=1)]
    met: bool
    unit: str | None = None
    margin: Number | None = None
    parts: tuple[Part, ...] = ()


class Speedup(Record):
    """The latency of another file divided by that of the new one.

    Measured (``source``): the files run in turns in several processes each; the median and the 95 %
    interval over these. Estimated or compiled: the quotient of both figures, without an interval.
    """

    median: Number
    low: Number | None = None
    high: Number | None = None
    source: Source = MEASURED

    @property
    def pace(self) -> Pace:
        """The speedup in words; a difference has to show in the interval and in two decimals."""
        if f"{self.median:.2f}" == "1.00":
            return "as fast"
        low = self.median if self.low is None else self.low
        high = self.median if self.high is None else self.high
        return "faster" if low > 1 else "slower" if high < 1 else "not measurably different"


Pace = Literal["faster", "slower", "as fast", "not measurably different"]
#: The figures of ``lrfc.results.manifest.Figures`` in a verdict, in its order; less is better.
Quantity = Literal[
    "macs",
    "params",
    "file_bytes",
    "arena_bytes",
    "workspace_bytes",
    "latency_ms",
    "cycles",
    "sram_bytes",
    "flash_bytes",
    "arena_total_bytes",
    "peak_rss_bytes",
]


class Change(Record):
    """A quantity of the file before and after.

    ``source``: of the figures; null for counted or planned quantities, which need no device.
    ``grew``: whether it got worse by more than the uncertainty of a measurement.
    """

    quantity: Quantity
    before: Number
    after: Number
    source: Source | None = None
    grew: bool


class Asked(Record):
    """A budget as it was given, its bound, the value of the file, and whether that is within it."""

    option: str
    quantity: Quantity
    bound: Number
    value: Number
    met: bool


class Beside(Record):
    """The speedup over the original in a ``precision``, or the reason why it is unknown."""

    precision: str
    speedup: Speedup | None = None
    pace: Pace | None = None
    reason: str | None = None


class Room(Record):
    """A memory limit of the device, the need of the file, and whether it fits.

    ``flash``: the file, or the weights as an NPU's compiler stores them. ``ram``: its activations,
    or the SRAM that the compiler plans, or the measured arena of a microcontroller; of that
    ``head`` are activations, and ``tail`` structures of the runtime. The runtime's own variables
    and code come in addition. ``source``: of ``needed``; null where it is counted or planned.
    ``remedy``: what would have it measured; null where nothing would, or it is.
    """

    memory: Literal["flash", "ram"]
    needed: Count
    limit: Count
    fits: bool
    source: Source | None = None
    head: Count | None = None
    tail: Count | None = None
    remedy: str | None = None


Outcome = Literal["compressed", "not met", "original kept"]


class Verdict(Record):
    """The verdict on a build.

    ``outcome``: 'compressed'; 'not met' where a budget or the accuracy contract is not; 'original
    kept' where there was no gain, and then the figures are the original's. ``contract``: the
    accuracy contract, null where accuracy was not measured; ``metric``: the name of its score,
    ``original`` and ``score``: the values of the original in float and of the emitted file.
    ``budgets``: all that were given. ``speeds``: first of the compressed file, even if it was
    rejected, against the original in the same precision; then of the final file against the
    original in fp32. ``changes``: all known quantities. ``rooms``: all limits in the device's
    profile.
    """

    outcome: Outcome
    device: str | None
    target: str
    precision: str
    metric: str | None = None
    percent: bool = True
    original: Number | None = None
    score: Number | None = None
    contract: Kept | None = None
    budgets: tuple[Asked, ...] = ()
    speeds: tuple[Beside, ...] = ()
    changes: tuple[Change, ...] = ()
    rooms: tuple[Room, ...] = ()

    @property
    def grown(self) -> tuple[Change, ...]:
        """The quantities that got worse."""
        return tuple(change for change in self.changes if change.grew)
