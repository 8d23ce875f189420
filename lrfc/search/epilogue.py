"""The element-wise epilogue of a layer: BatchNorm, residual addition, activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from lrfc.search.batchnorm import moved

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Epilogue:
    """The element-wise ops behind a layer, up to the feature map that the next layer reads.

    First ``batchnorm``, then ``addend`` (the other operand of a residual Add), then ``activation``;
    any may be absent. ``end``: the op whose output is the feature map.
    """

    end: str
    batchnorm: Op | None = None
    addend: Ref | None = None
    activation: Op | None = None

    @property
    def in_numpy(self) -> bool:
        """Whether the epilogue is computed in NumPy, without Keras."""
        return self.activation is None or rectifier(self.activation) is not None

    @property
    def scale(self) -> NDArray[np.float64] | None:
        """The factor (T,) by which the BatchNorm multiplies each output channel."""
        if self.batchnorm is None:
            return None
        variance = np.asarray(self.batchnorm.weights["moving_variance"], np.float64)
        gamma = np.asarray(self.batchnorm.weights.get("gamma", np.ones_like(variance)), np.float64)
        return np.asarray(gamma / np.sqrt(variance + self.batchnorm["epsilon"]))


def epilogue_of(graph: Graph, name: str) -> Epilogue:
    """The epilogue of an op; its end is the op itself where no element-wise op alone reads it."""
    chain = Epilogue(end=name)
    op, rank = graph.op(name), len(graph.tensor(Ref(name)).shape)
    if op.info.family in ("einsum", "transposed", "recurrent"):
        return chain  # their samples are not rows of the output's channels
    channels = 1 if op.attrs.get("data_format") == "channels_first" else rank - 1
    step = graph.only_consumer(name)
    if (
        step is not None
        and step.kind == "BatchNormalization"
        and step["axis"] % rank == channels
        and len(graph.operands(step.name)) == 1
    ):
        chain = Epilogue(end=step.name, batchnorm=step)
        step = graph.only_consumer(step.name)
    if step is not None and step.kind == "Add" and len(graph.operands(step.name)) == 2:
        others = [ref for ref in graph.operands(step.name) if ref.op != chain.end]
        if len(others) == 1 and graph.tensor(others[0]) == graph.tensor(Ref(step.name)):
            chain = Epilogue(end=step.name, batchnorm=chain.batchnorm, addend=others[0])
            step = graph.only_consumer(step.name)
    if (
        step is not None
        and len(graph.operands(step.name)) == 1
        and _per_position(step, rank, channels)
    ):
        chain = Epilogue(
            end=step.name, batchnorm=chain.batchnorm, addend=chain.addend, activation=step
        )
    return chain


def rectifier(activation: Op) -> Callable[[Array], Array] | None:
    """A ReLU, capped or not, as a NumPy function; None for any other activation.

    It takes a tenth of the time of a Keras model.
    """
    kind = activation["activation"] if activation.kind == "Activation" else None
    if kind == "relu":
        return lambda x: np.maximum(x, np.float32(0))
    if kind == "relu6":
        return lambda x: np.clip(x, np.float32(0), np.float32(6))
    if (
        activation.kind == "ReLU"
        and not activation["negative_slope"]
        and not activation["threshold"]
    ):
        top = np.float32(np.inf if activation["max_value"] is None else activation["max_value"])
        return lambda x: np.clip(x, np.float32(0), top)
    return None


def _per_position(activation: Op, rank: int, channels: int) -> bool:
    """Whether the op is an activation that needs only the channels of one position.

    Such an activation can be applied to sampled positions. PReLU may have a weight per position.
    """
    if not activation.info.is_activation or activation.info.parametric:
        return False
    if activation.kind == "Softmax":
        return activation["axis"] in (-1, rank - 1) and channels == rank - 1
    return (
        channels == rank - 1
        or activation.kind != "Activation"
        or activation["activation"] != "softmax"
    )


def _moments(rows: Array) -> tuple[Array, Array]:
    """Mean and variance of each column, as products: NumPy's own take three times as long here."""
    share = np.full(len(rows), 1 / len(rows), rows.dtype)
    mean = share @ rows
    return mean, share @ np.square(rows - mean)


class FeatureMap:
    """The function from sampled responses (N, T) of a layer to its feature map.

    BatchNorm statistics are re-estimated as in the build.
    """

    def __init__(self, chain: Epilogue, response: Array, addend: Array | None) -> None:
        from lrfc.ir.keras import io as keras_io

        self._chain = chain
        self._addend = addend
        self._moments = _moments(response)
        self._activate: Callable[[Array], Array] = lambda x: x
        if chain.activation is not None:
            activation = keras_io.single(chain.activation, batch=len(response))
            self._activate = rectifier(chain.activation) or (lambda x: activation((x,))[0])
        self.reference = self(response)
        self.energy = float(np.sum(np.square(self.reference, dtype=np.float64)))

    def statistics(self, response: Array) -> tuple[Array, Array]:
        """The BatchNorm's mean and variance, re-estimated on that response."""
        assert self._chain.batchnorm is not None
        return moved(self._chain.batchnorm, self._moments, _moments(response))

    def __call__(self, response: Array) -> Array:
        """The feature map (N, T) of a response (N, T)."""
        values = response
        if self._chain.batchnorm is not None:
            op = self._chain.batchnorm
            mean, variance = self.statistics(response)
            factor = op.weights.get("gamma", np.float32(1)) / np.sqrt(
                variance + np.float32(op["epsilon"])
            )
            values = values * factor
            values += op.weights.get("beta", np.float32(0)) - mean * factor
        if self._addend is not None:
            values = values + self._addend
        return self._activate(values)
