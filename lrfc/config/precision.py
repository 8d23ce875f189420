"""The number formats of an emitted file: what is stored in how many bytes, and what is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lrfc.errors import UsageError
from lrfc.nearest import like
from lrfc.system.reader import shown

#: The precisions on the command line.
Name = Literal["fp32", "fp16", "dynamic", "int8", "int16x8"]


@dataclass(frozen=True)
class Precision:
    """Bytes of a kernel value, of an entry of a vector (a bias), and of an activation value while the file runs.

    ``integer``: activations are integers too, whose ranges are read from calibration samples;
    weights have 8 bits. ``rounding``: the file is as close to the model as rounding to so few bits
    allows, and no closer. ``like``: the precision whose times are nearest, where none were measured
    in this one.
    """

    weight: int
    vector: int
    activation: int
    integer: bool
    rounding: bool
    like: Name


#: Half-precision weights are computed with in float32: LiteRT and onnxruntime convert them on CPUs.
#: Dynamic range quantises activations op by op.
PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(4, 4, 4, integer=False, rounding=False, like="fp32"),
    "fp16": Precision(2, 2, 4, integer=False, rounding=False, like="fp32"),
    "dynamic": Precision(1, 4, 4, integer=False, rounding=True, like="int8"),
    "int8": Precision(1, 4, 1, integer=True, rounding=True, like="int8"),
    "int16x8": Precision(1, 8, 2, integer=True, rounding=True, like="int8"),
}


def of(name: str) -> Precision:
    """The precision of that name; UsageError when there is none."""
    if name not in PRECISIONS:
        raise UsageError(
            f"unknown precision '{shown(name, 60)}'{like(name, PRECISIONS)}; choose"
            f" {listed(tuple(PRECISIONS))}"
        )
    return PRECISIONS[name]


def listed(names: tuple[str, ...], last: str = "or") -> str:
    """The names in a sentence, as a choice unless ``last`` says otherwise."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
