"""Dense layers with tensor-shaped inputs and outputs, as chains of Reshape, Permute and Dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import layout as layouts
from lrfc.factorization.base import Cost, Ranks, Statistics
from lrfc.factorization.layout import Layout
from lrfc.factorization.linalg import Array
from lrfc.factorization.norms import dense_responses, mean_shift
from lrfc.factorization.threads import on_threads, threads
from lrfc.ir.op import Op, Tensor

#: Activations of each element alone, which may come before the last Reshape. All others come after.
_ELEMENTWISE = frozenset(
    "relu relu6 leaky_relu elu selu gelu silu swish sigmoid hard_sigmoid hard_silu hard_swish tanh"
    " softplus softsign exponential mish".split()
)


def factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ordered ways to write a number as a product of ``parts`` factors, each at least 2."""
    if parts == 1:
        if number > 1:
            yield (number,)
        return
    for first in range(2, number // 2 + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in factorizations(number // first, parts - 1))


def refusal(op: Op, source: Tensor) -> str | None:
    """The reason why a Dense layer cannot be tensorised, as one clause, or None."""
    reason = layouts.refusal(op, source)
    if reason is not None:
        return reason
    if op.info.family == "einsum":
        return "its inputs and outputs have axes of their own: use svd"
    if op.info.family == "embedding":
        return "a table is looked up row by row: use svd"
    if op.info.family == "recurrent":
        return "the recurrent layer has to be the last factor layer: use svd"
    if op.info.family != "dense":
        return "a convolution has a kernel: use tt or tucker2"
    if None in source.shape[1:]:
        return f"the shape {source} of its input is not fixed, so it cannot be reshaped"
    layout = Layout.of(op, source)
    for name, number in (("input", layout.inputs), ("output", layout.outputs)):
        if next(factorizations(number, 2), None) is None:
            return f"its {number} {name}s have no factors to form a tensor of"
    return None


@dataclass(frozen=True, eq=False)
class Step:
    """One contraction.

    ``summed``: the letters of the axes that it sums over. ``made``: those of the axes that replace
    them. ``weights``: a matrix (Π summed, Π made), None where only the cost counts.
    """

    summed: str
    made: str
    weights: Array | None = None


def cost(op: Op, source: Tensor, steps: Sequence[Step], inputs: str, sizes: dict[str, int]) -> Cost:
    """The cost: Π summed · Π made weights in a step, used for every entry of the other axes."""
    axes = set(inputs)
    params = macs = 0
    for step in steps:
        weights = prod(sizes[axis] for axis in step.summed + step.made)
        others = axes - set(step.summed)
        params += weights
        macs += weights * prod(sizes[axis] for axis in others)
        axes = others | set(step.made)
    positions = prod(length for length in source.shape[1:-1] if length is not None)
    return Cost(params + (op.weights["bias"].size if "bias" in op.weights else 0), macs * positions)


class TensorizedFactors(ABC):
    """A Dense layer as a chain of contractions, decomposed again for each choice of ranks."""

    layout: Layout
    statistics: Statistics | None

    @abstractmethod
    def steps(self, ranks: Ranks) -> tuple[list[Step], dict[str, int]]:
        """The contractions in the cheapest order, and the length of every axis."""

    @abstractmethod
    def matrix(self, ranks: Ranks) -> Array:
        """The matrix (I, O) that the contractions multiply out to."""

    @property
    @abstractmethod
    def inputs(self) -> str:
        """The letters of the input's axes."""

    @property
    @abstractmethod
    def outputs(self) -> str:
        """The letters of the output's axes."""

    def stages(self, ranks: Ranks) -> list[Op]:
        """The factor layers; see ``Factors``.

        The chain may end with a Reshape or an Activation: then that op has the layer's name.
        """
        layout = self.layout
        with threads(layout):
            steps, sizes = self.steps(ranks)
            matrix = self.matrix(ranks)
        bias = layout.op.weights.get("bias")
        shift = mean_shift(layout, self.statistics, matrix[None])
        if bias is not None and shift is not None:
            bias = (bias + shift).astype(np.float32)
        activation = layout.op["activation"]
        inside = activation in _ELEMENTWISE
        chain = _Chain(layout, self.inputs, sizes)
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            chain.contract(
                step,
                f"core{number}",
                self.outputs if last else None,
                bias if last else None,
                activation if last and inside else None,
            )
        chain.arrange([*chain.lead, self.outputs], chain.final)
        if not inside and activation not in (None, "linear"):
            chain.add("activation", "Activation", {"activation": activation})
        *before, final = chain.ops
        return [*before, replace(final, name=layout.op.name, shared=layout.op.shared)]

    def kernel(self, ranks: Ranks) -> NDArray[np.float32]:
        """The dense kernel that the stages multiply out to, (I, O)."""
        with threads(self.layout):
            return self.matrix(ranks).astype(np.float32)

    def responses(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """The stages' outputs for patches (N, 1, I); see ``Factors``."""

        def tensor(choice: Ranks) -> Array:
            return self.matrix(choice)[None]

        return on_threads(
            self.layout,
            dense_responses(self.layout, tensor, self.statistics, patches, ranks),
        )

    def estimates(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """The responses; see ``Factors``."""
        return self.responses(patches, ranks)


class _Chain:
    """The ops of a chain of contractions, built one after the other.

    ``groups`` has the letters of the axes in each dimension of the current tensor; '.' is the
    letter of the layer's leading axes.
    """

    def __init__(self, layout: Layout, inputs: str, sizes: dict[str, int]) -> None:
        self.layout, self.ops = layout, list[Op]()
        leading = [length for length in layout.source.shape[1:-1] if length is not None]
        self.lead = ["."] if leading else []
        self.sizes = {**sizes, ".": prod(leading)}
        self.groups = [*self.lead, inputs]
        self._shape: tuple[int, ...] = (*leading, layout.inputs)
        self.final = (*leading, layout.outputs)

    def add(
        self, role: str, kind: str, attrs: dict[str, Any], weights: dict[str, Any] | None = None
    ) -> None:
        op = self.layout.op
        carried = {key: op.attrs[key] for key in ("dtype", "trainable") if key in op.attrs}
        shared = None if op.shared is None else f"{op.shared}__{role}"
        self.ops.append(Op(f"{op.name}__{role}", kind, {**carried, **attrs}, weights or {}, shared))

    def arrange(self, groups: Sequence[str], shape: tuple[int, ...] | None = None) -> None:
        """Order and merge the axes as in ``groups``.

        It takes a Reshape, a Permute and a Reshape, or fewer of them.
        """
        before, after = "".join(self.groups), "".join(groups)
        if before != after:
            self._reshape([self.sizes[axis] for axis in before])
            self.add(
                f"permute{len(self.ops)}",
                "Permute",
                {"dims": tuple(before.index(axis) + 1 for axis in after)},
            )
            self._shape = tuple(self.sizes[axis] for axis in after)
        self.groups = list(groups)
        self._reshape(shape or [prod(self.sizes[axis] for axis in group) for group in groups])

    def contract(
        self, step: Step, role: str, outputs: str | None, bias: NDArray[Any] | None, activation: Any
    ) -> None:
        """Add a Dense over the summed axes.

        With a bias, which differs along the other axes too, it is an EinsumDense. ``outputs`` is
        the order of the axes in the last result.
        """
        axes = "".join(self.groups).replace(".", "")
        others = "".join(axis for axis in axes if axis not in step.summed)
        if outputs is not None:
            others = "".join(axis for axis in outputs if axis in others)
        self.arrange([*self.lead, *([others] if others else []), step.summed])
        assert step.weights is not None
        width = step.weights.shape[1]
        attrs: dict[str, Any] = {} if activation is None else {"activation": activation}
        kernel = step.weights.astype(np.float32)
        self.groups = [*self.groups[:-1], step.made]
        self._shape = (*self._shape[:-1], width)
        if bias is None or outputs is None or not others:
            weights = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
            self.add(
                role, "Dense", {**attrs, "units": width, "use_bias": bias is not None}, weights
            )
            return
        lengths = [self.sizes[axis] for axis in outputs]
        order = [outputs.index(axis) for axis in others + step.made]
        spread = bias.reshape(lengths).transpose(order).reshape(-1, width)
        lead = "p" if self.lead else ""
        attrs |= {
            "equation": f"b{lead}kc,co->b{lead}ko",
            "output_shape": self._shape,
            "bias_axes": "ko",
        }
        self.add(role, "EinsumDense", attrs, {"kernel": kernel, "bias": spread})

    def _reshape(self, shape: Sequence[int]) -> None:
        if tuple(shape) != self._shape:
            self.add(f"reshape{len(self.ops)}", "Reshape", {"target_shape": tuple(shape)})
            self._shape = tuple(shape)
