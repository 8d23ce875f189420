"""The contract between a factorization method and the search: what it refuses, what a rank costs, and the factors themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization.linalg import LowRank
from lrfc.ir.op import Op, Tensor

#: One number per free rank of the method, outermost stage first: (R,) for an SVD, (R_in, R_out) for
#: Tucker-2.
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What a choice costs: weight values and multiply-accumulates of one sample."""

    params: int
    macs: int


@dataclass(frozen=True)
class Statistics:
    """Second-order statistics of what a layer reads.

    ``covariance``: (G, D, D), with G groups and D the length of one flattened input patch, in the
    order of the kernel's leading axes (spatial axes, then input channels; for Dense the input
    features, for a transposed convolution the channels of a pixel, for EinsumDense the summed axes
    in the kernel's order). ``mean``: (G, D), or None when ``covariance`` is the uncentred second
    moment. For a layer with many more inputs than samples, of which one group is multiplied as a
    matrix, the covariance may be given by its rows. A centred covariance says that the mean error
    is absorbed later: by the layer's bias where it has one, otherwise by the BatchNorm behind it.
    """

    covariance: NDArray[np.float64] | LowRank
    mean: NDArray[np.float64] | None
    count: int


class Factors(Protocol):
    """A decomposed layer, from which every rank can be read."""

    def stages(self, ranks: Ranks) -> list[Op]:
        """The chain of plain ops at those ranks, ready for ``Graph.splice``.

        The last op has the layer's own name, keeps its activation and alone has its bias; the
        others are ``<name>__<role>``, linear and bias-free. (The tensorised forms of a Dense layer
        end with the Reshape, or the Activation behind it, that gives the layer's output: that op
        has the name.) When the layer is a call of a shared one, each stage is shared alike, under
        ``<shared>__<role>``.
        """
        ...

    def kernel(self, ranks: Ranks) -> NDArray[np.float32]:
        """The dense kernel that the stages multiply out to, in the layer's own layout."""
        ...

    def responses(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """What the stages give, bias included, for input patches (N, G, D): one (N, T) array per entry of ``ranks``, in their order.

        Nested methods share the work between ranks by cumulative sums. For a transposed
        convolution, whose patch is one input pixel, a response is what that pixel adds to the
        output: (N, prod(kernel)·T), without the bias.
        """
        ...

    def estimates(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """As ``responses``, for weighing many ranks: where each rank is a fit of its own, by a cheaper fit, so that the factors themselves do better."""
        ...


class Method(Protocol):
    """A factorization method: a frozen dataclass without state."""

    @property
    def name(self) -> str:
        """The name on the command line, such as 'channel_svd'."""
        ...

    def refuses(self, op: Op, source: Tensor) -> str | None:
        """Why the method cannot factorize this op reading this tensor, as one clause for the report; None when it can."""
        ...

    def full(self, op: Op, source: Tensor) -> Ranks:
        """The largest useful rank of each kind; at them the factors reproduce the layer to float precision."""
        ...

    def cost(self, op: Op, source: Tensor, ranks: Ranks) -> Cost:
        """Parameters and MACs of the stages at those ranks, bias included.

        Equals what the rewritten graph counts.
        """
        ...

    def decompose(
        self,
        op: Op,
        source: Tensor,
        *,
        scale: NDArray[Any] | None = None,
        statistics: Statistics | None = None,
    ) -> Factors:
        """The factors of the layer.

        ``scale`` (T,) weights the error of each output channel: the factor by which a BatchNorm
        behind the layer multiplies it. ``statistics`` moves the truncation into the norm of the
        layer's inputs; without them the weights alone are approximated.
        """
        ...

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The chain of plain ops at those ranks with weights of no meaning: what it would take, without decomposing anything."""
        ...
