"""The contract between a factorization method and the search: refusals, costs and factors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
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
    """The cost of a layer: weight values, and multiply-accumulates of one sample."""

    params: int
    macs: int


@dataclass(frozen=True, eq=False)
class Statistics:
    """Second-order statistics of a layer's inputs.

    ``covariance``: (G, D, D), with G groups and D the length of one flattened input patch, in the
    order of the kernel's leading axes (spatial axes, then input channels; for Dense the input
    features, for a transposed convolution the channels of a pixel, for EinsumDense the summed axes
    in the kernel's order); that of a large layer is in single precision. A matrix product of one
    group with many more inputs than samples may have it by its rows. ``mean``: (G, D), or None when
    ``covariance`` is the uncentred second moment. A centred covariance means that the mean error is
    absorbed later: by the layer's bias where it has one, otherwise by the BatchNorm behind it.
    ``count``: the number of patches. ``shared``: arrays that follow from the rest, which all
    decompositions of the layer use (lrfc.factorization.norms).
    """

    covariance: NDArray[np.floating[Any]] | LowRank
    mean: NDArray[np.float64] | None
    count: int
    shared: dict[Hashable, NDArray[Any]] = field(default_factory=dict, init=False, repr=False)


class Factors(Protocol):
    """A decomposed layer, at every rank."""

    def stages(self, ranks: Ranks) -> list[Op]:
        """The factor layers at those ranks as plain ops, ready for ``Graph.splice``.

        The last op has the layer's own name, its activation and its bias. The others are called
        ``<name>__<role>`` and are linear, without bias. (The tensorised forms of a Dense layer end
        with a Reshape, or with the Activation behind it: then that op has the layer's name.) When
        the layer is a call of a shared one, each stage is shared likewise, as
        ``<shared>__<role>``.
        """
        ...

    def kernel(self, ranks: Ranks) -> NDArray[np.float32]:
        """The dense kernel that the stages multiply out to, in the layer's own layout."""
        ...

    def responses(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """The stages' outputs, bias included, for input patches (N, G, D), at each of the ranks.

        One array (N, T) for each entry of ``ranks``, in their order; nested methods share the work
        between ranks by cumulative sums. For a transposed convolution, whose patch is one input
        pixel, a response is the contribution of that pixel to the output: (N, prod(kernel)·T),
        without the bias.
        """
        ...

    def estimates(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses for the comparison of many ranks; see ``responses``.

        Where each rank needs a fit of its own, this one is cheaper, and the error of the factors
        themselves is lower.
        """
        ...


class Method(Protocol):
    """A factorization method: a frozen dataclass without state."""

    @property
    def name(self) -> str:
        """The name on the command line, such as 'channel_svd'."""
        ...

    def refuses(self, op: Op, source: Tensor) -> str | None:
        """The reason why the method cannot factorize the op, as one clause; None when it can."""
        ...

    def full(self, op: Op, source: Tensor) -> Ranks:
        """The largest useful ranks, at which the factors reproduce the layer to float precision."""
        ...

    def cost(self, op: Op, source: Tensor, ranks: Ranks) -> Cost:
        """Parameters and MACs of the stages at those ranks, bias included.

        They equal the counts of the rewritten graph.
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

        ``scale`` (T,) weights the error of each output channel: it is the factor by which a
        BatchNorm behind the layer multiplies the channel. With ``statistics`` the error is measured
        in the norm of the layer's inputs; without them the weights alone are approximated.
        """
        ...

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The factor layers at those ranks with placeholder weights, without a decomposition."""
        ...
