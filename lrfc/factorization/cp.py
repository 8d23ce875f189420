"""CP: a sum of separable terms, between the input channels, the kernel taps and the output channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.factorization import layout as layouts
from lrfc.factorization.als import (
    RIDGE,
    als,
    balanced,
    cancelling,
    khatri_rao,
    random_start,
    slices_start,
)
from lrfc.factorization.base import Cost, Factors, Ranks, Statistics
from lrfc.factorization.covariance_als import fit_cp, output_factors
from lrfc.factorization.layout import Layout, Split
from lrfc.factorization.linalg import Array, need, solve_lower
from lrfc.factorization.norms import (
    dense_responses,
    input_grams,
    mean_shift,
    output_scale,
    separable_roots,
)
from lrfc.factorization.stages import depthwise_stages, finish, stage
from lrfc.factorization.threads import on_threads, threads
from lrfc.ir.op import Op, Tensor

_log = logging.getLogger("lrfc.factorization")

#: Random starts beside the exact one, for layers with patches up to this length: there they win by
#: up to 5 % of the error at low ranks, at 64 channels by less than 1 %.
RANDOM_STARTS, RANDOM_UP_TO = 2, 300
#: Sweeps, stopping rule and multiplications of the fits by which ranks are weighed.
QUICK_SWEEPS, QUICK_COVARIANCE_SWEEPS, QUICK_TOLERANCE, QUICK_WORK = 30, 1, 1e-3, 5e9


@dataclass(frozen=True)
class CP:
    """1×1 S→R, depthwise k×k with all strides, 1×1 R→T: the form with merged spatial modes, an order-3 tensor (S, k², T).

    R·S weights at the input positions, R·(k² + T) at the output positions. Better conditioned than
    one mode per axis (reference sheet §9).
    """

    name: str = "cp"

    def split(self, layout: Layout) -> Split:
        """1×1, kernel, 1×1; the stages between the first and the last are depthwise."""
        return ((), layout.wide, ())

    def limits(self, layout: Layout) -> str | None:
        """Convolutions with a kernel, of at most two spatial axes, with channels on both sides."""
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
        """Why the method cannot factorize this op reading this tensor, as one clause; None when it can."""
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
        """R·(S + Σ k + T) weights in each group, those of a stage used at each of its positions."""
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
        """The factors of the layer; each rank is computed when it is first asked for."""
        layout = Layout.of(op, source)
        return CPFactors(layout, self.split(layout), output_scale(layout, scale), statistics)

    def outline(self, op: Op, source: Tensor, ranks: Ranks) -> list[Op]:
        """The chain of plain ops with weights of no meaning; see ``Method``."""
        layout = Layout.of(op, source)

        def nothing(target: Array, rank: int, gram: Array | None) -> list[Array]:
            return [np.zeros((size, rank)) for size in target.shape]

        return CPFactors(
            layout, self.split(layout), output_scale(layout, None), None, nothing
        ).stages(ranks)


@dataclass(frozen=True)
class CP4(CP):
    """1×1 S→R, depthwise k×1, depthwise 1×k, 1×1 R→T (Lebedev et al., arXiv 1412.6553), each axis with its own stride and dilation.

    R·(S + k_h + k_w + T) weights. A stride cannot be given to one axis of a depthwise convolution,
    so the layer must not have one.
    """

    name: str = "cp4"

    def split(self, layout: Layout) -> Split:
        """1×1, one depthwise stage per axis, 1×1."""
        return ((), *((axis,) for axis in layout.wide), ())

    def limits(self, layout: Layout) -> str | None:
        """As for CP, with a kernel along two axes."""
        reason = super().limits(layout)
        return (
            "with a kernel along one axis it is cp"
            if reason is None and len(layout.wide) < 2
            else reason
        )


@dataclass(frozen=True, eq=False)
class CPFactors:
    """CP at every rank. ``scale`` is (G·T,) and positive.

    There is no closed form: at each rank alternating least squares runs in the plain norm and, with
    statistics, in the nearest separable norm of the inputs as well; the best of both is the start
    of alternating least squares under the whole covariance. Of all results, and of the exact start
    itself, the one with the least error counts whose terms do not cancel (joint norm at most ten
    times the kernel's). The plain results are among them, so statistics never make the error worse
    that they measure.
    """

    layout: Layout
    split: Split
    scale: Array
    statistics: Statistics | None
    fit: Callable[[Array, int, Array | None], list[Array]] = field(default_factory=lambda: _best)
    _known: dict[int, list[Array]] = field(default_factory=dict, init=False)

    def stages(self, ranks: Ranks) -> list[Op]:
        """The chain of plain ops; see ``Factors``."""
        layout, placed = self.layout, self.layout.place(self.split)
        first, *middle, last = self._factors(ranks[0])
        whole = len(middle) == 1
        chain = [stage(layout, "in", placed[0], first[:, :, None, :])]
        for axes, factor in zip(placed[1:-1], middle, strict=True):
            chain += depthwise_stages(layout, "kernel" if whole else f"axis{axes[0]}", axes, factor)
        closing = stage(layout, None, placed[-1], last.swapaxes(1, 2)[:, :, None, :])
        return [
            *chain,
            finish(layout, closing, mean_shift(layout, self.statistics, self._tensor(ranks))),
        ]

    def kernel(self, ranks: Ranks) -> NDArray[np.float32]:
        """The dense kernel that the stages multiply out to, in the layer's own layout."""
        return self.layout.layer_kernel(self._tensor(ranks))

    def responses(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """What the stages give for patches (N, G, D); see ``Factors``."""
        return on_threads(
            self.layout, dense_responses(self.layout, self._tensor, self.statistics, patches, ranks)
        )

    def estimates(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """What fits from one start, with few sweeps, give; see ``Factors``."""
        return self.quick.responses(patches, ranks)

    @cached_property
    def quick(self) -> CPFactors:
        """The same, each rank fitted from one start with few sweeps; the fits are kept."""
        return replace(self, fit=_quick)

    # -- factors -----------------------------------------------------------------------------------

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The kernel tensor's axes (k..., S, T) as S, the kernel's, T."""
        rank = len(self.layout.kernel)
        return (rank, *range(rank), rank + 1)

    @cached_property
    def _grams(self) -> Array | None:
        """Second moments (G, D, D) over (S, k...)."""
        if self.statistics is None:
            return None
        shape = (*self.layout.kernel, self.layout.inputs)
        order = (len(shape) - 1, *range(len(shape) - 1))
        grams = input_grams(self.layout, self.statistics)
        axes = (0, *(1 + axis for axis in order), *(1 + len(shape) + axis for axis in order))
        return grams.reshape(-1, *shape, *shape).transpose(axes).reshape(grams.shape)

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
        if rank not in self._known:
            layout = self.layout
            sizes = (layout.inputs, *layout.sizes(self.split)[1:-1], layout.outputs)
            need(
                layout.op.name,
                f"its CP decomposition of rank {rank}",
                (layout.patch, rank),
                (layout.patch, layout.outputs),
                (rank, rank),
            )
            scale = self.scale.reshape(layout.groups, layout.outputs)
            groups = []
            for group, kernel in enumerate(layout.tensor()):
                target = (kernel * scale[group]).transpose(self._order).reshape(sizes)
                with threads(layout):
                    factors = self.fit(
                        target, rank, None if self._grams is None else self._grams[group]
                    )
                groups.append(balanced([*factors[:-1], factors[-1] / scale[group][:, None]]))
            self._known[rank] = [np.stack(each) for each in zip(*groups, strict=True)]
        return self._known[rank]


def _best(target: Array, rank: int, gram: Array | None) -> list[Array]:
    """The factors of a tensor (S, k..., T) with the least error whose terms do not cancel."""
    flat = target.reshape(-1, target.shape[-1])
    norm = float(np.linalg.norm(flat))
    small = prod(target.shape[:-1]) <= RANDOM_UP_TO
    found = _fits(
        target,
        rank,
        (
            slices_start,
            *(partial(random_start, seed=seed) for seed in range(RANDOM_STARTS if small else 0)),
        ),
    )
    if gram is None:
        return min(
            _allowed(found, norm),
            key=lambda factors: float(
                np.linalg.norm(flat - khatri_rao(factors[:-1]) @ factors[-1].T)
            ),
        )
    roots = separable_roots(gram, target.shape[:-1])
    white = target
    for mode, root in enumerate(roots):
        white = np.moveaxis(np.tensordot(root.T, white, (1, mode)), 0, mode)
    found += [
        [
            *(solve_lower(root, f, transposed=True) for root, f in zip(roots, fit, strict=False)),
            fit[-1],
        ]
        for fit in _fits(white, rank, (slices_start,))
    ]
    cross = gram @ flat
    found += [
        [*fit[:-1], last]
        for fit in found
        for last, _ in output_factors(fit[:-1], gram, cross, (1e-8, 1e-5, RIDGE))
    ]

    def error(factors: list[Array]) -> float:
        missing = flat - khatri_rao(factors[:-1]) @ factors[-1].T
        return float(np.vdot(missing, gram @ missing))

    best = min(_allowed(found, norm), key=error)
    return min(_allowed([best, fit_cp(target, gram, roots, best)], norm), key=error)


def _quick(target: Array, rank: int, gram: Array | None) -> list[Array]:
    """A fit for weighing: from one start, a few sweeps in the nearest separable norm and one in the whole one.

    On ResNet-20's layers its error is up to a third above that of ``_best``, in a quarter of the
    time.
    """
    flat = target.reshape(-1, target.shape[-1])
    norm = float(np.linalg.norm(flat))
    if gram is None:
        start = slices_start(target, rank)
        return _allowed(
            [
                als(target, start, sweeps=QUICK_SWEEPS, tolerance=QUICK_TOLERANCE, work=QUICK_WORK),
                start,
            ],
            norm,
        )[0]
    roots = separable_roots(gram, target.shape[:-1])
    white = target
    for mode, root in enumerate(roots):
        white = np.moveaxis(np.tensordot(root.T, white, (1, mode)), 0, mode)
    fit = als(
        white,
        slices_start(white, rank),
        sweeps=QUICK_SWEEPS,
        tolerance=QUICK_TOLERANCE,
        work=QUICK_WORK,
    )
    inputs = [
        solve_lower(root, factor, transposed=True) for root, factor in zip(roots, fit, strict=False)
    ]
    cross = gram @ flat
    found = _allowed(
        [[*inputs, last] for last, _ in output_factors(inputs, gram, cross, (1e-5, RIDGE))], norm
    ) or [slices_start(target, rank)]
    return fit_cp(target, gram, roots, found[0], sweeps=QUICK_COVARIANCE_SWEEPS)


def _allowed(found: list[list[Array]], norm: float) -> list[list[Array]]:
    """The sound ones. The exact start is always among them; why others are left out is logged."""
    sound = []
    for factors in found:
        reason = cancelling(factors, norm)
        if reason is None:
            sound.append(factors)
        else:
            _log.info("a CP fit of rank %d is rejected: %s", factors[0].shape[1], reason)
    return sound


def _fits(
    target: Array, rank: int, starts: Sequence[Callable[[Array, int], list[Array]]]
) -> list[list[Array]]:
    """Decompositions in the plain norm: the exact start, and what ALS makes of each start; with one mode per axis, of the best terms of the merged form.

    On ResNet-20's layers the merged form's terms end lower than those of the separate one.
    """
    start = slices_start(target, rank)
    if rank >= prod(target.shape[1:-1]) * min(target.shape[0], target.shape[-1]):
        return [start]  # exact
    joined = target.reshape(target.shape[0], -1, target.shape[-1])
    found = [als(joined, begin(joined, rank)) for begin in starts]
    if target.ndim == 3:
        return [start, *found]
    merged = min(found, key=lambda factors: float(np.linalg.norm(joined - _multiplied(factors))))
    u, s, vt = np.linalg.svd(merged[1].T.reshape(rank, *target.shape[1:-1]), full_matrices=False)
    return [start, als(target, [merged[0], u[:, :, 0].T * s[:, 0], vt[:, 0].T, merged[2]])]


def _multiplied(factors: Sequence[Array]) -> Array:
    """The tensor (S, k, T) of three factors."""
    shape = [len(factor) for factor in factors]
    return np.asarray((khatri_rao(factors[:-1]) @ factors[-1].T).reshape(shape))
