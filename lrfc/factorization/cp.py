"""CP: a sum of separable terms over input channels, kernel taps and output channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrfc.factorization import layout as layouts
from lrfc.factorization.als import balanced, khatri_rao
from lrfc.factorization.base import Cost, Factors, Ranks, Statistics
from lrfc.factorization.cp_fit import Problem, best_fit, quick_fit
from lrfc.factorization.layout import Layout, Split
from lrfc.factorization.linalg import Array, need
from lrfc.factorization.norms import (
    dense_responses,
    mean_shift,
    ordered_grams,
    output_scale,
)
from lrfc.factorization.stages import depthwise_stages, finish, stage
from lrfc.factorization.threads import SMALL, on_threads, threads
from lrfc.ir.op import Op, Tensor


@dataclass(frozen=True)
class CP:
    """1×1 S→R, depthwise k×k with all strides, 1×1 R→T.

    The spatial modes are merged to an order-3 tensor (S, k², T), which is better conditioned than
    one mode per axis (reference sheet §9). R·S weights at the input positions, R·(k² + T) at
    the output positions.
    """

    name: str = "cp"

    def split(self, layout: Layout) -> Split:
        """1×1, kernel, 1×1; the stages between the first and the last are depthwise."""
        return ((), layout.wide, ())

    def limits(self, layout: Layout) -> str | None:
        """Convolutions of at most two spatial axes, with a kernel and channels on both sides."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd"
        if layout.family == "transposed":
            return "Keras has no depthwise transposed convolution"
        if len(layout.kernel) == 3:
            return "Keras has no depthwise convolution with three spatial axes"
        if not layout.wide:
            return "with a 1×1 kernel it is channel_svd"
        if min(layout.inputs, layout.outputs) == 1:
            return "a group has one channel on one side: there is nothing to reduce there"
        return None

    def refuses(self, op: Op, source: Tensor) -> str | None:
        """The reason why the method cannot factorize the op, as one clause; None when it can."""
        reason = layouts.refusal(op, source)
        if reason is not None:
            return reason
        layout = Layout.of(op, source)
        return self.limits(layout) or next(
            filter(None, map(layout.depthwise_limit, layout.place(self.split(layout))[1:-1])), None
        )

    def full(self, op: Op, source: Tensor) -> Ranks:
        """k²·min(S, T): one term per singular value of every slice of the kernel."""
        layout = Layout.of(op, source)
        return (prod(layout.kernel) * min(layout.inputs, layout.outputs),)

    def cost(self, op: Op, source: Tensor, ranks: Ranks) -> Cost:
        """R·(S + Σ k + T) weights in each group, each used at every position of its stage."""
        layout = Layout.of(op, source)
        split = self.split(layout)
        sizes = [layout.inputs, *layout.sizes(split)[1:-1], layout.outputs]
        weights = [layout.groups * ranks[0] * size for size in sizes]
        macs = sum(w * p for w, p in zip(weights, layout.positions(split), strict=True))
        return Cost(sum(weights) + (op.weights["bias"].size if "bias" in op.weights else 0), macs)

    def decompose(
        self,
        op: Op,
        source: Tensor,
        *,
        scale: NDArray[Any] | None = None,
        statistics: Statistics | None = None,
    ) -> Factors:
        """The factors of the layer; a rank is fitted when it is first needed."""
        layout = Layout.of(op, source)
        # Fits of wide layers take 60 % of the time in single precision; no error changes by 0.1 %.
        dtype = np.float32 if layout.patch > SMALL else np.float64
        return CPFactors(
            layout, self.split(layout), output_scale(layout, scale), statistics, dtype=dtype
        )

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The factor layers with placeholder weights; see ``Method``."""
        layout = Layout.of(op, source)

        def zeros(problem: Problem, rank: int) -> list[Array]:
            return [np.zeros((size, rank)) for size in problem.target.shape]

        scale = output_scale(layout, None)
        return CPFactors(layout, self.split(layout), scale, None, zeros).stages(ranks)


@dataclass(frozen=True)
class CP4(CP):
    """1×1 S→R, depthwise k×1, depthwise 1×k, 1×1 R→T (Lebedev et al., arXiv 1412.6553).

    R·(S + k_h + k_w + T) weights. TensorFlow runs no depthwise convolution with a stride along one
    axis only, so the layer must not have strides.
    """

    name: str = "cp4"

    def split(self, layout: Layout) -> Split:
        """1×1, one depthwise stage per axis, 1×1."""
        return ((), *((axis,) for axis in layout.wide), ())

    def limits(self, layout: Layout) -> str | None:
        """The layers of CP that have a kernel along two axes."""
        reason = super().limits(layout)
        if reason is None and len(layout.wide) < 2:
            return "with a kernel along one axis it is cp"
        return reason


@dataclass(frozen=True, eq=False)
class CPFactors:
    """CP at every rank. ``scale`` is (G·T,) and positive.

    There is no closed form. At each rank alternating least squares runs in the plain norm and, with
    statistics, in the nearest separable norm of the inputs. The better result is the start of
    alternating least squares under the whole covariance. Of all results and the exact start, the
    one with the least error is taken whose terms do not cancel each other (joint norm at most ten
    times the kernel's). The plain results are among them, so that statistics never increase the
    error that they measure.
    """

    layout: Layout
    split: Split
    scale: Array
    statistics: Statistics | None
    fit: Callable[[Problem, int], list[Array]] = best_fit
    dtype: DTypeLike = np.float64
    _fitted: dict[int, list[Array]] = field(default_factory=dict, init=False)

    def stages(self, ranks: Ranks) -> list[Op]:
        """The factor layers; see ``Factors``."""
        layout, placed = self.layout, self.layout.place(self.split)
        first, *middle, last = self._factors(ranks[0])
        whole = len(middle) == 1
        chain = [stage(layout, "in", placed[0], first[:, :, None, :])]
        for axes, factor in zip(placed[1:-1], middle, strict=True):
            chain += depthwise_stages(layout, "kernel" if whole else f"axis{axes[0]}", axes, factor)
        closing = stage(layout, None, placed[-1], last.swapaxes(1, 2)[:, :, None, :])
        shift = None
        if self.statistics is not None:  # an outline has none, and its tensor takes time
            shift = mean_shift(layout, self.statistics, self._tensor(ranks))
        return [*chain, finish(layout, closing, shift)]

    def kernel(self, ranks: Ranks) -> NDArray[np.float32]:
        """The dense kernel that the stages multiply out to, in the layer's own layout."""
        return self.layout.layer_kernel(self._tensor(ranks))

    def responses(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """The stages' outputs for patches (N, G, D); see ``Factors``."""
        return on_threads(
            self.layout, dense_responses(self.layout, self._tensor, self.statistics, patches, ranks)
        )

    def estimates(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses of fits from one start with few sweeps; see ``Factors``."""
        return self.quick.responses(patches, ranks)

    @cached_property
    def quick(self) -> CPFactors:
        """The same layer, with each rank fitted from one start with few sweeps.

        They run in single precision, in half the time; no error of ResNet-20 or VGG-16 changes in
        its fifth digit.
        """
        return replace(self, fit=quick_fit, dtype=np.float32)

    def terms(self, rank: int) -> list[Array]:
        """The factors (G, n, R) of each mode (S, k..., T), balanced."""
        return self._factors(rank)

    # -- factors -----------------------------------------------------------------------------------

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The order in which the kernel tensor's axes (k..., S, T) become (S, k..., T)."""
        rank = len(self.layout.kernel)
        return (rank, *range(rank), rank + 1)

    @cached_property
    def _grams(self) -> Array | None:
        """Second moments (G, D, D) over (S, k...)."""
        if self.statistics is None:
            return None
        return ordered_grams(self.layout, self.statistics, self._order[:-1], self.dtype)

    @cached_property
    def _problems(self) -> list[Problem]:
        """The tensor of each group, in the order of the modes and weighted by ``scale``."""
        layout = self.layout
        sizes = (layout.inputs, *layout.sizes(self.split)[1:-1], layout.outputs)
        scale = self.scale.reshape(layout.groups, layout.outputs)
        return [
            Problem(
                (kernel * scale[group]).transpose(self._order).reshape(sizes).astype(self.dtype),
                None if self._grams is None else self._grams[group],
            )
            for group, kernel in enumerate(layout.tensor())
        ]

    def _tensor(self, ranks: Ranks) -> Array:
        layout = self.layout
        groups = [
            khatri_rao(chain[:-1]) @ chain[-1].T
            for chain in zip(*self._factors(ranks[0]), strict=True)
        ]
        shape = (layout.groups, layout.inputs, *layout.kernel, layout.outputs)
        return np.moveaxis(np.stack(groups).reshape(shape), 1, -2)

    def _factors(self, rank: int) -> list[Array]:
        """The factors (G, n, R) of each mode, balanced."""
        if rank not in self._fitted:
            layout = self.layout
            need(
                layout.op.name,
                f"its CP decomposition of rank {rank}",
                (layout.patch, rank),
                (layout.patch, layout.outputs),
                (rank, rank),
            )
            scale = self.scale.reshape(layout.groups, layout.outputs)
            groups = []
            for group, problem in enumerate(self._problems):
                with threads(layout):
                    factors = self.fit(problem, rank)
                groups.append(balanced([*factors[:-1], factors[-1] / scale[group][:, None]]))
            self._fitted[rank] = [np.stack(factors) for factors in zip(*groups, strict=True)]
        return self._fitted[rank]
