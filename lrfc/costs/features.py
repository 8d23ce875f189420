"""Features of the latency model: the arithmetic and memory traffic of an op, in whole tiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.costs.workload import Workload

#: Families of ops, which share a kind of kernel. The first ones are matrix products.
MATRIX = ("conv", "pointwise", "dense", "grouped", "transposed")
FAMILIES = (*MATRIX, "depthwise", "pool", "reduce", "add", "other")
_BINARY = frozenset("add subtract multiply average maximum minimum".split())

#: A tile (rows, columns, depth): the output positions, output channels and input channels that a
#: kernel processes at once; a part of a tile costs as much as a whole one.
Tile = tuple[int, int, int]


@dataclass(frozen=True)
class Work:
    """The features of one op.

    ``positions``: of the output (of the input for a transposed convolution). ``columns`` and
    ``depth``: output and input channels of each group. ``taps``: of the window. ``inputs``,
    ``outputs`` and ``weights``: numbers of values. ``height`` and ``width``: of the output of a
    window that moves over two axes. ``span``: columns that the window reaches beyond its own.
    """

    family: str
    positions: int
    columns: int
    depth: int
    taps: int
    groups: int
    inputs: int
    outputs: int
    weights: int
    height: int = 1
    width: int = 1
    span: int = 0


@lru_cache(maxsize=1 << 17)
def work(op: Workload) -> Work:
    """The features of a workload."""
    inputs, outputs = sum(map(prod, op.inputs)), prod(op.output)
    channels = op.output[-1] if op.output else 1
    depth = op.inputs[0][-1] if op.inputs and op.inputs[0] else 1
    taps, positions, groups = prod(op.kernel), prod(op.output[:-1]), op.groups
    family = "add" if op.kind in _BINARY else op.kind if op.kind in FAMILIES else "other"
    if op.kind == "conv":
        family = "grouped" if groups > 1 else "pointwise" if taps == 1 else "conv"
    elif op.kind == "transposed":
        positions = prod(op.inputs[0][:-1])
    elif op.kind == "dense":
        # An einsum may have several summed and several output axes: as a matrix product, its
        # columns are the outputs of each position.
        positions = (
            max(1, outputs * depth // max(1, op.macs))
            if len(op.inputs[0]) == 1
            else max(1, prod(op.inputs[0][:-1]))
        )
        channels, depth = max(1, outputs // positions), max(1, op.macs // outputs)
    elif op.kind == "reduce":
        taps, positions, channels = max(1, inputs // max(1, outputs)), 1, outputs
    elif family == "other" and op.macs:
        taps = max(1, op.macs // max(1, outputs))  # recurrent layers, attention: MACs per output
    height, width = (
        (positions // op.output[-2], op.output[-2])
        if op.kernel and len(op.output) > 1
        else (1, positions)
    )
    span = (op.kernel[-1] - 1) * (op.dilation[-1] if op.dilation else 1) if op.kernel else 0
    columns, depth = max(1, channels // groups), max(1, depth // groups)
    return Work(
        family,
        positions,
        columns,
        depth,
        taps,
        groups,
        inputs,
        outputs,
        op.params,
        max(1, height),
        max(1, width),
        span,
    )


_NAMES = tuple(field.name for field in fields(Work))[1:]
_numbers = attrgetter(*_NAMES)


def table(ops: Iterable[Work]) -> Mapping[str, NDArray[np.float64]]:
    """The features of many ops, as columns by name."""
    rows = np.array([_numbers(op) for op in ops], np.float64).reshape(-1, len(_NAMES))
    return dict(zip(_NAMES, rows.T, strict=True))


def terms(
    family: str, many: Mapping[str, NDArray[np.float64]], tile: Tile, *, by_row: bool = False
) -> dict[str, NDArray[np.float64]]:
    """The terms of the time of ops of one family: arrays over the ops of ``table``, by name.

    An additive roofline: arithmetic in whole tiles, the start of each tile, values moved, and the
    start of the op itself. ``by_row``: kernels for channels in blocks process one row of the output
    at a time, so that tiles end with the row, weights are read again for each row, and positions
    whose window crosses an edge ('edges') are slower.
    """
    direct = by_row and family in ("conv", "depthwise")
    rows = tile[0]
    high = many["height"] * _up(many["width"], rows) if direct else _up(many["positions"], rows)
    start = {"op": np.ones_like(high)}
    moved = {"inputs": many["inputs"], "outputs": many["outputs"]}
    weights = {"weights": many["weights"]}
    edge = np.minimum(many["span"], many["width"]) * many["height"] * many["taps"]
    if family in MATRIX:
        by_rows = {
            "edges": edge * _up(many["columns"], tile[1]) * many["depth"],
            "reread": many["weights"] * many["height"],
        }
        products = _matrix(many, tile, high)
        return {**start, **products, **moved, **weights, **(by_rows if direct else {})}
    if family == "depthwise":
        lanes = _up(many["groups"] * many["columns"], tile[1])
        taps = many["taps"] if tile[2] == 1 else _next_window(many["taps"])
        tiles = {"positions": high, "tiles": high * lanes / tile[1]}
        edges = {"edges": edge * lanes} if direct else {}
        return {**start, "macs": high * lanes * taps, **tiles, **moved, **weights, **edges}
    if family in ("pool", "reduce"):
        return {**start, "macs": high * _up(many["columns"], tile[1]) * many["taps"], **moved}
    if family == "other":
        return {**start, "macs": many["outputs"] * (many["taps"] - 1), **moved, **weights}
    return {**start, **moved}


def _matrix(
    many: Mapping[str, NDArray[np.float64]], tile: Tile, high: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """The terms of matrix products; ``high``: output positions in whole tiles."""
    rows, columns, depth = tile
    wide, long = _up(many["columns"], columns), many["taps"] * _up(many["depth"], depth)
    tiles = many["groups"] * high * wide / (rows * columns)
    return {
        "macs": many["groups"] * high * wide * long,
        "tiles": tiles,
        "taps": tiles * many["taps"],
        "rows": many["groups"] * high * long,
    }


#: Taps of the windows that XNNPACK has depthwise kernels for; any other window costs as much as the
#: next larger one.
_WINDOWS = np.array([3, 4, 9, 25])


def _next_window(taps: NDArray[np.float64]) -> NDArray[Any]:
    return np.where(
        taps > _WINDOWS[-1],
        taps,
        _WINDOWS[np.minimum(np.searchsorted(_WINDOWS, taps), len(_WINDOWS) - 1)],
    )


def _up(sizes: NDArray[np.float64], multiple: int) -> NDArray[Any]:
    return np.ceil(sizes / multiple) * multiple
