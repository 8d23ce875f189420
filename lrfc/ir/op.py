"""Operations, with their input and output tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import GraphError
from lrfc.ir import defaults
from lrfc.ir.kinds import Kind, kind_of

Array = NDArray[Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Tensor:
    """Shape and dtype of an operation's output.

    The first axis is the batch and usually None.
    """

    shape: Shape
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements of one sample (the batch axis does not count)."""
        unknown = [axis for axis, length in enumerate(self.shape[1:], start=1) if length is None]
        if unknown:
            raise GraphError(f"axis {unknown[0]} of shape {self} has no fixed length")
        return prod(length for length in self.shape[1:] if length is not None)

    def __str__(self) -> str:
        lengths = ", ".join("?" if length is None else str(length) for length in self.shape)
        return f"({lengths})" if self.dtype == "float32" else f"({lengths}) {self.dtype}"


@dataclass(frozen=True, order=True)
class Ref:
    """One output of an operation."""

    op: str
    output: int = 0

    def __str__(self) -> str:
        return self.op if self.output == 0 else f"{self.op}:{self.output}"


@dataclass(frozen=True)
class Slot:
    """Placeholder of operand number ``port`` in an operation's call."""

    port: int


def _readonly(array: Array) -> Array:
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: a Keras layer or keras.ops call, with its configuration and weights.

    ``attrs``: the Keras configuration without the name. An op that a pass creates sets only what
    differs from Keras' defaults.
    ``weights``: read-only arrays in Keras' order, by variable name (``kernel``, ``bias``, ...).
    ``shared``: the key of a shared layer. Ops with the same key are calls of that layer and hold
    the very same weights.
    ``call``: (args, kwargs) with a ``Slot`` for each operand. None for the usual form: the operand,
    or the list of the operands when there are several.
    ``origin``: the Python class of a kind that is not in ``keras.layers`` (keras.ops, custom
    layers). Such ops are never rewritten.
    """

    name: str
    kind: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    shared: str | None = None
    call: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    origin: type | None = None

    def __post_init__(self) -> None:
        weights = {name: _readonly(np.asarray(array)) for name, array in self.weights.items()}
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))
        object.__setattr__(self, "weights", MappingProxyType(weights))

    def __getitem__(self, attr: str) -> Any:
        """The attribute; Keras' default for this kind when it is not set."""
        return self.attrs[attr] if attr in self.attrs else defaults.default(self.kind, attr)

    @property
    def info(self) -> Kind:
        """The row of this kind in the table of kinds."""
        return kind_of(self.kind)

    def with_attrs(self, **attrs: Any) -> Op:
        """This op with some attributes replaced."""
        return replace(self, attrs={**self.attrs, **attrs})

    @property
    def params(self) -> int:
        """Number of weight values."""
        return sum(w.size for w in self.weights.values())
