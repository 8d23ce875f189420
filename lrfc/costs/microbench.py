"""Small random networks that calibrate a cost profile.

They are chains of one kind of op, and the blocks of compressed networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.costs.workload import workloads
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref

#: Largest number of MACs of one network: about a millisecond on one core of a desktop.
LARGEST = 40_000_000
#: Largest number of weight values of one network, which is emitted, sent and loaded.
HEAVIEST = 4_000_000
#: Networks of one calibration.
COUNT = 120


def networks(count: int = COUNT, seed: int = 0) -> Iterator[Graph]:
    """Yield graphs with random weights; the same for the same seed.

    The logarithms of sizes are spread evenly.
    """
    rng = np.random.default_rng(seed)
    turns = [kind for kind, weight in _WEIGHTS.items() for _ in range(weight)]
    number = 0
    while number < count:
        # 7 and the number of turns are coprime: every kind has its share from the start.
        kind = turns[number * 7 % len(turns)]
        graph = _MAKE[kind](_Net(rng, f"{kind}{number}"))
        ops = [op for _, op in workloads(graph)]
        macs, params = sum(op.macs for op in ops), sum(op.params for op in ops)
        if 10_000 <= macs <= LARGEST and params <= HEAVIEST:
            number += 1
            yield graph


class _Net:
    """A builder of graphs, op by op."""

    def __init__(self, rng: np.random.Generator, name: str) -> None:
        self.rng, self.weights = rng, np.random.default_rng(0)
        self.graph = Graph(name)
        self.last = Ref("")

    def input(self, *shape: int) -> None:
        self.last = self.graph.add(
            Op("input", "InputLayer", {"batch_shape": (None, *shape), "dtype": "float32"})
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size or 1 for size in self.graph.tensor(self.last).shape[1:])

    @property
    def channels(self) -> int:
        return self.shape[-1]

    def add(
        self,
        kind: str,
        weights: Mapping[str, NDArray[np.float32]] | None = None,
        other: Ref | None = None,
        **attrs: Any,
    ) -> None:
        operands = (self.last,) if other is None else (self.last, other)
        self.last = self.graph.add(Op(f"op{len(self.graph)}", kind, attrs, weights or {}), operands)

    def conv(
        self,
        filters: int,
        kernel: tuple[int, int],
        stride: int = 1,
        activation: str | None = "relu",
    ) -> None:
        strides = tuple(stride if taps > 1 or max(kernel) == 1 else 1 for taps in kernel)
        weights = {
            "kernel": self._normal(*kernel, self.channels, filters),
            "bias": self._normal(filters),
        }
        self.add(
            "Conv2D",
            weights,
            filters=filters,
            kernel_size=kernel,
            padding="same",
            activation=activation,
            use_bias=True,
            strides=strides,
        )

    def depthwise(
        self, kernel: tuple[int, int], stride: int = 1, activation: str | None = "relu"
    ) -> None:
        weights = {
            "kernel": self._normal(*kernel, self.channels, 1),
            "bias": self._normal(self.channels),
        }
        self.add(
            "DepthwiseConv2D",
            weights,
            depth_multiplier=1,
            kernel_size=kernel,
            strides=stride,
            padding="same",
            activation=activation,
            use_bias=True,
        )

    def dense(self, units: int) -> None:
        weights = {"kernel": self._normal(self.channels, units), "bias": self._normal(units)}
        self.add("Dense", weights, units=units, activation="relu", use_bias=True)

    def done(self) -> Graph:
        self.graph.outputs = (self.last,)
        return self.graph

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def size(self, low: int, high: int) -> int:
        """A random size from low to high, with evenly spread logarithm."""
        return round(float(np.exp(self.rng.uniform(np.log(low), np.log(high)))))

    def width(self, low: int, high: int) -> int:
        """A number of channels: a multiple of 8 as in designs, or any number as of ranks."""
        size = self.size(low, high)
        return max(8, size // 8 * 8) if self.rng.random() < 0.5 and high >= 8 else size

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        return self.weights.standard_normal(shape, np.float32) / np.float32(
            np.sqrt(max(1, int(np.prod(shape[:-1]))))
        )


def _convs(net: _Net) -> Graph:
    """Convolutions that alternate between two widths."""
    side = net.size(2, 64)
    net.input(side, side, net.width(3, 256))
    length = net.pick(3, 3, 3, 2, 5, 7)
    kernel = net.pick((length, length), (length, length), (length, 1), (1, length))
    widths = net.width(1, 384), net.width(1, 384)
    for number in range(6):
        net.conv(widths[number % 2], kernel)
    return net.done()


def _points(net: _Net) -> Graph:
    side = net.size(2, 80)
    net.input(side, side, net.width(3, 256))
    widths = net.width(1, 512), net.width(1, 512)
    for number in range(8):
        net.conv(widths[number % 2], (1, 1))
    return net.done()


def _depthwise(net: _Net) -> Graph:
    side = net.size(4, 64)
    net.input(side, side, net.pick(3, 8))
    net.conv(net.width(4, 512), (1, 1))
    length = net.pick(3, 3, 3, 5)
    for kernel in net.pick([(length, length)] * 5, [(length, 1), (1, length)] * 3):
        net.depthwise(kernel)
    return net.done()


def _dense(net: _Net) -> Graph:
    net.input(net.width(8, 2048))
    for _ in range(net.pick(2, 3, 4, 5)):
        net.dense(net.width(4, 1024))
    return net.done()


def _pools(net: _Net) -> Graph:
    side = net.size(8, 64)
    net.input(side, side, 3)
    net.conv(net.width(4, 256), (1, 1))
    length, kind = net.pick(2, 2, 3), net.pick("MaxPooling2D", "AveragePooling2D")
    for stride in net.pick((1, 1, 1), (1, 2, 1), (2, 2)):
        net.add(kind, pool_size=(length, length), strides=(stride, stride), padding="same")
    return net.done()


def _elementwise(net: _Net) -> Graph:
    side = net.size(4, 64)
    net.input(side, side, 3)
    net.conv(net.width(4, 128), (1, 1))
    first = net.last
    net.conv(net.channels, (1, 1))
    for number in range(4):
        kind = net.pick("Add", "Add", "tanh", "sigmoid", "LeakyReLU", "Concatenate")
        if kind == "Add":
            net.add(
                "Add" if number % 2 else "Multiply",
                other=first if net.shape == tuple(net.graph.tensor(first).shape[1:]) else net.last,
            )
        elif kind == "Concatenate":
            net.add(kind, other=first)
        elif kind == "LeakyReLU":
            net.add(kind, negative_slope=0.1)
        else:
            net.add("Activation", activation=kind)
    return net.done()


def _blocks(net: _Net) -> Graph:
    """Residual, low-rank and separable blocks, with strides, pooling and a classifier."""
    side = net.size(8, 64)
    net.input(side, side, net.pick(1, 3, 3))
    net.conv(net.width(8, 64), (3, 3), net.pick(1, 2))
    for _ in range(net.pick(2, 3, 4)):
        before, wide = net.last, net.channels
        stride = net.pick(1, 1, 1, 2)
        filters = wide if net.rng.random() < 0.6 else net.width(8, 256)
        _block(net, filters, stride)
        if stride == 1 and filters == wide and net.rng.random() < 0.8:
            net.add("Add", other=before)
        net.add("ReLU")
        if net.shape[0] >= 4 and net.rng.random() < 0.15:
            net.add(
                net.pick("MaxPooling2D", "AveragePooling2D"),
                pool_size=(2, 2),
                strides=(2, 2),
                padding="valid",
            )
    net.add("GlobalAveragePooling2D")
    net.dense(net.width(4, 100))
    return net.done()


def _block(net: _Net, filters: int, stride: int) -> None:
    """One layer, full, factorized or separable."""
    narrow = min(net.channels, filters)
    first, second = net.size(1, narrow), net.size(1, narrow)
    form = net.pick("full", "channel", "spatial", "tucker", "cp", "inverted", "separable")
    if form == "full":
        net.conv(filters, (3, 3), stride, None)
        return
    if form == "channel":
        net.conv(first, (3, 3), stride, None)
    elif form == "spatial":
        net.conv(first, (3, 1), stride, None)
        net.conv(filters, (1, 3), stride, None)
        return
    elif form == "tucker":
        net.conv(first, (1, 1), 1, None)
        net.conv(second, (3, 3), stride, None)
    elif form == "cp":
        net.conv(first, (1, 1), 1, None)
        for kernel in ((3, 1), (1, 3)) if stride == 1 else ((3, 3),):
            net.depthwise(kernel, stride, None)
    elif form == "inverted":
        net.conv(min(512, net.channels * net.pick(2, 4, 6)), (1, 1))
        net.depthwise((3, 3), stride)
    else:
        net.depthwise((3, 3), stride)
    net.conv(filters, (1, 1), 1, None)


_MAKE: Mapping[str, Callable[[_Net], Graph]] = {
    "conv": _convs,
    "point": _points,
    "depthwise": _depthwise,
    "dense": _dense,
    "pool": _pools,
    "elementwise": _elementwise,
    "blocks": _blocks,
}
#: Number of networks of each kind among 30.
_WEIGHTS = {
    "conv": 6,
    "point": 4,
    "depthwise": 5,
    "dense": 3,
    "pool": 2,
    "elementwise": 2,
    "blocks": 8,
}
