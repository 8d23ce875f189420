"""Factors of one size."""

from __future__ import annotations

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array
from lrfc.training.decay import Chain, chains


def balanced(graph: Graph) -> Graph:
    """The graph whose factor layers have, in each chain, kernels of one root mean square.

    The function stays. A step of Adam is as large for all weights: without this, it would change
    the smallest factor the most, which is the last one once a BatchNorm is folded into it.
    """
    weights: dict[str, dict[str, Array]] = {}
    for chain in chains(graph):
        weights |= _balanced(chain)
    return graph.with_weights(weights)


def _balanced(chain: Chain) -> dict[str, dict[str, Array]]:
    """The weights of the chain's stages by name; none where a kernel is 0."""
    kernels = [np.asarray(op.weights["kernel"], np.float64) for op in chain.stages]
    sizes = np.sqrt([np.mean(np.square(kernel)) for kernel in kernels])
    if len(sizes) < 2 or not (np.isfinite(sizes).all() and sizes.all()):
        return {}
    scales = np.exp(np.mean(np.log(sizes))) / sizes
    result = {}
    for op, scale, output in zip(chain.stages, scales, np.cumprod(scales), strict=True):
        # A bias is added after all scales up to here, which multiply out to 1 at the end.
        factors = {"kernel": scale, "bias": output}
        result[op.name] = {
            name: np.asarray(factors[name] * value, value.dtype)
            for name, value in op.weights.items()
        }
    return result
