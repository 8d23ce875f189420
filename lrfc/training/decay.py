"""Weight decay of the kernel that the factors of a layer multiply out to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op


@dataclass(frozen=True)
class Chain:
    """The factor layers of one layer, first to last; a layer that was not factorized is alone."""

    stages: tuple[Op, ...]

    def kernel(self, kernels: Sequence[Any]) -> Any:
        """The product (G, taps..., S, T) of the stages' kernels, tensors in Keras' layout.

        G = 1 without groups. The stages of a chain take different axes, with one tap along the
        others, so a batched product that broadcasts over the taps is their composition.
        """
        import tensorflow as tf

        product = None
        for op, kernel in zip(self.stages, kernels, strict=True):
            groups = int(op["groups"]) if op.info.family == "conv" else 1
            if op.info.is_depthwise:
                # (taps..., G·R, 1): a diagonal matrix at every tap, which scales the columns.
                assert product is not None
                count, taps = product.shape[0], kernel.shape[:-2]
                diagonal = tf.reshape(kernel, (*taps, count, 1, kernel.shape[-2] // count))
                product = product * tf.transpose(
                    diagonal, (len(taps), *range(len(taps)), len(taps) + 1, len(taps) + 2)
                )
                continue
            factor = tf.linalg.matrix_transpose(kernel) if op.info.is_transposed else kernel
            taps, (width, outputs) = factor.shape[:-2], factor.shape[-2:]
            factor = tf.reshape(factor, (*taps, width, groups, outputs // groups))
            factor = tf.transpose(
                factor, (len(taps) + 1, *range(len(taps)), len(taps), len(taps) + 2)
            )
            product = factor if product is None else tf.matmul(product, factor)
        return product


class Decay:
    """A step of every decayed layer of a model towards a smaller kernel.

    ``share``: of the gradient of half the squared norm, times the learning rate. Layers whose
    stages are not all trained are left out.
    """

    def __init__(self, graph: Graph, model: Any, share: float) -> None:
        trained = {id(variable) for variable in model.trainable_variables}
        self._share = share
        self._layers: list[tuple[Chain, list[Any]]] = []
        for chain in chains(graph) if share > 0 else ():
            kernels = [keras_io.layer_of(model, op).kernel for op in chain.stages]
            if all(id(kernel) in trained for kernel in kernels):
                self._layers.append((chain, kernels))

    def __call__(self, learning_rate: Any) -> None:
        """Update the kernels; called inside a tf.function."""
        import tensorflow as tf

        if not self._layers:
            return
        values = [[tf.convert_to_tensor(k.value) for k in kernels] for _, kernels in self._layers]
        with tf.GradientTape() as tape:
            tape.watch(values)
            size = tf.add_n(
                [
                    tf.nn.l2_loss(chain.kernel(factors))
                    for (chain, _), factors in zip(self._layers, values, strict=True)
                ]
            )
        gradients = tape.gradient(size, values)
        for (_, kernels), slopes in zip(self._layers, gradients, strict=True):
            for kernel, slope in zip(kernels, slopes, strict=True):
                kernel.value.assign_sub(learning_rate * self._share * slope)


def chains(graph: Graph) -> tuple[Chain, ...]:
    """The layers of ``graph`` whose kernel is decayed, each with its factor layers.

    The factor layers ``<name>__<role>`` come before the layer ``<name>``. Left out are layers that
    are not trained, and layers whose kernel is not the product of their stages' kernels (tensorised
    Dense layers, and depthwise layers on their own).
    """
    earlier: dict[str, tuple[Op, ...]] = {op.name: _stages(graph, op) for op in graph.layers()}
    inner = {stage.name for stages in earlier.values() for stage in stages}
    result = []
    for op in graph.layers():
        stages = tuple(stage for stage in (*earlier[op.name], op) if stage.info.family != "padding")
        if (
            stages
            and op.name not in inner
            and all(_multiplies(stage) for stage in stages)
            and not stages[0].info.is_depthwise
            and _same_groups(stages)
        ):
            result.append(Chain(stages))
    return tuple(result)


def _stages(graph: Graph, last: Op) -> tuple[Op, ...]:
    """The factor layers before the last one, first to last."""
    stages: list[Op] = []
    op = last
    while len(operands := graph.operands(op.name)) == 1 and operands[0].op.startswith(
        f"{last.name}__"
    ):
        op = graph.op(operands[0].op)
        stages.insert(0, op)
    return tuple(stages)


def _multiplies(op: Op) -> bool:
    return (
        op.info.is_linear
        and "kernel" in op.weights
        and op.attrs.get("trainable", True)
        and (not op.info.is_depthwise or op["depth_multiplier"] == 1)
    )


def _same_groups(stages: Sequence[Op]) -> bool:
    return len({int(op["groups"]) for op in stages if op.info.family == "conv"}) <= 1
