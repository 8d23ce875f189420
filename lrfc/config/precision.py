"""The number formats of an emitted file: bytes for each value, and rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lrfc.errors import UsageError
from lrfc.system.reader import shown
from lrfc.text import like

#: The names of the precisions, as on the command line.
Name = Literal["fp32", "fp16", "dynamic", "int8", "int16x8"]


@dataclass(frozen=True)
class Precision:
    """The storage of one precision.

    ``weight``, ``vector``, ``activation``: bytes of a kernel value, of a value of a vector (such as
    a bias), and of an activation value at run time. ``integer``: activations are integers, whose
    ranges come from calibration samples; weights have 8 bits. ``rounding``: whether rounding alone,
    without any compression, may lower the score. ``like``: the precision with the nearest
    latencies, used where none were measured in this one.
    """

    weight: int
    vector: int
    activation: int
    integer: bool
    rounding: bool
    like: Name


#: fp16: LiteRT and onnxruntime convert the weights to float32 on CPUs and compute in float32.
#: dynamic: activations are quantised op by op at run time.
PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(4, 4, 4, integer=False, rounding=False, like="fp32"),
    "fp16": Precision(2, 2, 4, integer=False, rounding=False, like="fp32"),
    "dynamic": Precision(1, 4, 4, integer=False, rounding=True, like="int8"),
    "int8": Precision(1, 4, 1, integer=True, rounding=True, like="int8"),
    "int16x8": Precision(1, 8, 2, integer=True, rounding=True, like="int8"),
}


def of(name: str) -> Precision:
    """Return the precision of that name; UsageError when there is none."""
    if name not in PRECISIONS:
        raise UsageError(
            f"unknown precision '{shown(name, 60)}'{like(name, PRECISIONS)}; choose"
            f" {listed(tuple(PRECISIONS))}"
        )
    return PRECISIONS[name]


def listed(names: tuple[str, ...], last: str = "or") -> str:
    """Return the names as an enumeration: commas, and ``last`` before the last name."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
