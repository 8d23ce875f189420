"""The table of an embedding as a matrix: two factors of it are a smaller table and a product.

An embedding with a table E (V, D) computes the same with an identity (D, D) behind it. That
identity is the kernel which a factorization approximates by A·B, in the norm of the rows that are
looked up: the layer becomes an embedding with the table E·A (V, R), and a matrix product by B, as
in ALBERT (Lan et al. 2020, arXiv 1909.11942, section 3.1). Every token counts once, and once more
for each time that it occurs in the samples, so that those which do not occur are not lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization.base import Statistics
from lrfc.factorization.linalg import LowRank
from lrfc.ir.op import Op

#: The name of the table among the layer's weights.
TABLE = "embeddings"
#: Attributes of the layer that its smaller table inherits.
INHERITED = ("input_dim", "mask_zero")


def refusal(op: Op) -> str | None:
    """The reason why a table cannot be factorized, or None."""
    return None if TABLE in op.weights else "its table is not a plain weight"


def kernel(op: Op) -> NDArray[np.float32]:
    """The identity (D, D)."""
    return np.eye(op.weights[TABLE].shape[1], dtype=np.float32)


def rows(op: Op, tokens: NDArray[Any]) -> NDArray[np.float32]:
    """The rows (..., D) that these tokens look up."""
    return np.asarray(op.weights[TABLE][np.asarray(tokens, np.intp)], np.float32)


def gram(op: Op, statistics: Statistics | None) -> NDArray[np.float64]:
    """The second moment (1, D, D) of the rows of the table, and of those that samples look up."""
    table = np.asarray(op.weights[TABLE], np.float64)
    total, count = (table.T @ table)[None], len(table)
    if statistics is not None:
        assert not isinstance(statistics.covariance, LowRank), "as a row has few columns"
        total = total + statistics.count * statistics.covariance
        count += statistics.count
    return np.asarray(total / count)


def table(op: Op, kernel: NDArray[Any]) -> NDArray[np.float32]:
    """The table (V, R) that computes the layer and the kernel (D, R) behind it."""
    return np.asarray(op.weights[TABLE] @ kernel, np.float32)
