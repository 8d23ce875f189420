"""The factors of a chain of stages at every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrfc.factorization.base import Ranks, Statistics
from lrfc.factorization.layout import Layout, Split
from lrfc.factorization.linalg import Array, LowRank, canonical, cholesky, need, solve_lower
from lrfc.factorization.norms import (
    add_bias,
    dense_responses,
    input_grams,
    input_rows,
    mean_absorbed,
    mean_response,
    mean_shift,
    tensor_of,
)
from lrfc.factorization.stages import finish, stage
from lrfc.factorization.threads import SMALL, on_threads, threads
from lrfc.factorization.unfold import Unfolding
from lrfc.ir.op import Op

#: Up to this patch length the bases of the plain TT-SVD are tried as well as the whitened ones: the
#: second attempt costs as much as the first.
BOTH_BASES = 2500


def roles(layout: Layout, split: Split) -> list[str | None]:
    """The role of each stage; None for the last one, which has the layer's name."""

    def role(axes: tuple[int, ...]) -> str:
        if not axes:
            return "in"
        return "kernel" if axes == layout.wide else f"axis{''.join(map(str, axes))}"

    return [*map(role, split[:-1]), None]


@dataclass(frozen=True, eq=False)
class ChainFactors:
    """The chain at every rank. ``scale`` is (G·T,) and positive.

    ``responses`` are the outputs of ``stages``, refits included.
    """

    layout: Layout
    split: Split
    scale: Array
    statistics: Statistics | None
    improved: Callable[[Sequence[Unfolding], list[Array], Ranks], list[Array]]

    def stages(self, ranks: Ranks) -> list[Op]:
        """The factor layers; see ``Factors``."""
        with threads(self.layout):
            cores = self._cores(ranks)
            balanced = [
                canonical([core[group] for core in cores]) for group in range(self.layout.groups)
            ]
        cores = [np.stack(groups) for groups in zip(*balanced, strict=True)]
        chain = [
            stage(self.layout, role, axes, core)
            for role, axes, core in zip(self._roles, self._placed, cores, strict=True)
        ]
        return [
            *chain[:-1],
            finish(
                self.layout,
                chain[-1],
                mean_shift(self.layout, self.statistics, self._tensor(cores)),
            ),
        ]

    def kernel(self, ranks: Ranks) -> NDArray[np.float32]:
        """The dense kernel that the stages multiply out to, in the layer's own layout."""
        with threads(self.layout):
            return self.layout.layer_kernel(self._tensor_at(ranks))

    def responses(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """The stages' outputs for patches (N, G, D); see ``Factors``.

        Those of a transposed convolution are its scatter contributions, without the bias.
        """
        if len(self.split) == 2 and self.layout.family != "transposed":
            return on_threads(self.layout, self._nested(patches, ranks))
        return on_threads(
            self.layout,
            dense_responses(self.layout, self._tensor_at, self.statistics, patches, ranks),
        )

    def estimates(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses of the nested cores, which are not improved at each choice of ranks."""
        if len(self.split) == 3 and not self._placed[0] and self.layout.family != "transposed":
            return on_threads(self.layout, self._doubly_nested(patches, ranks))
        if len(self.split) == 2:  # never improved: the decomposition can be used again
            return self.responses(patches, ranks)
        nested = replace(self, improved=lambda unfoldings, cores, ranks: cores)
        return nested.responses(patches, ranks)

    # -- factors -----------------------------------------------------------------------------------

    @cached_property
    def _placed(self) -> Split:
        return self.layout.place(self.split)

    @cached_property
    def _roles(self) -> list[str | None]:
        return roles(self.layout, self.split)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The kernel tensor's axes (k..., S, T) in the chain's order: S, those of the stages, T."""
        rank = len(self.layout.kernel)
        return (rank, *(axis for axes in self._placed for axis in axes), rank + 1)

    def _grams(self) -> Sequence[Array | LowRank] | None:
        if self.statistics is None:
            return None
        rows = isinstance(self.statistics.covariance, LowRank)
        if rows and self.layout.patch == self.layout.inputs:
            # With one tap it is never needed as a whole.
            return [input_rows(self.layout, self.statistics)]
        return list(input_grams(self.layout, self.statistics))

    @cached_property
    def _pixel_root(self) -> Array:
        # A transposed convolution multiplies each input pixel by every tap: the pixel's covariance
        # acts on the input channels alone, exactly.
        grams = self._grams()
        assert grams is not None
        gram = grams[0]
        return cholesky(gram.dense() if isinstance(gram, LowRank) else gram)

    @cached_property
    def _unfoldings(self) -> list[tuple[Unfolding, ...]]:
        """The alternative unfoldings of each group."""
        # The Gram matrices are not stored: each unfolding has its own, in the chain's order.
        layout, grams = self.layout, self._grams()
        # A layer whose covariance is stored by rows would have a gigabyte of weights in float64.
        rows = grams is not None and isinstance(grams[0], LowRank)
        self._check_memory(dense=grams is not None and not rows)
        scale = self.scale.reshape(layout.groups, layout.outputs)
        sizes = (layout.inputs, *layout.sizes(self._placed), layout.outputs)
        # With output channels only behind the first bond the solution is exact, and another basis
        # is of no use.
        both = layout.patch <= BOTH_BASES and prod(sizes[2:-1]) > 1
        alternatives: list[tuple[Unfolding, ...]] = []
        for group, kernel in enumerate(layout.tensor(np.float32 if rows else np.float64)):
            weighted = (
                kernel
                if np.all(scale[group] == 1)
                else (kernel * scale[group]).astype(kernel.dtype, copy=False)
            )
            target = weighted.transpose(self._order).reshape(sizes)
            if grams is None:
                alternatives.append((Unfolding(target),))
            elif layout.family == "transposed":
                alternatives.append((Unfolding(np.tensordot(self._pixel_root.T, target, 1)),))
            else:
                gram = self._reordered(grams[group])
                whitened = Unfolding(target, gram)
                plain = (Unfolding(target, gram, whitened=False),) if both else ()
                alternatives.append((whitened, *plain))
        return alternatives

    def _check_memory(self, *, dense: bool) -> None:
        """Raise ModelError when the decomposition exceeds the memory limit."""
        layout = self.layout
        sizes = layout.sizes(self._placed)
        bonds = [
            min(layout.inputs * prod(sizes[:j]), prod(sizes[j:]) * layout.outputs)
            for j in range(1, len(sizes))
        ]
        shapes = [(layout.patch, layout.outputs)] * 3 + [(max(bonds), max(bonds))] * 3
        if dense:
            shapes += [(layout.patch, layout.patch)] * 4
        need(
            layout.op.name,
            f"its decomposition at {layout.patch} inputs and {layout.outputs} outputs",
            *shapes,
        )

    def _reordered(self, gram: Array | LowRank) -> Array | LowRank:
        """A Gram matrix over (k..., S), with its axes (S, k...) in the chain's order."""
        if isinstance(gram, LowRank):
            return gram
        shape = (*self.layout.kernel, self.layout.inputs)
        order = self._order[:-1]
        return (
            gram.reshape(shape + shape)
            .transpose(*order, *(len(shape) + axis for axis in order))
            .reshape(gram.shape)
        )

    def _choice(self, group: int, ranks: Ranks) -> int:
        """The number of the unfolding with the least error."""
        unfoldings = self._unfoldings[group]
        if len(unfoldings) == 1:
            return 0
        return int(np.argmin([unfolding.loss(ranks) for unfolding in unfoldings]))

    def _cores(self, ranks: Ranks) -> list[Array]:
        """The cores (G, r_in, taps, r_out) at those ranks."""
        layout = self.layout
        groups = [
            self.improved(unfoldings, unfoldings[self._choice(group, ranks)].cores(ranks), ranks)
            for group, unfoldings in enumerate(self._unfoldings)
        ]
        cores = [np.stack(stages) for stages in zip(*groups, strict=True)]
        if self.statistics is not None and layout.family == "transposed":
            cores[0] = solve_lower(
                self._pixel_root, cores[0].reshape(layout.inputs, -1), transposed=True
            ).reshape(cores[0].shape)
        cores[-1] = (cores[-1] / self.scale.reshape(layout.groups, 1, 1, layout.outputs)).astype(
            cores[-1].dtype, copy=False
        )
        return cores

    def _tensor(self, cores: Sequence[Array]) -> Array:
        return tensor_of(self.layout, self._order, cores)

    def _tensor_at(self, ranks: Ranks) -> Array:
        return self._tensor(self._cores(ranks))

    def _nested(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses of two stages, by partial sums over the components of their bond."""
        sums: dict[tuple[int, int], _Sum] = {}

        def part(group: int, ranks: Ranks) -> Array:
            key = (group, self._choice(group, ranks))
            if key not in sums:
                unfolding = self._unfoldings[group][key[1]]
                rows = self._rows(patches, group, unfolding.target.dtype)
                sums[key] = _Sum(*unfolding.features(rows.reshape(len(rows), -1)))
            return sums[key].at(ranks[0])

        return self._with_bias(ranks, part)

    def _doubly_nested(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses of a 1×1 stage and two more.

        The first stage's features at the largest rank hold those of all ranks. For each rank of the
        first stage, the second's do so too.
        """
        first: dict[tuple[int, int], NDArray[Any]] = {}
        second: dict[tuple[int, int], tuple[int, NDArray[Any], NDArray[Any]]] = {}

        def part(group: int, ranks: Ranks) -> NDArray[Any]:
            choice = self._choice(group, ranks)
            unfolding = self._unfoldings[group][choice]
            if (group, choice) not in first:
                rows = self._rows(patches, group, np.float32).reshape(
                    len(patches) + self._absorbs, self.layout.inputs, -1
                )
                first[group, choice] = np.tensordot(
                    unfolding.node(()).core.astype(np.float32), rows, (0, 1)
                )  # (R, N, taps)
            width = min(ranks[0], len(first[group, choice]))
            if (group, choice) not in second or second[group, choice][0] != width:
                if self.layout.patch > SMALL:
                    for alternative in self._unfoldings[group]:
                        alternative.forget_but((width,))
                node = unfolding.node((width,))
                features = np.moveaxis(first[group, choice][:width], 0, 1)
                second[group, choice] = (
                    width,
                    features.reshape(len(features), -1) @ node.core.astype(np.float32),
                    node.outputs.astype(np.float32),
                )
            _, features, outputs = second[group, choice]
            return np.asarray(features[:, : ranks[1]] @ outputs[: ranks[1]])

        return self._with_bias(ranks, part)

    def _with_bias(
        self, ranks: Sequence[Ranks], part: Callable[[int, Ranks], NDArray[Any]]
    ) -> Iterator[NDArray[np.float32]]:
        """The responses of all groups, with the bias.

        Where the bias absorbs the mean error, the last row of a part is the response to the mean.
        """
        scale = self.scale.astype(np.float32)
        for choice in ranks:
            parts = [part(group, choice) for group in range(self.layout.groups)]
            response = np.concatenate(parts, axis=1) / (
                scale if parts[0].dtype == np.float32 else self.scale
            )
            if self._absorbs:
                yield add_bias(self.layout, response[:-1], self._mean_response - response[-1])
            else:
                yield add_bias(self.layout, response, None)

    @cached_property
    def _absorbs(self) -> bool:
        """Whether the layer's bias absorbs the mean error."""
        return self.statistics is not None and mean_absorbed(self.layout, self.statistics)

    def _rows(self, patches: NDArray[np.float32], group: int, dtype: DTypeLike) -> NDArray[Any]:
        """The patches of a group in the chain's order, (N, S, k...).

        Where the bias absorbs the mean error, the mean is the last row.
        """
        layout, rows = self.layout, patches[:, group].astype(dtype)
        if self._absorbs and self.statistics is not None and self.statistics.mean is not None:
            rows = np.concatenate([rows, self.statistics.mean[group][None].astype(dtype)])
        return rows.reshape(-1, *layout.kernel, layout.inputs).transpose(
            0, *(1 + axis for axis in self._order[:-1])
        )

    @cached_property
    def _mean_response(self) -> Array:
        assert self.statistics is not None
        return mean_response(self.layout, self.statistics)


class _Sum:
    """Partial sums of features (N, n·taps) times outputs (n·taps, T), component by component."""

    def __init__(self, features: Array, outputs: Array, taps: int) -> None:
        self._features, self._outputs, self._taps = features, outputs, taps
        self._done = 0
        self._sum = np.zeros((len(features), outputs.shape[1]))

    def at(self, rank: int) -> Array:
        """The sum over the first ``rank`` components."""
        size = min(rank * self._taps, len(self._outputs))
        if size < self._done:
            self._done, self._sum = 0, np.zeros_like(self._sum)
        self._sum = (
            self._sum + self._features[:, self._done : size] @ self._outputs[self._done : size]
        )
        self._done = size
        return self._sum
