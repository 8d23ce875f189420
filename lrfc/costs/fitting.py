"""Fit of cost profiles: the costs and tiles that best explain measured ops and networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.costs.features import MATRIX, Tile, table, terms, work
from lrfc.costs.latency import CostProfile, Family, HeldOut, Layout, family_of
from lrfc.costs.workload import Workload
from lrfc.errors import UsageError

#: Tiles that are tried: (rows, columns, depth).
_ROWS, _COLUMNS, _DEPTH = (1, 4, 6, 8, 14), (1, 4, 8, 16, 32), (1, 4, 8, 16)
_TILES: dict[str, list[Tile]] = {
    **{family: list(product(_ROWS, _COLUMNS, _DEPTH)) for family in MATRIX},
    "depthwise": list(product((1, 6), _COLUMNS, (1, 9))),
    "pool": list(product((1,), _COLUMNS, (1,))),
}
_FOLDS = 5

#: One op, or all ops of a network, and the time measured.
Sample = tuple[Workload | Sequence[Workload], float]


def fit(
    samples: Sequence[Sample],
    *,
    layouts: Sequence[Layout] = ((1, 1), (4, 8), (4, 16)),
    **about: Any,
) -> CostProfile:
    """Fit a cost profile to samples; UsageError for too few of them or times that are not positive.

    ``samples``: (op, time) or (all ops of a network, time of an inference); only networks show the
    overhead of an inference. ``about``: the fields of CostProfile that describe the origin of the
    times. The costs minimise the squared relative error and are not negative (Lawson and Hanson
    1974, ch. 23), with outliers weighted down (Huber 1964). The tile of each family and the layout
    minimise the error of the fit and of its cross-validation, which ``held_out`` reports.
    """
    if len(samples) < _FOLDS:
        raise UsageError(
            f"{len(samples)} measurements are too few to fit a cost profile, {_FOLDS} are the least"
        )
    if any(time <= 0 for _, time in samples):
        raise UsageError("a measured time is not positive")
    fits = [
        _Fit(samples, layout) for layout in layouts if layout == (1, 1) or _divides(samples, layout)
    ]
    best = min(fits, key=lambda attempt: attempt.search())
    return best.profile(about)


def _divides(samples: Sequence[Sample], layout: Layout) -> bool:
    """Whether enough samples lie on either side of the alignment to fit both."""
    odd = sum(
        any(family_of(op, layout).endswith(".odd") for op in _network(ops)) for ops, _ in samples
    )
    return 2 * _FOLDS <= odd <= len(samples) - 2 * _FOLDS


def _network(ops: Workload | Sequence[Workload]) -> Sequence[Workload]:
    return (ops,) if isinstance(ops, Workload) else ops


class _Fit:
    """The fit for one layout: the matrix columns of each family and tile, and the tile search."""

    def __init__(self, samples: Sequence[Sample], layout: Layout) -> None:
        self._layout = layout
        self._times = np.array([time for _, time in samples])
        self._whole = np.array([not isinstance(ops, Workload) for ops, _ in samples], np.float64)
        self._places: dict[str, list[int]] = {}
        works: dict[str, list[Any]] = {}
        for row, (ops, _) in enumerate(samples):
            for op in _network(ops):
                family = family_of(op, layout)
                self._places.setdefault(family, []).append(row)
                works.setdefault(family, []).append(work(op))
        self._tables = {family: table(features) for family, features in works.items()}
        self._columns: dict[tuple[str, Tile], tuple[list[str], NDArray[np.float64]]] = {}
        self.tiles: dict[str, Tile] = dict.fromkeys(sorted(works), (1, 1, 1))

    def search(self) -> float:
        """Choose the tile of each family by the error of a fit to all samples.

        Returns the mean relative error in cross-validation.
        """
        best = self._loss()
        for _ in range(2):
            before = dict(self.tiles)
            for family in self.tiles:
                for tile in _TILES.get(family.partition(".")[0], ()):
                    previous, self.tiles[family] = self.tiles[family], tile
                    now = self._loss()
                    if now < best * (1 - 1e-3):
                        best = now
                    else:
                        self.tiles[family] = previous
            if self.tiles == before:
                break
        return float(self._errors().mean())

    def profile(self, about: dict[str, Any]) -> CostProfile:
        """The profile with the chosen tiles."""
        names, matrix = self._matrix()
        costs = self._solve(matrix, self._times)
        families = {}
        for family, tile in self.tiles.items():
            costs_by_term = {
                term: float(cost)
                for (name, term), cost in zip(names, costs, strict=True)
                if name == family and cost > 0
            }
            families[family] = Family(tile=tile, costs=costs_by_term)
        return CostProfile(
            overhead=float(costs[0]) if names[0] == ("", "network") else 0.0,
            layout=self._layout,
            families=families,
            held_out=self._held_out(),
            **about,
        )

    def _matrix(self) -> tuple[list[tuple[str, str]], NDArray[np.float64]]:
        names: list[tuple[str, str]] = []
        columns = []
        if self._whole.any():
            names.append(("", "network"))
            columns.append(self._whole[:, None])
        for family, tile in self.tiles.items():
            term_names, values = self._family(family, tile)
            names += [(family, term) for term in term_names]
            columns.append(values)
        return names, np.concatenate(columns, axis=1)

    def _family(self, family: str, tile: Tile) -> tuple[list[str], NDArray[np.float64]]:
        if (family, tile) not in self._columns:
            values = terms(
                family.partition(".")[0], self._tables[family], tile, by_row=self._layout != (1, 1)
            )
            sums = np.zeros((len(self._times), len(values)))
            np.add.at(sums, self._places[family], np.stack(list(values.values()), axis=1))
            self._columns[family, tile] = list(values), sums
        return self._columns[family, tile]

    @staticmethod
    def _solve(
        matrix: NDArray[np.float64], times: NDArray[np.float64], passes: int = 4
    ) -> NDArray[np.float64]:
        """The costs; each pass after the first gives outliers of the last one less weight."""
        from scipy.optimize import nnls

        relative = matrix / times[:, None]
        scale = np.linalg.norm(relative, axis=0)
        scale[scale == 0] = 1.0
        relative = relative / scale
        weights = np.ones(len(times))
        for _ in range(passes):
            costs = nnls(relative * weights[:, None], weights)[0]
            misses = np.abs(relative @ costs - 1)
            weights = np.sqrt(
                np.minimum(
                    1.0, 1.5 * max(float(np.median(misses)), 1e-6) / np.maximum(misses, 1e-12)
                )
            )
        unscaled: NDArray[np.float64] = costs / scale
        return unscaled

    def _loss(self) -> float:
        """The mean relative error of a fit with these tiles, which is robust to outliers."""
        _, matrix = self._matrix()
        return float(
            np.abs(matrix @ self._solve(matrix, self._times, passes=2) / self._times - 1).mean()
        )

    def _errors(self) -> NDArray[np.float64]:
        """The relative error of each sample in cross-validation."""
        _, matrix = self._matrix()
        errors = np.zeros(len(self._times))
        order = np.random.default_rng(0).permutation(len(self._times))
        for fold in range(_FOLDS):
            out = order[fold::_FOLDS]
            rest = np.setdiff1d(order, out)
            costs = self._solve(matrix[rest], self._times[rest])
            errors[out] = np.abs(matrix[out] @ costs / self._times[out] - 1)
        return errors

    def _held_out(self) -> dict[str, HeldOut]:
        """Errors by the family with most of a sample's time, and of the networks together."""
        errors = self._errors()
        names, matrix = self._matrix()
        shares = matrix * self._solve(matrix, self._times)
        totals = {
            family: (
                shares[:, [i for i, (name, _) in enumerate(names) if name == family]].sum(axis=1)
            )
            for family in self.tiles
        }
        main = np.array(list(totals))[np.argmax(np.stack(list(totals.values())), axis=0)]
        groups = {family: errors[main == family] for family in totals} | {
            "networks": errors[self._whole > 0]
        }
        return {
            name: HeldOut(n=len(e), mean=float(e.mean()), p90=float(np.percentile(e, 90)))
            for name, e in groups.items()
            if len(e)
        }
