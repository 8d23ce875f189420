"""The outcome of a build as values: what was lost, how fast the file is, what grew, what fits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lrfc.metrics.source import MEASURED, Source

#: Bounds of every count and of every other figure: with these all can be computed with (squares of
#: float32 go to 1e77).
MOST, GREATEST = 10**18, 1e100

Count = Annotated[int, Field(ge=0, le=MOST)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-GREATEST, le=GREATEST, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=1e-12, le=GREATEST, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of manifest.json: immutable, and nothing unknown in it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_serialization_defaults_required=True
    )


def short(unit: str) -> str:
    """The unit of a drop without what it is a share of."""
    return unit.partition(" ")[0]


class Part(Record):
    """A part of a drop, in its unit; less than nothing where the score got better.

    ``step``: 'compression' is all that was done to the network in float (factorized, cut, refitted,
    fine-tuned), 'emission' what the file loses against that network (rounding), 'kernels' what the
    reference kernels lose against the optimised ones.
    """

    step: Literal["compression", "emission", "kernels"]
    drop: Number


class Kept(Record):
    """The drop of the emitted file's accuracy against the original on the same test samples.

    With its two-sided interval, as fractions of 1. There is one drop: whatever shows one shows
    this. ``unit``: of these times 100, 'pp' or '% of' something; null from an older lrfc.
    ``allowed``: what --max-drop allows, null where nothing was asked. ``met``: whether it holds,
    with the demanded confidence where there is one. ``margin``: what is left of what is allowed, of
    the drop or with a demanded confidence of the end of its interval; less than nothing where it is
    broken. ``parts``: in which steps the drop came about; they add up to it, and are empty where
    that is not known.
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
    """How many times as fast the new file is as another one.

    Measured in turns with it: the median over several fresh processes of each file, and the 95 %
    interval over them. Estimated or compiled (``source``): the quotient of both figures, and no
    interval.
    """

    median: Number
    low: Number | None = None
    high: Number | None = None
    source: Source = MEASURED

    @property
    def pace(self) -> Pace:
        """A difference only where the whole interval says so, and it shows in two decimals."""
        if f"{self.median:.2f}" == "1.00":
            return "as fast"
        low = self.median if self.low is None else self.low
        high = self.median if self.high is None else self.high
        return "faster" if low > 1 else "slower" if high < 1 else "not measurably different"


Pace = Literal["faster", "slower", "as fast", "not measurably different"]
#: The fields of ``lrfc.results.manifest.Figures`` that a verdict looks at, in the order in which it
#: does; less is better in all of them.
Quantity = Literal[
    "macs",
    "params",
    "file_bytes",
    "arena_bytes",
    "latency_ms",
    "cycles",
    "sram_bytes",
    "flash_bytes",
    "peak_rss_bytes",
]


class Change(Record):
    """A quantity of the file before and after.

    ``source``: where the figures come from; null for what is counted or planned, and needs no
    device. ``grew``: whether it got worse, beyond what a measurement leaves open.
    """

    quantity: Quantity
    before: Number
    after: Number
    source: Source | None = None
    grew: bool


class Asked(Record):
    """A budget as it was given, the bound that it is, and whether what the file takes holds it."""

    option: str
    quantity: Quantity
    bound: Number
    value: Number
    met: bool


class Beside(Record):
    """The speed of the file beside the original's in a ``precision``, or why it is not known."""

    precision: str
    speedup: Speedup | None = None
    pace: Pace | None = None
    reason: str | None = None


class Room(Record):
    """A limit of the device, what the file takes of it, and whether it fits.

    ``flash``: the file, or the weights as an NPU's compiler stores them. ``ram``: its activations,
    or the SRAM that the compiler plans. What runs them comes on top.
    """

    memory: Literal["flash", "ram"]
    needed: Count
    limit: Count
    fits: bool


Outcome = Literal["compressed", "not met", "original kept"]


class Verdict(Record):
    """The verdict on a build, as fields.

    ``outcome``: 'compressed'; 'not met' where a budget or the accuracy contract is not; 'original
    kept' where there was no gain: then the figures are the original's. ``contract``: the accuracy
    contract, null where accuracy was not measured; ``metric``, ``original`` and ``score`` are the
    name and the values of the score that it is about, in float before and of the emitted file.
    ``budgets``: each that was given. ``speeds``: first of the compressed file, also of one that was
    not kept, beside the original's of the same precision; then of the file that ships beside the
    original in fp32. ``changes``: every quantity that is known, the ones that grew among them.
    ``rooms``: for each limit in the device's profile.
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
