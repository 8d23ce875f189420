"""Weight decay on what a layer's factors multiply out to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op


@dataclass(frozen=True)
class Chain:
    """The stages of one layer, first to last. A layer that was not factorized is a chain of one."""

    stages: tuple[Op, ...]

    def kernel(self, kernels: Sequence[Any]) -> Any:
        """The kernel that the stages' kernels (tensors in Keras' layout) multiply out to, (G, taps..., S, T): G = 1 without groups.

        The stages of a chain take different axes, with one tap along the others, so a batched
        product that broadcasts over the taps is their composition.
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


def chains(graph: Graph) -> tuple[Chain, ...]:
    """The layers of ``graph`` whose kernel is decayed: each with the stages ``<name>__<role>`` that stand before it.

    Left out are layers that are not trained, and those whose kernel is no product of their stages'
    (tensorised fully connected layers, and depthwise layers as such).
    """
    of: dict[str, tuple[Op, ...]] = {op.name: _stages(graph, op) for op in graph.layers()}
    inner = {stage.name for stages in of.values() for stage in stages}
    found = []
    for op in graph.layers():
        stages = tuple(stage for stage in (*of[op.name], op) if stage.info.family != "padding")
        if (
            stages
            and op.name not in inner
            and all(_multiplies(stage) for stage in stages)
            and not stages[0].info.is_depthwise
            and _same_groups(stages)
        ):
            found.append(Chain(stages))
    return tuple(found)


def _stages(graph: Graph, last: Op) -> tuple[Op, ...]:
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
