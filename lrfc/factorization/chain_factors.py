"""The factors of a chain of stages at every rank."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrfc.factorization import embedding
from lrfc.factorization.base import Ranks, Statistics
from lrfc.factorization.choice import cost_of
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
    ordered_grams,
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


def bonds(layout: Layout, split: Split) -> Ranks:
    """The full rank of every bond, its smaller side: min(S·k_1···k_j, k_{j+1}···k_n·T)."""
    sizes = layout.sizes(split)
    return tuple(
        min(layout.inputs * prod(sizes[:j]), prod(sizes[j:]) * layout.outputs)
        for j in range(1, len(sizes))
    )


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
            cores = canonical(self._cores(ranks))
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
        if len(self.split) == 2 and self._nesting_pays(ranks):
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

    @cached_property
    def _dtype(self) -> DTypeLike:
        """The precision of the decomposition: single for large layers, twice as fast."""
        return np.float32 if self.layout.patch > SMALL else np.float64

    def _grams(self) -> Array | LowRank | None:
        """The second moments (G, D, D) in the chain's order, (S, k...)."""
        if self.layout.family == "embedding":
            return embedding.gram(self.layout.op, self.statistics)
        if self.statistics is None:
            return None
        rows = isinstance(self.statistics.covariance, LowRank)
        if rows and self.layout.patch == self.layout.inputs:
            return input_rows(self.layout, self.statistics)  # never needed as a whole
        if self.layout.family == "transposed":
            return input_grams(self.layout, self.statistics)
        return ordered_grams(self.layout, self.statistics, self._order[:-1], self._dtype)

    @cached_property
    def _pixel_root(self) -> Array:
        # A transposed convolution multiplies each input pixel by every tap: the pixel's covariance
        # acts on the input channels alone, exactly.
        grams = self._grams()
        assert grams is not None
        return cholesky(grams.dense()[None] if isinstance(grams, LowRank) else grams)

    @cached_property
    def _unfoldings(self) -> tuple[Unfolding, ...]:
        """The alternative unfoldings of all groups."""
        layout, grams = self.layout, self._grams()
        rows = isinstance(grams, LowRank)
        self._check_memory(dense=grams is not None and not rows)
        sizes = (layout.inputs, *layout.sizes(self._placed), layout.outputs)
        kernel = layout.tensor(self._dtype)
        if not np.all(self.scale == 1):
            scale = self.scale.astype(self._dtype).reshape(layout.groups, layout.outputs)
            kernel = kernel * scale.reshape(layout.groups, *[1] * (kernel.ndim - 2), -1)
        target = kernel.transpose(0, *(1 + axis for axis in self._order))
        target = target.reshape(layout.groups, *sizes)
        usual = self._usual
        if grams is None:
            return (Unfolding(target, usual=usual),)
        if layout.family == "transposed":
            white = self._pixel_root.mT @ target.reshape(*target.shape[:2], -1)
            return (Unfolding(white.reshape(target.shape), usual=usual),)
        whitened = Unfolding(target, grams, usual=usual)
        # With output channels only behind the first bond the solution is exact, and another basis
        # is of no use.
        if layout.patch > BOTH_BASES or prod(sizes[2:-1]) == 1:
            return (whitened,)
        return whitened, Unfolding(target, grams, whitened=False, usual=usual)

    @property
    def _usual(self) -> Ranks:
        """For each bond, the largest rank at which the chain can be cheaper than the layer."""
        layout = self.layout
        whole = cost_of(layout.op, layout.source)
        full = bonds(layout, self.split)

        def wasteful(rank: int, bond: int) -> bool:
            ranks = tuple(rank if j == bond else 1 for j in range(len(full)))
            cost = layout.cost(self.split, ranks)
            return cost.params >= whole.params and cost.macs >= whole.macs

        return tuple(
            max(1, bisect_left(range(1, most + 1), True, key=partial(wasteful, bond=bond)))
            for bond, most in enumerate(full)
        )

    def _check_memory(self, *, dense: bool) -> None:
        """Raise ModelError when the decomposition exceeds the memory limit."""
        layout, largest = self.layout, max(bonds(self.layout, self.split))
        shapes = [(layout.patch, layout.outputs)] * 3 + [(largest, largest)] * 3
        if dense:
            shapes += [(layout.patch, layout.patch)] * 4
        need(
            layout.op.name,
            f"its decomposition at {layout.patch} inputs and {layout.outputs} outputs",
            *shapes,
        )

    def _best(self, ranks: Ranks, of: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
        """The arrays (G, ...) of the unfolding with the least error, for each group.

        ``of`` returns those of all groups for the number of an unfolding.
        """
        if len(self._unfoldings) == 1:
            return of(0)
        losses = np.stack([unfolding.loss(ranks) for unfolding in self._unfoldings])
        choice = losses.argmin(0)
        first, *others = sorted(set(choice.tolist()))
        best = of(first)
        for other in others:
            chosen = (choice == other).reshape(-1, *[1] * (best.ndim - 1))
            best = np.where(chosen, of(other), best)
        return best

    def _cores(self, ranks: Ranks) -> list[Array]:
        """The cores (G, r_in, taps, r_out) at those ranks."""
        layout = self.layout
        nested = [unfolding.cores(ranks) for unfolding in self._unfoldings]
        stages = zip(*nested, strict=True)
        best = [self._best(ranks, alternatives.__getitem__) for alternatives in stages]
        cores = self.improved(self._unfoldings, best, ranks)
        if self.statistics is not None and layout.family == "transposed":
            cores[0] = solve_lower(
                self._pixel_root, cores[0].reshape(1, layout.inputs, -1), transposed=True
            ).reshape(cores[0].shape)
        cores[-1] = (cores[-1] / self.scale.reshape(layout.groups, 1, 1, layout.outputs)).astype(
            cores[-1].dtype, copy=False
        )
        return cores

    def _tensor(self, cores: Sequence[Array]) -> Array:
        return tensor_of(self.layout, self._order, cores)

    def _tensor_at(self, ranks: Ranks) -> Array:
        return self._tensor(self._cores(ranks))

    def _nesting_pays(self, ranks: Sequence[Ranks]) -> bool:
        """Whether ``_nested`` takes fewer MACs for each row than the kernels at those ranks.

        It never does for the groups of depthwise convolutions.
        """
        layout = self.layout
        if layout.family == "transposed":
            return False
        width = max((choice[0] for choice in ranks), default=1)
        features = width * prod(layout.sizes(self._placed)[1:])
        nested = layout.patch * width + features**2 + features * layout.outputs
        return nested < len(ranks) * layout.patch * layout.outputs

    def _nested(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses of two stages, by partial sums over the components of their bond."""
        sums: dict[int, _Sum] = {}
        most = max((choice[0] for choice in ranks), default=1)

        def part(ranks: Ranks, number: int) -> Array:
            if number not in sums:
                rows = self._rows(patches, self._dtype)
                features = self._unfoldings[number].features(
                    rows.reshape(*rows.shape[:2], -1), most
                )
                sums[number] = _Sum(*features)
            return sums[number].at(ranks[0])

        return self._with_bias(ranks, part)

    def _doubly_nested(
        self, patches: NDArray[np.float32], ranks: Sequence[Ranks]
    ) -> Iterator[NDArray[np.float32]]:
        """Responses of a 1×1 stage and two more.

        The first stage's features at the largest rank hold those of all ranks. For each rank of the
        first stage, the second's do so too.
        """
        first: dict[int, NDArray[Any]] = {}
        second: dict[int, tuple[Ranks, NDArray[Any], NDArray[Any]]] = {}
        most = tuple(max(choice[j] for choice in ranks) for j in range(2)) if ranks else (1, 1)

        def part(ranks: Ranks, number: int) -> NDArray[Any]:
            unfolding = self._unfoldings[number]
            if number not in first:
                rows = self._rows(patches, np.float32)
                rows = rows.reshape(*rows.shape[:2], self.layout.inputs, -1)
                core = unfolding.node((), most[0]).core.astype(np.float32)
                first[number] = _contracted(rows, core)  # (G, N, R, taps)
            width = min(ranks[0], first[number].shape[2])
            if number not in second or second[number][0] != (width,):
                if self.layout.patch > SMALL:
                    for alternative in self._unfoldings:
                        alternative.forget_but((width,))
                node = unfolding.node((width,), most[1])
                features = first[number][:, :, :width]
                second[number] = (
                    (width,),
                    features.reshape(*features.shape[:2], -1) @ node.core.astype(np.float32),
                    node.outputs.astype(np.float32),
                )
            _, features, outputs = second[number]
            return np.asarray(features[..., : ranks[1]] @ outputs[:, : ranks[1]])

        return self._with_bias(ranks, part)

    def _with_bias(
        self, ranks: Sequence[Ranks], part: Callable[[Ranks, int], NDArray[Any]]
    ) -> Iterator[NDArray[np.float32]]:
        """The responses of all groups, with the bias.

        ``part`` returns those (G, N, T) at some ranks of the unfolding of that number.
        Where the bias absorbs the mean error, the last row of a part is the response to the mean.
        """
        for choice in ranks:
            best = self._best(choice, partial(part, choice))
            response = best.swapaxes(0, 1).reshape(best.shape[1], -1)
            response = response / self.scale.astype(response.dtype)
            if self._absorbs:
                yield add_bias(self.layout, response[:-1], self._mean_response - response[-1])
            else:
                yield add_bias(self.layout, response, None)

    @cached_property
    def _absorbs(self) -> bool:
        """Whether the layer's bias absorbs the mean error."""
        return self.statistics is not None and mean_absorbed(self.layout, self.statistics)

    def _rows(self, patches: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
        """The patches in the chain's order, (G, N, S, k...).

        Where the bias absorbs the mean error, the mean is the last row.
        """
        layout, rows = self.layout, patches.swapaxes(0, 1).astype(dtype)
        if self._absorbs and self.statistics is not None and self.statistics.mean is not None:
            mean = self.statistics.mean[:, None].astype(dtype)
            rows = np.concatenate([rows, mean], axis=1)
        rows = rows.reshape(*rows.shape[:2], *layout.kernel, layout.inputs)
        return rows.transpose(0, 1, *(2 + axis for axis in self._order[:-1]))

    @cached_property
    def _mean_response(self) -> Array:
        assert self.statistics is not None
        return mean_response(self.layout, self.statistics)


def _contracted(rows: NDArray[Any], core: NDArray[Any]) -> NDArray[Any]:
    """The features (G, N, R, taps) of rows (G, N, S, taps) by a core (G, S, R)."""
    groups, count, inputs, taps = rows.shape
    flat = rows.swapaxes(2, 3).reshape(groups, count * taps, inputs)
    return np.asarray((flat @ core).reshape(groups, count, taps, -1).swapaxes(2, 3))


class _Sum:
    """Partial sums of features (G, N, n·taps) times outputs (G, n·taps, T), by component."""

    def __init__(self, features: Array, outputs: Array, taps: int) -> None:
        self._features, self._outputs, self._taps = features, outputs, taps
        self._done = 0
        self._sum = np.zeros((*features.shape[:2], outputs.shape[2]), features.dtype)

    def at(self, rank: int) -> Array:
        """The sum over the first ``rank`` components."""
        size = min(rank * self._taps, self._outputs.shape[1])
        if size < self._done:
            self._done, self._sum = 0, np.zeros_like(self._sum)
        span = slice(self._done, size)
        self._sum = self._sum + self._features[..., span] @ self._outputs[:, span]
        self._done = size
        return self._sum
