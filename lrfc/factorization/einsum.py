"""EinsumDense as a matrix product: the letters of its equation that are summed, kept and made."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from string import ascii_letters
from typing import Any

import numpy as np

from lrfc.factorization.linalg import Array
from lrfc.ir.op import Op, Tensor


@dataclass(frozen=True)
class Einsum:
    """The equation ``source,weights->target`` of a matrix product.

    The weights share letters with the source, which are summed, and with the target, which are
    made; no letter is in all three. The other letters of the source are kept.
    """

    source: str
    weights: str
    target: str
    lengths: dict[str, int | None]
    bias_axes: str
    output_shape: Any

    @staticmethod
    def refusal(op: Op, source_tensor: Tensor) -> str | None:
        """The reason why the equation is no matrix product, as one clause, or None."""
        equation = str(op["equation"])
        terms, target = equation.replace(" ", "").split("->")
        source, weights = terms.split(",")
        dots = [text.startswith("...") for text in (source, target)]
        source, target = source.removeprefix("..."), target.removeprefix("...")
        letters = [set(text) for text in (source, weights, target)]
        distinct = all(
            len(text) == len(unique)
            for text, unique in zip((source, weights, target), letters, strict=True)
        )
        kept = [letter for letter in source if letter not in weights]
        matrix = all((letter in source) != (letter in target) for letter in weights) and all(
            letter in letters[2] for letter in kept
        )
        batch = all(dots) or (not any(dots) and source[:1] == target[:1] and source[:1] in kept)
        if (
            not (
                distinct
                and matrix
                and batch
                and letters[0] & letters[1]
                and letters[2] & letters[1]
            )
            or "." in source + weights + target
        ):
            return f"the equation {equation} is not a matrix product"
        if dots[0] and len(source_tensor.shape) - len(source) > 2:
            return (
                f"the ellipsis of {equation} stands for several axes, and Keras reports the shape"
                " of such an output wrongly"
            )
        return None

    @staticmethod
    def of(op: Op, source: Tensor) -> Einsum:
        """The equation of an EinsumDense that ``refusal`` accepts.

        ``lengths`` has the length of every letter, None where it is not fixed.
        """
        terms, target = str(op["equation"]).replace(" ", "").split("->")
        left, weights = terms.split(",")
        explicit = left.removeprefix("...")
        lengths: dict[str, int | None] = dict(
            zip(explicit, source.shape[len(source.shape) - len(explicit) :], strict=True)
        )
        lengths |= dict(zip(weights, op.weights["kernel"].shape, strict=True))
        if left.startswith("..."):
            lengths["..."] = prod(
                n for n in source.shape[1 : len(source.shape) - len(explicit)] if n is not None
            )
            if None in source.shape[1 : len(source.shape) - len(explicit)]:
                lengths["..."] = None
        return Einsum(
            left,
            weights,
            target,
            lengths,
            str(op.attrs.get("bias_axes") or ""),
            op.attrs.get("output_shape"),
        )

    @property
    def summed(self) -> str:
        """The letters that the product sums over, in the kernel's order.

        The patch of an EinsumDense is flattened in this order.
        """
        return "".join(letter for letter in self.weights if letter not in self.target)

    @property
    def made(self) -> str:
        """The letters of the target that come from the kernel, in its order."""
        return "".join(letter for letter in self.weights if letter in self.target)

    @property
    def inputs(self) -> int:
        """The number of inputs, D."""
        return prod(self._length(letter) for letter in self.summed)

    @property
    def outputs(self) -> int:
        """The number of outputs, T."""
        return prod(self._length(letter) for letter in self.made)

    @property
    def kept_shape(self) -> list[int | None]:
        """The lengths of the kept axes, along which the product is repeated, without the batch."""
        kept = [letter for letter in self.source.removeprefix("...") if letter not in self.weights]
        if self.source.startswith("..."):
            return [self.lengths["..."], *(self.lengths[letter] for letter in kept)]
        return [self.lengths[letter] for letter in kept[1:]]

    def _length(self, letter: str) -> int:
        length = self.lengths[letter]
        assert length is not None  # letters of the kernel have a length
        return length

    def matrix(self, kernel: Array) -> Array:
        """The kernel as a matrix (D, T)."""
        matrix: Array = np.einsum(f"{self.weights}->{self.summed}{self.made}", kernel).reshape(
            self.inputs, self.outputs
        )
        return matrix

    def kernel(self, matrix: Array) -> Array:
        """The inverse of ``matrix``."""
        lengths = [self._length(letter) for letter in self.summed + self.made]
        kernel: Array = np.einsum(
            f"{self.summed}{self.made}->{self.weights}", matrix.reshape(lengths)
        )
        return kernel

    def flat_bias(self, bias: Array) -> Array | None:
        """The bias as (T,); None when it is shared along some of the made letters."""
        if set(self.bias_axes) != set(self.made):
            return None
        order = "".join(letter for letter in self.target if letter in self.made)
        flat: Array = np.einsum(
            f"{order}->{self.made}", bias.reshape([self._length(letter) for letter in order])
        ).reshape(-1)
        return flat

    def layer_bias(self, flat: Array) -> Array:
        """The inverse of ``flat_bias``, in the bias' own shape."""
        order = "".join(letter for letter in self.target if letter in self.made)
        bias: Array = np.einsum(
            f"{self.made}->{order}", flat.reshape([self._length(letter) for letter in self.made])
        )
        first = min(self.target.index(letter) for letter in self.bias_axes)
        return bias.reshape(
            [self._length(letter) if letter in self.made else 1 for letter in self.target[first:]]
        )

    def stage(self, matrix: Array, *, last: bool) -> tuple[str, dict[str, Any], Array]:
        """Kind, attributes and kernel of the first or last of two products through one new letter.

        A product is a Dense where the letters are in the order of a Dense.
        """
        bond = next(
            letter
            for letter in ascii_letters
            if letter not in self.source + self.weights + self.target
        )
        dots = "..." if self.source.startswith("...") else ""
        kept = dots + "".join(
            letter for letter in self.source.removeprefix("...") if letter not in self.weights
        )
        # The layer may declare an axis as open (None) whose length is known. Then only an
        # EinsumDense has an output of the same shape.
        known = isinstance(self.output_shape, int) or None not in self.output_shape
        if (
            last
            and known
            and self.target == kept + self.made
            and len(self.made) == 1
            and self.bias_axes in ("", self.made)
        ):
            return "Dense", {"units": self.outputs, "use_bias": bool(self.bias_axes)}, matrix
        if not last and self.source == kept + self.summed and len(self.summed) == 1:
            return "Dense", {"units": matrix.shape[1], "use_bias": False}, matrix
        attrs: dict[str, Any]
        if last:
            array = matrix.reshape(-1, *(self._length(letter) for letter in self.made))
            attrs = {
                "equation": f"{kept}{bond},{bond}{self.made}->{self.target}",
                "output_shape": self.output_shape,
            }
            attrs |= {"bias_axes": self.bias_axes} if self.bias_axes else {}
        else:
            array = matrix.reshape(*(self._length(letter) for letter in self.summed), -1)
            lengths = [
                self.lengths[letter] for letter in (kept.removeprefix("...") if dots else kept[1:])
            ]
            attrs = {
                "equation": f"{self.source},{self.summed}{bond}->{kept}{bond}",
                "output_shape": (*lengths, matrix.shape[1]),
            }
        return "EinsumDense", attrs, array
